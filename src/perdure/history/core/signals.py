"""Signals that a run receives."""

from __future__ import annotations

from temporalio.api.common.v1 import Header, Link, Payloads, WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import SignalWithStartWorkflowExecutionRequest, SignalWorkflowExecutionRequest

from perdure.config import dynamic
from perdure.errors import invalid_argument
from perdure.history.core import workflow_tasks
from perdure.history.core.apply import applies
from perdure.history.core.state import Kind, State
from perdure.history.core.txn import Txn

TOO_MANY = "exceeded workflow execution limit for signal events"


def known(state: State, request_id: str) -> bool:
    """A signal with this request id has come before."""
    return bool(request_id) and request_id in state.signal_requests


def receive(txn: Txn, request: SignalWorkflowExecutionRequest, sender: WorkflowExecution | None = None) -> HistoryEvent:
    """sender: the workflow that sends it, if a workflow does. Raises ServiceError INVALID_ARGUMENT when the run has had
    as many signals as it may have; nothing is changed then."""
    return _receive(
        txn,
        request.signal_name,
        request.input if request.HasField("input") else None,
        request.header if request.HasField("header") else None,
        request.identity,
        request.request_id,
        list(request.links),
        sender,
    )


def receive_with_start(txn: Txn, request: SignalWithStartWorkflowExecutionRequest) -> HistoryEvent:
    """The signal of a signal-with-start, to a run that is there, or that the same step begins (before its first
    workflow task is scheduled). Raises as `receive`."""
    return _receive(
        txn,
        request.signal_name,
        request.signal_input if request.HasField("signal_input") else None,
        request.header if request.HasField("header") else None,
        request.identity,
        request.request_id,
        list(request.links),
        None,
    )


def _receive(
    txn: Txn,
    name: str,
    payloads: Payloads | None,
    header: Header | None,
    identity: str,
    request_id: str,
    links: list[Link],
    sender: WorkflowExecution | None,
) -> HistoryEvent:
    limit = txn.env.config.get(dynamic.MAX_SIGNALS_PER_EXECUTION, txn.env.namespace)
    if 0 < limit <= txn.state.run.signal_count:
        raise invalid_argument(TOO_MANY)
    event = txn.event(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED)
    a = event.workflow_execution_signaled_event_attributes
    a.signal_name = name
    if payloads is not None:
        a.input.CopyFrom(payloads)
    if header is not None:
        a.header.CopyFrom(header)
    a.identity = identity
    a.request_id = request_id
    if sender is not None:
        a.external_workflow_execution.CopyFrom(sender)
    if links:
        event.links.extend(links)
    txn.record(event)
    workflow_tasks.ensure_scheduled(txn)
    return event


@applies(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED)
def _signaled(state: State, event: HistoryEvent) -> None:
    state.run.signal_count += 1
    request_id = event.workflow_execution_signaled_event_attributes.request_id
    if request_id:
        state.put(Kind.SIGNAL_REQUEST, request_id, True)
