"""What the services ask of a database: records and store protocols.

Everything above this module is the same for every backend; one contract suite (`tests/persistence`) runs against each.
Blobs are opaque to a store. Identifiers (namespace, workflow, run, request ids, task queue names) are `str`, but
compare as bytes: case, trailing spaces and normal form count, and they may be 1,000 bytes long.

Errors: a store raises only `StoreError`s. A write that raised `Unavailable` may or may not have happened; every other
error means that it did not.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import NamedTuple, Protocol

from perdure.visibility.api import VisibilityRecord

# --- errors ----------------------------------------------------------------------------------------------------------


class StoreError(Exception):
    """Base of what a store raises."""


class ShardFenced(StoreError):
    """The shard's range id is not the one this write was made under: another owner has it now."""


class ConditionFailed(StoreError):
    """A row is not at the version that the write expected (or exists, or does not exist, against expectation)."""


class CurrentConflict(StoreError):
    """`CurrentWrite` did not find the current run that it expected. `found` is what is there, None if nothing."""

    def __init__(self, found: CurrentRun | None) -> None:
        super().__init__(f"current run is {found.run_id if found else None}")
        self.found = found


class NotFound(StoreError):
    """No such record."""


class Unavailable(StoreError):
    """The database did not answer, or the outcome of a write is unknown."""


class SchemaMismatch(StoreError):
    """The file or database is not usable by this version. The message is one clear line for an operator."""


# --- shards ----------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class ShardRecord:
    """shard_id: from 1. range_id: grows with each acquisition, fences writes. blob: the owner's data (ack levels)."""

    shard_id: int
    range_id: int
    owner: str
    blob: bytes


class ShardStore(Protocol):
    async def acquire_shard(self, shard_id: int, owner: str, at_least: int = 1) -> ShardRecord:
        """Takes the shard, from whoever had it: creates the record, or adds one to its range id. Returns it. at_least:
        the new range id is not below this, so that a copy of another database goes on above the ids used there."""
        ...

    async def list_shards(self) -> list[ShardRecord]:
        """All that were ever acquired, by shard id."""
        ...

    async def update_shard(self, shard_id: int, range_id: int, blob: bytes) -> None:
        """Raises ShardFenced."""
        ...


# --- executions and histories ----------------------------------------------------------------------------------------


class TaskCategory(IntEnum):
    TRANSFER = 1  # at once, ordered by task_id
    TIMER = 2  # at fire_time
    VISIBILITY = 3  # at once
    ARCHIVAL = 4
    OUTBOUND = 5
    REPLICATION = 6


class TaskRow(NamedTuple):
    """A row of an outbox queue. fire_time: nanoseconds, 0 in the categories that run at once. task_id: unique within
    the shard. Rows of a category are ordered by (fire_time, task_id)."""

    category: int
    fire_time: int
    task_id: int
    blob: bytes


class PendingRow(NamedTuple):
    """One pending thing of an execution (activity, timer, child, …): `kind` says which, `key` which one of its kind
    (an event id as decimal digits, or a name)."""

    kind: int
    key: str
    blob: bytes


class HistoryNode(NamedTuple):
    """A batch of events of one branch.

    node_id: event id of its first event. txn_id: grows with each write of the shard; where one node_id was written
    twice (possible only in a store without transactions) the one on the chain of prev_txn_id is the true one.
    blob: a serialized temporal.api.history.v1.History. events: how many it holds."""

    branch_id: str
    node_id: int
    txn_id: int
    prev_txn_id: int
    events: int
    blob: bytes


@dataclass(slots=True)
class CurrentRun:
    """The current run of a workflow id. status: WorkflowExecutionStatus. blob: the core's summary of that run (start
    time, create request ids), for decisions without loading the run."""

    run_id: str
    status: int
    blob: bytes


