"""Child workflows, as their parent sees them.

The command leaves an initiated event and a pending row. A transfer task then creates the child without a workflow task,
records at the parent that it started, and only then lets the child begin; so the parent knows of a child before
anything that the child does. When the last run of the child's chain closes, its shard tells the parent.
"""

from __future__ import annotations

from google.protobuf.message import Message
from temporalio.api.command.v1 import Command, StartChildWorkflowExecutionCommandAttributes
from temporalio.api.common.v1 import Header, Priority
from temporalio.api.enums.v1 import (
    CommandType,
    EventType,
    ParentClosePolicy,
    StartChildWorkflowExecutionFailedCause,
    TaskQueueKind,
    WorkflowIdConflictPolicy,
    WorkflowIdReusePolicy,
)
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflow.v1 import PendingChildExecutionInfo
from temporalio.api.workflowservice.v1 import StartWorkflowExecutionRequest

from perdure.clock import from_duration, to_duration
from perdure.config import dynamic
from perdure.history.api import ChildOutcome, ParentLink
from perdure.history.core import attributes, buffering, cron, retry, workflow_tasks
from perdure.history.core.apply import applies
from perdure.history.core.completion import Completion, command
from perdure.history.core.continuation import check_search_attributes
from perdure.history.core.externals import check_count, request_id_of, target_namespace
from perdure.history.core.state import Child, Kind, State
from perdure.history.core.tasks import StartChild
from perdure.history.core.txn import Txn
from perdure.visibility import attributes as search_attributes

SERVER_IDENTITY = "history-service"

_BAD = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_START_CHILD_EXECUTION_ATTRIBUTES
_WHERE = "StartChildWorkflowExecutionCommand"
_COPIED = ("input", "header", "memo", "priority", "versioning_override")


# --- the command ---


@command(CommandType.COMMAND_TYPE_START_CHILD_WORKFLOW_EXECUTION)
def _start(completion: Completion, source: Command) -> None:
    txn = completion.txn
    state, env = txn.state, txn.env
    a = source.start_child_workflow_execution_command_attributes
    namespace, namespace_id = target_namespace(txn, a.namespace, _BAD)
    same_namespace = namespace_id == state.info.namespace_id
    _validate(txn, a)
    if same_namespace and a.HasField("search_attributes"):
        check_search_attributes(txn, a.search_attributes, f"on {_WHERE}")
    _check_sizes(txn, a)
    check_count(
        txn,
        len(state.children),
        dynamic.PENDING_CHILDREN_ERROR,
        Cause.WORKFLOW_TASK_FAILED_CAUSE_PENDING_CHILD_WORKFLOWS_LIMIT_EXCEEDED,
        "pending child workflow executions",
    )
    execution_timeout = from_duration(a.workflow_execution_timeout)
    run_timeout = from_duration(a.workflow_run_timeout)
    if execution_timeout:
        run_timeout = min(run_timeout or execution_timeout, execution_timeout)
    task_timeout = from_duration(a.workflow_task_timeout) or env.config.get(
        dynamic.DEFAULT_WORKFLOW_TASK_TIMEOUT, namespace
    )
    task_timeout = min(task_timeout, env.config.get(dynamic.MAX_WORKFLOW_TASK_TIMEOUT, namespace))
    if run_timeout:
        task_timeout = min(task_timeout, run_timeout)

    event = txn.event(EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED)
    e = event.start_child_workflow_execution_initiated_event_attributes
    e.namespace = namespace
    e.namespace_id = namespace_id
    e.workflow_id = a.workflow_id
    e.workflow_type.name = a.workflow_type.name
    e.task_queue.name = a.task_queue.name or state.info.task_queue
    e.task_queue.kind = TaskQueueKind.TASK_QUEUE_KIND_NORMAL
    e.workflow_execution_timeout.CopyFrom(to_duration(execution_timeout))
    e.workflow_run_timeout.CopyFrom(to_duration(run_timeout))
    e.workflow_task_timeout.CopyFrom(to_duration(task_timeout))
    e.parent_close_policy = a.parent_close_policy or ParentClosePolicy.PARENT_CLOSE_POLICY_TERMINATE
    e.control = a.control
    e.workflow_task_completed_event_id = completion.completed_event_id
    e.workflow_id_reuse_policy = (
        a.workflow_id_reuse_policy or WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE
    )
    if a.HasField("retry_policy"):
        e.retry_policy.CopyFrom(a.retry_policy)
    e.cron_schedule = a.cron_schedule
    e.inherit_build_id = a.inherit_build_id
    for name in _COPIED:
        if a.HasField(name):
            getattr(e, name).CopyFrom(getattr(a, name))
    if a.HasField("search_attributes"):
        # Of another namespace the types are not known here: they are checked where the child starts.
        given = a.search_attributes
        typed = search_attributes.with_types(given, env.search_attributes) if same_namespace else given
        e.search_attributes.CopyFrom(typed)
    completion.add(event, source)
    txn.task(StartChild(initiated_event_id=event.event_id))


