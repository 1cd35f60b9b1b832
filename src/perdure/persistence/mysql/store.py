"""The store in MySQL and MariaDB. Several processes may use one database: what is written is checked there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

from perdure.persistence.api import (
    BacklogTask,
    Commit,
    ConditionFailed,
    CurrentRun,
    Document,
    HistoryNode,
    NotFound,
    PendingRow,
    QueueMessage,
    RunRecord,
    ShardRecord,
    TaskCategory,
    TaskQueueKey,
    TaskQueueRecord,
    TaskRow,
)
from perdure.persistence.groups import outcome
from perdure.persistence.keys import branch_key, queue_key, run_key, workflow_key
from perdure.persistence.mysql import schema
from perdure.persistence.mysql.commits import (
    AppendWrite,
    CarriesVisibility,
    CommitWrite,
    check_fence,
    check_queue,
    shard_bytes,
)
from perdure.persistence.mysql.connections import Target
from perdure.persistence.mysql.database import Database, Duplicate, delete_pieces
from perdure.persistence.mysql.sql import bind

PIECE: Final = 2000
"""Rows deleted by one statement."""

PAGE: Final = 16
"""History nodes read by one statement, at first."""
LARGEST_PAGE: Final = 1000

_ACQUIRE: Final = (
    "INSERT INTO shard (shard_id, range_id, owner, data) VALUES (?, ?, ?, '')"
    " ON DUPLICATE KEY UPDATE range_id = GREATEST(range_id + 1, VALUES(range_id)), owner = VALUES(owner);"
    "SELECT range_id, data FROM shard WHERE shard_id = ?"
)
_LEASE: Final = (
    "INSERT INTO task_queue (queue_key, namespace_id, name, type, range_id, ack_level, data)"
    " VALUES (?, ?, ?, ?, ?, 0, '')"
    " ON DUPLICATE KEY UPDATE range_id = GREATEST(range_id + 1, VALUES(range_id));"
    "SELECT range_id, ack_level, data FROM task_queue WHERE queue_key = ?"
)
# One statement: both parts see the same state.
_RUN: Final = (
    "SELECT version, NULL, state FROM run WHERE run_key = ?"
    " UNION ALL SELECT kind, item, data FROM pending WHERE run_key = ?"
)
_TASKS: Final = (
    "SELECT category, fire_time, task_id, data FROM task WHERE shard_id = ? AND category = ?"
    " AND fire_time >= ? AND (fire_time > ? OR task_id > ?) AND fire_time <= ? AND (fire_time < ? OR task_id <= ?)"
    " ORDER BY fire_time, task_id LIMIT ?"
)
_DELETE_TASKS: Final = (
    "DELETE FROM task WHERE shard_id = ? AND category = ? AND fire_time <= ? AND (fire_time < ? OR task_id <= ?){fence}"
    f" ORDER BY fire_time, task_id LIMIT {PIECE}"
)
_DELETE_BACKLOG: Final = (
    f"DELETE FROM backlog WHERE queue_key = ? AND task_level <= ?{{fence}} ORDER BY task_level LIMIT {PIECE}"
)
_NODES: Final = "SELECT node_id, txn_id, prev_txn_id, events, data FROM history_node WHERE branch_key = ?"
_FROM_FIRST: Final = (
    " AND node_id >= COALESCE((SELECT MAX(n.node_id) FROM history_node n WHERE n.branch_key = ? AND n.node_id <= ?), 0)"
    " AND node_id < ?"
)

logger = logging.getLogger(__name__)


async def open_store(url: str, *, create: bool = True) -> MysqlStore:
    """Opens the database at `url`: see `connections.Target`. create: lays perdure's tables down when there are none.

    Raises SchemaMismatch: the URL is none, the server refuses us or is too old, the tables are missing or of another
    version. Unavailable: the server cannot be reached."""
    target = Target(url)
    server = await schema.check(target, create)
    if not server.flushes:
        logger.warning(
            "%s: innodb_flush_log_at_trx_commit is not 1: a crash of the server loses what was acknowledged",
            target.name,
        )
    return MysqlStore(Database(target, server.max_packet))


class MysqlStore:
    """Implements `persistence.api.Store`. `database` may hold other modules' tables too."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._visibility: CarriesVisibility | None = None
        self._acquiring: dict[int, asyncio.Future[None]] = {}
        self._enqueuing: dict[str, asyncio.Lock] = {}
        # What this process last had: it deletes nothing of what another one has now.
        self._shard_ranges: dict[int, int] = {}
        self._queue_ranges: dict[bytes, int] = {}

    def carry_visibility(self, visibility: CarriesVisibility) -> None:
        """From now on commits write their visibility records through this."""
        self._visibility = visibility

    @property
    def carries_visibility(self) -> bool:
        return self._visibility is not None

    async def close(self) -> None:
        await self.database.close()

    # --- shards ------------------------------------------------------------------------------------------------------

    async def acquire_shard(self, shard_id: int, owner: str, at_least: int = 1) -> ShardRecord:
        """Commits of this process that came before are written before; those that come after wait."""
        self.database.check_open()
        await self._acquired(shard_id)
        done = self._acquiring[shard_id] = asyncio.get_running_loop().create_future()
        try:
            await self.database.settle(
                lambda write: isinstance(write, CommitWrite) and write.commit.shard_id == shard_id
            )

            def decide(answers: list[Any]) -> tuple[ShardRecord, Sequence[bytes]]:
                ((range_id, blob),) = answers[1]
                return ShardRecord(shard_id, range_id, owner, blob), ()

            statement = bind(_ACQUIRE, shard_id, at_least, owner, shard_id)
            record = await self.database.transact(statement, decide, repeatable=True)
            self._shard_ranges[shard_id] = record.range_id
            return record
        finally:
            del self._acquiring[shard_id]
            done.set_result(None)

    async def _acquired(self, shard_id: int) -> None:
        while (future := self._acquiring.get(shard_id)) is not None:
            await asyncio.wait([future])

    async def list_shards(self) -> list[ShardRecord]:
        (rows,) = await self.database.read(b"SELECT shard_id, range_id, owner, data FROM shard ORDER BY shard_id")
        return [ShardRecord(row[0], row[1], row[2].decode(), row[3]) for row in rows]

    async def update_shard(self, shard_id: int, range_id: int, blob: bytes) -> None:
        def decide(answers: list[Any]) -> tuple[None, Sequence[bytes]]:
            check_fence(shard_id, range_id, _one(answers[0]))
            return None, [bind("UPDATE shard SET data = ? WHERE shard_id = ?", blob, shard_id)]

        first = bind("SELECT range_id FROM shard FORCE INDEX (PRIMARY) WHERE shard_id = ? FOR UPDATE", shard_id)
        await self.database.transact(first, decide)

    # --- executions --------------------------------------------------------------------------------------------------

    async def commit(self, commit: Commit) -> None:
        if self._acquiring:
            await self._acquired(commit.shard_id)
        write = CommitWrite(commit, self._visibility)
        try:
            await outcome(self.database.submit(write, write.keys, write.size))
        except Duplicate as error:
            raise ConditionFailed(f"a history node or task exists already: {error}") from error

    async def load_run(self, shard_id: int, namespace_id: str, workflow_id: str, run_id: str) -> RunRecord:
        key = shard_bytes(shard_id) + run_key(namespace_id, workflow_id, run_id)
        (rows,) = await self.database.read(bind(_RUN, key, key))
        record = None
        pending: list[PendingRow] = []
        for number, item, blob in rows:
            if item is None:
                record = RunRecord(number, blob, pending)
            else:
                pending.append(PendingRow(number, item.decode(), blob))
        if record is None:
            raise NotFound(f"run {run_id} of workflow {workflow_id}")
        return record

    async def load_current(self, shard_id: int, namespace_id: str, workflow_id: str) -> CurrentRun:
        key = shard_bytes(shard_id) + workflow_key(namespace_id, workflow_id)
        (rows,) = await self.database.read(
            bind("SELECT run_id, status, data FROM current_run WHERE workflow_key = ?", key)
        )
        if not rows:
            raise NotFound(f"workflow {workflow_id}")
        ((run_id, status, blob),) = rows
        return CurrentRun(run_id.decode(), status, blob)

    async def delete_run(
        self, shard_id: int, range_id: int, namespace_id: str, workflow_id: str, run_id: str, branch_ids: Sequence[str]
    ) -> None:
        workflow = (shard_id, namespace_id, workflow_id)
        await self.database.settle(lambda write: isinstance(write, CommitWrite) and workflow in write.keys)
        key = shard_bytes(shard_id) + run_key(namespace_id, workflow_id, run_id)
        current = shard_bytes(shard_id) + workflow_key(namespace_id, workflow_id)
        await self._fenced(
            shard_id,
            range_id,
            bind("DELETE FROM run WHERE run_key = ?", key),
            bind("DELETE FROM current_run WHERE workflow_key = ? AND run_id = ?", current, run_id),
        )
        statements = [bind(f"DELETE FROM pending WHERE run_key = ? ORDER BY kind, item LIMIT {PIECE}", key)]
        for branch_id in branch_ids:
            branch = shard_bytes(shard_id) + branch_key(branch_id)
            statements.append(
                bind(f"DELETE FROM history_node WHERE branch_key = ? ORDER BY node_id, txn_id LIMIT {PIECE}", branch)
            )
        for statement in statements:
            while await self._fenced(shard_id, range_id, statement) == PIECE:
                pass

    async def _fenced(self, shard_id: int, range_id: int, *statements: bytes) -> int:
        """Deletes under the shard's lock: may be repeated. Answers how many rows the last statement changed."""

        def decide(answers: list[Any]) -> tuple[int, Sequence[bytes]]:
            check_fence(shard_id, range_id, _one(answers[0]))
            return answers[-1], ()

        # Nothing of it stays when the range id is another one.
        lock = bind("SELECT range_id FROM shard FORCE INDEX (PRIMARY) WHERE shard_id = ? LOCK IN SHARE MODE", shard_id)
        return await self.database.transact(b";".join((lock, *statements)), decide, repeatable=True)

    async def list_runs(self, shard_id: int, page_size: int, token: bytes) -> tuple[list[tuple[str, str, str]], bytes]:
        (rows,) = await self.database.read(
            bind(
                "SELECT namespace_id, workflow_id, run_id, run_key FROM run WHERE run_key > ? AND run_key < ?"
                " ORDER BY run_key LIMIT ?",
                token or shard_bytes(shard_id),
                shard_bytes(shard_id + 1),
                page_size + 1,
            )
        )
        page = rows[:page_size]
        names = [(row[0].decode(), row[1].decode(), row[2].decode()) for row in page]
        return names, page[-1][3] if len(rows) > page_size else b""

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
        nodes: list[HistoryNode] = []
        if first_event_id >= end_event_id:
            self.database.check_open()
            return nodes
        branch = shard_bytes(shard_id) + branch_key(branch_id)
        statement = bind(_NODES, branch) + bind(_FROM_FIRST, branch, first_event_id, end_event_id)
        order = " ORDER BY node_id DESC, txn_id DESC LIMIT ?" if reverse else " ORDER BY node_id, txn_id LIMIT ?"
        behind = b""
        page = PAGE
        left = max_bytes
        while True:
            (rows,) = await self.database.read(statement + behind + bind(order, page))
            for node_id, txn_id, prev_txn_id, events, blob in rows:
                if node_id + events <= first_event_id:
                    continue  # the last one before the range does not reach into it
                left -= len(blob)
                if left < 0 and nodes:
                    return nodes
                nodes.append(HistoryNode(branch_id, node_id, txn_id, prev_txn_id, events, blob))
            if len(rows) < page or left <= 0:
                return nodes
            node_id, txn_id = rows[-1][:2]
            sign = "<" if reverse else ">"
            # About as many as fit: what they are long is not known before they are read.
            average = max(sum(len(row[4]) for row in rows) // len(rows), 1)
            page = min(max(left // average + 1, PAGE), LARGEST_PAGE, page * 8)
            behind = bind(f" AND node_id {sign}= ? AND (node_id {sign} ? OR txn_id {sign} ?)", node_id, node_id, txn_id)

    # --- tasks -------------------------------------------------------------------------------------------------------

    async def read_tasks(
        self, shard_id: int, category: TaskCategory, after: tuple[int, int], until: tuple[int, int], limit: int
    ) -> list[TaskRow]:
        (rows,) = await self.database.read(bind(_TASKS, shard_id, category, after[0], *after, until[0], *until, limit))
        return [TaskRow(*row) for row in rows]

    async def delete_tasks(self, shard_id: int, category: TaskCategory, until: tuple[int, int]) -> None:
        """A process that lost the shard deletes nothing: what is done in its memory may be the next owner's to do."""
        range_id = self._shard_ranges.get(shard_id)
        values = [shard_id, category, until[0], *until]
        fence = ""
        if range_id is not None:
            fence = " AND EXISTS (SELECT 1 FROM shard WHERE shard_id = ? AND range_id = ?)"
            values += [shard_id, range_id]
        await delete_pieces(self.database, bind(_DELETE_TASKS.format(fence=fence), *values), PIECE)

    # --- task queues -------------------------------------------------------------------------------------------------

    async def lease_task_queue(self, key: TaskQueueKey, at_least: int = 1) -> TaskQueueRecord:
        queue = queue_key(key)
        await self.database.settle(_appends_to(queue))

        def decide(answers: list[Any]) -> tuple[TaskQueueRecord, Sequence[bytes]]:
            return TaskQueueRecord(*answers[1][0]), ()

        statement = bind(_LEASE, queue, key.namespace_id, key.name, key.type, at_least, queue)
        record = await self.database.transact(statement, decide, repeatable=True)
        self._queue_ranges[queue] = record.range_id
        return record

    async def read_task_queue(self, key: TaskQueueKey) -> TaskQueueRecord:
        (rows,) = await self.database.read(
            bind("SELECT range_id, ack_level, data FROM task_queue WHERE queue_key = ?", queue_key(key))
        )
        if not rows:
            raise NotFound(f"task queue {key.name}")
        return TaskQueueRecord(*rows[0])

    async def update_task_queue(self, key: TaskQueueKey, range_id: int, ack_level: int, blob: bytes) -> None:
        update = bind(
            "UPDATE task_queue SET ack_level = ?, data = ? WHERE queue_key = ?", ack_level, blob, queue_key(key)
        )
        await self._owned(key, range_id, update)

    async def _owned(self, key: TaskQueueKey, range_id: int, *statements: bytes) -> None:
        def decide(answers: list[Any]) -> tuple[None, Sequence[bytes]]:
            check_queue(key.name, range_id, _one(answers[0]))
            return None, statements

        await self.database.transact(
            bind(
                "SELECT range_id FROM task_queue FORCE INDEX (PRIMARY) WHERE queue_key = ? FOR UPDATE", queue_key(key)
            ),
            decide,
        )

    async def append_backlog(self, key: TaskQueueKey, range_id: int, tasks: Sequence[BacklogTask]) -> None:
        write = AppendWrite(queue_key(key), key.name, range_id, tasks)
        size = sum([len(task.blob) for task in tasks])
        try:
            await self.database.submit(write, (write.key,), size)
        except Duplicate as error:
            raise ConditionFailed(f"a task of that level is in the backlog of {key.name} already") from error

    async def read_backlog(self, key: TaskQueueKey, after: int, limit: int) -> list[BacklogTask]:
        (rows,) = await self.database.read(
            bind(
                "SELECT task_level, data FROM backlog WHERE queue_key = ? AND task_level > ?"
                " ORDER BY task_level LIMIT ?",
                queue_key(key),
                after,
                limit,
            )
        )
        return [BacklogTask(*row) for row in rows]

    async def count_backlog(self, key: TaskQueueKey, after: int) -> int:
        (rows,) = await self.database.read(
            bind("SELECT COUNT(*) FROM backlog WHERE queue_key = ? AND task_level > ?", queue_key(key), after)
        )
        return rows[0][0]

    async def delete_backlog(self, key: TaskQueueKey, until: int) -> None:
        """A process that lost the queue deletes nothing."""
        queue = queue_key(key)
        range_id = self._queue_ranges.get(queue)
        values = [queue, until]
        fence = ""
        if range_id is not None:
            fence = " AND EXISTS (SELECT 1 FROM task_queue WHERE queue_key = ? AND range_id = ?)"
            values += [queue, range_id]
        await delete_pieces(self.database, bind(_DELETE_BACKLOG.format(fence=fence), *values), PIECE)

    async def list_task_queues(self, page_size: int, token: bytes) -> tuple[list[TaskQueueKey], bytes]:
        (rows,) = await self.database.read(
            bind(
                "SELECT namespace_id, name, type, queue_key FROM task_queue WHERE queue_key > ?"
                " ORDER BY queue_key LIMIT ?",
                token,
                page_size + 1,
            )
        )
        page = rows[:page_size]
        keys = [TaskQueueKey(row[0].decode(), row[1].decode(), row[2]) for row in page]
        return keys, page[-1][3] if len(rows) > page_size else b""

    async def delete_task_queue(self, key: TaskQueueKey, range_id: int) -> None:
        """Most of a long backlog is deleted before: the queue is this process's, and is going away."""
        queue = queue_key(key)
        await self.database.settle(_appends_to(queue))
        await self._owned(key, range_id)
        fence = " AND EXISTS (SELECT 1 FROM task_queue WHERE queue_key = ? AND range_id = ?)"
        statement = bind(_DELETE_BACKLOG.format(fence=fence), queue, (1 << 63) - 1, queue, range_id)
        await delete_pieces(self.database, statement, PIECE)
        await self._owned(
            key,
            range_id,
            bind("DELETE FROM backlog WHERE queue_key = ?", queue),
            bind("DELETE FROM task_queue WHERE queue_key = ?", queue),
        )
        self._queue_ranges.pop(queue, None)

    # --- documents ---------------------------------------------------------------------------------------------------

    async def get_document(self, kind: str, key: str) -> Document:
        (rows,) = await self.database.read(
            bind("SELECT version, data FROM document WHERE kind = ? AND item = ?", kind, key)
        )
        if not rows:
            raise NotFound(f"{kind} {key}")
        return Document(key, *rows[0])

    async def put_document(self, kind: str, key: str, expected_version: int, blob: bytes) -> Document:
        def decide(answers: list[Any]) -> tuple[Document, Sequence[bytes]]:
            version = _one(answers[0])
            if version != expected_version:
                raise ConditionFailed(f"{kind} {key} is at version {version}, not {expected_version}")
            if version:
                statement = "UPDATE document SET version = ?, data = ? WHERE kind = ? AND item = ?"
            else:
                statement = "INSERT INTO document (version, data, kind, item) VALUES (?, ?, ?, ?)"
            return Document(key, version + 1, blob), [bind(statement, version + 1, blob, kind, key)]

        return await self.database.transact(_lock_document(kind, key), decide)

    async def delete_document(self, kind: str, key: str, expected_version: int) -> None:
        def decide(answers: list[Any]) -> tuple[None, Sequence[bytes]]:
            version = _one(answers[0])
            if not version:
                raise NotFound(f"{kind} {key}")
            if version != expected_version:
                raise ConditionFailed(f"{kind} {key} is at version {version}, not {expected_version}")
            return None, [bind("DELETE FROM document WHERE kind = ? AND item = ?", kind, key)]

        await self.database.transact(_lock_document(kind, key), decide)

    async def list_documents(self, kind: str, after_key: str = "", limit: int = 1000) -> list[Document]:
        (rows,) = await self.database.read(
            bind(
                "SELECT item, version, data FROM document WHERE kind = ? AND item > ? ORDER BY item LIMIT ?",
                kind,
                after_key,
                limit,
            )
        )
        return [Document(row[0].decode(), row[1], row[2]) for row in rows]

    async def list_document_kinds(self) -> list[str]:
        (rows,) = await self.database.read(b"SELECT DISTINCT kind FROM document ORDER BY kind")
        return [row[0].decode() for row in rows]

    # --- queues of messages ------------------------------------------------------------------------------------------

    async def enqueue(self, queue: str, blob: bytes) -> int:
        def decide(answers: list[Any]) -> tuple[int, Sequence[bytes]]:
            message_id = _one(answers[1])
            insert = "INSERT INTO message (queue, message_id, data) VALUES (?, ?, ?)"
            return message_id, [bind(insert, queue, message_id, blob)]

        first = bind(
            "INSERT INTO queue (name, last_message_id) VALUES (?, 1)"
            " ON DUPLICATE KEY UPDATE last_message_id = last_message_id + 1;"
            "SELECT last_message_id FROM queue WHERE name = ?",
            queue,
            queue,
        )
        async with self._enqueuing.setdefault(queue, asyncio.Lock()):  # ids in order of arrival
            return await self.database.transact(first, decide)

    async def read_queue(self, queue: str, after: int, limit: int) -> list[QueueMessage]:
        (rows,) = await self.database.read(
            bind(
                "SELECT message_id, data FROM message WHERE queue = ? AND message_id > ? ORDER BY message_id LIMIT ?",
                queue,
                after,
                limit,
            )
        )
        return [QueueMessage(*row) for row in rows]

    async def delete_messages(self, queue: str, until: int) -> int:
        statement = f"DELETE FROM message WHERE queue = ? AND message_id <= ? ORDER BY message_id LIMIT {PIECE}"
        return await delete_pieces(self.database, bind(statement, queue, until), PIECE)

    async def list_queues(self) -> list[tuple[str, int]]:
        (rows,) = await self.database.read(
            b"SELECT name, (SELECT COUNT(*) FROM message WHERE queue = name) FROM queue ORDER BY name"
        )
        return [(row[0].decode(), row[1]) for row in rows]


def _one(rows: Sequence[Sequence[Any]]) -> int:
    """The number that was asked for, 0 when there is no such row."""
    return rows[0][0] if rows else 0


def _lock_document(kind: str, key: str) -> bytes:
    return bind("SELECT version FROM document FORCE INDEX (PRIMARY) WHERE kind = ? AND item = ? FOR UPDATE", kind, key)


def _appends_to(queue: bytes) -> Callable[[Any], bool]:
    return lambda write: isinstance(write, AppendWrite) and write.key == queue
