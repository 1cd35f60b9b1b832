"""Opaque tokens that clients carry: task tokens and page tokens. Short, and readable by every version of the server:
fields are only ever added at the end."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from perdure.errors import invalid_argument

T = TypeVar("T", bound=msgspec.Struct)


class WorkflowTaskToken(msgspec.Struct, array_like=True, frozen=True):
    namespace_id: str
    workflow_id: str
    run_id: str
    scheduled_event_id: int
    started_event_id: int
    attempt: int
    stamp: int = 0
    started_time: int = 0


class ActivityTaskToken(msgspec.Struct, array_like=True, frozen=True):
    """scheduled_event_id 0: found by activity_id (the ById calls)."""

    namespace_id: str
    workflow_id: str
    run_id: str
    scheduled_event_id: int
    attempt: int
    activity_id: str = ""
    activity_type: str = ""
    started_time: int = 0
    stamp: int = 0


class QueryTaskToken(msgspec.Struct, array_like=True, frozen=True):
    namespace_id: str
    task_queue: str
    query_id: str
    owner: str = ""  # the matching instance that waits for the answer


_encode = msgspec.msgpack.Encoder().encode


def encode(token: msgspec.Struct) -> bytes:
    return _encode(token)


def decode(data: bytes, kind: type[T], what: str = "task token") -> T:
    """Raises ServiceError INVALID_ARGUMENT."""
    try:
        return msgspec.msgpack.decode(data, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError):
        raise invalid_argument(f"Invalid {what}.") from None
