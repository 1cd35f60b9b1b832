"""Workflow tasks: handed out by matching, answered by workers, timed out."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from temporalio.api.enums.v1 import TaskQueueKind
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import WorkflowExecutionStartedEventAttributes
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskFailedRequest,
)

from perdure import errors, tokens, wire
from perdure.clock import from_duration
from perdure.config import dynamic
from perdure.errors import ServiceError
from perdure.history.api import Poller
from perdure.history.core import completion as commands
from perdure.history.core import lifecycle, updates, workflow_tasks
from perdure.history.core.completion import BadCommand, Completion
from perdure.history.core.state import State, WorkflowTask
from perdure.history.core.tasks import DispatchWorkflowTask, FirstWorkflowTask, TimeoutKind, WorkflowTaskTimeout
from perdure.history.core.txn import Txn
from perdure.history.executors import executes
from perdure.history.replies import workflow_task_reply
from perdure.history.shard import RunContext, Shard
from perdure.matching.api import NoPoller, TaskRef
from perdure.tokens import WorkflowTaskToken

if TYPE_CHECKING:
    from perdure.history.engine import HistoryService

log = logging.getLogger("perdure.history")

_MESSAGES_FIELD = 15


# --- on its way to a worker ---


@executes(DispatchWorkflowTask)
async def dispatch(engine: HistoryService, shard: Shard, task: DispatchWorkflowTask) -> None:
    key = (task.namespace_id, task.workflow_id, task.run_id)
    context = shard.cached(key)
    if context is not None and context.state is not None:
        pending = context.state.run.workflow_task
        if pending is None or pending.scheduled_event_id != task.scheduled_event_id or pending.started_event_id:
            return
    reference = TaskRef(*key, task.scheduled_event_id, 0, shard.clock.now())
    normal = task.task_queue
    if task.sticky:
        try:
            async with shard.run(*key) as context:
                normal = context.loaded.info.task_queue
        except ServiceError as e:
            if e.code == errors.Code.NOT_FOUND:
                return
            raise
        sticky = TaskQueue(name=task.task_queue, kind=TaskQueueKind.TASK_QUEUE_KIND_STICKY, normal_name=normal)
        try:
            await engine.matching.add_workflow_task(sticky, reference)
            return
        except NoPoller:
            pass  # its worker is gone: any worker may have it
    await engine.matching.add_workflow_task(
        TaskQueue(name=normal, kind=TaskQueueKind.TASK_QUEUE_KIND_NORMAL), reference
    )


async def record_started(engine: HistoryService, shard: Shard, task: TaskRef, poller: Poller) -> bytes:
    """Matching hands the task to a worker. See HistoryClient.record_workflow_task_started."""
    async with shard.run(task.namespace_id, task.workflow_id, task.run_id) as context:
        state = context.loaded
        pending = state.run.workflow_task
        if not state.open or pending is None or pending.scheduled_event_id != task.scheduled_event_id:
            raise errors.not_found("Workflow task not found.")
        sticky = bool(poller.sticky_queue) and poller.sticky_queue == state.run.sticky_queue
        if pending.started_event_id:
            if pending.request_id != poller.request_id:
                raise ServiceError(errors.Code.ALREADY_EXISTS, "Workflow task already started.")
            return await started_reply(engine, shard, context, pending, sticky)
        txn = shard.begin(context)
        if pending.speculative and not updates.to_send(context.memory):
            workflow_tasks.discard_speculative(txn)
            await shard.commit(context, txn)
            engine.queries.task_gone(context)
            raise errors.not_found("No messages for speculative workflow task.")
        too_many_updates = updates.too_many(state, context.memory, txn.env)
        started = workflow_tasks.start(txn, poller.request_id, poller.identity, too_many_updates)
        await shard.commit(context, txn)
        if started.transient:
            _tell_of_many_attempts(txn, started)
        return await started_reply(engine, shard, context, started, sticky)


def _tell_of_many_attempts(txn: Txn, task: WorkflowTask) -> None:
    info, env = txn.state.info, txn.env
    if task.attempt >= env.config.get(dynamic.WORKFLOW_TASK_CRITICAL_ATTEMPT, env.namespace):
        log.warning(
            "workflow task of %s keeps failing: attempt %d, namespace %s workflow %s run %s",
            info.workflow_type,
            task.attempt,
            env.namespace,
            info.workflow_id,
            info.run_id,
        )


async def started_reply(
    engine: HistoryService,
    shard: Shard,
    context: RunContext,
    task: WorkflowTask,
    sticky: bool,
    *,
    heartbeat: bool = False,
) -> bytes:
    """The poll's reply for the started task, with the queries and update messages that go with it."""
    reply = await workflow_task_reply(shard, context, task, sticky)
    if not context.memory:
        return reply
    messages = updates.messages(context.memory, task.started_event_id, again=not heartbeat)
    return b"".join(
        (
            reply,
            *(wire.bytes_field(_MESSAGES_FIELD, m.SerializeToString()) for m in messages),
            *engine.queries.fields(context),
        )
    )


