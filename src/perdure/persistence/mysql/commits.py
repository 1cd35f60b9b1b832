"""Commits as rows of a group's transaction (see `database.Write`)."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Final, Protocol

from perdure.persistence.api import (
    BacklogTask,
    Commit,
    ConditionFailed,
    CurrentConflict,
    CurrentRun,
    ShardFenced,
)
from perdure.persistence.keys import branch_key, run_key, workflow_key
from perdure.persistence.mysql.database import Asks, Batch, Delete, Found, Insert, Lookup
from perdure.persistence.mysql.sql import quote
from perdure.visibility.api import VisibilityRecord

# The lock on a shard's row keeps its range id until the end of the transaction: who acquires the shard waits for it.
SHARD: Final = Lookup(0, "shard", "shard_id", "range_id", "LOCK IN SHARE MODE")
RUN: Final = Lookup(2, "run", "run_key", "version")
CURRENT: Final = Lookup(3, "current_run", "workflow_key", "run_id, status, data")
QUEUE: Final = Lookup(1, "task_queue", "queue_key", "range_id", "LOCK IN SHARE MODE")

_NEW_RUN: Final = Insert(0, "run", "run_key, namespace_id, workflow_id, run_id, version, state")
# Each of these rows exists and is locked: the names would only be written if it did not.
_CHANGED_RUN: Final = Insert(
    1, "run", "run_key, version, state, namespace_id, workflow_id, run_id", ("version", "state")
)
_GONE: Final = Delete(2, "pending")
_PENDING: Final = Insert(3, "pending", "run_key, kind, item, data", ("data",))
_NODE: Final = Insert(4, "history_node", "branch_key, node_id, txn_id, prev_txn_id, events, data")
_CURRENT_RUN: Final = Insert(
    5, "current_run", "workflow_key, namespace_id, workflow_id, run_id, status, data", ("run_id", "status", "data")
)
_TASK: Final = Insert(6, "task", "shard_id, category, fire_time, task_id, data")
_BACKLOG: Final = Insert(7, "backlog", "queue_key, task_level, data")


class CarriesVisibility(Protocol):
    def key(self, record: VisibilityRecord) -> bytes: ...

    def ask(self, record: VisibilityRecord, asks: Asks) -> None: ...

    def add(self, record: VisibilityRecord, found: Found, batch: Batch) -> None: ...


def shard_bytes(shard_id: int) -> bytes:
    return shard_id.to_bytes(4, "big")


def check_fence(shard_id: int, range_id: int, found: int) -> None:
    if found != range_id:
        raise ShardFenced(f"shard {shard_id} is at range id {found}, not {range_id}")


class CommitWrite:
    __slots__ = ("_currents", "_runs", "_shard", "_visibility", "commit")

    def __init__(self, commit: Commit, visibility: CarriesVisibility | None) -> None:
        self.commit = commit
        self._visibility = visibility
        shard = self._shard = shard_bytes(commit.shard_id)
        self._runs = [shard + run_key(run.namespace_id, run.workflow_id, run.run_id) for run in commit.runs]
        self._currents = [shard + workflow_key(write.namespace_id, write.workflow_id) for write in commit.currents]

    @property
    def keys(self) -> list[Hashable]:
        """A workflow's writes keep their order."""
        shard_id = self.commit.shard_id
        keys: list[Hashable] = [(shard_id, run.namespace_id, run.workflow_id) for run in self.commit.runs]
        keys += [(shard_id, write.namespace_id, write.workflow_id) for write in self.commit.currents]
        if self._visibility is not None:
            keys += [self._visibility.key(record) for record in self.commit.visibility]
        return keys

    @property
    def size(self) -> int:
        size = 0
        for run in self.commit.runs:
            size += len(run.state)
            for node in run.nodes:
                size += len(node.blob)
            for row in run.put:
                size += len(row.blob)
        for task in self.commit.tasks:
            size += len(task.blob)
        return size

    def ask(self, asks: Asks) -> None:
        asks.setdefault(SHARD, {})[b"%d" % self.commit.shard_id] = None
        if self._runs:
            rows = asks.setdefault(RUN, {})
            for key in self._runs:
                rows[quote(key)] = None
        if self._currents:
            rows = asks.setdefault(CURRENT, {})
            for key in self._currents:
                rows[quote(key)] = None
        if self._visibility is not None:
            for record in self.commit.visibility:
                self._visibility.ask(record, asks)

    def _check(self, found: Found) -> None:
        commit = self.commit
        row = found[SHARD].get(commit.shard_id)
        check_fence(commit.shard_id, commit.range_id, 0 if row is None else row[1])
        for key, write in zip(self._currents, commit.currents, strict=True):
            row = found[CURRENT].get(key)
            current = None if row is None else CurrentRun(row[1].decode(), row[2], row[3])
            if write.expected_run_id != ("" if current is None else current.run_id) or (
                current is not None and write.expected_status is not None and current.status != write.expected_status
            ):
                raise CurrentConflict(current)
        for key, run in zip(self._runs, commit.runs, strict=True):
            row = found[RUN].get(key)
            version = 0 if row is None else row[1]
            if run.expected_version != version:
                raise ConditionFailed(f"run {run.run_id} is at version {version}, not {run.expected_version}")

    def apply(self, found: Found, batch: Batch) -> None:
        self._check(found)
        commit = self.commit
        for raw_key, run in zip(self._runs, commit.runs, strict=True):
            key = quote(raw_key)
            if run.expected_version:
                row = b"(%s,%d,%s,'','','')" % (key, run.expected_version + 1, quote(run.state))
                batch.setdefault(_CHANGED_RUN, []).append(row)
            else:
                names = b",".join((quote(run.namespace_id), quote(run.workflow_id), quote(run.run_id)))
                batch.setdefault(_NEW_RUN, []).append(b"(%s,%s,1,%s)" % (key, names, quote(run.state)))
            if run.remove:
                gone: dict[int, list[bytes]] = {}
                for kind, item in run.remove:
                    gone.setdefault(kind, []).append(quote(item))
                batch.setdefault(_GONE, []).extend(
                    b"(run_key=%s AND kind=%d AND item IN (%s))" % (key, kind, b",".join(items))
                    for kind, items in gone.items()
                )
            if run.put:
                batch.setdefault(_PENDING, []).extend(
                    [b"(%s,%d,%s,%s)" % (key, kind, quote(item), quote(blob)) for kind, item, blob in run.put]
                )
            if run.nodes:
                rows = batch.setdefault(_NODE, [])
                for branch_id, node_id, txn_id, prev_txn_id, events, blob in run.nodes:
                    branch = quote(self._shard + branch_key(branch_id))
                    rows.append(b"(%s,%d,%d,%d,%d,%s)" % (branch, node_id, txn_id, prev_txn_id, events, quote(blob)))
        for key, write in zip(self._currents, commit.currents, strict=True):
            run = write.run
            names = b",".join((quote(key), quote(write.namespace_id), quote(write.workflow_id), quote(run.run_id)))
            batch.setdefault(_CURRENT_RUN, []).append(b"(%s,%d,%s)" % (names, run.status, quote(run.blob)))
        if commit.tasks:
            batch.setdefault(_TASK, []).extend(
                [
                    b"(%d,%d,%d,%d,%s)" % (commit.shard_id, category, fire_time, task_id, quote(blob))
                    for category, fire_time, task_id, blob in commit.tasks
                ]
            )
        if self._visibility is not None:
            for record in commit.visibility:
                self._visibility.add(record, found, batch)


class AppendWrite:
    __slots__ = ("_name", "_range_id", "_tasks", "key")

    def __init__(self, key: bytes, name: str, range_id: int, tasks: list[BacklogTask]) -> None:
        self.key = key
        self._name = name
        self._range_id = range_id
        self._tasks = tasks

    def ask(self, asks: Asks) -> None:
        asks.setdefault(QUEUE, {})[quote(self.key)] = None

    def apply(self, found: Found, batch: Batch) -> None:
        row = found[QUEUE].get(self.key)
        check_queue(self._name, self._range_id, 0 if row is None else row[1])
        key = quote(self.key)
        batch.setdefault(_BACKLOG, []).extend(
            [b"(%s,%d,%s)" % (key, level, quote(blob)) for level, blob in self._tasks]
        )


def check_queue(name: str, range_id: int, found: int) -> None:
    """found: 0 for none."""
    if found != range_id:
        state = f"at range id {found}" if found else "gone"
        raise ConditionFailed(f"task queue {name} is {state}, not at range id {range_id}")
