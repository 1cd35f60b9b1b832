"""Delivers the signals and cancellation requests that workflows send to other workflows."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import CancelExternalWorkflowExecutionFailedCause as CancelFailed
from temporalio.api.enums.v1 import SignalExternalWorkflowExecutionFailedCause as SignalFailed
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import RequestCancelWorkflowExecutionRequest, SignalWorkflowExecutionRequest

from perdure import errors
from perdure.errors import ServiceError
from perdure.history.core import externals
from perdure.history.core.children import SERVER_IDENTITY
from perdure.history.core.state import ExternalCancel, ExternalSignal
from perdure.history.core.tasks import CancelExternal, SignalExternal, Task
from perdure.history.executors import executes
from perdure.history.shard import RunContext, Shard

if TYPE_CHECKING:
    from perdure.history.engine import HistoryService


@executes(SignalExternal)
async def signal(engine: HistoryService, shard: Shard, task: SignalExternal) -> None:
    pending = await _pending(shard, task, task.initiated_event_id, _signal_of)
    if pending is None:
        return
    initiated, request_id = pending
    a = initiated.signal_external_workflow_execution_initiated_event_attributes
    sender = WorkflowExecution(workflow_id=task.workflow_id, run_id=task.run_id)
    failed: SignalFailed.ValueType | None = None
    if _is_self(task, a.namespace_id, a.workflow_execution):
        failed = SignalFailed.SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED_CAUSE_EXTERNAL_WORKFLOW_EXECUTION_NOT_FOUND
    else:
        request = SignalWorkflowExecutionRequest(
            namespace=a.namespace,
            workflow_execution=a.workflow_execution,
            signal_name=a.signal_name,
            input=a.input if a.HasField("input") else None,
            header=a.header if a.HasField("header") else None,
            identity=SERVER_IDENTITY,
            request_id=request_id,
            control=a.control,
        )
        try:
            engine.environment(a.namespace_id)
            await engine.others.signal_workflow_execution(
                a.namespace_id,
                request,
                child_only_of=sender if a.child_workflow_only else None,
                external_initiated=sender,
            )
        except ServiceError as error:
            failed = _why_not_signalled(error)
            if failed is None:
                raise
    async with shard.run(task.namespace_id, task.workflow_id, task.run_id) as context:
        if not context.loaded.open or _signal_of(context, task.initiated_event_id) is None:
            return
        txn = shard.begin(context)
        if failed is None:
            externals.signal_delivered(txn, task.initiated_event_id, a)
        else:
            externals.signal_failed(txn, task.initiated_event_id, a, failed)
        await shard.commit(context, txn)


@executes(CancelExternal)
async def cancel(engine: HistoryService, shard: Shard, task: CancelExternal) -> None:
    pending = await _pending(shard, task, task.initiated_event_id, _cancel_of)
    if pending is None:
        return
    initiated, request_id = pending
    a = initiated.request_cancel_external_workflow_execution_initiated_event_attributes
    sender = WorkflowExecution(workflow_id=task.workflow_id, run_id=task.run_id)
    failed: CancelFailed.ValueType | None = None
    if _is_self(task, a.namespace_id, a.workflow_execution):
        failed = CancelFailed.CANCEL_EXTERNAL_WORKFLOW_EXECUTION_FAILED_CAUSE_EXTERNAL_WORKFLOW_EXECUTION_NOT_FOUND
    else:
        request = RequestCancelWorkflowExecutionRequest(
            namespace=a.namespace,
            workflow_execution=a.workflow_execution,
            identity=SERVER_IDENTITY,
            request_id=request_id,
            reason=a.reason,
        )
        try:
            engine.environment(a.namespace_id)
            await engine.others.request_cancel_workflow_execution(
                a.namespace_id,
                request,
                child_only_of=sender if a.child_workflow_only else None,
                external_initiated=sender,
                external_initiated_event_id=task.initiated_event_id,
            )
        except ServiceError as error:
            failed = _why_not_canceled(error)
            if failed is None:
                raise
    async with shard.run(task.namespace_id, task.workflow_id, task.run_id) as context:
        if not context.loaded.open or _cancel_of(context, task.initiated_event_id) is None:
            return
        txn = shard.begin(context)
        if failed is None:
            externals.cancel_delivered(txn, task.initiated_event_id, a)
        else:
            externals.cancel_failed(txn, task.initiated_event_id, a, failed)
        await shard.commit(context, txn)


async def _pending(
    shard: Shard,
    task: Task,
    initiated_event_id: int,
    row_of: Callable[[RunContext, int], ExternalSignal | ExternalCancel | None],
) -> tuple[HistoryEvent, str] | None:
    """The initiated event and the request id; None when the answer is in already, or the sender has closed."""
    async with shard.run(task.namespace_id, task.workflow_id, task.run_id) as context:
        row = row_of(context, initiated_event_id)
        if row is None or not context.loaded.open:
            return None
        return await shard.event(context, initiated_event_id), row.request_id


def _is_self(task: Task, namespace_id: str, target: WorkflowExecution) -> bool:
    """A workflow cannot reach its own id this way, whichever run is meant."""
    return (task.namespace_id, task.workflow_id) == (namespace_id, target.workflow_id)


def _why_not_signalled(error: ServiceError) -> SignalFailed.ValueType | None:
    """None: it may still succeed."""
    if isinstance(error.detail, NamespaceNotFoundFailure):
        return SignalFailed.SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED_CAUSE_NAMESPACE_NOT_FOUND
    if error.code == errors.Code.NOT_FOUND:
        return SignalFailed.SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED_CAUSE_EXTERNAL_WORKFLOW_EXECUTION_NOT_FOUND
    if error.code == errors.Code.INVALID_ARGUMENT:
        return SignalFailed.SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED_CAUSE_SIGNAL_COUNT_LIMIT_EXCEEDED
    return None


def _why_not_canceled(error: ServiceError) -> CancelFailed.ValueType | None:
    """None: it may still succeed."""
    if isinstance(error.detail, NamespaceNotFoundFailure):
        return CancelFailed.CANCEL_EXTERNAL_WORKFLOW_EXECUTION_FAILED_CAUSE_NAMESPACE_NOT_FOUND
    if error.code == errors.Code.NOT_FOUND:
        return CancelFailed.CANCEL_EXTERNAL_WORKFLOW_EXECUTION_FAILED_CAUSE_EXTERNAL_WORKFLOW_EXECUTION_NOT_FOUND
    return None


def _signal_of(context: RunContext, initiated_event_id: int) -> ExternalSignal | None:
    return context.loaded.external_signals.get(initiated_event_id)


def _cancel_of(context: RunContext, initiated_event_id: int) -> ExternalCancel | None:
    return context.loaded.external_cancels.get(initiated_event_id)
