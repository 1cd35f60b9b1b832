"""Signals and cancellation requests that a workflow sends to other workflows.

The command leaves an initiated event and a pending row; a transfer task then delivers it and reports back what came of
it. A delivery that is made twice has the same request id, so that the target takes it once.
"""

from __future__ import annotations

import uuid

from temporalio.api.command.v1 import Command
from temporalio.api.enums.v1 import (
    CancelExternalWorkflowExecutionFailedCause,
    CommandType,
    EventType,
    SignalExternalWorkflowExecutionFailedCause,
)
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause
from temporalio.api.history.v1 import (
    HistoryEvent,
    RequestCancelExternalWorkflowExecutionInitiatedEventAttributes,
    SignalExternalWorkflowExecutionInitiatedEventAttributes,
)

from perdure.config import dynamic
from perdure.history.core import attributes, workflow_tasks
from perdure.history.core.apply import applies
from perdure.history.core.completion import Completion, command
from perdure.history.core.state import ExternalCancel, ExternalSignal, Kind, State
from perdure.history.core.tasks import CancelExternal, SignalExternal
from perdure.history.core.txn import Txn

_SIGNAL = "SignalExternalWorkflowExecutionCommand"
_CANCEL = "RequestCancelExternalWorkflowExecutionCommand"


def request_id_of(state: State, initiated_event_id: int) -> str:
    """Of what the run asks of another one. It follows from the events, so a state rebuilt from them has the same."""
    return f"{state.info.run_id}:{initiated_event_id}"


def target_namespace(txn: Txn, name: str, cause: Cause.ValueType) -> tuple[str, str]:
    """Name and id of the namespace that a command names, "" for the run's own. Raises BadCommand."""
    env = txn.env
    if not name or name == env.namespace:
        return env.namespace, txn.state.info.namespace_id
    namespace_id = env.namespace_id(name)
    if namespace_id is None:
        raise attributes.bad(cause, f"Namespace {name} is not found.")
    return name, namespace_id


def _check_target(txn: Txn, cause: Cause.ValueType, where: str, workflow_id: str, run_id: str) -> None:
    if not workflow_id:
        raise attributes.bad(cause, f"WorkflowId is not set on {where}.")
    limit = txn.env.config.get(dynamic.MAX_ID_LENGTH)
    for name, value in (("WorkflowId", workflow_id), ("RunId", run_id)):
        wrong = attributes.invalid_id(value, limit)
        if wrong:
            raise attributes.bad(cause, f"{name} on {where} {wrong}")
    if run_id and not _is_uuid(run_id):
        raise attributes.bad(cause, f"Invalid RunId set on {where}. WorkflowId={workflow_id} RunId={run_id}")


def check_count(txn: Txn, count: int, key: dynamic.Key[int], cause: Cause.ValueType, what: str) -> None:
    limit = txn.env.config.get(key, txn.env.namespace)
    if 0 < limit <= count:
        raise attributes.bad(cause, f"the number of {what}, {count}, has reached the per-workflow limit of {limit}")


def _is_uuid(value: str) -> bool:
    try:
        uuid.UUID(value)
    except ValueError:
        return False
    return True


# --- signals ---


@command(CommandType.COMMAND_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION)
def _signal(completion: Completion, source: Command) -> None:
    txn = completion.txn
    a = source.signal_external_workflow_execution_command_attributes
    cause = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_SIGNAL_WORKFLOW_EXECUTION_ATTRIBUTES
    if not a.HasField("execution"):
        raise attributes.bad(cause, f"Execution is not set on {_SIGNAL}.")
    namespace, namespace_id = target_namespace(txn, a.namespace, cause)
    _check_target(txn, cause, _SIGNAL, a.execution.workflow_id, a.execution.run_id)
    if not a.signal_name:
        raise attributes.bad(cause, f"SignalName is not set on {_SIGNAL}. WorkflowId={a.execution.workflow_id}")
    wrong = attributes.invalid_id(a.signal_name, txn.env.config.get(dynamic.MAX_ID_LENGTH))
    if wrong:
        raise attributes.bad(cause, f"SignalName on {_SIGNAL} {wrong}")
    check_count(
        txn,
        len(txn.state.external_signals),
        dynamic.PENDING_SIGNALS_ERROR,
        Cause.WORKFLOW_TASK_FAILED_CAUSE_PENDING_SIGNALS_LIMIT_EXCEEDED,
        "pending signals to external workflows",
    )
    if a.input.ByteSize() > txn.env.config.get(dynamic.BLOB_SIZE_ERROR, txn.env.namespace):
        raise attributes.bad(
            cause, "SignalExternalWorkflowExecutionCommandAttributes.Input exceeds size limit.", terminate=True
        )
    event = txn.event(EventType.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED)
    e = event.signal_external_workflow_execution_initiated_event_attributes
    e.workflow_task_completed_event_id = completion.completed_event_id
    e.namespace = namespace
    e.namespace_id = namespace_id
    e.workflow_execution.CopyFrom(a.execution)
    e.signal_name = a.signal_name
    if a.HasField("input"):
        e.input.CopyFrom(a.input)
    e.control = a.control
    e.child_workflow_only = a.child_workflow_only
    if a.HasField("header"):
        e.header.CopyFrom(a.header)
    completion.add(event, source)
    txn.task(SignalExternal(initiated_event_id=event.event_id))


@applies(EventType.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED)
def _signal_initiated(state: State, event: HistoryEvent) -> None:
    event_id = event.event_id
    state.put(Kind.EXTERNAL_SIGNAL, event_id, ExternalSignal(event_id, request_id_of(state, event_id)))


