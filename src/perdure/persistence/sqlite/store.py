"""The store in SQLite. One process owns the file, so what it wrote last is what is there: keys of runs and branches are
remembered, never looked up twice."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from perdure.persistence.api import (
    BacklogTask,
    Commit,
    ConditionFailed,
    CurrentConflict,
    CurrentRun,
    Document,
    HistoryNode,
    NotFound,
    PendingRow,
    QueueMessage,
    RunRecord,
    ShardFenced,
    ShardRecord,
    TaskCategory,
    TaskQueueKey,
    TaskQueueRecord,
    TaskRow,
    Unavailable,
)
from perdure.persistence.groups import outcome
from perdure.persistence.sqlite import schema
from perdure.persistence.sqlite.database import Database, open_database
from perdure.persistence.sqlite.deletes import PIECE, RangeDeletes
from perdure.visibility.api import VisibilityRecord

K = TypeVar("K")

REMEMBERED = 100_000
"""Keys of runs, and of branches, that are remembered; the oldest is forgotten first."""

NEAR_NODES = 64
NEAR_BYTES = 256 << 10
"""As much of a history is read on the event loop's thread; a reader thread reads the rest."""

SMALL_NODES = 200
SMALL_BYTES = 1 << 20
"""A run with less history than this is deleted on the event loop's thread."""

BY_NAME = " WHERE shard_id = ? AND namespace_id = ? AND workflow_id = ? AND run_id = ?"
BY_QUEUE = " WHERE namespace_id = ? AND name = ? AND type = ?"


async def open_store(
    path: str | None, *, pragmas: Mapping[str, str] | None = None, upgrade: bool = True
) -> SqliteStore:
    """Opens the database file at `path`, or creates it; None: in memory. upgrade: False refuses the tables of an older
    version. See `database.open_database` for pragmas and errors."""
    database = await open_database(path, pragmas)
    database.upgrade = upgrade
    try:
        await database.migrate("store", schema.STORE)
        last_key = database.read_now(
            lambda connection: connection.execute(
                "SELECT coalesce(max(key), 0) FROM"
                " (SELECT max(run_key) AS key FROM run UNION ALL SELECT max(branch_key) FROM node)"
            ).fetchone()[0]
        )
        return SqliteStore(database, last_key)
    except BaseException:
        await database.close()
        raise