@dataclass(slots=True)
class CurrentWrite:
    """expected_run_id: the run that must be current, "" when there must be none. Several writes of one commit are
    checked against what was there before the commit."""

    namespace_id: str
    workflow_id: str
    expected_run_id: str
    run: CurrentRun
    expected_status: int | None = None  # if set, the current run must have this status


@dataclass(slots=True)
class RunWrite:
    """New content of one run. expected_version: the record's version as it was loaded, 0 to create it (it must not
    exist). The written version is expected_version + 1. state: the execution's own row. put/remove: its pending rows
    that changed; remove holds (kind, key). nodes: new history."""

    namespace_id: str
    workflow_id: str
    run_id: str
    expected_version: int
    state: bytes
    put: Sequence[PendingRow] = ()
    remove: Sequence[tuple[int, str]] = ()
    nodes: Sequence[HistoryNode] = ()


@dataclass(slots=True)
class Commit:
    """All effects of one operation of one shard: written together or not at all. visibility: only for a store that
    carries visibility (see `ExecutionStore.carries_visibility`)."""

    shard_id: int
    range_id: int
    runs: Sequence[RunWrite] = ()
    currents: Sequence[CurrentWrite] = ()
    tasks: Sequence[TaskRow] = ()
    visibility: Sequence[VisibilityRecord] = ()


@dataclass(slots=True)
class RunRecord:
    version: int
    state: bytes
    pending: list[PendingRow] = field(default_factory=list[PendingRow])


class ExecutionStore(Protocol):
    @property
    def carries_visibility(self) -> bool:
        """Visibility lives in the same database, and a commit's `visibility` records are written with it: then no
        visibility task is needed, and what is listed is never behind."""
        ...

    async def commit(self, commit: Commit) -> None:
        """Durable when it returns. Commits that wait are written in groups; one whose condition fails leaves the others
        of its group alone. Cancelling it has no effect once it has begun. Raises ShardFenced, ConditionFailed,
        CurrentConflict, Unavailable."""
        ...

    async def load_run(self, shard_id: int, namespace_id: str, workflow_id: str, run_id: str) -> RunRecord:
        """Raises NotFound."""
        ...

    async def load_current(self, shard_id: int, namespace_id: str, workflow_id: str) -> CurrentRun:
        """Raises NotFound."""
        ...

    async def delete_run(
        self, shard_id: int, range_id: int, namespace_id: str, workflow_id: str, run_id: str, branch_ids: Sequence[str]
    ) -> None:
        """Removes the run, its pending rows, the named history branches, and the current record if it names this run.
        Removing what is gone is no error. Raises ShardFenced."""
        ...

    async def list_runs(self, shard_id: int, page_size: int, token: bytes) -> tuple[list[tuple[str, str, str]], bytes]:
        """(namespace id, workflow id, run id) of every run of the shard, for scanners; token b"" at first and last."""
        ...

    async def read_history(
        self,
        shard_id: int,
        branch_id: str,
        first_event_id: int,
        end_event_id: int,
        max_bytes: int,
        reverse: bool = False,
    ) -> list[HistoryNode]:
        """The nodes with first_event_id <= node_id < end_event_id, ascending (or descending), starting with the node
        that contains first_event_id (reverse: ending with it): as many as fit in max_bytes, one at least."""
        ...

    async def read_tasks(
        self,
        shard_id: int,
        category: TaskCategory,
        after: tuple[int, int],
        until: tuple[int, int],
        limit: int,
    ) -> list[TaskRow]:
        """Rows with after < (fire_time, task_id) <= until, in that order."""
        ...

    async def delete_tasks(self, shard_id: int, category: TaskCategory, until: tuple[int, int]) -> None:
        """Rows with (fire_time, task_id) <= until. Need not be durable at once; needs no fence, since only tasks that
        are done are named."""
        ...


# --- task queues -----------------------------------------------------------------------------------------------------


