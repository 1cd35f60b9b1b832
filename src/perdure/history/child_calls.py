"""Children between the shards: started, told to their parents as they end, dealt with as their parent ends."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from temporalio.api.common.v1 import Header, WorkflowExecution
from temporalio.api.enums.v1 import ParentClosePolicy
from temporalio.api.enums.v1 import StartChildWorkflowExecutionFailedCause as FailedCause
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import (
    RequestCancelWorkflowExecutionRequest,
    StartWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest,
)

from perdure import errors
from perdure.errors import ServiceError
from perdure.history.api import ChildOutcome, ParentLink
from perdure.history.core import children
from perdure.history.core.state import Child
from perdure.history.core.tasks import CloseExecution, StartChild
from perdure.history.executors import executes
from perdure.history.shard import Shard

if TYPE_CHECKING:
    from perdure.history.engine import HistoryService

_ABANDON = ParentClosePolicy.PARENT_CLOSE_POLICY_ABANDON
_AT_ONCE = 32  # children that a closed parent deals with at the same time


# --- start ---


@executes(StartChild)
async def start(engine: HistoryService, shard: Shard, task: StartChild) -> None:
    """May be run again from any point: the child is found by its request id, and each step looks whether it is done."""
    to_start: tuple[HistoryEvent, StartWorkflowExecutionRequest, ParentLink] | None = None
    async with shard.run(task.namespace_id, task.workflow_id, task.run_id) as context:
        state = context.loaded
        child = state.children.get(task.initiated_event_id)
        if child is None:
            return  # it has ended already
        run_id = child.run_id
        orphan = not state.open and child.parent_close_policy != _ABANDON
        if not run_id and not orphan:
            initiated = await shard.event(context, task.initiated_event_id)
            namespace = engine.environment(task.namespace_id).namespace
            link = children.parent_link(state, namespace, task.initiated_event_id)
            to_start = initiated, children.start_request(state, child, initiated), link
    if to_start is not None:
        initiated, request, link = to_start
        try:
            run_id = await engine.others.start_child_workflow(child.namespace_id, request, link)
        except ServiceError as error:
            cause = _why_not_started(error)
            if cause is None:
                raise
            await _record_start_failed(shard, task, initiated, cause)
            return
        orphan = not await _record_started(shard, task, child, run_id, initiated)
    if orphan:
        # The parent ended, and what it did about its children may have come before this one was there.
        parent = WorkflowExecution(workflow_id=task.workflow_id, run_id=task.run_id)
        await _apply_close_policy(engine, parent, child, run_id)
    if run_id:
        await engine.others.schedule_first_workflow_task(
            child.namespace_id, WorkflowExecution(workflow_id=child.workflow_id, run_id=run_id)
        )


def _why_not_started(error: ServiceError) -> FailedCause.ValueType | None:
    if error.code == errors.Code.ALREADY_EXISTS:
        return FailedCause.START_CHILD_WORKFLOW_EXECUTION_FAILED_CAUSE_WORKFLOW_ALREADY_EXISTS
    if isinstance(error.detail, NamespaceNotFoundFailure):
        return FailedCause.START_CHILD_WORKFLOW_EXECUTION_FAILED_CAUSE_NAMESPACE_NOT_FOUND
    return None


async def _record_started(shard: Shard, task: StartChild, child: Child, run_id: str, initiated: HistoryEvent) -> bool:
    """False: the parent has ended, and the child is not to outlive it."""
    outlives = child.parent_close_policy == _ABANDON
    try:
        async with shard.run(task.namespace_id, task.workflow_id, task.run_id) as context:
            state = context.loaded
            pending = state.children.get(task.initiated_event_id)
            if pending is None or pending.run_id:
                return True
            if not state.open and not outlives:
                return False
            txn = shard.begin(context)
            if state.open:
                children.record_started(txn, pending, run_id, _header(initiated))
            else:
                children.note_started_after_close(txn, pending, run_id)
            await shard.commit(context, txn)
            return True
    except ServiceError as error:
        if error.code == errors.Code.NOT_FOUND:
            return outlives  # the parent was deleted
        raise


def _header(initiated: HistoryEvent) -> Header | None:
    a = initiated.start_child_workflow_execution_initiated_event_attributes
    return a.header if a.HasField("header") else None


async def _record_start_failed(
    shard: Shard, task: StartChild, initiated: HistoryEvent, cause: FailedCause.ValueType
) -> None:
    async with shard.run(task.namespace_id, task.workflow_id, task.run_id) as context:
        state = context.loaded
        child = state.children.get(task.initiated_event_id)
        if child is None or child.run_id or not state.open:
            return
        txn = shard.begin(context)
        children.record_start_failed(txn, child, initiated, cause)
        await shard.commit(context, txn)


# --- end ---


@dataclass(slots=True)
class _Report:
    """What a closed run has to tell its parent."""

    namespace_id: str
    parent: WorkflowExecution
    outcome: ChildOutcome


@executes(CloseExecution)
async def close_execution(engine: HistoryService, shard: Shard, task: CloseExecution) -> None:
    report: _Report | None = None
    async with shard.run(task.namespace_id, task.workflow_id, task.run_id) as context:
        state = context.loaded
        if state.open:
            return
        info = state.info
        if info.parent_workflow_id and not info.new_run_id:
            event = await shard.event(context, state.run.close_event_id)
            report = _Report(
                info.parent_namespace_id,
                WorkflowExecution(workflow_id=info.parent_workflow_id, run_id=info.parent_run_id),
                ChildOutcome(
                    info.parent_initiated_event_id,
                    engine.environment(task.namespace_id).namespace,
                    info.workflow_id,
                    info.run_id,
                    info.workflow_type,
                    event.SerializeToString(),
                    info.first_run_id,
                ),
            )
        left = [child for child in state.children.values() if child.parent_close_policy != _ABANDON]
    if report is not None:
        try:
            await engine.others.record_child_closed(report.namespace_id, report.parent, report.outcome)
        except ServiceError as error:
            if error.code != errors.Code.NOT_FOUND:
                raise
    parent = WorkflowExecution(workflow_id=task.workflow_id, run_id=task.run_id)
    for first in range(0, len(left), _AT_ONCE):
        await asyncio.gather(
            *(_apply_close_policy(engine, parent, c, c.run_id) for c in left[first : first + _AT_ONCE])
        )


async def _apply_close_policy(engine: HistoryService, parent: WorkflowExecution, child: Child, run_id: str) -> None:
    """Ends the child, whatever run of its chain is the current one, if it is there and is a child of this parent.
    run_id: of the chain's first run, "" when it is not known."""
    execution = WorkflowExecution(workflow_id=child.workflow_id)
    try:
        if child.parent_close_policy == ParentClosePolicy.PARENT_CLOSE_POLICY_TERMINATE:
            await engine.others.terminate_workflow_execution(
                child.namespace_id,
                TerminateWorkflowExecutionRequest(
                    namespace=child.namespace,
                    workflow_execution=execution,
                    first_execution_run_id=run_id,
                    reason="by parent close policy",
                    identity=children.SERVER_IDENTITY,
                ),
                child_only_of=parent,
            )
        else:
            await engine.others.request_cancel_workflow_execution(
                child.namespace_id,
                RequestCancelWorkflowExecutionRequest(
                    namespace=child.namespace,
                    workflow_execution=execution,
                    first_execution_run_id=run_id,
                    identity=children.SERVER_IDENTITY,
                ),
                child_only_of=parent,
                external_initiated=parent,
            )
    except ServiceError as error:
        if error.code != errors.Code.NOT_FOUND:
            raise


async def record_closed(
    engine: HistoryService, namespace_id: str, parent: WorkflowExecution, outcome: ChildOutcome
) -> None:
    """See HistoryClient.record_child_closed."""
    shard = engine.shard(namespace_id, parent.workflow_id)
    async with shard.run(namespace_id, parent.workflow_id, parent.run_id) as context:
        state = context.loaded
        if not state.open:
            raise errors.execution_completed()
        child = state.children.get(outcome.parent_initiated_event_id)
        if (
            child is None
            or child.workflow_id != outcome.child_workflow_id
            or (child.run_id and outcome.child_first_run_id not in ("", child.run_id))
        ):
            raise errors.not_found("Pending child execution not found.")
        initiated = None if child.run_id else await shard.event(context, child.initiated_event_id)
        txn = shard.begin(context)
        if initiated is not None:
            run_id = outcome.child_first_run_id or outcome.child_run_id
            children.record_started(txn, child, run_id, _header(initiated))
        children.record_closed(txn, child, outcome)
        await shard.commit(context, txn)