class SqliteStore:
    """Implements `persistence.api.Store`. `database` may hold other modules' tables too."""

    def __init__(self, database: Database, last_key: int) -> None:
        self.database = database
        # Never handed out twice in a process, so a key that is still remembered somewhere names nothing else.
        self._last_key = last_key
        self._run_keys: dict[tuple[int, str, str, str], int] = {}
        self._branch_keys: dict[tuple[int, str], int] = {}
        self._fences: dict[int, int] = {}  # shard: its range id, as read in the present transaction
        self._task_deletes = RangeDeletes[tuple[int, int], tuple[int, int]](_delete_tasks_piece)
        self._backlog_deletes = RangeDeletes[TaskQueueKey, int](_delete_backlog_piece)
        self._visibility: Callable[[sqlite3.Connection, VisibilityRecord], None] | None = None
        database.ride(self)

    def carry_visibility(self, write: Callable[[sqlite3.Connection, VisibilityRecord], None]) -> None:
        """From now on commits write their visibility records through this."""
        self._visibility = write

    @property
    def carries_visibility(self) -> bool:
        return self._visibility is not None

    async def close(self) -> None:
        if not self.database.closed and (self._task_deletes.until or self._backlog_deletes.until):
            try:
                await self.database.write(self._finish_deletes, heavy=True)
            except Unavailable:
                pass  # they need not be durable, and closing comes first
        await self.database.close()

    # --- riding with each group --------------------------------------------------------------------------------------

    def begin(self, connection: sqlite3.Connection) -> None:
        self._fences.clear()
        if self._task_deletes.until:
            self._task_deletes.step(connection)
        if self._backlog_deletes.until:
            self._backlog_deletes.step(connection)

    def committed(self) -> None:
        self._task_deletes.committed()
        self._backlog_deletes.committed()

    def rolled_back(self) -> None:
        self._fences.clear()
        self._run_keys.clear()
        self._branch_keys.clear()
        self._task_deletes.rolled_back()
        self._backlog_deletes.rolled_back()

    def _finish_deletes(self, connection: sqlite3.Connection) -> None:
        self._task_deletes.finish_all(connection)
        self._backlog_deletes.finish_all(connection)

    # --- shards ------------------------------------------------------------------------------------------------------

    async def acquire_shard(self, shard_id: int, owner: str, at_least: int = 1) -> ShardRecord:
        def acquire(connection: sqlite3.Connection) -> ShardRecord:
            self._fences.pop(shard_id, None)
            connection.execute(
                "INSERT INTO shard VALUES (?, ?, ?, x'') ON CONFLICT DO UPDATE"
                " SET range_id = max(range_id + 1, excluded.range_id), owner = excluded.owner",
                (shard_id, at_least, owner),
            )
            row = connection.execute("SELECT * FROM shard WHERE shard_id = ?", (shard_id,)).fetchone()
            return ShardRecord(*row)

        return await self.database.write(acquire)

    async def list_shards(self) -> list[ShardRecord]:
        rows = await self.database.read(
            lambda connection: connection.execute("SELECT * FROM shard ORDER BY shard_id").fetchall()
        )
        return [ShardRecord(*row) for row in rows]

    async def update_shard(self, shard_id: int, range_id: int, blob: bytes) -> None:
        def update(connection: sqlite3.Connection) -> None:
            self._check_fence(connection, shard_id, range_id)
            connection.execute("UPDATE shard SET blob = ? WHERE shard_id = ?", (blob, shard_id))

        await self.database.write(update)

    def _check_fence(self, connection: sqlite3.Connection, shard_id: int, range_id: int) -> None:
        found = self._fences.get(shard_id)
        if found is None:
            row = connection.execute("SELECT range_id FROM shard WHERE shard_id = ?", (shard_id,)).fetchone()
            found = self._fences[shard_id] = 0 if row is None else row[0]
        if found != range_id:
            raise ShardFenced(f"shard {shard_id} is at range id {found}, not {range_id}")

    # --- executions --------------------------------------------------------------------------------------------------

    async def commit(self, commit: Commit) -> None:
        try:
            await outcome(self.database.write(partial(self._commit, commit)))
        except sqlite3.IntegrityError as error:
            raise ConditionFailed(f"a history node or task exists already: {error}") from error

    def _commit(self, commit: Commit, connection: sqlite3.Connection) -> None:
        shard_id = commit.shard_id
        self._check_fence(connection, shard_id, commit.range_id)
        for current in commit.currents:
            found = _current(connection, shard_id, current.namespace_id, current.workflow_id)
            if current.expected_run_id != ("" if found is None else found.run_id) or (
                found is not None and current.expected_status is not None and found.status != current.expected_status
            ):
                raise CurrentConflict(found)
        runs = commit.runs
        for run in runs[1:]:  # the first one's write is its check
            row = connection.execute(
                "SELECT version FROM run" + BY_NAME, (shard_id, run.namespace_id, run.workflow_id, run.run_id)
            ).fetchone()
            if run.expected_version != (0 if row is None else row[0]):
                raise ConditionFailed(f"run {run.run_id} is not at version {run.expected_version}")

        for run in runs:
            name = (shard_id, run.namespace_id, run.workflow_id, run.run_id)
            if run.expected_version:
                run_key = self._run_key(connection, name)
                written = connection.execute(
                    "UPDATE run SET version = ?, state = ? WHERE run_key = ? AND version = ?",
                    (run.expected_version + 1, run.state, run_key, run.expected_version),
                ).rowcount
            else:
                run_key = self._new_key()
                written = connection.execute(
                    "INSERT INTO run VALUES (?, ?, ?, ?, ?, 1, ?) ON CONFLICT DO NOTHING", (run_key, *name, run.state)
                ).rowcount
                if written:
                    _remember(self._run_keys, name, run_key)
            if not written:
                raise ConditionFailed(f"run {run.run_id} is not at version {run.expected_version}")
            if run.remove:
                connection.executemany(
                    "DELETE FROM pending WHERE run_key = ? AND kind = ? AND key = ?",
                    [(run_key, kind, key) for kind, key in run.remove],
                )
            if run.put:
                connection.executemany(
                    "INSERT OR REPLACE INTO pending VALUES (?, ?, ?, ?)", [(run_key, *row) for row in run.put]
                )
            for node in run.nodes:
                connection.execute(
                    "INSERT INTO node VALUES (?, ?, ?, ?, ?, ?)",
                    (self._branch_key(connection, shard_id, node.branch_id), *node[1:]),
                )
        for current in commit.currents:
            run = current.run
            connection.execute(
                "INSERT OR REPLACE INTO current VALUES (?, ?, ?, ?, ?, ?)",
                (shard_id, current.namespace_id, current.workflow_id, run.run_id, run.status, run.blob),
            )
        tasks = commit.tasks
        if tasks:
            deletes = self._task_deletes
            if deletes.until:
                for category, fire_time, task_id, _ in tasks:
                    key = (shard_id, category)
                    if key in deletes.until and (fire_time, task_id) <= deletes.until[key]:
                        deletes.finish(connection, key)
            connection.executemany("INSERT INTO task VALUES (?, ?, ?, ?, ?)", [(shard_id, *task) for task in tasks])
        if self._visibility is not None:
            for record in commit.visibility:
                self._visibility(connection, record)

    def _new_key(self) -> int:
        self._last_key += 1
        return self._last_key

    def _run_key(self, connection: sqlite3.Connection, name: tuple[int, str, str, str]) -> int:
        """0 for none."""
        key = self._run_keys.get(name)
        if key is None:
            row = connection.execute("SELECT run_key FROM run" + BY_NAME, name).fetchone()
            if row is None:
                return 0
            key = _remember(self._run_keys, name, row[0])
        return key

    def _branch_key(self, connection: sqlite3.Connection, shard_id: int, branch_id: str) -> int:
        name = (shard_id, branch_id)
        key = self._branch_keys.get(name)
        if key is None:
            row = connection.execute(
                "SELECT branch_key FROM branch WHERE shard_id = ? AND branch_id = ?", name
            ).fetchone()
            if row is not None:
                key = row[0]
            else:
                key = self._new_key()
                connection.execute("INSERT INTO branch VALUES (?, ?, ?)", (shard_id, branch_id, key))
            _remember(self._branch_keys, name, key)
        return key

    async def load_run(self, shard_id: int, namespace_id: str, workflow_id: str, run_id: str) -> RunRecord:
        def load(connection: sqlite3.Connection) -> RunRecord | None:
            row = connection.execute(
                "SELECT run_key, version, state FROM run" + BY_NAME, (shard_id, namespace_id, workflow_id, run_id)
            ).fetchone()
            if row is None:
                return None
            pending = connection.execute("SELECT kind, key, blob FROM pending WHERE run_key = ?", row[:1])
            return RunRecord(row[1], row[2], [PendingRow(*fields) for fields in pending])

        record = self.database.read_now(load)
        if record is None:
            raise NotFound(f"run {run_id} of workflow {workflow_id}")
        return record

    async def load_current(self, shard_id: int, namespace_id: str, workflow_id: str) -> CurrentRun:
        found = self.database.read_now(lambda connection: _current(connection, shard_id, namespace_id, workflow_id))
        if found is None:
            raise NotFound(f"workflow {workflow_id}")
        return found

    async def delete_run(
        self, shard_id: int, range_id: int, namespace_id: str, workflow_id: str, run_id: str, branch_ids: Sequence[str]
    ) -> None:
        name = (shard_id, namespace_id, workflow_id, run_id)

        def is_large(connection: sqlite3.Connection) -> bool:
            nodes = size = 0
            for branch_id in branch_ids:
                row = connection.execute(
                    "SELECT count(*), sum(bytes) FROM (SELECT length(blob) AS bytes FROM node WHERE branch_key ="
                    " (SELECT branch_key FROM branch WHERE shard_id = ? AND branch_id = ?) LIMIT ?)",
                    (shard_id, branch_id, SMALL_NODES),
                ).fetchone()
                nodes += row[0]
                size += row[1] or 0
            return nodes >= SMALL_NODES or size >= SMALL_BYTES

        def delete(connection: sqlite3.Connection) -> None:
            self._check_fence(connection, shard_id, range_id)
            run_key = self._run_key(connection, name)
            if run_key:
                connection.execute("DELETE FROM pending WHERE run_key = ?", (run_key,))
                connection.execute("DELETE FROM run WHERE run_key = ?", (run_key,))
                self._run_keys.pop(name, None)
            connection.execute("DELETE FROM current" + BY_NAME, name)
            for branch_id in branch_ids:
                branch = (shard_id, branch_id)
                row = connection.execute(
                    "SELECT branch_key FROM branch WHERE shard_id = ? AND branch_id = ?", branch
                ).fetchone()
                if row is not None:
                    connection.execute("DELETE FROM node WHERE branch_key = ?", row)
                    connection.execute("DELETE FROM branch WHERE shard_id = ? AND branch_id = ?", branch)
                    self._branch_keys.pop(branch, None)

        await self.database.write(delete, heavy=self.database.read_now(is_large))

    async def list_runs(self, shard_id: int, page_size: int, token: bytes) -> tuple[list[tuple[str, str, str]], bytes]:
        after: list[str] = json.loads(token) if token else ["", "", ""]

        def select(connection: sqlite3.Connection) -> list[tuple[str, str, str]]:
            return connection.execute(
                "SELECT namespace_id, workflow_id, run_id FROM run"
                " WHERE shard_id = ? AND (namespace_id, workflow_id, run_id) > (?, ?, ?)"
                " ORDER BY namespace_id, workflow_id, run_id LIMIT ?",
                (shard_id, *after, page_size + 1),
            ).fetchall()

        rows = await self.database.read(select)
        if len(rows) <= page_size:
            return rows, b""
        rows.pop()
        return rows, json.dumps(rows[-1]).encode()

    # --- histories ---------------------------------------------------------------------------------------------------

    async def read_history(
        self,
        shard_id: int,
        branch_id: str,
        first_event_id: int,
        end_event_id: int,
        max_bytes: int,
        reverse: bool = False,
    ) -> list[HistoryNode]:
        read = partial(_history, shard_id, branch_id, first_event_id, end_event_id, reverse)
        nodes, more = self.database.read_now(partial(read, min(max_bytes, NEAR_BYTES), NEAR_NODES, None))
        if more and nodes:
            size = sum(len(node.blob) for node in nodes)
            if size < max_bytes:
                # The rest, from behind the last one; these nodes are not the first, so none of them need fit.
                rest, _ = await self.database.read(partial(read, max_bytes - size, -1, nodes[-1]))
                nodes += rest
        return nodes

    # --- tasks -------------------------------------------------------------------------------------------------------

    async def read_tasks(
        self, shard_id: int, category: TaskCategory, after: tuple[int, int], until: tuple[int, int], limit: int
    ) -> list[TaskRow]:
        after = self._task_deletes.floor((shard_id, category), after)

        def select(connection: sqlite3.Connection) -> list[TaskRow]:
            rows = connection.execute(
                "SELECT category, fire_time, task_id, blob FROM task WHERE shard_id = ? AND category = ?"
                " AND (fire_time, task_id) > (?, ?) AND (fire_time, task_id) <= (?, ?)"
                " ORDER BY fire_time, task_id LIMIT ?",
                (shard_id, category, *after, *until, limit),
            )
            return [TaskRow(*row) for row in rows]

        return await self.database.read(select)

    async def delete_tasks(self, shard_id: int, category: TaskCategory, until: tuple[int, int]) -> None:
        self._task_deletes.add((shard_id, category), until)

    # --- task queues -------------------------------------------------------------------------------------------------

    async def lease_task_queue(self, key: TaskQueueKey, at_least: int = 1) -> TaskQueueRecord:
        def lease(connection: sqlite3.Connection) -> TaskQueueRecord:
            connection.execute(
                "INSERT INTO task_queue (namespace_id, name, type, range_id, ack_level, blob)"
                " VALUES (?, ?, ?, ?, 0, x'') ON CONFLICT (namespace_id, name, type) DO UPDATE"
                " SET range_id = max(range_id + 1, excluded.range_id)",
                (*key, at_least),
            )
            row = connection.execute("SELECT range_id, ack_level, blob FROM task_queue" + BY_QUEUE, key).fetchone()
            return TaskQueueRecord(*row)

        return await self.database.write(lease)

    async def read_task_queue(self, key: TaskQueueKey) -> TaskQueueRecord:
        row = self.database.read_now(
            lambda connection: connection.execute(
                "SELECT range_id, ack_level, blob FROM task_queue" + BY_QUEUE, key
            ).fetchone()
        )
        if row is None:
            raise NotFound(f"task queue {key.name}")
        return TaskQueueRecord(*row)

    async def update_task_queue(self, key: TaskQueueKey, range_id: int, ack_level: int, blob: bytes) -> None:
        def update(connection: sqlite3.Connection) -> None:
            queue_key = _owned_queue(connection, key, range_id)
            connection.execute(
                "UPDATE task_queue SET ack_level = ?, blob = ? WHERE queue_key = ?", (ack_level, blob, queue_key)
            )

        await self.database.write(update)

    async def append_backlog(self, key: TaskQueueKey, range_id: int, tasks: Sequence[BacklogTask]) -> None:
        def append(connection: sqlite3.Connection) -> None:
            queue_key = _owned_queue(connection, key, range_id)
            deletes = self._backlog_deletes
            if key in deletes.until and any(task.level <= deletes.until[key] for task in tasks):
                deletes.finish(connection, key)
            connection.executemany("INSERT INTO backlog VALUES (?, ?, ?)", [(queue_key, *task) for task in tasks])

        try:
            await self.database.write(append)
        except sqlite3.IntegrityError as error:
            raise ConditionFailed(f"a task of that level is in the backlog of {key.name} already") from error

    async def read_backlog(self, key: TaskQueueKey, after: int, limit: int) -> list[BacklogTask]:
        after = self._backlog_deletes.floor(key, after)

        def select(connection: sqlite3.Connection) -> list[BacklogTask]:
            rows = connection.execute(
                "SELECT level, backlog.blob FROM task_queue CROSS JOIN backlog USING (queue_key)"
                + BY_QUEUE
                + " AND level > ? ORDER BY level LIMIT ?",
                (*key, after, limit),
            )
            return [BacklogTask(*row) for row in rows]

        return await self.database.read(select)

    async def count_backlog(self, key: TaskQueueKey, after: int) -> int:
        after = self._backlog_deletes.floor(key, after)
        return await self.database.read(
            lambda connection: connection.execute(
                "SELECT count(*) FROM task_queue CROSS JOIN backlog USING (queue_key)" + BY_QUEUE + " AND level > ?",
                (*key, after),
            ).fetchone()[0]
        )

    async def delete_backlog(self, key: TaskQueueKey, until: int) -> None:
        self._backlog_deletes.add(key, until)

    async def list_task_queues(self, page_size: int, token: bytes) -> tuple[list[TaskQueueKey], bytes]:
        rows = await self.database.read(
            lambda connection: connection.execute(
                "SELECT queue_key, namespace_id, name, type FROM task_queue WHERE queue_key > ?"
                " ORDER BY queue_key LIMIT ?",
                (int(token or b"0"), page_size + 1),
            ).fetchall()
        )
        next_token = b""
        if len(rows) > page_size:
            rows.pop()
            next_token = str(rows[-1][0]).encode()
        return [TaskQueueKey(*row[1:]) for row in rows], next_token

    async def delete_task_queue(self, key: TaskQueueKey, range_id: int) -> None:
        def delete(connection: sqlite3.Connection) -> None:
            queue_key = _owned_queue(connection, key, range_id)
            connection.execute("DELETE FROM backlog WHERE queue_key = ?", (queue_key,))
            connection.execute("DELETE FROM task_queue WHERE queue_key = ?", (queue_key,))
            self._backlog_deletes.until.pop(key, None)

        await self.database.write(delete, heavy=True)

    # --- documents ---------------------------------------------------------------------------------------------------

    async def get_document(self, kind: str, key: str) -> Document:
        version, blob = self.database.read_now(lambda connection: _document(connection, kind, key))
        if not version:
            raise NotFound(f"{kind} {key}")
        return Document(key, version, blob)

    async def put_document(self, kind: str, key: str, expected_version: int, blob: bytes) -> Document:
        def put(connection: sqlite3.Connection) -> None:
            version, _ = _document(connection, kind, key)
            if version != expected_version:
                raise ConditionFailed(f"{kind} {key} is at version {version}, not {expected_version}")
            connection.execute(
                "INSERT OR REPLACE INTO document VALUES (?, ?, ?, ?)", (kind, key, expected_version + 1, blob)
            )

        await self.database.write(put)
        return Document(key, expected_version + 1, blob)

    async def delete_document(self, kind: str, key: str, expected_version: int) -> None:
        def delete(connection: sqlite3.Connection) -> None:
            version, _ = _document(connection, kind, key)
            if not version:
                raise NotFound(f"{kind} {key}")
            if version != expected_version:
                raise ConditionFailed(f"{kind} {key} is at version {version}, not {expected_version}")
            connection.execute("DELETE FROM document WHERE kind = ? AND key = ?", (kind, key))

        await self.database.write(delete)

    async def list_documents(self, kind: str, after_key: str = "", limit: int = 1000) -> list[Document]:
        rows = await self.database.read(
            lambda connection: connection.execute(
                "SELECT key, version, blob FROM document WHERE kind = ? AND key > ? ORDER BY key LIMIT ?",
                (kind, after_key, limit),
            ).fetchall()
        )
        return [Document(*row) for row in rows]

    async def list_document_kinds(self) -> list[str]:
        rows = await self.database.read(
            lambda connection: connection.execute("SELECT DISTINCT kind FROM document ORDER BY kind").fetchall()
        )
        return [row[0] for row in rows]

    # --- queues of messages ------------------------------------------------------------------------------------------

    async def enqueue(self, queue: str, blob: bytes) -> int:
        def insert(connection: sqlite3.Connection) -> int:
            connection.execute(
                "INSERT INTO queue VALUES (?, 1) ON CONFLICT DO UPDATE SET last_message_id = last_message_id + 1",
                (queue,),
            )
            message_id = connection.execute("SELECT last_message_id FROM queue WHERE name = ?", (queue,)).fetchone()[0]
            connection.execute("INSERT INTO message VALUES (?, ?, ?)", (queue, message_id, blob))
            return message_id

        return await self.database.write(insert)

    async def read_queue(self, queue: str, after: int, limit: int) -> list[QueueMessage]:
        rows = await self.database.read(
            lambda connection: connection.execute(
                "SELECT message_id, blob FROM message WHERE queue = ? AND message_id > ? ORDER BY message_id LIMIT ?",
                (queue, after, limit),
            ).fetchall()
        )
        return [QueueMessage(*row) for row in rows]

    async def delete_messages(self, queue: str, until: int) -> int:
        return await self.database.write(
            lambda connection: (
                connection.execute("DELETE FROM message WHERE queue = ? AND message_id <= ?", (queue, until)).rowcount
            ),
            heavy=True,
        )

    async def list_queues(self) -> list[tuple[str, int]]:
        return await self.database.read(
            lambda connection: connection.execute(
                "SELECT name, (SELECT count(*) FROM message WHERE queue = name) FROM queue ORDER BY name"
            ).fetchall()
        )


