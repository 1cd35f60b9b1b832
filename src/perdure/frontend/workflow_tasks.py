"""Workflow tasks: polled for by workers, and answered."""

from __future__ import annotations

from temporalio.api.common.v1 import WorkerVersionCapabilities, WorkerVersionStamp
from temporalio.api.deployment.v1 import WorkerDeploymentOptions
from temporalio.api.enums.v1 import (
    QueryResultType,
    TaskQueueKind,
    WorkerVersioningMode,
    WorkflowTaskFailedCause,
)
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    PollActivityTaskQueueRequest,
    PollNexusTaskQueueRequest,
    PollWorkflowTaskQueueRequest,
    ResetStickyTaskQueueRequest,
    ResetStickyTaskQueueResponse,
    RespondQueryTaskCompletedRequest,
    RespondQueryTaskCompletedResponse,
    RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskFailedRequest,
    RespondWorkflowTaskFailedResponse,
)

from perdure import tokens
from perdure.config.dynamic import (
    BLOB_SIZE_ERROR,
    BUILD_ID_SIZE,
    MATCHING_LONG_POLL_EXPIRATION,
    MAX_ID_LENGTH,
    DynamicConfig,
)
from perdure.errors import invalid_argument
from perdure.frontend import failures, validation
from perdure.frontend.rpc import CallContext, Frontend, Handler

_STICKY = TaskQueueKind.TASK_QUEUE_KIND_STICKY
_VERSIONED = WorkerVersioningMode.WORKER_VERSIONING_MODE_VERSIONED


async def poll_workflow_task_queue(
    frontend: Frontend, request: PollWorkflowTaskQueueRequest, context: CallContext
) -> bytes:
    config = frontend.config
    namespace = frontend.namespace(request.namespace)
    check_poll(request, config)
    if request.binary_checksum and request.binary_checksum in namespace.bad_binaries:
        raise invalid_argument(f"Binary {request.binary_checksum} already marked as bad deployment.")
    at_most = config.get(MATCHING_LONG_POLL_EXPIRATION, namespace.name, request.task_queue.name)
    deadline = frontend.poll_deadline(context, at_most)
    if deadline is None:
        return b""
    return await frontend.matching.poll_workflow_task_queue(namespace.id, request, deadline)


async def respond_workflow_task_completed(
    frontend: Frontend, request: RespondWorkflowTaskCompletedRequest, context: CallContext
) -> bytes:
    config = frontend.config
    if not request.task_token:
        raise invalid_argument("Task token not set on request.")
    token = tokens.decode(request.task_token, tokens.WorkflowTaskToken)
    validation.check_token_ids(token.workflow_id, token.run_id)
    namespace = frontend.namespace_of_token(token.namespace_id, request.namespace)
    validation.check_id(request.identity, config.get(MAX_ID_LENGTH), "Identity")
    if request.HasField("sticky_attributes"):
        sticky = request.sticky_attributes
        validation.check_task_queue(sticky.worker_task_queue, sticky.HasField("worker_task_queue"), config)
        validation.check_duration(sticky.schedule_to_start_timeout, "An invalid ScheduleToStartTimeout is set")
    if request.intermediate_page or request.page_number:
        raise invalid_argument("Paged completion of workflow tasks is not enabled on this namespace.")
    _check_version(
        request.worker_version_stamp,
        request.deployment_options if request.HasField("deployment_options") else None,
        request.sticky_attributes.worker_task_queue,
        config,
    )
    return await frontend.history.respond_workflow_task_completed(namespace.id, request)


async def respond_workflow_task_failed(
    frontend: Frontend, request: RespondWorkflowTaskFailedRequest, context: CallContext
) -> RespondWorkflowTaskFailedResponse:
    config = frontend.config
    if not request.task_token:
        raise invalid_argument("Task token not set on request.")
    token = tokens.decode(request.task_token, tokens.WorkflowTaskToken)
    validation.check_token_ids(token.workflow_id, token.run_id)
    namespace = frontend.namespace_of_token(token.namespace_id, request.namespace)
    validation.check_id(request.identity, config.get(MAX_ID_LENGTH), "Identity")
    validation.check_enum(request.cause, WorkflowTaskFailedCause, "WorkflowTaskFailedCause")
    failures.limit_failure(request, namespace.name, config)
    await frontend.history.respond_workflow_task_failed(namespace.id, request)
    return RespondWorkflowTaskFailedResponse()


