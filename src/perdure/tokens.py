"""Opaque tokens that clients carry: task tokens and page tokens. Short, and readable by every version of the server:
fields are only ever added at the end."""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from perdure.errors import invalid_argument

T = TypeVar("T", bound=msgspec.Struct)

# A client can put any number into a token, but databases hold 64 bits with a sign.
Int = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]


class WorkflowTaskToken(msgspec.Struct, array_like=True, frozen=True):
    namespace_id: str
    workflow_id: str
    run_id: str
    scheduled_event_id: Int
    started_event_id: Int
    attempt: Int
    started_time: Int = 0


class ActivityTaskToken(msgspec.Struct, array_like=True, frozen=True):
    """scheduled_event_id 0: found by activity_id (the ById calls)."""

    namespace_id: str
    workflow_id: str
    run_id: str
    scheduled_event_id: Int
    attempt: Int
    activity_id: str = ""
    activity_type: str = ""
    started_time: Int = 0
    stamp: Int = 0


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
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise invalid_argument(f"Invalid {what}.") from None