def _remember(keys: dict[K, int], name: K, key: int) -> int:
    if len(keys) >= REMEMBERED:
        del keys[next(iter(keys))]
    keys[name] = key
    return key


def _current(connection: sqlite3.Connection, shard_id: int, namespace_id: str, workflow_id: str) -> CurrentRun | None:
    row = connection.execute(
        "SELECT run_id, status, blob FROM current WHERE shard_id = ? AND namespace_id = ? AND workflow_id = ?",
        (shard_id, namespace_id, workflow_id),
    ).fetchone()
    return None if row is None else CurrentRun(*row)


def _history(
    shard_id: int,
    branch_id: str,
    first_event_id: int,
    end_event_id: int,
    reverse: bool,
    max_bytes: int,
    max_nodes: int,
    behind: HistoryNode | None,
    connection: sqlite3.Connection,
) -> tuple[list[HistoryNode], bool]:
    """Nodes of the range behind that one, up to a number (-1: any) and size (the first of the range fits always);
    whether some are left."""
    row = connection.execute(
        "SELECT branch_key, coalesce((SELECT node_id FROM node WHERE node.branch_key = branch.branch_key"
        " AND node_id <= ? ORDER BY node_id DESC LIMIT 1), 0) FROM branch WHERE shard_id = ? AND branch_id = ?",
        (first_event_id, shard_id, branch_id),
    ).fetchone()
    if row is None or first_event_id >= end_event_id:
        return [], False
    branch_key, first_node_id = row
    low, high = (first_node_id, -1), (end_event_id, -1)
    if behind is not None:
        position = (behind.node_id, behind.txn_id)
        low, high = (low, position) if reverse else (position, high)
    nodes: list[HistoryNode] = []
    order = "DESC" if reverse else "ASC"
    for node_id, txn_id, prev_txn_id, events, blob in connection.execute(
        "SELECT node_id, txn_id, prev_txn_id, events, blob FROM node WHERE branch_key = ?"
        " AND (node_id, txn_id) > (?, ?) AND (node_id, txn_id) < (?, ?)"
        f" ORDER BY node_id {order}, txn_id {order}",
        (branch_key, *low, *high),
    ):
        if node_id + events <= first_event_id:
            continue  # the last one before the range does not reach into it
        max_bytes -= len(blob)
        if len(nodes) == max_nodes or (max_bytes < 0 and (nodes or behind is not None)):
            return nodes, True
        nodes.append(HistoryNode(branch_id, node_id, txn_id, prev_txn_id, events, blob))
    return nodes, False