def _validate(txn: Txn, a: StartChildWorkflowExecutionCommandAttributes) -> None:
    limit = txn.env.config.get(dynamic.MAX_ID_LENGTH)
    of = f"WorkflowId={a.workflow_id} WorkflowType={a.workflow_type.name} Namespace={a.namespace}"
    for name, value in (("WorkflowId", a.workflow_id), ("WorkflowType", a.workflow_type.name)):
        if not value:
            raise attributes.bad(_BAD, f"Required field {name} is not set on {_WHERE}. {of}")
        wrong = attributes.invalid_id(value, limit)
        if wrong:
            raise attributes.bad(_BAD, f"{name} on {_WHERE} {wrong}")
    for name, duration in (
        ("WorkflowExecutionTimeout", a.workflow_execution_timeout),
        ("WorkflowRunTimeout", a.workflow_run_timeout),
        ("WorkflowTaskTimeout", a.workflow_task_timeout),
    ):
        wrong = attributes.invalid_duration(duration)
        if wrong:
            raise attributes.bad(_BAD, f"Invalid {name} on {_WHERE}: {wrong}. {of}")
    if a.HasField("retry_policy"):
        a.retry_policy.CopyFrom(retry.with_defaults(a.retry_policy))
        why = retry.invalid(a.retry_policy)
        if why:
            raise attributes.bad(_BAD, f"invalid WorkflowRetryPolicy on {_WHERE}: {why} {of}")
    if a.cron_schedule:
        try:
            cron.validate(a.cron_schedule, txn.now)
        except cron.InvalidCron as error:
            raise attributes.bad(_BAD, f"invalid CronSchedule on {_WHERE}: {error}. {of}") from None
    if a.HasField("priority"):
        wrong = attributes.invalid_priority(a.priority)
        if wrong:
            raise attributes.bad(_BAD, wrong)
    wrong = attributes.invalid_task_queue(a.task_queue.name, limit)
    if wrong:
        raise attributes.bad(_BAD, f"invalid TaskQueue on {_WHERE}: {wrong}. {of} TaskQueue={a.task_queue.name}")
    for value, kind in (
        (a.parent_close_policy, ParentClosePolicy),
        (a.workflow_id_reuse_policy, WorkflowIdReusePolicy),
    ):
        if value not in kind.values():
            raise attributes.bad(_BAD, f"Invalid {kind.DESCRIPTOR.name} on {_WHERE}: {value}. {of}")


