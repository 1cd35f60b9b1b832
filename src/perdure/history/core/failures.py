"""Failures that the state keeps: cut to a size, so that rows stay small."""

from __future__ import annotations

from temporalio.api.failure.v1 import Failure, ServerFailureInfo

_MOST_CAUSES = 20


def shortened(failure: Failure, limit: int) -> Failure:
    """The failure itself if it has at most `limit` bytes. Otherwise one that says that it was too large, caused by what
    fits of it: messages and stack traces, without details."""
    if failure.ByteSize() <= limit:
        return failure
    return Failure(
        message="Failure exceeds size limit.",
        server_failure_info=ServerFailureInfo(non_retryable=False),
        cause=_cut_failure(failure, limit, _MOST_CAUSES),
    )


def _cut_failure(failure: Failure, limit: int, depth: int) -> Failure:
    short = Failure()
    if failure.HasField("application_failure_info"):
        info = failure.application_failure_info
        short.application_failure_info.non_retryable = info.non_retryable
        short.application_failure_info.type = _cut(info.type, limit)
    elif failure.HasField("server_failure_info"):
        short.server_failure_info.non_retryable = failure.server_failure_info.non_retryable
    for field in ("source", "message", "stack_trace"):
        setattr(short, field, _cut(getattr(failure, field), max(0, limit - short.ByteSize() - 8)))
    left = limit - short.ByteSize() - 8
    if failure.HasField("cause") and left > 0 and depth:
        short.cause.CopyFrom(_cut_failure(failure.cause, left, depth - 1))
    return short


def _cut(text: str, limit: int) -> str:
    """To so many bytes of UTF-8, between two characters."""
    return text if len(text) * 4 <= limit else text.encode()[:limit].decode(errors="ignore")
