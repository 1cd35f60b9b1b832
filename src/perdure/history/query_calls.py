"""Queries: answered by a worker, through matching or along with a workflow task; nothing of them is ever stored."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from temporalio.api.enums.v1 import QueryRejectCondition as Reject
from temporalio.api.enums.v1 import QueryResultType, TaskQueueKind
from temporalio.api.enums.v1 import WorkflowExecutionStatus as Status
from temporalio.api.query.v1 import QueryRejected, WorkflowQuery, WorkflowQueryResult
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    PollWorkflowTaskQueueResponse,
    QueryWorkflowRequest,
    QueryWorkflowResponse,
    RespondQueryTaskCompletedRequest,
)

from perdure import errors
from perdure.clock import SECOND
from perdure.errors import ServiceError
from perdure.history.api import Poller
from perdure.history.core import lifecycle, workflow_tasks
from perdure.history.core.state import FIRST_EVENT_ID, PAUSED, RUNNING, State
from perdure.history.replies import history_fields
from perdure.history.shard import Shard
from perdure.matching.api import NoPoller, QueryOutcome, TaskRef

if TYPE_CHECKING:
    from perdure.history.engine import HistoryService

# A workflow task that keeps failing: a query would fail the same way.
_FAILING_ATTEMPT = 3

_ANSWERED = QueryResultType.QUERY_RESULT_TYPE_ANSWERED


async def query_workflow(
    engine: HistoryService, namespace_id: str, request: QueryWorkflowRequest, deadline: int
) -> QueryWorkflowResponse:
    """deadline: nanoseconds. Raises ServiceError: INVALID_ARGUMENT with QueryFailedFailure when the worker says so,
    FAILED_PRECONDITION with WorkflowNotReadyFailure, DEADLINE_EXCEEDED, …"""
    workflow_id = request.execution.workflow_id
    shard = engine.shard(namespace_id, workflow_id)
    key = (namespace_id, workflow_id, await shard.run_id_of(namespace_id, workflow_id, request.execution.run_id))
    while True:
        async with shard.run(*key) as context:
            state = context.loaded
            rejected = _rejected(state, request.query_reject_condition)
            if rejected is not None:
                return rejected
            _check_ready(state, deadline)
            direct = _direct(state)
            waiting = None if direct is not None else engine.queries.wait(context, engine.new_id(), request.query)
        if waiting is None:
            assert direct is not None
            return await _through_matching(engine, shard, key, direct, request.query, deadline)
        query_id, answer = waiting
        try:
            async with asyncio.timeout(max(0, deadline - engine.clock.now()) / SECOND):
                result = await answer
        except TimeoutError:
            raise errors.deadline_exceeded("context deadline exceeded") from None
        finally:
            engine.queries.forget(context, query_id)
        if result is not None:
            return _response_to(result)


def _rejected(state: State, condition: Reject.ValueType) -> QueryWorkflowResponse | None:
    status = state.run.status
    if status == RUNNING:
        return None
    if status != PAUSED:
        if condition == Reject.QUERY_REJECT_CONDITION_NOT_OPEN:
            pass
        elif condition == Reject.QUERY_REJECT_CONDITION_NOT_COMPLETED_CLEANLY:
            if status == Status.WORKFLOW_EXECUTION_STATUS_COMPLETED:
                return None
        else:
            return None
    return QueryWorkflowResponse(query_rejected=QueryRejected(status=Status.ValueType(status)))


def _check_ready(state: State, deadline: int) -> None:
    run = state.run
    if not state.open and not run.last_started_event_id:
        raise errors.workflow_not_ready("Workflow execution closed before WorkflowTaskStarted event")
    if not run.had_workflow_task and state.info.execution_time > deadline:
        raise errors.workflow_not_ready("Workflow task is not scheduled yet.")
    if state.open and run.workflow_task_attempt >= _FAILING_ATTEMPT:
        raise errors.workflow_not_ready("Unable to query workflow due to Workflow Task in failed state.")


@dataclass(slots=True)
class _Direct:
    """Where a direct query goes. sticky_queue: "" for none; sticky_timeout: nanoseconds."""

    task_queue: str
    sticky_queue: str
    sticky_timeout: int
    open: bool
    priority: bytes


def _direct(state: State) -> _Direct | None:
    """None when the query has to go along with a workflow task: there are events that the worker has not seen."""
    run = state.run
    if not run.last_started_event_id or (state.open and run.workflow_task is not None):
        return None
    return _Direct(state.info.task_queue, run.sticky_queue, run.sticky_timeout, state.open, state.info.priority_proto)


async def _through_matching(
    engine: HistoryService,
    shard: Shard,
    key: tuple[str, str, str],
    direct: _Direct,
    query: WorkflowQuery,
    deadline: int,
) -> QueryWorkflowResponse:
    now = engine.clock.now()
    task = TaskRef(*key, 0, 0, now, deadline, direct.priority)
    if direct.sticky_queue:
        sticky = TaskQueue(
            name=direct.sticky_queue, kind=TaskQueueKind.TASK_QUEUE_KIND_STICKY, normal_name=direct.task_queue
        )
        try:
            return _outcome(
                await engine.matching.query_workflow(sticky, task, query, min(deadline, now + direct.sticky_timeout))
            )
        except NoPoller:
            pass
        except ServiceError as e:
            # A caller with little time says nothing about the worker.
            if e.code != errors.Code.DEADLINE_EXCEEDED or engine.clock.now() >= deadline:
                raise
        if direct.open:
            await _clear_sticky(shard, key, direct.sticky_queue)
    normal = TaskQueue(name=direct.task_queue, kind=TaskQueueKind.TASK_QUEUE_KIND_NORMAL)
    return _outcome(await engine.matching.query_workflow(normal, task, query, deadline))


async def _clear_sticky(shard: Shard, key: tuple[str, str, str], sticky_queue: str) -> None:
    """The worker that has the run in its cache does not answer: others may have what comes next."""
    async with shard.run(*key) as context:
        state = context.loaded
        if state.open and state.run.sticky_queue == sticky_queue:
            txn = shard.begin(context)
            workflow_tasks.clear_sticky(txn)
            await shard.commit(context, txn)


def _outcome(outcome: QueryOutcome) -> QueryWorkflowResponse:
    answer = RespondQueryTaskCompletedRequest.FromString(outcome.response)
    if answer.completed_type == _ANSWERED:
        return QueryWorkflowResponse(query_result=answer.query_result)
    raise errors.query_failed(answer.error_message, answer.failure if answer.HasField("failure") else None)


def _response_to(result: WorkflowQueryResult) -> QueryWorkflowResponse:
    if result.result_type == _ANSWERED:
        return QueryWorkflowResponse(query_result=result.answer)
    if result.result_type == QueryResultType.QUERY_RESULT_TYPE_FAILED:
        raise errors.query_failed(result.error_message, result.failure if result.HasField("failure") else None)
    raise errors.invalid_argument("query entered invalid state, this should be impossible")


async def make_query_task(shard: Shard, task: TaskRef, poller: Poller, query: WorkflowQuery, token: bytes) -> bytes:
    """A direct query for a worker. One that has the run in its cache needs no history: what it has is all there is to
    see."""
    async with shard.run(task.namespace_id, task.workflow_id, task.run_id) as context:
        state = context.loaded
        run = state.run
        head = PollWorkflowTaskQueueResponse(
            task_token=token,
            workflow_execution=lifecycle.execution(state),
            workflow_type=lifecycle.workflow_type(state),
            previous_started_event_id=run.last_started_event_id,
            attempt=1,
            query=query,
            workflow_execution_task_queue=lifecycle.task_queue(state),
        )
        sticky = bool(poller.sticky_queue) and poller.sticky_queue == run.sticky_queue
        first = run.next_event_id if sticky else FIRST_EVENT_ID
        fields = await history_fields(shard, context, first, run.next_event_id, b"")
        return b"".join((head.SerializeToString(), *fields))
