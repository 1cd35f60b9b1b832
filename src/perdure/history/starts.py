"""Starting runs: the id policies, deduplication by request id, eager starts, signal-with-start, children."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from temporalio.api.common.v1 import Link, Payload, Payloads
from temporalio.api.enums.v1 import EventType
from temporalio.api.enums.v1 import WorkflowExecutionStatus as Status
from temporalio.api.enums.v1 import WorkflowIdConflictPolicy as Conflict
from temporalio.api.enums.v1 import WorkflowIdReusePolicy as Reuse
from temporalio.api.workflowservice.v1 import (
    PollWorkflowTaskQueueResponse,
    SignalWithStartWorkflowExecutionRequest,
    SignalWithStartWorkflowExecutionResponse,
    StartWorkflowExecutionRequest,
    StartWorkflowExecutionResponse,
)

from perdure import errors
from perdure.clock import from_duration
from perdure.config import dynamic
from perdure.errors import ServiceError
from perdure.history import calls
from perdure.history.api import ParentLink
from perdure.history.core import attachments, cron, lifecycle, retry, signals, workflow_tasks
from perdure.history.core.lifecycle import StartParams
from perdure.history.core.state import PAUSED, RUNNING, State
from perdure.history.core.txn import Environment, Txn
from perdure.history.replies import workflow_task_reply
from perdure.history.shard import CurrentSummary, RunContext, Shard, summary_of
from perdure.persistence.api import CurrentConflict, CurrentRun
from perdure.visibility import attributes as search_attributes

if TYPE_CHECKING:
    from perdure.history.engine import HistoryService

_UNSUCCESSFUL = (
    Status.WORKFLOW_EXECUTION_STATUS_FAILED,
    Status.WORKFLOW_EXECUTION_STATUS_CANCELED,
    Status.WORKFLOW_EXECUTION_STATUS_TERMINATED,
    Status.WORKFLOW_EXECUTION_STATUS_TIMED_OUT,
)
_START_ATTEMPTS = 5


@dataclass(slots=True)
class Started:
    """What a start came to. fresh: a run was begun. created: fresh, or this very request began it before. attached: the
    request id was added to a running run. reply: an eager first workflow task."""

    run_id: str
    first_run_id: str
    status: Status.ValueType
    fresh: bool
    created: bool
    attached: bool = False
    reply: bytes = b""


def start_params(
    namespace_id: str, request: StartWorkflowExecutionRequest, run_id: str, now: int, env: Environment
) -> StartParams:
    """Of a request, with defaults and caps: a run lasts no longer than its execution, a workflow task no longer than
    its run."""
    execution_timeout = from_duration(request.workflow_execution_timeout)
    run_timeout = from_duration(request.workflow_run_timeout)
    if execution_timeout:
        run_timeout = min(run_timeout or execution_timeout, execution_timeout)
    config, namespace = env.config, env.namespace
    task_timeout = from_duration(request.workflow_task_timeout) or config.get(
        dynamic.DEFAULT_WORKFLOW_TASK_TIMEOUT, namespace
    )
    task_timeout = min(task_timeout, config.get(dynamic.MAX_WORKFLOW_TASK_TIMEOUT, namespace))
    if run_timeout:
        task_timeout = min(task_timeout, run_timeout)
    first_backoff = from_duration(request.workflow_start_delay)
    if request.cron_schedule:
        first_backoff = cron.next_wait(request.cron_schedule, now, now) or 0
    attributes = None
    if request.HasField("search_attributes"):
        attributes = search_attributes.with_types(request.search_attributes, env.search_attributes)
    return StartParams(
        namespace_id=namespace_id,
        workflow_id=request.workflow_id,
        run_id=run_id,
        request_id=request.request_id,
        workflow_type=request.workflow_type.name,
        task_queue=request.task_queue.name,
        identity=request.identity,
        input=request.input if request.HasField("input") else None,
        header=request.header if request.HasField("header") else None,
        memo=request.memo if request.HasField("memo") else None,
        search_attributes=attributes,
        execution_timeout=execution_timeout,
        run_timeout=run_timeout,
        task_timeout=task_timeout,
        retry_policy=retry.with_defaults(request.retry_policy) if request.HasField("retry_policy") else None,
        cron_schedule=request.cron_schedule,
        first_backoff=first_backoff,
        continued_failure=request.continued_failure if request.HasField("continued_failure") else None,
        last_completion_result=request.last_completion_result if request.HasField("last_completion_result") else None,
        user_metadata=request.user_metadata if request.HasField("user_metadata") else None,
        links=request.links,
        completion_callbacks=request.completion_callbacks,
        priority=request.priority if request.HasField("priority") else None,
        versioning_override=request.versioning_override if request.HasField("versioning_override") else None,
    )


async def start_run(
    engine: HistoryService,
    namespace_id: str,
    request: StartWorkflowExecutionRequest,
    *,
    parent: ParentLink | None = None,
    on_new: Callable[[Txn], None] | None = None,
) -> Started:
    """Begins a run, or finds the one that the request means. parent: for a child; its first workflow task is scheduled
    later. on_new: adds to the first step of a new run, before its first workflow task.

    Raises ServiceError ALREADY_EXISTS as the id policies say."""
    shard = engine.shard(namespace_id, request.workflow_id)
    async with shard.starting(namespace_id, request.workflow_id):
        for _ in range(_START_ATTEMPTS):
            try:
                outcome = await _try_start(engine, shard, namespace_id, request, parent, on_new)
            except CurrentConflict:
                continue
            if outcome is not None:
                return outcome
    raise errors.unavailable("the workflow's current run keeps changing")


async def _try_start(
    engine: HistoryService,
    shard: Shard,
    namespace_id: str,
    request: StartWorkflowExecutionRequest,
    parent: ParentLink | None,
    on_new: Callable[[Txn], None] | None,
) -> Started | None:
    """None: the current run closed in between, look again."""
    current = await shard.current(namespace_id, request.workflow_id)
    if current is None:
        return await _create(engine, shard, namespace_id, request, "", parent, on_new)
    summary = summary_of(current)
    if summary.start_request_id == request.request_id:
        return await _again(engine, shard, namespace_id, request, current, summary)
    if current.status not in (RUNNING, PAUSED):
        _check_reuse(request, current, summary)
        return await _create(engine, shard, namespace_id, request, current.run_id, parent, on_new)
    async with shard.run(namespace_id, request.workflow_id, current.run_id) as context:
        state = context.loaded
        if request.request_id in state.request_ids:
            return Started(current.run_id, summary.first_run_id, _status(state), False, False, attached=True)
        if not state.open:
            return None
        policy = request.workflow_id_conflict_policy
        if request.workflow_id_reuse_policy == Reuse.WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING:
            policy = Conflict.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING
        if policy == Conflict.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING:
            attached = await _use_existing(shard, context, request)
            return Started(current.run_id, summary.first_run_id, _status(state), False, False, attached)
        if policy == Conflict.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING:
            txn = shard.begin(context)
            new = _begin(engine, shard, namespace_id, request, parent, on_new, txn.now)
            lifecycle.terminate(
                txn,
                "TerminateIfRunning WorkflowIdReusePolicy",
                Payloads(
                    payloads=[
                        Payload(
                            metadata={"encoding": b"json/plain"},
                            data=f'"terminated by new runID: {new.state.info.run_id}"'.encode(),
                        )
                    ]
                ),
                "history-service",
            )
            new_context = shard.context_for(new)
            await shard.commit(context, txn, expected_current=current.run_id, also=[(new_context, new)])
            return await _created(shard, new_context, request)
        raise errors.already_started(
            f"Workflow execution is already running. WorkflowId: {request.workflow_id}, RunId: {current.run_id}.",
            summary.start_request_id,
            current.run_id,
            summary.first_run_id,
        )


def _status(state: State) -> Status.ValueType:
    return state.run.status  # pyright: ignore[reportReturnType]


def _check_reuse(request: StartWorkflowExecutionRequest, current: CurrentRun, summary: CurrentSummary) -> None:
    """Whether the id of a closed run may be used again."""
    policy = request.workflow_id_reuse_policy
    where = f"WorkflowId: {request.workflow_id}, RunId: {current.run_id}."
    if policy == Reuse.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE_FAILED_ONLY and current.status not in _UNSUCCESSFUL:
        message = (
            f"Workflow execution already finished successfully. {where} "
            "Workflow Id reuse policy: allow duplicate workflow Id if last run failed."
        )
    elif policy == Reuse.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE:
        message = (
            f"Workflow execution already finished. {where} Workflow Id reuse policy: reject duplicate workflow Id."
        )
    else:
        return
    raise errors.already_started(message, summary.start_request_id, current.run_id, summary.first_run_id)


def _begin(
    engine: HistoryService,
    shard: Shard,
    namespace_id: str,
    request: StartWorkflowExecutionRequest,
    parent: ParentLink | None,
    on_new: Callable[[Txn], None] | None,
    now: int,
) -> Txn:
    env = engine.environment(namespace_id)
    params = start_params(namespace_id, request, engine.new_id(), now, env)
    params.parent = parent
    if parent is not None and parent.root_workflow_id:
        params.root = lifecycle.WorkflowExecution(workflow_id=parent.root_workflow_id, run_id=parent.root_run_id)
    eager = (
        request.request_eager_execution
        and parent is None
        and not params.first_backoff
        and env.config.get(dynamic.ENABLE_EAGER_START, env.namespace)
    )
    params.eager_execution_accepted = eager
    txn = lifecycle.begin(params, now, env, schedule=False)
    if on_new is not None:
        on_new(txn)
    if parent is None and not params.first_backoff:
        workflow_tasks.schedule(txn, dispatch=not eager)
        if eager:
            workflow_tasks.start(txn, request.request_id, request.identity)
    return txn


async def _create(
    engine: HistoryService,
    shard: Shard,
    namespace_id: str,
    request: StartWorkflowExecutionRequest,
    expected_current: str,
    parent: ParentLink | None,
    on_new: Callable[[Txn], None] | None,
) -> Started:
    txn = _begin(engine, shard, namespace_id, request, parent, on_new, shard.clock.now())
    context = shard.context_for(txn)
    await shard.commit(context, txn, expected_current=expected_current)
    return await _created(shard, context, request)


async def _created(shard: Shard, context: RunContext, request: StartWorkflowExecutionRequest) -> Started:
    state = context.loaded
    reply = await _eager_reply(shard, context) if request.request_eager_execution else b""
    return Started(state.info.run_id, state.info.first_run_id, _status(state), True, True, reply=reply)


async def _eager_reply(shard: Shard, context: RunContext) -> bytes:
    task = context.loaded.run.workflow_task
    if task is None or not task.started_event_id or task.started_event_id != 3 or task.attempt > 1:
        return b""
    return await workflow_task_reply(shard, context, task, sticky=False)


async def _again(
    engine: HistoryService,
    shard: Shard,
    namespace_id: str,
    request: StartWorkflowExecutionRequest,
    current: CurrentRun,
    summary: CurrentSummary,
) -> Started:
    """The same request once more: the same answer."""
    del engine
    reply = b""
    if request.request_eager_execution:
        async with shard.run(namespace_id, request.workflow_id, current.run_id) as context:
            reply = await _eager_reply(shard, context)
    status = Status.ValueType(current.status)
    return Started(current.run_id, summary.first_run_id, status, False, True, reply=reply)


async def _use_existing(shard: Shard, context: RunContext, request: StartWorkflowExecutionRequest) -> bool:
    """Attaches to the running run what the request asks to attach. True when its request id was."""
    if not request.HasField("on_conflict_options"):
        return False
    options = request.on_conflict_options
    txn = shard.begin(context)
    attachments.attach(
        txn,
        request_id=request.request_id if options.attach_request_id else "",
        callbacks=request.completion_callbacks if options.attach_completion_callbacks else (),
        links=request.links if options.attach_links else (),
    )
    await shard.commit(context, txn)
    return options.attach_request_id


# --- the calls ---


async def start(
    engine: HistoryService, namespace_id: str, request: StartWorkflowExecutionRequest
) -> StartWorkflowExecutionResponse:
    started = await start_run(engine, namespace_id, request)
    response = StartWorkflowExecutionResponse(
        run_id=started.run_id,
        first_execution_run_id=started.first_run_id,
        started=started.created,
        status=started.status,
    )
    if started.reply:
        response.eager_workflow_task.CopyFrom(PollWorkflowTaskQueueResponse.FromString(started.reply))
    event = response.link.workflow_event
    event.namespace = request.namespace
    event.workflow_id = request.workflow_id
    event.run_id = started.run_id
    if started.attached:
        event.request_id_ref.request_id = request.request_id
        event.request_id_ref.event_type = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_OPTIONS_UPDATED
    else:
        event.event_ref.event_id = 1
        event.event_ref.event_type = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED
    return response


async def start_child(
    engine: HistoryService, namespace_id: str, request: StartWorkflowExecutionRequest, parent: ParentLink
) -> str:
    return (await start_run(engine, namespace_id, request, parent=parent)).run_id


async def schedule_first_workflow_task(
    engine: HistoryService, namespace_id: str, workflow_id: str, run_id: str
) -> None:
    """A child's first workflow task, once its parent knows of it. A child with a backoff gets it when that ends."""
    shard = engine.shard(namespace_id, workflow_id)
    async with shard.run(namespace_id, workflow_id, run_id) as context:
        state = context.loaded
        if state.info.first_backoff and shard.clock.now() < state.info.execution_time:
            return
        txn = shard.begin(context)
        lifecycle.first_workflow_task_due(txn)
        await shard.commit(context, txn)