def signal_delivered(
    txn: Txn, initiated_event_id: int, initiated: SignalExternalWorkflowExecutionInitiatedEventAttributes
) -> None:
    event = txn.event(EventType.EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_SIGNALED)
    e = event.external_workflow_execution_signaled_event_attributes
    e.initiated_event_id = initiated_event_id
    e.namespace = initiated.namespace
    e.namespace_id = initiated.namespace_id
    e.workflow_execution.CopyFrom(initiated.workflow_execution)
    e.control = initiated.control
    txn.record(event)
    workflow_tasks.ensure_scheduled(txn)


def signal_failed(
    txn: Txn,
    initiated_event_id: int,
    initiated: SignalExternalWorkflowExecutionInitiatedEventAttributes,
    cause: SignalExternalWorkflowExecutionFailedCause.ValueType,
) -> None:
    event = txn.event(EventType.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED)
    e = event.signal_external_workflow_execution_failed_event_attributes
    e.cause = cause
    e.namespace = initiated.namespace
    e.namespace_id = initiated.namespace_id
    e.workflow_execution.CopyFrom(initiated.workflow_execution)
    e.initiated_event_id = initiated_event_id
    e.control = initiated.control
    txn.record(event)
    workflow_tasks.ensure_scheduled(txn)


@applies(EventType.EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_SIGNALED)
def _signal_delivered(state: State, event: HistoryEvent) -> None:
    a = event.external_workflow_execution_signaled_event_attributes
    state.remove(Kind.EXTERNAL_SIGNAL, a.initiated_event_id)


@applies(EventType.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED)
def _signal_failed(state: State, event: HistoryEvent) -> None:
    a = event.signal_external_workflow_execution_failed_event_attributes
    state.remove(Kind.EXTERNAL_SIGNAL, a.initiated_event_id)


# --- cancellation requests ---


@command(CommandType.COMMAND_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION)
def _cancel(completion: Completion, source: Command) -> None:
    txn = completion.txn
    a = source.request_cancel_external_workflow_execution_command_attributes
    cause = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_ATTRIBUTES
    namespace, namespace_id = target_namespace(txn, a.namespace, cause)
    _check_target(txn, cause, _CANCEL, a.workflow_id, a.run_id)
    for child in reversed(txn.state.children.values()):
        if child.initiated_event_id < completion.completed_event_id:
            break
        if child.workflow_id == a.workflow_id:
            raise attributes.bad(
                cause,
                "Start and RequestCancel for child workflow is not allowed in same workflow task. "
                f"WorkflowId={a.workflow_id} RunId={a.run_id} Namespace={a.namespace}",
            )
    check_count(
        txn,
        len(txn.state.external_cancels),
        dynamic.PENDING_CANCELS_ERROR,
        Cause.WORKFLOW_TASK_FAILED_CAUSE_PENDING_REQUEST_CANCEL_LIMIT_EXCEEDED,
        "pending requests to cancel external workflows",
    )
    event = txn.event(EventType.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED)
    e = event.request_cancel_external_workflow_execution_initiated_event_attributes
    e.workflow_task_completed_event_id = completion.completed_event_id
    e.namespace = namespace
    e.namespace_id = namespace_id
    e.workflow_execution.workflow_id = a.workflow_id
    e.workflow_execution.run_id = a.run_id
    e.control = a.control
    e.child_workflow_only = a.child_workflow_only
    e.reason = a.reason
    completion.add(event, source)
    txn.task(CancelExternal(initiated_event_id=event.event_id))


@applies(EventType.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED)
def _cancel_initiated(state: State, event: HistoryEvent) -> None:
    event_id = event.event_id
    state.put(Kind.EXTERNAL_CANCEL, event_id, ExternalCancel(event_id, request_id_of(state, event_id)))


def cancel_delivered(
    txn: Txn, initiated_event_id: int, initiated: RequestCancelExternalWorkflowExecutionInitiatedEventAttributes
) -> None:
    event = txn.event(EventType.EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_CANCEL_REQUESTED)
    e = event.external_workflow_execution_cancel_requested_event_attributes
    e.initiated_event_id = initiated_event_id
    e.namespace = initiated.namespace
    e.namespace_id = initiated.namespace_id
    e.workflow_execution.CopyFrom(initiated.workflow_execution)
    txn.record(event)
    workflow_tasks.ensure_scheduled(txn)


def cancel_failed(
    txn: Txn,
    initiated_event_id: int,
    initiated: RequestCancelExternalWorkflowExecutionInitiatedEventAttributes,
    cause: CancelExternalWorkflowExecutionFailedCause.ValueType,
) -> None:
    event = txn.event(EventType.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_FAILED)
    e = event.request_cancel_external_workflow_execution_failed_event_attributes
    e.cause = cause
    e.namespace = initiated.namespace
    e.namespace_id = initiated.namespace_id
    e.workflow_execution.CopyFrom(initiated.workflow_execution)
    e.initiated_event_id = initiated_event_id
    e.control = initiated.control
    txn.record(event)
    workflow_tasks.ensure_scheduled(txn)


@applies(EventType.EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_CANCEL_REQUESTED)
def _cancel_delivered(state: State, event: HistoryEvent) -> None:
    a = event.external_workflow_execution_cancel_requested_event_attributes
    state.remove(Kind.EXTERNAL_CANCEL, a.initiated_event_id)


@applies(EventType.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_FAILED)
def _cancel_failed(state: State, event: HistoryEvent) -> None:
    a = event.request_cancel_external_workflow_execution_failed_event_attributes
    state.remove(Kind.EXTERNAL_CANCEL, a.initiated_event_id)