async def respond_query_task_completed(
    frontend: Frontend, request: RespondQueryTaskCompletedRequest, context: CallContext
) -> RespondQueryTaskCompletedResponse:
    if not request.task_token:
        raise invalid_argument("Task token not set on request.")
    token = tokens.decode(request.task_token, tokens.QueryTaskToken)
    validation.check_token_ids(token.task_queue, token.query_id)
    if not token.task_queue or not token.query_id:
        raise invalid_argument("Invalid TaskToken.")
    namespace = frontend.namespace_of_token(token.namespace_id, request.namespace)
    validation.check_enum(request.completed_type, QueryResultType, "QueryResultType")
    if request.query_result.ByteSize() > frontend.config.get(BLOB_SIZE_ERROR, namespace.name):
        # The query fails rather than the answer, so that whoever asked learns of it.
        request = RespondQueryTaskCompletedRequest(
            task_token=request.task_token,
            namespace=request.namespace,
            completed_type=QueryResultType.QUERY_RESULT_TYPE_FAILED,
            error_message=validation.blob_too_large().message,
        )
    await frontend.matching.respond_query_task_completed(namespace.id, request)
    return RespondQueryTaskCompletedResponse()


async def reset_sticky_task_queue(
    frontend: Frontend, request: ResetStickyTaskQueueRequest, context: CallContext
) -> ResetStickyTaskQueueResponse:
    namespace = frontend.namespace(request.namespace)
    validation.check_execution(request.execution, request.HasField("execution"), frontend.config)
    await frontend.history.reset_sticky_task_queue(namespace.id, request.execution)
    return ResetStickyTaskQueueResponse()


def check_poll(
    request: PollWorkflowTaskQueueRequest | PollActivityTaskQueueRequest | PollNexusTaskQueueRequest,
    config: DynamicConfig,
) -> None:
    """What polls of all kinds have in common. Raises ServiceError INVALID_ARGUMENT."""
    limit = config.get(MAX_ID_LENGTH)
    validation.check_task_queue(request.task_queue, request.HasField("task_queue"), config)
    validation.check_id(request.identity, limit, "Identity")
    validation.check_id(request.worker_instance_key, limit, "WorkerInstanceKey")
    _check_version(
        request.worker_version_capabilities,
        request.deployment_options if request.HasField("deployment_options") else None,
        request.task_queue,
        config,
    )


def _check_version(
    version: WorkerVersionCapabilities | WorkerVersionStamp,
    deployment: WorkerDeploymentOptions | None,
    queue: TaskQueue,
    config: DynamicConfig,
) -> None:
    """A worker's account of its version: consistent, and small enough."""
    if version.use_versioning and not version.build_id:
        raise invalid_argument("WorkerVersionStamp must be present if UseVersioning is true.")
    if queue.kind == _STICKY and not queue.normal_name and (version.use_versioning or deployment is not None):
        raise invalid_argument(
            "NormalName must be set on sticky queue when UseVersioning is true or DeploymentOptions are set."
        )
    if version.build_id:
        validation.check_id(version.build_id, config.get(BUILD_ID_SIZE), "Build ID")
    if deployment is not None:
        if deployment.worker_versioning_mode == _VERSIONED and not (deployment.deployment_name and deployment.build_id):
            raise invalid_argument("Deployment name and build id must be set together.")
        limit = config.get(MAX_ID_LENGTH)
        validation.check_id(deployment.deployment_name, limit, "Deployment name")
        validation.check_id(deployment.build_id, limit, "Build ID")


RPCS: dict[str, Handler] = {
    "PollWorkflowTaskQueue": poll_workflow_task_queue,
    "RespondWorkflowTaskCompleted": respond_workflow_task_completed,
    "RespondWorkflowTaskFailed": respond_workflow_task_failed,
    "RespondQueryTaskCompleted": respond_query_task_completed,
    "ResetStickyTaskQueue": reset_sticky_task_queue,
}
