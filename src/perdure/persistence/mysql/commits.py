"""Commits as rows of a group's transaction (see `database.Write`)."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Final, Protocol

from perdure.persistence.api import (
    BacklogTask,
    Commit,
    ConditionFailed,
    CurrentConflict,
    CurrentRun,
    RunWrite,
    ShardFenced,
)
from perdure.persistence.keys import branch_key, run_key, workflow_key
from perdure.persistence.mysql.database import Asks, Batch, Delete, Found, Insert, Lookup, Write
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


class RecordWrite(Write, Protocol):
    """Of one visibility record, unless what is stored has a greater version. key: two writes with one key are not in
    one group."""

    @property
    def key(self) -> bytes: ...


class CarriesVisibility(Protocol):
    def prepare(self, record: VisibilityRecord) -> RecordWrite: ...


def shard_bytes(shard_id: int) -> bytes:
    return shard_id.to_bytes(4, "big")


def check_fence(shard_id: int, range_id: int, found: int) -> None:
    if found != range_id:
        raise ShardFenced(f"shard {shard_id} is at range id {found}, not {range_id}")


class CommitWrite:
    """Its rows are made at once: what cannot be written fails before it is in a group. size: bytes, roughly."""

    __slots__ = ("_batch", "_currents", "_records", "_runs", "commit", "size")

    def __init__(self, commit: Commit, visibility: CarriesVisibility | None) -> None:
        self.commit = commit
        self._batch: Batch = {}
        self._runs: list[bytes] = []
        self._currents: list[bytes] = []
        self._records: list[RecordWrite] = []
        shard = shard_bytes(commit.shard_id)
        for run in commit.runs:
            key = shard + run_key(run.namespace_id, run.workflow_id, run.run_id)
            self._runs.append(key)
            self._add_run(shard, quote(key), run)
        if commit.currents:
            rows = self._batch[_CURRENT_RUN] = []
            for write in commit.currents:
                key = shard + workflow_key(write.namespace_id, write.workflow_id)
                self._currents.append(key)
                run = write.run
                names = b",".join((quote(key), quote(write.namespace_id), quote(write.workflow_id), quote(run.run_id)))
                rows.append(b"(%s,%d,%s)" % (names, run.status, quote(run.blob)))
        if commit.tasks:
            self._batch[_TASK] = [
                b"(%d,%d,%d,%d,%s)" % (commit.shard_id, category, fire_time, task_id, quote(blob))
                for category, fire_time, task_id, blob in commit.tasks
            ]
        if visibility is not None and commit.visibility:
            # Of several records of one run the newest.
            newest = {(r.namespace_id, r.run_id): r for r in sorted(commit.visibility, key=lambda r: r.version)}
            self._records = [visibility.prepare(record) for record in newest.values()]
        self.size = sum([sum(map(len, rows)) for rows in self._batch.values()])

    def _add_run(self, shard: bytes, key: bytes, run: RunWrite) -> None:
        batch = self._batch
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
                branch = quote(shard + branch_key(branch_id))
                rows.append(b"(%s,%d,%d,%d,%d,%s)" % (branch, node_id, txn_id, prev_txn_id, events, quote(blob)))

    @property
    def keys(self) -> list[Hashable]:
        """A workflow's writes keep their order."""
        shard_id = self.commit.shard_id
        keys: list[Hashable] = [(shard_id, run.namespace_id, run.workflow_id) for run in self.commit.runs]
        keys += [(shard_id, write.namespace_id, write.workflow_id) for write in self.commit.currents]
        keys += [record.key for record in self._records]
        return keys

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
        for record in self._records:
            record.ask(asks)

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
        for kind, rows in self._batch.items():
            batch.setdefault(kind, []).extend(rows)
        for record in self._records:
            record.apply(found, batch)


class AppendWrite:
    __slots__ = ("_name", "_range_id", "_rows", "key")

    def __init__(self, key: bytes, name: str, range_id: int, tasks: Sequence[BacklogTask]) -> None:
        self.key = key
        self._name = name
        self._range_id = range_id
        literal = quote(key)
        self._rows = [b"(%s,%d,%s)" % (literal, level, quote(blob)) for level, blob in tasks]

    def ask(self, asks: Asks) -> None:
        asks.setdefault(QUEUE, {})[quote(self.key)] = None

    def apply(self, found: Found, batch: Batch) -> None:
        row = found[QUEUE].get(self.key)
        check_queue(self._name, self._range_id, 0 if row is None else row[1])
        batch.setdefault(_BACKLOG, []).extend(self._rows)


def check_queue(name: str, range_id: int, found: int) -> None:
    """found: 0 for none."""
    if found != range_id:
        state = f"at range id {found}" if found else "gone"
        raise ConditionFailed(f"task queue {name} is {state}, not at range id {range_id}")
