"""Visibility: a record a run, to list and count by. Eventually up to date: written by the visibility queue."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import msgspec


class VisibilityRecord(msgspec.Struct, array_like=True):
    """What is known of a run. Times are nanoseconds, 0 when not set.

    version: grows with each change of the run; a record with a lower one than what is stored is ignored.
    memo: a serialized temporal.api.common.v1.Memo. search_attributes: a serialized
    temporal.api.common.v1.SearchAttributes, with the names that users see and a "type" in each payload's metadata;
    system attributes that a workflow cannot set are not in it."""

    namespace_id: str
    workflow_id: str
    run_id: str
    version: int
    workflow_type: str
    task_queue: str
    status: int
    start_time: int
    execution_time: int
    close_time: int = 0
    history_length: int = 0
    history_size_bytes: int = 0
    state_transition_count: int = 0
    memo: bytes = b""
    search_attributes: bytes = b""
    parent_workflow_id: str = ""
    parent_run_id: str = ""
    root_workflow_id: str = ""
    root_run_id: str = ""


class Page(NamedTuple):
    records: list[VisibilityRecord]
    next_page_token: bytes


@dataclass(slots=True)
class CountGroup:
    values: list[object]
    count: int


@dataclass(slots=True)
class CountResult:
    count: int
    groups: list[CountGroup] = field(default_factory=list[CountGroup])


class VisibilityStore(Protocol):
    async def upsert(self, record: VisibilityRecord) -> None:
        """Durable when it returns; grouped with others."""
        ...

    async def delete(self, namespace_id: str, run_id: str, version: int) -> None: ...

    async def list(self, namespace_id: str, query: str, custom: dict[str, int], page_size: int, token: bytes) -> Page:
        """query: Temporal's list filter, "" for all. custom: the namespace's own search attributes and their
        IndexedValueType. Open runs first, newest start first, then closed ones, last closed first. Raises
        `errors.ServiceError` INVALID_ARGUMENT that says which part of the filter is wrong."""
        ...

    async def count(self, namespace_id: str, query: str, custom: dict[str, int]) -> CountResult: ...

    async def get(self, namespace_id: str, run_id: str) -> VisibilityRecord | None: ...