def _check_sizes(txn: Txn, a: StartChildWorkflowExecutionCommandAttributes) -> None:
    config, namespace = txn.env.config, txn.env.namespace
    parts: tuple[tuple[str, Message, dynamic.Key[int]], ...] = (
        (" Input", a.input, dynamic.BLOB_SIZE_ERROR),
        ("Memo", a.memo, dynamic.MEMO_SIZE_ERROR),
    )
    for name, value, key in parts:
        if value.ByteSize() > config.get(key, namespace):
            raise attributes.bad(
                _BAD, f"StartChildWorkflowExecutionCommandAttributes.{name} exceeds size limit.", terminate=True
            )


@applies(EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED)
def _initiated(state: State, event: HistoryEvent) -> None:
    a = event.start_child_workflow_execution_initiated_event_attributes
    child = Child(
        initiated_event_id=event.event_id,
        namespace=a.namespace,
        namespace_id=a.namespace_id,
        workflow_id=a.workflow_id,
        workflow_type=a.workflow_type.name,
        parent_close_policy=a.parent_close_policy,
        create_request_id=request_id_of(state, event.event_id),
    )
    state.put(Kind.CHILD, event.event_id, child)


# --- starting it ---


def start_request(state: State, child: Child, initiated: HistoryEvent) -> StartWorkflowExecutionRequest:
    """What starts the child. initiated: its StartChildWorkflowExecutionInitiated."""
    a = initiated.start_child_workflow_execution_initiated_event_attributes
    request = StartWorkflowExecutionRequest(
        namespace=a.namespace,
        workflow_id=a.workflow_id,
        identity=SERVER_IDENTITY,
        request_id=child.create_request_id,
        workflow_id_reuse_policy=a.workflow_id_reuse_policy,
        workflow_id_conflict_policy=WorkflowIdConflictPolicy.WORKFLOW_ID_CONFLICT_POLICY_FAIL,
        cron_schedule=a.cron_schedule,
    )
    for name in (
        "workflow_type",
        "task_queue",
        "input",
        "header",
        "memo",
        "search_attributes",
        "retry_policy",
        "workflow_execution_timeout",
        "workflow_run_timeout",
        "workflow_task_timeout",
        "versioning_override",
    ):
        if a.HasField(name):
            getattr(request, name).CopyFrom(getattr(a, name))
    own = a.priority.SerializeToString() if a.HasField("priority") else b""
    priority = attributes.merged_priority(state.info.priority_proto, own)
    if priority:
        request.priority.CopyFrom(Priority.FromString(priority))
    if initiated.HasField("user_metadata"):
        request.user_metadata.CopyFrom(initiated.user_metadata)
    return request


def parent_link(state: State, namespace: str, initiated_event_id: int) -> ParentLink:
    """namespace: name of the run's namespace."""
    info = state.info
    return ParentLink(
        info.namespace_id,
        namespace,
        info.workflow_id,
        info.run_id,
        initiated_event_id,
        info.root_workflow_id,
        info.root_run_id,
    )


def record_started(txn: Txn, child: Child, run_id: str, header: Header | None) -> None:
    """run_id: of the child's first run. header: of the command."""
    event = txn.event(EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED)
    e = event.child_workflow_execution_started_event_attributes
    e.namespace = child.namespace
    e.namespace_id = child.namespace_id
    e.initiated_event_id = child.initiated_event_id
    e.workflow_execution.workflow_id = child.workflow_id
    e.workflow_execution.run_id = run_id
    e.workflow_type.name = child.workflow_type
    if header is not None:
        e.header.CopyFrom(header)
    txn.record(event)
    workflow_tasks.ensure_scheduled(txn)


def note_started_after_close(txn: Txn, child: Child, run_id: str) -> None:
    """A child that outlives its parent started after the parent's end: the history is closed, so no event says it."""
    child.run_id = run_id
    txn.put(Kind.CHILD, child.initiated_event_id, child)


@applies(EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED)
@buffering.on_assigned(EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED)
def _started(state: State, event: HistoryEvent) -> None:
    a = event.child_workflow_execution_started_event_attributes
    child = state.children.get(a.initiated_event_id)
    if child is not None:
        child.run_id = a.workflow_execution.run_id
        child.started_event_id = event.event_id
        state.put(Kind.CHILD, child.initiated_event_id, child)


