"""Activity tasks: polled for by workers, and answered by token or by id.

A result, details or failure that is too large fails the activity instead of the call: repeating the call would not help
the worker, and the workflow should learn why.
"""

from __future__ import annotations

from temporalio.api.common.v1 import Payloads
from temporalio.api.failure.v1 import Failure
from temporalio.api.workflowservice.v1 import (
    PollActivityTaskQueueRequest,
    RecordActivityTaskHeartbeatByIdRequest,
    RecordActivityTaskHeartbeatByIdResponse,
    RecordActivityTaskHeartbeatRequest,
    RecordActivityTaskHeartbeatResponse,
    RespondActivityTaskCanceledByIdRequest,
    RespondActivityTaskCanceledByIdResponse,
    RespondActivityTaskCanceledRequest,
    RespondActivityTaskCanceledResponse,
    RespondActivityTaskCompletedByIdRequest,
    RespondActivityTaskCompletedByIdResponse,
    RespondActivityTaskCompletedRequest,
    RespondActivityTaskCompletedResponse,
    RespondActivityTaskFailedByIdRequest,
    RespondActivityTaskFailedByIdResponse,
    RespondActivityTaskFailedRequest,
    RespondActivityTaskFailedResponse,
)

from perdure import tokens
from perdure.clock import SECOND
from perdure.config.dynamic import BLOB_SIZE_ERROR, MATCHING_LONG_POLL_EXPIRATION, MAX_ID_LENGTH, DynamicConfig
from perdure.errors import invalid_argument
from perdure.frontend import failures, validation
from perdure.frontend.rpc import CallContext, Frontend, Handler
from perdure.frontend.workflow_tasks import check_poll
from perdure.namespaces import Namespace

_WithToken = (
    RecordActivityTaskHeartbeatRequest
    | RespondActivityTaskCompletedRequest
    | RespondActivityTaskFailedRequest
    | RespondActivityTaskCanceledRequest
)
_ById = (
    RecordActivityTaskHeartbeatByIdRequest
    | RespondActivityTaskCompletedByIdRequest
    | RespondActivityTaskFailedByIdRequest
    | RespondActivityTaskCanceledByIdRequest
)


async def poll_activity_task_queue(
    frontend: Frontend, request: PollActivityTaskQueueRequest, context: CallContext
) -> bytes:
    config = frontend.config
    namespace = frontend.namespace(request.namespace)
    check_poll(request, config)
    at_most = config.get(MATCHING_LONG_POLL_EXPIRATION, namespace.name, request.task_queue.name)
    deadline = frontend.poll_deadline(context, at_most)
    if deadline is None:
        return b""
    return await frontend.matching.poll_activity_task_queue(namespace.id, request, deadline)


# --- by token --------------------------------------------------------------------------------------------------------


async def record_activity_task_heartbeat(
    frontend: Frontend, request: RecordActivityTaskHeartbeatRequest, context: CallContext
) -> RecordActivityTaskHeartbeatResponse:
    namespace = _namespace_of(frontend, request)
    if _too_large(request.details, namespace, frontend.config):
        await _fail(frontend, namespace, request, failures.HEARTBEAT_TOO_LARGE)
        return RecordActivityTaskHeartbeatResponse(cancel_requested=True)
    return await frontend.history.record_activity_task_heartbeat(namespace.id, request)


async def respond_activity_task_completed(
    frontend: Frontend, request: RespondActivityTaskCompletedRequest, context: CallContext
) -> RespondActivityTaskCompletedResponse:
    namespace = _namespace_of(frontend, request)
    if _too_large(request.result, namespace, frontend.config):
        await _fail(frontend, namespace, request, failures.RESULT_TOO_LARGE)
    else:
        await frontend.history.respond_activity_task_completed(namespace.id, request)
    return RespondActivityTaskCompletedResponse()


async def respond_activity_task_failed(
    frontend: Frontend, request: RespondActivityTaskFailedRequest, context: CallContext
) -> RespondActivityTaskFailedResponse:
    namespace = _namespace_of(frontend, request)
    if request.HasField("failure") and not request.failure.HasField("application_failure_info"):
        raise invalid_argument("Failure must have ApplicationFailureInfo.")
    replaced = _limit_failure(request, namespace, frontend.config)
    response = await frontend.history.respond_activity_task_failed(namespace.id, request)
    response.failures.extend(replaced)
    return response


async def respond_activity_task_canceled(
    frontend: Frontend, request: RespondActivityTaskCanceledRequest, context: CallContext
) -> RespondActivityTaskCanceledResponse:
    namespace = _namespace_of(frontend, request)
    if _too_large(request.details, namespace, frontend.config):
        await _fail(frontend, namespace, request, failures.CANCEL_DETAILS_TOO_LARGE)
    else:
        await frontend.history.respond_activity_task_canceled(namespace.id, request)
    return RespondActivityTaskCanceledResponse()


def _namespace_of(frontend: Frontend, request: _WithToken) -> Namespace:
    if not request.task_token:
        raise invalid_argument("Task token not set on request.")
    token = tokens.decode(request.task_token, tokens.ActivityTaskToken)
    validation.check_token_ids(token.workflow_id, token.run_id, token.activity_id)
    namespace = frontend.namespace_of_token(token.namespace_id, request.namespace)
    validation.check_id(request.identity, frontend.config.get(MAX_ID_LENGTH), "Identity")
    return namespace


async def _fail(frontend: Frontend, namespace: Namespace, request: _WithToken, why: str) -> None:
    await frontend.history.respond_activity_task_failed(
        namespace.id,
        RespondActivityTaskFailedRequest(
            task_token=request.task_token,
            namespace=request.namespace,
            identity=request.identity,
            failure=failures.server_failure(why),
        ),
    )


