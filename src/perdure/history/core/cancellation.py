"""Requests to cancel a run: the workflow is told, and decides itself how it ends."""

from __future__ import annotations

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import RequestCancelWorkflowExecutionRequest

from perdure.history.core import workflow_tasks
from perdure.history.core.apply import applies
from perdure.history.core.state import RUNNING, State
from perdure.history.core.txn import Txn


def request(
    txn: Txn,
    asked: RequestCancelWorkflowExecutionRequest,
    sender: WorkflowExecution | None = None,
    sender_event_id: int = 0,
) -> None:
    """sender, sender_event_id: the workflow that asks for it, if a workflow does, and its initiated event. A run is
    asked once: a second request changes nothing."""
    run = txn.state.run
    if run.cancel_requested:
        return
    event = txn.event(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED)
    a = event.workflow_execution_cancel_requested_event_attributes
    a.cause = asked.reason
    a.identity = asked.identity
    if sender is not None:
        a.external_workflow_execution.CopyFrom(sender)
        a.external_initiated_event_id = sender_event_id
    event.links.extend(asked.links)
    txn.record(event)
    # Unlike a signal it does not wait for the end of a start delay or backoff: the run need not begin to end.
    if run.status == RUNNING and run.workflow_task is None:
        workflow_tasks.schedule(txn)


@applies(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED)
def _requested(state: State, event: HistoryEvent) -> None:
    del event
    state.run.cancel_requested = True
