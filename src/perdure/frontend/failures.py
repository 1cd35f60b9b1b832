"""Failures that are too large for a history: replaced by one that says so, with what fits of the original."""

from __future__ import annotations

from temporalio.api.failure.v1 import Failure, ServerFailureInfo
from temporalio.api.workflowservice.v1 import (
    RespondActivityTaskFailedByIdRequest,
    RespondActivityTaskFailedRequest,
    RespondWorkflowTaskFailedRequest,
)

from perdure.config.dynamic import BLOB_SIZE_ERROR, BLOB_SIZE_WARN, DynamicConfig

RESULT_TOO_LARGE = "Complete result exceeds size limit."
FAILURE_TOO_LARGE = "Failure exceeds size limit."
CANCEL_DETAILS_TOO_LARGE = "Cancel details exceed size limit."
HEARTBEAT_TOO_LARGE = "Heartbeat details exceed size limit."


def server_failure(message: str) -> Failure:
    """One that is not retried."""
    return Failure(message=message, source="Server", server_failure_info=ServerFailureInfo(non_retryable=True))


def limit_failure(
    request: RespondWorkflowTaskFailedRequest | RespondActivityTaskFailedRequest | RespondActivityTaskFailedByIdRequest,
    namespace: str,
    config: DynamicConfig,
) -> Failure | None:
    """Replaces the request's failure if it is too large, and returns what it put there."""
    if request.failure.ByteSize() <= config.get(BLOB_SIZE_ERROR, namespace):
        return None
    replacement = server_failure(FAILURE_TOO_LARGE)
    replacement.cause.CopyFrom(truncated(request.failure, config.get(BLOB_SIZE_WARN, namespace)))
    request.failure.CopyFrom(replacement)
    return replacement


def truncated(failure: Failure, limit: int) -> Failure:
    """A failure of the same kind, without payloads and causes, in `limit` bytes."""
    short = Failure(source=failure.source[:100])
    info = failure.WhichOneof("failure_info")
    if info == "application_failure_info":
        short.application_failure_info.type = _cut(failure.application_failure_info.type, limit // 4)
        short.application_failure_info.non_retryable = failure.application_failure_info.non_retryable
    elif info == "server_failure_info":
        short.server_failure_info.non_retryable = failure.server_failure_info.non_retryable
    elif info == "timeout_failure_info":
        short.timeout_failure_info.timeout_type = failure.timeout_failure_info.timeout_type
    elif info is not None:
        getattr(short, info).SetInParent()
    short.message = _cut(failure.message, limit // 4)
    short.stack_trace = _cut(failure.stack_trace, limit // 4)
    return short


def _cut(text: str, limit: int) -> str:
    """To so many bytes of UTF-8, between two characters."""
    return text if len(text) * 4 <= limit else text.encode()[:limit].decode(errors="ignore")
