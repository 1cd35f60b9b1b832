"""A run begins and ends. How it goes on after an end (continue-as-new, retry, cron) is in `continuation`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from temporalio.api.common.v1 import (
    Callback,
    Header,
    Link,
    Memo,
    Payloads,
    Priority,
    RetryPolicy,
    SearchAttributes,
    WorkflowExecution,
    WorkflowType,
)
from temporalio.api.enums.v1 import ContinueAsNewInitiator, EventType, RetryState, TaskQueueKind
from temporalio.api.enums.v1 import WorkflowExecutionStatus as Status
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import HistoryEvent, WorkflowExecutionStartedEventAttributes
from temporalio.api.sdk.v1 import UserMetadata
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflow.v1 import VersioningOverride

from perdure.clock import SECOND, from_duration, from_timestamp, to_duration, to_timestamp
from perdure.history.api import ParentLink
from perdure.history.core import buffering, workflow_tasks
from perdure.history.core.apply import applies
from perdure.history.core.state import Kind, RequestIdRecord, RunInfo, RunState, State
from perdure.history.core.tasks import (
    CloseExecution,
    DeleteAfterRetention,
    FirstWorkflowTask,
    RunTimeout,
    UpsertVisibility,
)
from perdure.history.core.txn import Environment, Txn

_RUN_TIMEOUT_KEY = ("run-timeout",)


# --- start ---


@dataclass(slots=True)
class StartParams:
    """A run to begin. Durations and times: nanoseconds, 0 for none. first_backoff: how long the first workflow task
    waits (start delay, cron, retry). execution_expiration: inherited by the runs of a chain; 0: computed from
    execution_timeout."""

    namespace_id: str
    workflow_id: str
    run_id: str
    request_id: str
    workflow_type: str
    task_queue: str
    identity: str = ""
    input: Payloads | None = None
    header: Header | None = None
    memo: Memo | None = None
    search_attributes: SearchAttributes | None = None
    execution_timeout: int = 0
    run_timeout: int = 0
    task_timeout: int = 10 * SECOND
    execution_expiration: int = 0
    retry_policy: RetryPolicy | None = None
    cron_schedule: str = ""
    attempt: int = 1
    first_backoff: int = 0
    initiator: ContinueAsNewInitiator.ValueType = ContinueAsNewInitiator.CONTINUE_AS_NEW_INITIATOR_UNSPECIFIED
    continued_from_run_id: str = ""
    first_run_id: str = ""  # "": this one
    original_run_id: str = ""  # "": this one
    continued_failure: Failure | None = None
    last_completion_result: Payloads | None = None
    parent: ParentLink | None = None
    root: WorkflowExecution | None = None
    user_metadata: UserMetadata | None = None
    links: Sequence[Link] = ()
    completion_callbacks: Sequence[Callback] = ()
    priority: Priority | None = None
    versioning_override: VersioningOverride | None = None
    eager_execution_accepted: bool = False
    prev_reset_points: bytes = b""


def begin(params: StartParams, now: int, env: Environment, *, schedule: bool = True, dispatch: bool = True) -> Txn:
    """The first step of a new run. schedule: with its first workflow task (a child's waits until its parent knows of
    it). dispatch: see workflow_tasks.schedule."""
    state = State(RunInfo(), RunState(branch_id=params.run_id))
    state.info.namespace_id = params.namespace_id
    state.info.run_id = params.run_id
    state.info.start_request_id = params.request_id
    state.put_info()
    txn = Txn(state, now, env)
    event = txn.event(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED)
    _fill_started(event.workflow_execution_started_event_attributes, params, now)
    if params.user_metadata is not None:
        event.user_metadata.CopyFrom(params.user_metadata)
    event.links.extend(params.links)
    txn.record(event)
    state.put(Kind.REQUEST_ID, params.request_id, RequestIdRecord(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED, 1))
    expiration = state.info.run_expiration
    if expiration:
        txn.timer(_RUN_TIMEOUT_KEY, expiration, RunTimeout())
    txn.task(UpsertVisibility())
    if params.first_backoff:
        txn.timer(("first-workflow-task",), now + params.first_backoff, FirstWorkflowTask())
    elif schedule:
        workflow_tasks.schedule(txn, dispatch=dispatch)
    return txn


def _fill_started(a: WorkflowExecutionStartedEventAttributes, p: StartParams, now: int) -> None:
    a.workflow_type.name = p.workflow_type
    a.workflow_id = p.workflow_id
    a.task_queue.name = p.task_queue
    a.task_queue.kind = TaskQueueKind.TASK_QUEUE_KIND_NORMAL
    a.original_execution_run_id = p.original_run_id or p.run_id
    a.first_execution_run_id = p.first_run_id or p.run_id
    a.continued_execution_run_id = p.continued_from_run_id
    a.identity = p.identity
    a.attempt = p.attempt
    a.initiator = p.initiator
    a.cron_schedule = p.cron_schedule
    a.eager_execution_accepted = p.eager_execution_accepted
    if p.execution_timeout:
        a.workflow_execution_timeout.CopyFrom(to_duration(p.execution_timeout))
    if p.run_timeout:
        a.workflow_run_timeout.CopyFrom(to_duration(p.run_timeout))
    a.workflow_task_timeout.CopyFrom(to_duration(p.task_timeout))
    a.first_workflow_task_backoff.CopyFrom(to_duration(p.first_backoff))
    expiration = p.execution_expiration or (now + p.first_backoff + p.execution_timeout if p.execution_timeout else 0)
    if expiration:
        a.workflow_execution_expiration_time.CopyFrom(to_timestamp(expiration))
    for name, value in (
        ("input", p.input),
        ("header", p.header),
        ("memo", p.memo),
        ("search_attributes", p.search_attributes),
        ("retry_policy", p.retry_policy),
        ("continued_failure", p.continued_failure),
        ("last_completion_result", p.last_completion_result),
        ("priority", p.priority),
        ("versioning_override", p.versioning_override),
        ("root_workflow_execution", p.root),
    ):
        if value is not None:
            getattr(a, name).CopyFrom(value)
    a.completion_callbacks.extend(p.completion_callbacks)
    if p.prev_reset_points:
        a.prev_auto_reset_points.ParseFromString(p.prev_reset_points)
    if p.parent is not None:
        parent = p.parent
        a.parent_workflow_namespace = parent.namespace
        a.parent_workflow_namespace_id = parent.namespace_id
        a.parent_workflow_execution.workflow_id = parent.workflow_id
        a.parent_workflow_execution.run_id = parent.run_id
        a.parent_initiated_event_id = parent.initiated_event_id
    if not a.HasField("root_workflow_execution"):
        a.root_workflow_execution.workflow_id = p.workflow_id
        a.root_workflow_execution.run_id = p.run_id


@applies(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED)
def _started(state: State, event: HistoryEvent) -> None:
    a = event.workflow_execution_started_event_attributes
    info = state.info
    start = from_timestamp(event.event_time)
    info.workflow_id = a.workflow_id
    info.first_run_id = a.first_execution_run_id
    info.original_run_id = a.original_execution_run_id
    info.workflow_type = a.workflow_type.name
    info.task_queue = a.task_queue.name
    info.start_time = start
    info.first_backoff = from_duration(a.first_workflow_task_backoff)
    info.execution_time = start + info.first_backoff
    info.execution_timeout = from_duration(a.workflow_execution_timeout)
    info.run_timeout = from_duration(a.workflow_run_timeout)
    info.task_timeout = from_duration(a.workflow_task_timeout)
    if a.HasField("workflow_execution_expiration_time"):
        info.execution_expiration = from_timestamp(a.workflow_execution_expiration_time)
    run_deadline = info.execution_time + info.run_timeout if info.run_timeout else 0
    deadlines = [t for t in (run_deadline, info.execution_expiration) if t]
    info.run_expiration = min(deadlines) if deadlines else 0
    info.attempt = a.attempt or 1
    if a.HasField("retry_policy"):
        info.retry_policy_proto = a.retry_policy.SerializeToString()
    info.cron_schedule = a.cron_schedule
    info.parent_namespace_id = a.parent_workflow_namespace_id
    info.parent_namespace = a.parent_workflow_namespace
    info.parent_workflow_id = a.parent_workflow_execution.workflow_id
    info.parent_run_id = a.parent_workflow_execution.run_id
    info.parent_initiated_event_id = a.parent_initiated_event_id
    info.root_workflow_id = a.root_workflow_execution.workflow_id
    info.root_run_id = a.root_workflow_execution.run_id
    if a.HasField("memo"):
        info.memo_proto = a.memo.SerializeToString()
    if a.HasField("search_attributes"):
        info.search_attributes_proto = a.search_attributes.SerializeToString()
    if a.HasField("priority"):
        info.priority_proto = a.priority.SerializeToString()
    if a.HasField("versioning_override"):
        info.versioning_override_proto = a.versioning_override.SerializeToString()
    info.continued_from_run_id = a.continued_execution_run_id
    info.completion_callbacks_proto = [c.SerializeToString() for c in a.completion_callbacks]
    if a.HasField("prev_auto_reset_points"):
        info.reset_points_proto = a.prev_auto_reset_points.SerializeToString()
    if event.HasField("user_metadata"):
        info.user_metadata_proto = event.user_metadata.SerializeToString()
    state.put_info()


def first_workflow_task_due(txn: Txn) -> None:
    """The backoff of the first workflow task is over, or the parent knows of its child."""
    state = txn.state
    if state.open and not state.run.had_workflow_task:
        workflow_tasks.schedule(txn)


# --- end ---


def complete(txn: Txn, result: Payloads | None, completed_event_id: int, new_run_id: str = "") -> None:
    event = txn.event(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED)
    a = event.workflow_execution_completed_event_attributes
    if result is not None:
        a.result.CopyFrom(result)
    a.workflow_task_completed_event_id = completed_event_id
    a.new_execution_run_id = new_run_id
    _close(txn, event)


def fail(
    txn: Txn,
    failure: Failure | None,
    retry_state: RetryState.ValueType,
    completed_event_id: int,
    new_run_id: str = "",
) -> None:
    event = txn.event(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED)
    a = event.workflow_execution_failed_event_attributes
    if failure is not None:
        a.failure.CopyFrom(failure)
    a.retry_state = retry_state
    a.workflow_task_completed_event_id = completed_event_id
    a.new_execution_run_id = new_run_id
    _close(txn, event)


def cancel(txn: Txn, details: Payloads | None, completed_event_id: int) -> None:
    event = txn.event(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED)
    a = event.workflow_execution_canceled_event_attributes
    if details is not None:
        a.details.CopyFrom(details)
    a.workflow_task_completed_event_id = completed_event_id
    _close(txn, event)


def terminate(txn: Txn, reason: str, details: Payloads | None, identity: str, links: Sequence[Link] = ()) -> None:
    _force_close(txn)
    event = txn.event(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED)
    a = event.workflow_execution_terminated_event_attributes
    a.reason = reason
    if details is not None:
        a.details.CopyFrom(details)
    a.identity = identity
    event.links.extend(links)
    _close(txn, event)


def time_out(txn: Txn, retry_state: RetryState.ValueType, new_run_id: str = "") -> None:
    _force_close(txn)
    event = txn.event(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT)
    a = event.workflow_execution_timed_out_event_attributes
    a.retry_state = retry_state
    a.new_execution_run_id = new_run_id
    _close(txn, event)


def close_continued(txn: Txn, event: HistoryEvent) -> None:
    """event: WorkflowExecutionContinuedAsNew, filled in."""
    _close(txn, event)


def _force_close(txn: Txn) -> None:
    """The run is closed from outside: a started workflow task fails first, so that what waited in the buffer gets into
    the history before its end."""
    task = txn.state.run.workflow_task
    if task is not None:
        if task.started_event_id:
            workflow_tasks.fail(txn, Cause.WORKFLOW_TASK_FAILED_CAUSE_FORCE_CLOSE_COMMAND, None, "")
        else:
            workflow_tasks.remove_pending(txn)
    txn.flush_buffer()


def _close(txn: Txn, event: HistoryEvent) -> None:
    txn.record(event)
    state = txn.state
    for key in state.live_timers:
        txn.cancel_timer(key)
    txn.timers = [t for t in txn.timers if t.key is None]
    if state.buffered:
        buffering.take(state)  # made by the very answer that closes the run: nobody will see it
    if state.children or (state.info.parent_workflow_id and not state.info.new_run_id):
        txn.task(CloseExecution())
    txn.task(UpsertVisibility())
    txn.timer(None, txn.now + txn.env.retention, DeleteAfterRetention())


_CLOSED = {
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED: Status.WORKFLOW_EXECUTION_STATUS_COMPLETED,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED: Status.WORKFLOW_EXECUTION_STATUS_FAILED,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED: Status.WORKFLOW_EXECUTION_STATUS_CANCELED,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED: Status.WORKFLOW_EXECUTION_STATUS_TERMINATED,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT: Status.WORKFLOW_EXECUTION_STATUS_TIMED_OUT,
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW: Status.WORKFLOW_EXECUTION_STATUS_CONTINUED_AS_NEW,
}


@applies(*_CLOSED)
def _closed(state: State, event: HistoryEvent) -> None:
    run = state.run
    run.status = _CLOSED[event.event_type]
    run.close_event_id = event.event_id
    run.close_time = run.last_event_time
    run.workflow_task = None
    new_run_id = ""
    if event.HasField("workflow_execution_continued_as_new_event_attributes"):
        new_run_id = event.workflow_execution_continued_as_new_event_attributes.new_execution_run_id
    elif event.HasField("workflow_execution_completed_event_attributes"):
        new_run_id = event.workflow_execution_completed_event_attributes.new_execution_run_id
    elif event.HasField("workflow_execution_failed_event_attributes"):
        new_run_id = event.workflow_execution_failed_event_attributes.new_execution_run_id
    elif event.HasField("workflow_execution_timed_out_event_attributes"):
        new_run_id = event.workflow_execution_timed_out_event_attributes.new_execution_run_id
    if new_run_id:
        state.info.new_run_id = new_run_id
        state.put_info()


def workflow_type(state: State) -> WorkflowType:
    return WorkflowType(name=state.info.workflow_type)


def execution(state: State) -> WorkflowExecution:
    return WorkflowExecution(workflow_id=state.info.workflow_id, run_id=state.info.run_id)


def task_queue(state: State) -> TaskQueue:
    return TaskQueue(name=state.info.task_queue, kind=TaskQueueKind.TASK_QUEUE_KIND_NORMAL)