def _start_of(request: SignalWithStartWorkflowExecutionRequest) -> StartWorkflowExecutionRequest:
    """The start half: every field that both requests have under one name."""
    start = StartWorkflowExecutionRequest()
    ours = StartWorkflowExecutionRequest.DESCRIPTOR.fields_by_name
    for field, value in request.ListFields():
        if field.name not in ours or field.name == "links":
            continue
        target = getattr(start, field.name)
        if field.is_repeated:
            target.extend(value)
        elif field.message_type is not None:
            target.CopyFrom(value)
        else:
            setattr(start, field.name, value)
    if start.workflow_id_conflict_policy == Conflict.WORKFLOW_ID_CONFLICT_POLICY_UNSPECIFIED:
        start.workflow_id_conflict_policy = Conflict.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING
    return start


async def signal_with_start(
    engine: HistoryService, namespace_id: str, request: SignalWithStartWorkflowExecutionRequest
) -> SignalWithStartWorkflowExecutionResponse:
    start_request = _start_of(request)

    def receive(txn: Txn) -> None:
        signals.receive_with_start(txn, request)

    for _ in range(_START_ATTEMPTS):
        started = await start_run(engine, namespace_id, start_request, on_new=receive)
        if not started.created:
            # It is running: the signal is all there is to do. It may close just now: then it is started after all.
            try:
                await _signal_running(engine, namespace_id, request, started.run_id)
            except ServiceError as error:
                if error.code == errors.Code.NOT_FOUND:
                    continue
                raise
        response = SignalWithStartWorkflowExecutionResponse(
            run_id=started.run_id, started=started.created, first_execution_run_id=started.first_run_id
        )
        response.signal_link.CopyFrom(_signal_link(request, started.run_id))
        return response
    raise errors.unavailable("the workflow's current run keeps changing")


async def _signal_running(
    engine: HistoryService, namespace_id: str, request: SignalWithStartWorkflowExecutionRequest, run_id: str
) -> None:
    """Unlike another signal it also ends a start delay or backoff."""
    shard = engine.shard(namespace_id, request.workflow_id)
    async with calls.open_run(shard, namespace_id, request.workflow_id, run_id) as context:
        state = context.loaded
        if signals.known(state, request.request_id):
            return
        if state.closing:
            raise errors.workflow_closing()
        txn = shard.begin(context)
        signals.receive_with_start(txn, request)
        if state.run.status == RUNNING and state.run.workflow_task is None:
            workflow_tasks.schedule(txn)
        await shard.commit(context, txn)


def _signal_link(request: SignalWithStartWorkflowExecutionRequest, run_id: str) -> Link:
    link = Link()
    event = link.workflow_event
    event.namespace = request.namespace
    event.workflow_id = request.workflow_id
    event.run_id = run_id
    event.request_id_ref.request_id = request.request_id
    event.request_id_ref.event_type = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED
    return link