def record_start_failed(
    txn: Txn, child: Child, initiated: HistoryEvent, cause: StartChildWorkflowExecutionFailedCause.ValueType
) -> None:
    a = initiated.start_child_workflow_execution_initiated_event_attributes
    event = txn.event(EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_FAILED)
    e = event.start_child_workflow_execution_failed_event_attributes
    e.namespace = child.namespace
    e.namespace_id = child.namespace_id
    e.workflow_id = child.workflow_id
    e.workflow_type.name = child.workflow_type
    e.cause = cause
    e.control = a.control
    e.initiated_event_id = child.initiated_event_id
    e.workflow_task_completed_event_id = a.workflow_task_completed_event_id
    txn.record(event)
    workflow_tasks.ensure_scheduled(txn)


# --- its end ---


def record_closed(txn: Txn, child: Child, outcome: ChildOutcome) -> None:
    """The child's start is recorded before."""
    close = HistoryEvent.FromString(outcome.close_event)
    kind = close.event_type
    if kind == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED:
        event = txn.event(EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED)
        e = event.child_workflow_execution_completed_event_attributes
        completed = close.workflow_execution_completed_event_attributes
        if completed.HasField("result"):
            e.result.CopyFrom(completed.result)
    elif kind == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED:
        event = txn.event(EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_FAILED)
        e = event.child_workflow_execution_failed_event_attributes
        failed = close.workflow_execution_failed_event_attributes
        if failed.HasField("failure"):
            e.failure.CopyFrom(failed.failure)
        e.retry_state = failed.retry_state
    elif kind == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED:
        event = txn.event(EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_CANCELED)
        e = event.child_workflow_execution_canceled_event_attributes
        canceled = close.workflow_execution_canceled_event_attributes
        if canceled.HasField("details"):
            e.details.CopyFrom(canceled.details)
    elif kind == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT:
        event = txn.event(EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TIMED_OUT)
        e = event.child_workflow_execution_timed_out_event_attributes
        e.retry_state = close.workflow_execution_timed_out_event_attributes.retry_state
    else:
        assert kind == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED, EventType.Name(kind)
        event = txn.event(EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TERMINATED)
        e = event.child_workflow_execution_terminated_event_attributes
    e.namespace = child.namespace
    e.namespace_id = child.namespace_id
    e.workflow_execution.workflow_id = child.workflow_id
    e.workflow_execution.run_id = outcome.child_run_id
    e.workflow_type.name = child.workflow_type
    e.initiated_event_id = child.initiated_event_id
    e.started_event_id = child.started_event_id  # 0 while that event waits in the buffer: it is filled in later
    txn.record(event)
    workflow_tasks.ensure_scheduled(txn)


_ENDS = {
    EventType.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_FAILED: "start_child_workflow_execution_failed",
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED: "child_workflow_execution_completed",
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_FAILED: "child_workflow_execution_failed",
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_CANCELED: "child_workflow_execution_canceled",
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TIMED_OUT: "child_workflow_execution_timed_out",
    EventType.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TERMINATED: "child_workflow_execution_terminated",
}


@applies(*_ENDS)
def _ended(state: State, event: HistoryEvent) -> None:
    a = getattr(event, f"{_ENDS[event.event_type]}_event_attributes")
    state.remove(Kind.CHILD, a.initiated_event_id)


# --- description ---


def pending_child_infos(state: State) -> list[PendingChildExecutionInfo]:
    return [
        PendingChildExecutionInfo(
            workflow_id=child.workflow_id,
            run_id=child.run_id,
            workflow_type_name=child.workflow_type,
            initiated_id=child.initiated_event_id,
            parent_close_policy=ParentClosePolicy.ValueType(child.parent_close_policy),
        )
        for child in state.children.values()
    ]
