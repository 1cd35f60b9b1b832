"""What the other services ask of history. Arguments and results are structs, protobufs or plain values, so that the
same protocol works by direct call and across processes. `namespace_id` comes resolved and requests come validated in
form (required fields, lengths, durations); history checks what depends on the execution."""

from __future__ import annotations

from typing import Protocol

import msgspec
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import HistoryEventFilterType
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    DescribeWorkflowExecutionResponse,
    ExecuteMultiOperationRequest,
    ExecuteMultiOperationResponse,
    GetWorkflowExecutionHistoryRequest,
    PollWorkflowExecutionUpdateRequest,
    PollWorkflowExecutionUpdateResponse,
    QueryWorkflowRequest,
    QueryWorkflowResponse,
    RecordActivityTaskHeartbeatByIdRequest,
    RecordActivityTaskHeartbeatRequest,
    RecordActivityTaskHeartbeatResponse,
    RequestCancelWorkflowExecutionRequest,
    RespondActivityTaskCanceledByIdRequest,
    RespondActivityTaskCanceledRequest,
    RespondActivityTaskCompletedByIdRequest,
    RespondActivityTaskCompletedRequest,
    RespondActivityTaskFailedByIdRequest,
    RespondActivityTaskFailedRequest,
    RespondActivityTaskFailedResponse,
    RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskFailedRequest,
    SignalWithStartWorkflowExecutionRequest,
    SignalWithStartWorkflowExecutionResponse,
    SignalWorkflowExecutionRequest,
    SignalWorkflowExecutionResponse,
    StartWorkflowExecutionRequest,
    StartWorkflowExecutionResponse,
    TerminateWorkflowExecutionRequest,
    UpdateWorkflowExecutionRequest,
    UpdateWorkflowExecutionResponse,
)

from perdure.matching.api import TaskRef


class Poller(msgspec.Struct, array_like=True):
    """Who takes a task. request_id: of this hand-out; recording the same one twice is answered alike.
    deployment_name/build_id/versioning: the poller's version, verbatim from its request.
    sticky_queue: name of the sticky task queue that was polled, "" for a normal one."""

    identity: str
    request_id: str
    task_queue: str
    sticky_queue: str = ""
    binary_checksum: str = ""
    worker_version: bytes = b""  # serialized temporal.api.common.v1.WorkerVersionCapabilities
    deployment_options: bytes = b""  # serialized temporal.api.deployment.v1.WorkerDeploymentOptions
    worker_instance_key: str = ""


class ParentLink(msgspec.Struct, array_like=True):
    """Of the parent that starts a child: where to tell of its end."""

    namespace_id: str
    namespace: str
    workflow_id: str
    run_id: str
    initiated_event_id: int
    root_workflow_id: str
    root_run_id: str


class ChildOutcome(msgspec.Struct, array_like=True):
    """How a child ended, told to its parent's shard. close_event: the serialized closing HistoryEvent of the last run
    of the child. child_run_id: of that run. child_first_run_id: of the run that the parent started."""

    parent_initiated_event_id: int
    child_namespace: str
    child_workflow_id: str
    child_run_id: str
    child_workflow_type: str
    close_event: bytes
    child_first_run_id: str = ""