def _delete_tasks_piece(connection: sqlite3.Connection, key: tuple[int, int], until: tuple[int, int]) -> bool:
    last = connection.execute(
        "SELECT fire_time, task_id FROM task WHERE shard_id = ? AND category = ? AND (fire_time, task_id) <= (?, ?)"
        " ORDER BY fire_time, task_id LIMIT 1 OFFSET ?",
        (*key, *until, PIECE - 1),
    ).fetchone()
    connection.execute(
        "DELETE FROM task WHERE shard_id = ? AND category = ? AND (fire_time, task_id) <= (?, ?)",
        (*key, *(last or until)),
    )
    return last is not None


def _delete_backlog_piece(connection: sqlite3.Connection, key: TaskQueueKey, until: int) -> bool:
    row = connection.execute("SELECT queue_key FROM task_queue" + BY_QUEUE, key).fetchone()
    if row is None:
        return False
    last = connection.execute(
        "SELECT level FROM backlog WHERE queue_key = ? AND level <= ? ORDER BY level LIMIT 1 OFFSET ?",
        (row[0], until, PIECE - 1),
    ).fetchone()
    connection.execute("DELETE FROM backlog WHERE queue_key = ? AND level <= ?", (row[0], last[0] if last else until))
    return last is not None


def _owned_queue(connection: sqlite3.Connection, key: TaskQueueKey, range_id: int) -> int:
    """Its key inside. Raises ConditionFailed."""
    row = connection.execute("SELECT queue_key, range_id FROM task_queue" + BY_QUEUE, key).fetchone()
    if row is None or row[1] != range_id:
        found = "gone" if row is None else f"at range id {row[1]}"
        raise ConditionFailed(f"task queue {key.name} is {found}, not at range id {range_id}")
    return row[0]


def _document(connection: sqlite3.Connection, kind: str, key: str) -> tuple[int, bytes]:
    """(version, blob); version 0 for none."""
    row = connection.execute("SELECT version, blob FROM document WHERE kind = ? AND key = ?", (kind, key)).fetchone()
    return (0, b"") if row is None else row