class TaskQueueKey(NamedTuple):
    """One physical task queue. name: with partition and version decorations. type: TaskQueueType."""

    namespace_id: str
    name: str
    type: int


@dataclass(slots=True)
class TaskQueueRecord:
    """range_id: fences writes of a stale owner. ack_level: tasks up to it are done. blob: the owner's data."""

    range_id: int
    ack_level: int
    blob: bytes


class BacklogTask(NamedTuple):
    """A spooled task. level: its place in the queue; unique, ascending."""

    level: int
    blob: bytes


class TaskQueueStore(Protocol):
    async def lease_task_queue(self, key: TaskQueueKey, at_least: int = 1) -> TaskQueueRecord:
        """Creates the record or adds one to its range id; returns it. at_least: as of `acquire_shard`."""
        ...

    async def read_task_queue(self, key: TaskQueueKey) -> TaskQueueRecord:
        """As it is, without taking it. Raises NotFound."""
        ...

    async def update_task_queue(self, key: TaskQueueKey, range_id: int, ack_level: int, blob: bytes) -> None:
        """Raises ConditionFailed when the range id is another."""
        ...

    async def append_backlog(self, key: TaskQueueKey, range_id: int, tasks: Sequence[BacklogTask]) -> None:
        """Durable when it returns; grouped with other writes. Raises ConditionFailed when the range id is another."""
        ...

    async def read_backlog(self, key: TaskQueueKey, after: int, limit: int) -> list[BacklogTask]:
        """Tasks with level > after, ascending."""
        ...

    async def count_backlog(self, key: TaskQueueKey, after: int) -> int: ...

    async def delete_backlog(self, key: TaskQueueKey, until: int) -> None:
        """Tasks with level <= until. Need not be durable at once."""
        ...

    async def list_task_queues(self, page_size: int, token: bytes) -> tuple[list[TaskQueueKey], bytes]: ...

    async def delete_task_queue(self, key: TaskQueueKey, range_id: int) -> None:
        """Raises ConditionFailed when the range id is another."""
        ...


# --- metadata --------------------------------------------------------------------------------------------------------


class Document(NamedTuple):
    """A small versioned document. version: from 1, one more with each write."""

    key: str
    version: int
    blob: bytes


class MetadataStore(Protocol):
    """Small things of which there are few, by kind ("namespace", "cluster", "nexus-endpoint", "task-queue-data", …)."""

    async def get_document(self, kind: str, key: str) -> Document:
        """Raises NotFound."""
        ...

    async def put_document(self, kind: str, key: str, expected_version: int, blob: bytes) -> Document:
        """expected_version 0 creates. Durable. Raises ConditionFailed."""
        ...

    async def delete_document(self, kind: str, key: str, expected_version: int) -> None:
        """Raises ConditionFailed, NotFound."""
        ...

    async def list_documents(self, kind: str, after_key: str = "", limit: int = 1000) -> list[Document]:
        """Ordered by key."""
        ...

    async def list_document_kinds(self) -> list[str]:
        """Every kind of which there is a document, in order."""
        ...


# --- messages of a queue (dead letters, replication) ------------------------------------------------------------------


class QueueMessage(NamedTuple):
    message_id: int
    blob: bytes


class QueueStore(Protocol):
    """Named first-in-first-out queues, among them the dead-letter queues of tasks that were set aside."""

    async def enqueue(self, queue: str, blob: bytes) -> int: ...

    async def read_queue(self, queue: str, after: int, limit: int) -> list[QueueMessage]: ...

    async def delete_messages(self, queue: str, until: int) -> int: ...

    async def list_queues(self) -> list[tuple[str, int]]:
        """(name, number of messages)."""
        ...


class Store(ShardStore, ExecutionStore, TaskQueueStore, MetadataStore, QueueStore, Protocol):
    """One database with everything but visibility (see `visibility.api`, which may live in the same database)."""

    async def close(self) -> None:
        """Writes what waits, then closes."""
        ...
