"""Calls from outside to a run: signal it, ask it to cancel, terminate it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio.api.common.v1 import Link, WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.workflowservice.v1 import (
    RequestCancelWorkflowExecutionRequest,
    SignalWorkflowExecutionRequest,
    SignalWorkflowExecutionResponse,
    TerminateWorkflowExecutionRequest,
)

from perdure import errors
from perdure.history import calls
from perdure.history.core import cancellation, endings, lifecycle, markers, signals
from perdure.history.core.state import State

if TYPE_CHECKING:
    from perdure.history.engine import HistoryService

_COMMANDS = (endings, markers)  # imported for the commands that they register


async def signal(
    engine: HistoryService,
    namespace_id: str,
    request: SignalWorkflowExecutionRequest,
    child_only_of: WorkflowExecution | None = None,
    external_initiated: WorkflowExecution | None = None,
) -> SignalWorkflowExecutionResponse:
    """See HistoryClient.signal_workflow_execution."""
    target = request.workflow_execution
    shard = engine.shard(namespace_id, target.workflow_id)
    async with calls.open_run(shard, namespace_id, target.workflow_id, target.run_id, closed_too=True) as context:
        state = context.loaded
        if not signals.known(state, request.request_id):
            if not state.open:
                raise errors.execution_completed()
            _check_parent(state, child_only_of)
            if state.closing:
                raise errors.workflow_closing()
            txn = shard.begin(context)
            signals.receive(txn, request, external_initiated)
            await shard.commit(context, txn)
        response = SignalWorkflowExecutionResponse()
        _link_to_event(response.link.workflow_event, request, context.key[2])
        return response


def _link_to_event(link: Link.WorkflowEvent, request: SignalWorkflowExecutionRequest, run_id: str) -> None:
    link.namespace = request.namespace
    link.workflow_id = request.workflow_execution.workflow_id
    link.run_id = run_id
    link.request_id_ref.request_id = request.request_id
    link.request_id_ref.event_type = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED


async def request_cancel(
    engine: HistoryService,
    namespace_id: str,
    request: RequestCancelWorkflowExecutionRequest,
    child_only_of: WorkflowExecution | None = None,
    external_initiated: WorkflowExecution | None = None,
    external_initiated_event_id: int = 0,
) -> None:
    """See HistoryClient.request_cancel_workflow_execution. Nothing is left to do, and that is no error, when the run is
    closed or was asked before."""
    target = request.workflow_execution
    shard = engine.shard(namespace_id, target.workflow_id)
    run_id = "" if request.first_execution_run_id else target.run_id
    async with calls.open_run(shard, namespace_id, target.workflow_id, run_id, closed_too=True) as context:
        state = context.loaded
        if not state.open:
            return
        if request.first_execution_run_id and state.info.first_run_id != request.first_execution_run_id:
            raise errors.not_found("workflow execution not found")
        _check_parent(state, child_only_of)
        txn = shard.begin(context)
        cancellation.request(txn, request, external_initiated, external_initiated_event_id)
        if txn.dirty:
            await shard.commit(context, txn)


async def terminate(
    engine: HistoryService,
    namespace_id: str,
    request: TerminateWorkflowExecutionRequest,
    child_only_of: WorkflowExecution | None = None,
) -> None:
    target = request.workflow_execution
    shard = engine.shard(namespace_id, target.workflow_id)
    first_run_id = request.first_execution_run_id
    run_id = "" if first_run_id else target.run_id
    async with calls.open_run(shard, namespace_id, target.workflow_id, run_id, first_run_id) as context:
        _check_parent(context.loaded, child_only_of)
        txn = shard.begin(context)
        details = request.details if request.HasField("details") else None
        lifecycle.terminate(txn, request.reason, details, request.identity, request.links)
        await shard.commit(context, txn)


def _check_parent(state: State, child_only_of: WorkflowExecution | None) -> None:
    if child_only_of is None:
        return
    info = state.info
    if (info.parent_workflow_id, info.parent_run_id) != (child_only_of.workflow_id, child_only_of.run_id):
        raise errors.not_found("workflow parent does not match")