# --- the answer ---


def _answered_task(state: State, token: WorkflowTaskToken) -> WorkflowTask:
    """The started task that the token is of. Raises ServiceError NOT_FOUND."""
    task = state.run.workflow_task
    if (
        not state.open
        or task is None
        or not task.started_event_id
        or task.scheduled_event_id != token.scheduled_event_id
        or task.started_event_id != token.started_event_id
        or task.attempt != token.attempt
        or task.started_time != token.started_time
    ):
        raise errors.not_found("Workflow task not found.")
    return task


async def respond_completed(
    engine: HistoryService, namespace_id: str, request: RespondWorkflowTaskCompletedRequest
) -> bytes:
    token = tokens.decode(request.task_token, WorkflowTaskToken)
    if token.namespace_id != namespace_id:
        raise errors.invalid_argument("Task token is of another namespace.")
    shard = engine.shard(namespace_id, token.workflow_id)
    async with shard.run(namespace_id, token.workflow_id, token.run_id) as context:
        state = context.loaded
        task = _answered_task(state, token)
        speculative = task.speculative
        started = None
        txn = shard.begin(context)
        if commands.needs_started(txn, request.commands):
            first = await shard.event(context, 1)
            started = first.workflow_execution_started_event_attributes
        bad: BadCommand | None = None
        answer: _Answer | None = None
        try:
            answer = _apply(engine, context, txn, task, request, started)
        except BadCommand as e:
            bad = e
        except BaseException:
            shard.abandon(context, txn)
            raise
        if bad is not None:
            live = updates.registry(context.memory)
            if live is not None:
                live.answer_refused()
            shard.abandon(context, txn)
            if token.attempt > 1 and bad.cause != Cause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND:
                # It keeps failing: its timeout retries it, which is slower than an answer would be.
                raise errors.invalid_argument(bad.message)
            await _fail_answer(shard, context, token, task, request, bad, speculative)
            raise errors.invalid_argument(bad.message)
        assert answer is not None
        await shard.commit(context, txn)
        engine.queries.completed(context, request)
        return await _reply(engine, shard, context, request, answer)


class _Answer:
    """What the reply tells: the workflow task that the worker goes on with, activities it starts at once."""

    __slots__ = ("eager", "new_task", "reset_event_id")

    def __init__(self) -> None:
        self.new_task: WorkflowTask | None = None
        self.eager: list[int] = []
        self.reset_event_id = 0


def _apply(
    engine: HistoryService,
    context: RunContext,
    txn: Txn,
    task: WorkflowTask,
    request: RespondWorkflowTaskCompletedRequest,
    started: WorkflowExecutionStartedEventAttributes | None,
) -> _Answer:
    """The core's part of an answer. Raises BadCommand; then, or on any other error, the step is to be thrown away."""
    state = txn.state
    run = state.run
    answer = _Answer()
    txn.dirty = True
    heartbeat = request.force_create_new_workflow_task and not request.commands and not request.messages
    heartbeat_expired = heartbeat and txn.now > task.original_scheduled_time + txn.env.config.get(
        dynamic.WORKFLOW_TASK_HEARTBEAT_TIMEOUT, txn.env.namespace
    )
    had_buffered = run.buffered_count > 0
    if heartbeat_expired:
        workflow_tasks.time_out(txn, TimeoutKind.START_TO_CLOSE)
        workflow_tasks.clear_sticky(txn)
        workflow_tasks.schedule(txn)
        return answer
    started_event_id = task.started_event_id
    if task.speculative and updates.discardable(txn, request):
        answer.reset_event_id = run.last_started_event_id
        workflow_tasks.discard_speculative(txn)
        txn.dirty = False
        completed_event_id = 0
    else:
        completed_event_id = workflow_tasks.complete(txn, task, request).event_id
    sticky = request.sticky_attributes
    if sticky.worker_task_queue.name:
        run.sticky_queue = sticky.worker_task_queue.name
        run.sticky_timeout = from_duration(sticky.schedule_to_start_timeout)
    else:
        run.sticky_queue = ""
        run.sticky_timeout = 0
    work = Completion(txn, request, completed_event_id, started, had_buffered)
    update_answer = None
    if request.messages or context.memory or run.updates_admitted:
        update_answer = work.updates = updates.Answer(context.memory, work, request.messages)
    commands.run_commands(work, request.commands)
    if update_answer is not None:
        update_answer.finish(started_event_id, heartbeat=request.force_create_new_workflow_task)
    answer.eager = work.eager
    if not state.open:
        return answer
    wanted = request.force_create_new_workflow_task or work.had_buffered or work.needs_workflow_task
    new_updates = update_answer is not None and update_answer.waiting()
    if run.workflow_task is None and (wanted or run.buffered_count or new_updates):
        inline = request.return_new_workflow_task
        workflow_tasks.schedule(
            txn,
            dispatch=not inline,
            original_scheduled_time=task.original_scheduled_time if heartbeat else 0,
            speculative=new_updates and inline and not wanted,
        )
        if inline:
            answer.new_task = workflow_tasks.start(
                txn, txn.env.new_id(), request.identity, updates.too_many(state, context.memory, txn.env)
            )
    return answer