# --- by id -----------------------------------------------------------------------------------------------------------


async def record_activity_task_heartbeat_by_id(
    frontend: Frontend, request: RecordActivityTaskHeartbeatByIdRequest, context: CallContext
) -> RecordActivityTaskHeartbeatByIdResponse:
    namespace = _check_by_id(frontend, request)
    if _too_large(request.details, namespace, frontend.config):
        await _fail_by_id(frontend, namespace, request, failures.HEARTBEAT_TOO_LARGE)
        return RecordActivityTaskHeartbeatByIdResponse(cancel_requested=True)
    answer = await frontend.history.record_activity_task_heartbeat_by_id(namespace.id, request)
    return RecordActivityTaskHeartbeatByIdResponse(
        cancel_requested=answer.cancel_requested,
        activity_paused=answer.activity_paused,
        activity_reset=answer.activity_reset,
    )


async def respond_activity_task_completed_by_id(
    frontend: Frontend, request: RespondActivityTaskCompletedByIdRequest, context: CallContext
) -> RespondActivityTaskCompletedByIdResponse:
    namespace = _check_by_id(frontend, request)
    if _too_large(request.result, namespace, frontend.config):
        await _fail_by_id(frontend, namespace, request, failures.RESULT_TOO_LARGE)
    else:
        await frontend.history.respond_activity_task_completed_by_id(namespace.id, request)
    return RespondActivityTaskCompletedByIdResponse()


async def respond_activity_task_failed_by_id(
    frontend: Frontend, request: RespondActivityTaskFailedByIdRequest, context: CallContext
) -> RespondActivityTaskFailedByIdResponse:
    namespace = _check_by_id(frontend, request)
    replaced = _limit_failure(request, namespace, frontend.config)
    answer = await frontend.history.respond_activity_task_failed_by_id(namespace.id, request)
    return RespondActivityTaskFailedByIdResponse(failures=[*replaced, *answer.failures])


async def respond_activity_task_canceled_by_id(
    frontend: Frontend, request: RespondActivityTaskCanceledByIdRequest, context: CallContext
) -> RespondActivityTaskCanceledByIdResponse:
    namespace = _check_by_id(frontend, request)
    if _too_large(request.details, namespace, frontend.config):
        await _fail_by_id(frontend, namespace, request, failures.CANCEL_DETAILS_TOO_LARGE)
    else:
        await frontend.history.respond_activity_task_canceled_by_id(namespace.id, request)
    return RespondActivityTaskCanceledByIdResponse()


def _check_by_id(frontend: Frontend, request: _ById) -> Namespace:
    limit = frontend.config.get(MAX_ID_LENGTH)
    namespace = frontend.namespace(request.namespace)
    validation.require_id(request.activity_id, limit, "ActivityId")
    # Without one it would be an activity outside of workflows, which this server does not have.
    validation.require_id(request.workflow_id, limit, "WorkflowId")
    validation.check_run_id(request.run_id)
    validation.check_id(request.identity, limit, "Identity")
    return namespace


async def _fail_by_id(frontend: Frontend, namespace: Namespace, request: _ById, why: str) -> None:
    await frontend.history.respond_activity_task_failed_by_id(
        namespace.id,
        RespondActivityTaskFailedByIdRequest(
            namespace=request.namespace,
            workflow_id=request.workflow_id,
            run_id=request.run_id,
            activity_id=request.activity_id,
            identity=request.identity,
            failure=failures.server_failure(why),
        ),
    )


# --- both ------------------------------------------------------------------------------------------------------------


def _too_large(payloads: Payloads, namespace: Namespace, config: DynamicConfig) -> bool:
    return payloads.ByteSize() > config.get(BLOB_SIZE_ERROR, namespace.name)


def _limit_failure(
    request: RespondActivityTaskFailedRequest | RespondActivityTaskFailedByIdRequest,
    namespace: Namespace,
    config: DynamicConfig,
) -> list[Failure]:
    """Checks the failure and takes out what is too large; what to tell the worker of it."""
    replaced: list[Failure] = []
    failure = request.failure
    while True:
        delay = failure.application_failure_info.next_retry_delay
        if abs(delay.nanos) >= SECOND or delay.seconds * delay.nanos < 0 or abs(delay.seconds) > 315_576_000_000:
            raise invalid_argument("NextRetryDelay is not a valid duration")
        if not failure.HasField("cause"):
            break
        failure = failure.cause
    if _too_large(request.last_heartbeat_details, namespace, config):
        request.ClearField("last_heartbeat_details")
        replaced.append(failures.server_failure(failures.HEARTBEAT_TOO_LARGE))
    if (replacement := failures.limit_failure(request, namespace.name, config)) is not None:
        replaced.append(replacement)
    return replaced


RPCS: dict[str, Handler] = {
    "PollActivityTaskQueue": poll_activity_task_queue,
    "RecordActivityTaskHeartbeat": record_activity_task_heartbeat,
    "RespondActivityTaskCompleted": respond_activity_task_completed,
    "RespondActivityTaskFailed": respond_activity_task_failed,
    "RespondActivityTaskCanceled": respond_activity_task_canceled,
    "RecordActivityTaskHeartbeatById": record_activity_task_heartbeat_by_id,
    "RespondActivityTaskCompletedById": respond_activity_task_completed_by_id,
    "RespondActivityTaskFailedById": respond_activity_task_failed_by_id,
    "RespondActivityTaskCanceledById": respond_activity_task_canceled_by_id,
}
