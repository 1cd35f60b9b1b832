"""DescribeWorkflowExecution: the state of a run as its users see it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio.api.common.v1 import Memo, Priority, SearchAttributes, WorkflowExecution
from temporalio.api.enums.v1 import PendingWorkflowTaskState, TaskQueueKind
from temporalio.api.sdk.v1 import UserMetadata
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflow.v1 import (
    PendingWorkflowTaskInfo,
    RequestIdInfo,
    ResetPoints,
    VersioningOverride,
    WorkflowExecutionConfig,
    WorkflowExecutionExtendedInfo,
    WorkflowExecutionInfo,
)
from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionRequest, DescribeWorkflowExecutionResponse

from perdure.clock import to_duration, to_timestamp
from perdure.history.core.activities import pending_activity_infos
from perdure.history.core.children import pending_child_infos
from perdure.history.core.state import State

if TYPE_CHECKING:
    from perdure.history.engine import HistoryService


async def describe(
    engine: HistoryService, namespace_id: str, request: DescribeWorkflowExecutionRequest
) -> DescribeWorkflowExecutionResponse:
    workflow_id = request.execution.workflow_id
    shard = engine.shard(namespace_id, workflow_id)
    run_id = await shard.run_id_of(namespace_id, workflow_id, request.execution.run_id)
    async with shard.run(namespace_id, workflow_id, run_id) as context:
        state = context.loaded
        return DescribeWorkflowExecutionResponse(
            execution_config=_config(state),
            workflow_execution_info=execution_info(state),
            pending_activities=pending_activity_infos(state, shard.clock.now()),
            pending_children=pending_child_infos(state),
            pending_workflow_task=_workflow_task(state),
            workflow_extended_info=_extended(state),
        )


def _config(state: State) -> WorkflowExecutionConfig:
    info = state.info
    config = WorkflowExecutionConfig(
        task_queue=TaskQueue(name=info.task_queue, kind=TaskQueueKind.TASK_QUEUE_KIND_NORMAL),
        workflow_execution_timeout=to_duration(info.execution_timeout),
        workflow_run_timeout=to_duration(info.run_timeout),
        default_workflow_task_timeout=to_duration(info.task_timeout),
    )
    if info.user_metadata_proto:
        config.user_metadata.CopyFrom(UserMetadata.FromString(info.user_metadata_proto))
    return config


def execution_info(state: State) -> WorkflowExecutionInfo:
    info, run = state.info, state.run
    result = WorkflowExecutionInfo(
        execution=WorkflowExecution(workflow_id=info.workflow_id, run_id=info.run_id),
        start_time=to_timestamp(info.start_time),
        execution_time=to_timestamp(info.execution_time),
        history_length=run.next_event_id - 1,
        history_size_bytes=run.history_size,
        state_transition_count=run.transition_count,
        task_queue=info.task_queue,
        root_execution=WorkflowExecution(
            workflow_id=info.root_workflow_id or info.workflow_id, run_id=info.root_run_id or info.run_id
        ),
        first_run_id=info.first_run_id,
        memo=Memo.FromString(info.memo_proto),
        search_attributes=SearchAttributes.FromString(info.search_attributes_proto),
    )
    result.type.name = info.workflow_type
    result.status = run.status  # pyright: ignore[reportAttributeAccessIssue]
    if not state.open:
        result.close_time.CopyFrom(to_timestamp(run.close_time))
        result.execution_duration.CopyFrom(to_duration(run.close_time - info.execution_time))
    if info.parent_workflow_id:
        result.parent_namespace_id = info.parent_namespace_id
        result.parent_execution.workflow_id = info.parent_workflow_id
        result.parent_execution.run_id = info.parent_run_id
    if info.priority_proto:
        result.priority.CopyFrom(Priority.FromString(info.priority_proto))
    if info.reset_points_proto:
        result.auto_reset_points.CopyFrom(ResetPoints.FromString(info.reset_points_proto))
    if info.versioning_override_proto:
        override = VersioningOverride.FromString(info.versioning_override_proto)
        result.versioning_info.versioning_override.CopyFrom(override)
    return result


def _workflow_task(state: State) -> PendingWorkflowTaskInfo | None:
    task = state.run.workflow_task
    if task is None or not state.open:
        return None
    started = bool(task.started_event_id)
    pending = PendingWorkflowTaskInfo(
        state=PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_STARTED
        if started
        else PendingWorkflowTaskState.PENDING_WORKFLOW_TASK_STATE_SCHEDULED,
        scheduled_time=to_timestamp(task.scheduled_time),
        original_scheduled_time=to_timestamp(task.original_scheduled_time),
        attempt=task.attempt,
    )
    if started:
        pending.started_time.CopyFrom(to_timestamp(task.started_time))
    return pending


def _extended(state: State) -> WorkflowExecutionExtendedInfo:
    info, run = state.info, state.run
    extended = WorkflowExecutionExtendedInfo(
        cancel_requested=run.cancel_requested,
        original_start_time=to_timestamp(info.start_time),
    )
    if info.execution_expiration:
        extended.execution_expiration_time.CopyFrom(to_timestamp(info.execution_expiration))
    if info.run_expiration:
        extended.run_expiration_time.CopyFrom(to_timestamp(info.run_expiration))
    for request_id, record in state.request_ids.items():
        extended.request_id_infos[request_id].CopyFrom(
            RequestIdInfo(
                event_type=record.event_type,  # pyright: ignore[reportArgumentType]
                event_id=record.event_id,
                buffered=record.event_id == 0,
            )
        )
    return extended