class HistoryClient(Protocol):
    # --- lifecycle
    async def start_workflow_execution(
        self, namespace_id: str, request: StartWorkflowExecutionRequest
    ) -> StartWorkflowExecutionResponse: ...

    async def signal_with_start_workflow_execution(
        self, namespace_id: str, request: SignalWithStartWorkflowExecutionRequest
    ) -> SignalWithStartWorkflowExecutionResponse: ...

    async def execute_multi_operation(
        self, namespace_id: str, request: ExecuteMultiOperationRequest, deadline: int
    ) -> ExecuteMultiOperationResponse:
        """deadline: nanoseconds, until when to wait for the update."""
        ...

    async def signal_workflow_execution(
        self,
        namespace_id: str,
        request: SignalWorkflowExecutionRequest,
        *,
        child_only_of: WorkflowExecution | None = None,
        external_initiated: WorkflowExecution | None = None,
    ) -> SignalWorkflowExecutionResponse:
        """child_only_of: refuse (NOT_FOUND) unless the target is a child of this one. external_initiated: the workflow
        that sends it, if a workflow does."""
        ...

    async def request_cancel_workflow_execution(
        self,
        namespace_id: str,
        request: RequestCancelWorkflowExecutionRequest,
        *,
        child_only_of: WorkflowExecution | None = None,
        external_initiated: WorkflowExecution | None = None,
        external_initiated_event_id: int = 0,
    ) -> None: ...

    async def terminate_workflow_execution(
        self,
        namespace_id: str,
        request: TerminateWorkflowExecutionRequest,
        *,
        child_only_of: WorkflowExecution | None = None,
    ) -> None: ...

    async def delete_workflow_execution(self, namespace_id: str, execution: WorkflowExecution) -> None: ...

    # --- workflow tasks
    async def record_workflow_task_started(self, task: TaskRef, poller: Poller) -> bytes:
        """For matching, as it hands a workflow task out. Returns the serialized PollWorkflowTaskQueueResponse. Raises
        ServiceError NOT_FOUND (stale: drop the task), ALREADY_EXISTS (another poller has it: drop), UNAVAILABLE or
        RESOURCE_EXHAUSTED (try again)."""
        ...

    async def make_query_task(self, task: TaskRef, poller: Poller, query: WorkflowQuery, query_token: bytes) -> bytes:
        """For matching, as it hands a direct query out: the serialized PollWorkflowTaskQueueResponse with `query` and
        `query_token` as its task token, history as the poller's stickiness asks."""
        ...

    async def respond_workflow_task_completed(
        self, namespace_id: str, request: RespondWorkflowTaskCompletedRequest
    ) -> bytes:
        """A serialized RespondWorkflowTaskCompletedResponse."""
        ...

    async def respond_workflow_task_failed(
        self, namespace_id: str, request: RespondWorkflowTaskFailedRequest
    ) -> None: ...

    async def reset_sticky_task_queue(self, namespace_id: str, execution: WorkflowExecution) -> None: ...

    # --- activities
    async def record_activity_task_started(self, task: TaskRef, poller: Poller) -> bytes:
        """The serialized PollActivityTaskQueueResponse; raises as record_workflow_task_started."""
        ...

    async def record_activity_task_heartbeat(
        self, namespace_id: str, request: RecordActivityTaskHeartbeatRequest
    ) -> RecordActivityTaskHeartbeatResponse: ...

    async def record_activity_task_heartbeat_by_id(
        self, namespace_id: str, request: RecordActivityTaskHeartbeatByIdRequest
    ) -> RecordActivityTaskHeartbeatResponse: ...

    async def respond_activity_task_completed(
        self, namespace_id: str, request: RespondActivityTaskCompletedRequest
    ) -> None: ...

    async def respond_activity_task_completed_by_id(
        self, namespace_id: str, request: RespondActivityTaskCompletedByIdRequest
    ) -> None: ...

    async def respond_activity_task_failed(
        self, namespace_id: str, request: RespondActivityTaskFailedRequest
    ) -> RespondActivityTaskFailedResponse: ...

    async def respond_activity_task_failed_by_id(
        self, namespace_id: str, request: RespondActivityTaskFailedByIdRequest
    ) -> RespondActivityTaskFailedResponse: ...

    async def respond_activity_task_canceled(
        self, namespace_id: str, request: RespondActivityTaskCanceledRequest
    ) -> None: ...

    async def respond_activity_task_canceled_by_id(
        self, namespace_id: str, request: RespondActivityTaskCanceledByIdRequest
    ) -> None: ...

    # --- queries and updates
    async def query_workflow(
        self, namespace_id: str, request: QueryWorkflowRequest, deadline: int
    ) -> QueryWorkflowResponse:
        """deadline: nanoseconds."""
        ...

    async def update_workflow_execution(
        self, namespace_id: str, request: UpdateWorkflowExecutionRequest, deadline: int
    ) -> UpdateWorkflowExecutionResponse:
        """deadline: nanoseconds. When it is the longest that the server lets one wait (LONG_POLL_EXPIRATION), the
        answer tells then how far the update came; an earlier one is the caller's own, and ends in DEADLINE_EXCEEDED."""
        ...

    async def poll_workflow_execution_update(
        self, namespace_id: str, request: PollWorkflowExecutionUpdateRequest, deadline: int
    ) -> PollWorkflowExecutionUpdateResponse: ...

    # --- reads
    async def describe_workflow_execution(
        self, namespace_id: str, request: DescribeWorkflowExecutionRequest
    ) -> DescribeWorkflowExecutionResponse: ...

    async def get_workflow_execution_history(
        self, namespace_id: str, request: GetWorkflowExecutionHistoryRequest, deadline: int
    ) -> bytes:
        """A serialized GetWorkflowExecutionHistoryResponse: events spliced from the store, unparsed."""
        ...

    async def get_workflow_execution_history_reverse(
        self, namespace_id: str, execution: WorkflowExecution, page_size: int, token: bytes
    ) -> bytes:
        """A serialized GetWorkflowExecutionHistoryReverseResponse."""
        ...

    # --- between shards
    async def start_child_workflow(
        self, namespace_id: str, request: StartWorkflowExecutionRequest, parent: ParentLink
    ) -> str:
        """Starts a child without its first workflow task (see `schedule_first_workflow_task`); the run id. Raises
        ServiceError ALREADY_EXISTS as start does."""
        ...

    async def schedule_first_workflow_task(self, namespace_id: str, execution: WorkflowExecution) -> None:
        """After the parent recorded ChildWorkflowExecutionStarted; does nothing when it is scheduled already."""
        ...

    async def record_child_closed(self, namespace_id: str, parent: WorkflowExecution, outcome: ChildOutcome) -> None:
        """Tells a parent. NOT_FOUND when the parent does not wait for it (any more)."""
        ...


def close_events_only(filter_type: HistoryEventFilterType.ValueType) -> bool:
    return filter_type == HistoryEventFilterType.HISTORY_EVENT_FILTER_TYPE_CLOSE_EVENT