async def _fail_answer(
    shard: Shard,
    context: RunContext,
    token: WorkflowTaskToken,
    task: WorkflowTask,
    request: RespondWorkflowTaskCompletedRequest,
    bad: BadCommand,
    speculative: bool,
) -> None:
    """The answer cannot be accepted: the task fails instead, on the state as it was before."""
    await shard.load(context)
    state = context.loaded
    if speculative:
        state.run.workflow_task = task  # it was in memory only
        task.scheduled_event_id, task.started_event_id = token.scheduled_event_id, token.started_event_id
        task.speculative = True
    txn = shard.begin(context)
    failure = Failure(message=bad.message, source="perdure")
    failure.server_failure_info.non_retryable = True
    workflow_tasks.fail(txn, bad.cause, failure, request.identity, binary_checksum=request.binary_checksum)
    if bad.terminate:
        lifecycle.terminate(txn, bad.message, None, "history-service")
    else:
        workflow_tasks.schedule(txn)
    await shard.commit(context, txn)


async def _reply(
    engine: HistoryService,
    shard: Shard,
    context: RunContext,
    request: RespondWorkflowTaskCompletedRequest,
    answer: _Answer,
) -> bytes:
    """A serialized RespondWorkflowTaskCompletedResponse. The commit is done: nothing here may fail the answer."""
    parts: list[bytes] = []
    if answer.new_task is not None:
        sticky = bool(request.sticky_attributes.worker_task_queue.name)
        heartbeat = request.force_create_new_workflow_task
        reply = await started_reply(engine, shard, context, answer.new_task, sticky, heartbeat=heartbeat)
        parts.append(wire.bytes_field(1, reply))
    for scheduled_event_id in answer.eager:
        parts.append(wire.bytes_field(2, await engine.activity_reply(shard, context, scheduled_event_id)))
    parts.append(wire.int_field(3, answer.reset_event_id))
    return b"".join(parts)


async def respond_failed(engine: HistoryService, namespace_id: str, request: RespondWorkflowTaskFailedRequest) -> None:
    token = tokens.decode(request.task_token, WorkflowTaskToken)
    if token.namespace_id != namespace_id:
        raise errors.invalid_argument("Task token is of another namespace.")
    shard = engine.shard(namespace_id, token.workflow_id)
    async with shard.run(namespace_id, token.workflow_id, token.run_id) as context:
        _answered_task(context.loaded, token)
        txn = shard.begin(context)
        workflow_tasks.fail(
            txn,
            request.cause,
            request.failure if request.HasField("failure") else None,
            request.identity,
            binary_checksum=request.binary_checksum,
            worker_version=request.worker_version if request.HasField("worker_version") else None,
        )
        workflow_tasks.schedule(txn)
        await shard.commit(context, txn)


# --- time ---


@executes(WorkflowTaskTimeout)
async def time_out(engine: HistoryService, shard: Shard, task: WorkflowTaskTimeout) -> None:
    try:
        async with shard.run(task.namespace_id, task.workflow_id, task.run_id) as context:
            state = context.loaded
            pending = state.run.workflow_task
            if (
                not state.open
                or pending is None
                or pending.scheduled_event_id != task.scheduled_event_id
                or pending.attempt != task.attempt
                or bool(pending.started_event_id) != (task.kind == TimeoutKind.START_TO_CLOSE)
            ):
                return
            txn = shard.begin(context)
            workflow_tasks.time_out(txn, TimeoutKind(task.kind))
            workflow_tasks.schedule(txn)
            await shard.commit(context, txn)
    except ServiceError as e:
        if e.code != errors.Code.NOT_FOUND:
            raise


@executes(FirstWorkflowTask)
async def first_task_due(engine: HistoryService, shard: Shard, task: FirstWorkflowTask) -> None:
    del engine
    try:
        async with shard.run(task.namespace_id, task.workflow_id, task.run_id) as context:
            txn = shard.begin(context)
            lifecycle.first_workflow_task_due(txn)
            await shard.commit(context, txn)
    except ServiceError as e:
        if e.code != errors.Code.NOT_FOUND:
            raise


async def reset_sticky(engine: HistoryService, namespace_id: str, workflow_id: str, run_id: str) -> None:
    shard = engine.shard(namespace_id, workflow_id)
    run_id = await shard.run_id_of(namespace_id, workflow_id, run_id)
    async with shard.run(namespace_id, workflow_id, run_id) as context:
        txn = shard.begin(context)
        workflow_tasks.clear_sticky(txn)
        await shard.commit(context, txn)
