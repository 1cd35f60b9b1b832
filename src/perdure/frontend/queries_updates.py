"""Queries and updates of workflows."""

from __future__ import annotations

import uuid

from temporalio.api.enums.v1 import QueryRejectCondition, UpdateWorkflowExecutionLifecycleStage
from temporalio.api.workflowservice.v1 import (
    PollWorkflowExecutionUpdateRequest,
    PollWorkflowExecutionUpdateResponse,
    QueryWorkflowRequest,
    QueryWorkflowResponse,
    UpdateWorkflowExecutionRequest,
    UpdateWorkflowExecutionResponse,
)

from perdure.clock import MINUTE
from perdure.config.dynamic import BLOB_SIZE_ERROR, LONG_POLL_EXPIRATION, MAX_ID_LENGTH, DynamicConfig
from perdure.errors import invalid_argument, permission_denied, unimplemented
from perdure.frontend import validation
from perdure.frontend.rpc import CallContext, Frontend, Handler
from perdure.namespaces import Namespace

# For a caller that sets no deadline.
_MAX_QUERY_WAIT = MINUTE


async def query_workflow(
    frontend: Frontend, request: QueryWorkflowRequest, context: CallContext
) -> QueryWorkflowResponse:
    config = frontend.config
    namespace = frontend.namespace(request.namespace)
    validation.check_execution(request.execution, request.HasField("execution"), config)
    if not request.HasField("query"):
        raise invalid_argument("WorkflowQuery is not set on request.")
    validation.require_id(request.query.query_type, config.get(MAX_ID_LENGTH), "QueryType")
    validation.check_enum(request.query_reject_condition, QueryRejectCondition, "QueryRejectCondition")
    if not request.query_reject_condition:
        request.query_reject_condition = QueryRejectCondition.QUERY_REJECT_CONDITION_NONE
    validation.check_payloads(request.query.query_args, namespace.name, config)
    if request.query.header.ByteSize() > config.get(BLOB_SIZE_ERROR, namespace.name):
        raise validation.blob_too_large()
    return await frontend.history.query_workflow(namespace.id, request, frontend.deadline(context, _MAX_QUERY_WAIT))


async def update_workflow_execution(
    frontend: Frontend, request: UpdateWorkflowExecutionRequest, context: CallContext
) -> UpdateWorkflowExecutionResponse:
    namespace = frontend.namespace(request.namespace)
    prepare_update(request, namespace, frontend.config)
    deadline = frontend.deadline(context, frontend.config.get(LONG_POLL_EXPIRATION, namespace.name))
    return await frontend.history.update_workflow_execution(namespace.id, request, deadline)


async def poll_workflow_execution_update(
    frontend: Frontend, request: PollWorkflowExecutionUpdateRequest, context: CallContext
) -> PollWorkflowExecutionUpdateResponse:
    config = frontend.config
    namespace = frontend.namespace(request.namespace)
    if not request.HasField("update_ref"):
        raise invalid_argument("UpdateRef is not set on request.")
    ref = request.update_ref
    validation.check_execution(ref.workflow_execution, ref.HasField("workflow_execution"), config)
    validation.require_id(ref.update_id, config.get(MAX_ID_LENGTH), "UpdateId")
    validation.check_enum(request.wait_policy.lifecycle_stage, UpdateWorkflowExecutionLifecycleStage, "LifecycleStage")
    deadline = frontend.deadline(context, config.get(LONG_POLL_EXPIRATION, namespace.name))
    return await frontend.history.poll_workflow_execution_update(namespace.id, request, deadline)


def prepare_update(request: UpdateWorkflowExecutionRequest, namespace: Namespace, config: DynamicConfig) -> None:
    """Checks an update and fills in what the frontend defaults. Raises ServiceError."""
    validation.check_execution(request.workflow_execution, request.HasField("workflow_execution"), config)
    validation.check_run_id(request.first_execution_run_id)
    update = request.request
    if not update.HasField("meta"):
        raise invalid_argument("Update meta is not set on request.")
    limit = config.get(MAX_ID_LENGTH)
    validation.check_id(update.meta.update_id, limit, "UpdateId")
    validation.check_id(update.meta.identity, limit, "Identity")
    if not update.meta.update_id:
        update.meta.update_id = str(uuid.uuid4())
    if not update.HasField("input"):
        raise invalid_argument("Update input is not set on request.")
    if not update.input.name:
        raise invalid_argument("Update name is not set on request.")
    validation.check_id(update.input.name, limit, "Update name")
    stages = UpdateWorkflowExecutionLifecycleStage
    validation.check_enum(request.wait_policy.lifecycle_stage, stages, "LifecycleStage")
    if not request.wait_policy.lifecycle_stage:
        request.wait_policy.lifecycle_stage = stages.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_COMPLETED
    if request.wait_policy.lifecycle_stage == stages.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ADMITTED:
        raise permission_denied(
            "UpdateWorkflowExecution issued asynchronously and waiting on update admitted is not supported."
        )
    if update.completion_callbacks:
        raise unimplemented("CompletionCallbacks")
    if update.links:
        validation.check_links(update.links, namespace.name, config)
    if update.input.ByteSize() > config.get(BLOB_SIZE_ERROR, namespace.name):
        raise validation.blob_too_large()


RPCS: dict[str, Handler] = {
    "QueryWorkflow": query_workflow,
    "UpdateWorkflowExecution": update_workflow_execution,
    "PollWorkflowExecutionUpdate": poll_workflow_execution_update,
}
