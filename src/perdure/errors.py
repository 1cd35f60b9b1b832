"""Errors that a caller sees: a gRPC status with Temporal's typed detail, because SDKs branch on the detail.

Services raise `ServiceError`; the frontend's interceptor turns it into the status on the wire, another service's
client turns the status back into the same error. Errors of the store and of shard ownership are not here: they
never reach a caller as they are (see `persistence.api`).
"""

from __future__ import annotations

from collections.abc import Sequence

import grpc
from google.protobuf.message import Message
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import (
    NamespaceState,
    ResourceExhaustedCause,
    ResourceExhaustedScope,
)
from temporalio.api.errordetails.v1 import (
    CancellationAlreadyRequestedFailure,
    ClientVersionNotSupportedFailure,
    MultiOperationExecutionFailure,
    NamespaceAlreadyExistsFailure,
    NamespaceInvalidStateFailure,
    NamespaceNotFoundFailure,
    NotFoundFailure,
    PermissionDeniedFailure,
    QueryFailedFailure,
    ResourceExhaustedFailure,
    WorkflowExecutionAlreadyStartedFailure,
    WorkflowNotReadyFailure,
)
from temporalio.api.failure.v1 import Failure, MultiOperationExecutionAborted

Code = grpc.StatusCode


class ServiceError(Exception):
    """A status for the caller.

    code: the gRPC status code. message: one line for a person. detail: Temporal's detail message, or None.
    """

    __slots__ = ("code", "detail", "message")

    def __init__(self, code: grpc.StatusCode, message: str, detail: Message | None = None) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.detail = detail


class NotOwned(ServiceError):
    """What was asked for is another member's, and nothing was done. UNAVAILABLE to whoever asked from outside."""

    __slots__ = ("what",)

    def __init__(self, what: str) -> None:
        self.what = what
        super().__init__(Code.UNAVAILABLE, f"{what} has another owner")


def invalid_argument(message: str) -> ServiceError:
    return ServiceError(Code.INVALID_ARGUMENT, message)


def not_found(message: str) -> ServiceError:
    return ServiceError(Code.NOT_FOUND, message, NotFoundFailure())


def workflow_not_found(workflow_id: str, run_id: str = "") -> ServiceError:
    of_run = f" and run ID {run_id}" if run_id else ""
    return not_found(f"workflow not found for ID: {workflow_id}{of_run}")


def execution_completed() -> ServiceError:
    """The execution exists, but is closed: what was asked needs an open one."""
    return not_found("workflow execution already completed")


def namespace_not_found(namespace: str) -> ServiceError:
    return ServiceError(
        Code.NOT_FOUND, f"Namespace {namespace} is not found.", NamespaceNotFoundFailure(namespace=namespace)
    )


def namespace_already_exists(namespace: str) -> ServiceError:
    return ServiceError(Code.ALREADY_EXISTS, f"Namespace already exists: {namespace}", NamespaceAlreadyExistsFailure())


def namespace_invalid_state(
    namespace: str, state: NamespaceState.ValueType, allowed: Sequence[NamespaceState.ValueType]
) -> ServiceError:
    return ServiceError(
        Code.FAILED_PRECONDITION,
        f"Namespace {namespace} has invalid state: {NamespaceState.Name(state)}",
        NamespaceInvalidStateFailure(namespace=namespace, state=state, allowed_states=allowed),
    )


def already_started(message: str, start_request_id: str, run_id: str, first_execution_run_id: str = "") -> ServiceError:
    return ServiceError(
        Code.ALREADY_EXISTS,
        message,
        WorkflowExecutionAlreadyStartedFailure(
            start_request_id=start_request_id, run_id=run_id, first_execution_run_id=first_execution_run_id
        ),
    )


def workflow_closing() -> ServiceError:
    """The run is about to end, or to go on as another one: SDKs ask again, and find that one."""
    return resource_exhausted(
        "workflow operation can not be applied because workflow is closing",
        ResourceExhaustedCause.RESOURCE_EXHAUSTED_CAUSE_BUSY_WORKFLOW,
    )


def cancellation_already_requested() -> ServiceError:
    return ServiceError(
        Code.ALREADY_EXISTS,
        "cancellation already requested for this workflow execution",
        CancellationAlreadyRequestedFailure(),
    )


def query_failed(message: str, failure: Failure | None = None) -> ServiceError:
    return ServiceError(Code.INVALID_ARGUMENT, message, QueryFailedFailure(failure=failure))


def workflow_not_ready(message: str) -> ServiceError:
    return ServiceError(Code.FAILED_PRECONDITION, message, WorkflowNotReadyFailure())


def failed_precondition(message: str) -> ServiceError:
    return ServiceError(Code.FAILED_PRECONDITION, message)


def permission_denied(message: str, reason: str = "") -> ServiceError:
    return ServiceError(Code.PERMISSION_DENIED, message, PermissionDeniedFailure(reason=reason))


def resource_exhausted(
    message: str,
    cause: ResourceExhaustedCause.ValueType,
    scope: ResourceExhaustedScope.ValueType = ResourceExhaustedScope.RESOURCE_EXHAUSTED_SCOPE_NAMESPACE,
) -> ServiceError:
    return ServiceError(Code.RESOURCE_EXHAUSTED, message, ResourceExhaustedFailure(cause=cause, scope=scope))


def unavailable(message: str) -> ServiceError:
    """Something passing: SDKs retry this by themselves."""
    return ServiceError(Code.UNAVAILABLE, message)


def deadline_exceeded(message: str) -> ServiceError:
    return ServiceError(Code.DEADLINE_EXCEEDED, message)


def unimplemented(what: str) -> ServiceError:
    return ServiceError(Code.UNIMPLEMENTED, f"{what} is not implemented by this server.")


def internal(message: str) -> ServiceError:
    return ServiceError(Code.INTERNAL, message)


def client_version_not_supported(version: str, name: str, supported: str) -> ServiceError:
    return ServiceError(
        Code.FAILED_PRECONDITION,
        f"Client version {version} is not supported. Server supports client versions: {supported}",
        ClientVersionNotSupportedFailure(client_version=version, client_name=name, supported_versions=supported),
    )


def operation_aborted() -> ServiceError:
    """For `multi_operation_failed`: an operation that is fine, but was not done because another one failed."""
    return ServiceError(Code.ABORTED, "Operation was aborted.", MultiOperationExecutionAborted())


def multi_operation_failed(message: str, errors: Sequence[ServiceError | None]) -> ServiceError:
    """ExecuteMultiOperation: one status an operation, in order; None stands for an operation that succeeded. The
    overall code is that of the first operation that failed by itself."""

    detail = MultiOperationExecutionFailure()
    code: grpc.StatusCode | None = None
    for error in errors:
        status = detail.statuses.add()
        if error is None:
            status.code = 0
            continue
        status.code = error.code.value[0]
        status.message = error.message
        if error.detail is not None:
            status.details.add().Pack(error.detail)
        if code is None and not isinstance(error.detail, MultiOperationExecutionAborted):
            code = error.code
    return ServiceError(code or Code.INTERNAL, message, detail)


def execution_key(execution: WorkflowExecution) -> str:
    """For messages and logs: `workflow id/run id`."""
    return f"{execution.workflow_id}/{execution.run_id}"
