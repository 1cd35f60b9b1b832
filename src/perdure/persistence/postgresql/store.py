"""The store in PostgreSQL. Several processes may use one database: what is written is checked there."""

from __future__ import annotations

import asyncio
from collections.abc import Hashable, Sequence
from typing import Final, NamedTuple

import asyncpg

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
    ShardFenced,
    ShardRecord,
    StoreError,
    TaskCategory,
    TaskQueueKey,
    TaskQueueRecord,
    TaskRow,
)
from perdure.persistence.groups import Groups, Item, outcome
from perdure.persistence.keys import branch_key, queue_key, run_key, workflow_key
from perdure.persistence.postgresql import commits, schema
from perdure.persistence.postgresql.commits import Carried
from perdure.persistence.postgresql.database import Database, Target, one_line

PIECE: Final = 2000
"""Rows deleted by one statement."""

PAGE: Final = 128
"""History nodes read by one statement, at first."""

_ACQUIRE: Final = "SELECT * FROM acquire_shard($1, $2, $3)"
_CURRENT: Final = "SELECT run_id, status, blob FROM current_run WHERE shard_id = $1 AND workflow_key = $2"
# One statement: both parts see the same state.
_RUN: Final = """
SELECT version, NULL, state FROM run WHERE shard_id = $1 AND run_key = $2
UNION ALL
SELECT kind, key, blob FROM pending WHERE shard_id = $1 AND run_key = $2
"""
_LIST_RUNS: Final = """
SELECT namespace_id, workflow_id, run_id, run_key FROM run WHERE shard_id = $1 AND run_key > $2
ORDER BY run_key LIMIT $3
"""
# The sizes of up to $7 nodes are summed up without reading them.
_NODES: Final = """
SELECT node_id, txn_id, prev_txn_id, events, CASE WHEN place = 1 AND $6 OR total <= $5 THEN blob END FROM (
    SELECT n.*, row_number() OVER (ORDER BY node_id {order}, txn_id {order}) AS place,
        sum(octet_length(blob)) OVER (ORDER BY node_id {order}, txn_id {order}) AS total
    FROM (
        SELECT node_id, txn_id, prev_txn_id, events, blob FROM history_node
        WHERE shard_id = $1 AND branch_key = $2 AND node_id < $4 AND node_id + events > $3
            AND node_id >= coalesce((
                SELECT max(node_id) FROM history_node WHERE shard_id = $1 AND branch_key = $2 AND node_id <= $3
            ), 0)
            {behind}
        ORDER BY node_id {order}, txn_id {order} LIMIT $7
    ) n
) sized ORDER BY place
"""
_FORWARD: Final = _NODES.format(order="ASC", behind="AND (node_id, txn_id) > ($8, $9)")
_BACKWARD: Final = _NODES.format(order="DESC", behind="AND (node_id, txn_id) < ($8, $9)")
_TASKS: Final = """
SELECT category, fire_time, task_id, blob FROM task
WHERE shard_id = $1 AND category = $2 AND (fire_time, task_id) > ($3, $4) AND (fire_time, task_id) <= ($5, $6)
ORDER BY fire_time, task_id LIMIT $7
"""
# They need not be durable at once: the commit does not wait for the disk.
_LAZILY: Final = "(SELECT set_config('synchronous_commit', 'off', true)) IS NOT NULL"
# The check and the rows come from one snapshot: when the shard is still ours in it, no next owner's tasks are in it.
_DELETE_TASKS: Final = f"""
WITH piece AS (
    SELECT fire_time, task_id FROM task
    WHERE shard_id = $1 AND category = $2 AND (fire_time, task_id) <= ($3, $4)
        AND ($5::bigint IS NULL OR EXISTS (SELECT 1 FROM shard WHERE shard_id = $1 AND range_id = $5))
    ORDER BY fire_time, task_id LIMIT {PIECE}
), last AS (
    SELECT fire_time, task_id, count(*) OVER () AS rows FROM piece ORDER BY fire_time DESC, task_id DESC LIMIT 1
), gone AS (
    DELETE FROM task USING last WHERE {_LAZILY}
        AND task.shard_id = $1 AND task.category = $2
        AND (task.fire_time, task.task_id) <= (last.fire_time, last.task_id)
)
SELECT rows FROM last
"""
_DELETE_BACKLOG: Final = f"""
WITH piece AS (
    SELECT level FROM backlog WHERE queue_key = $1 AND level <= $2
        AND ($3::bigint IS NULL OR EXISTS (SELECT 1 FROM task_queue WHERE queue_key = $1 AND range_id = $3))
    ORDER BY level LIMIT {PIECE}
), last AS (
    SELECT max(level) AS level, count(*) AS rows FROM piece
), gone AS (
    DELETE FROM backlog USING last WHERE {_LAZILY} AND backlog.queue_key = $1 AND backlog.level <= last.level
)
SELECT rows FROM last
"""
_LEASE: Final = """
INSERT INTO task_queue AS t VALUES ($1, $2, $3, $4, $5, 0, '')
ON CONFLICT (queue_key) DO UPDATE SET range_id = greatest(t.range_id + 1, $5)
RETURNING range_id, ack_level, blob
"""
_UPDATE_QUEUE: Final = """
UPDATE task_queue SET ack_level = $3, blob = $4 WHERE queue_key = $1 AND range_id = $2 RETURNING range_id
"""
_ENQUEUE: Final = """
WITH q AS (
    INSERT INTO queue VALUES ($1, 1)
    ON CONFLICT (name) DO UPDATE SET last_message_id = queue.last_message_id + 1
    RETURNING last_message_id
)
INSERT INTO message SELECT $1, last_message_id, $2 FROM q RETURNING message_id
"""


async def open_store(url: str, *, create: bool = True) -> PostgresStore:
    """Opens the database at `url`: `postgresql://user:password@host:port/database`, with asyncpg's other forms (several
    hosts, sockets) and options, and `?schema=` for another schema than "perdure". create: lays perdure's tables down
    when there are none.

    Raises SchemaMismatch: no such database, wrong password, not perdure's or another version's tables. Raises
    Unavailable when it does not answer."""
    target = Target(url)
    await schema.check(target, create)
    return PostgresStore(Database(target))


class _Append(NamedTuple):
    key: bytes
    range_id: int
    name: str
    tasks: Sequence[BacklogTask]


class PostgresStore:
    """Implements `persistence.api.Store`. `database` may hold other modules' tables too."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self._carried: Carried | None = None
        self._commits: Groups[Commit] = Groups(lambda items: commits.send(database, self._carried, items))
        self._appends: Groups[_Append] = Groups(self._send_appends)
        self._acquiring: dict[int, asyncio.Future[None]] = {}  # by shard
        # Range ids under which this process last had a shard or a task queue.
        self._shard_ranges: dict[int, int] = {}
        self._queue_ranges: dict[bytes, int] = {}
        self._enqueuing = asyncio.Lock()
        database.before_closing(self._commits.drain)
        database.before_closing(self._appends.drain)

    async def close(self) -> None:
        await self.database.close()

    def carry_visibility(self, visibility: Carried) -> None:
        """From now on commits write their visibility records, in the same transaction."""
        self._carried = visibility

    @property
    def carries_visibility(self) -> bool:
        return self._carried is not None

    # --- shards ------------------------------------------------------------------------------------------------------

    async def acquire_shard(self, shard_id: int, owner: str, at_least: int = 1) -> ShardRecord:
        while (other := self._acquiring.get(shard_id)) is not None:
            await asyncio.wait([other])
        acquired = self._acquiring[shard_id] = asyncio.get_running_loop().create_future()
        try:
            await self._commits.settle(lambda commit: commit.shard_id == shard_id)
            row = (await self.database.write(_ACQUIRE, shard_id, owner, at_least))[0]
        finally:
            del self._acquiring[shard_id]
            acquired.set_result(None)
        self._shard_ranges[shard_id] = row[0]
        return ShardRecord(shard_id, *row)

    async def list_shards(self) -> list[ShardRecord]:
        rows = await self.database.read("SELECT shard_id, range_id, owner, blob FROM shard ORDER BY shard_id")
        return [ShardRecord(*row) for row in rows]

    async def update_shard(self, shard_id: int, range_id: int, blob: bytes) -> None:
        rows = await self.database.write("SELECT update_shard($1, $2, $3)", shard_id, range_id, blob)
        _check_fence(shard_id, range_id, rows[0][0])

    # --- executions --------------------------------------------------------------------------------------------------

    async def commit(self, commit: Commit) -> None:
        while (acquiring := self._acquiring.get(commit.shard_id)) is not None:
            await asyncio.wait([acquiring])  # what comes after it is written after it
        self.database.check_open()
        await outcome(self._commits.submit(commit, _keys(commit), commits.size_of(commit)))

    async def load_run(self, shard_id: int, namespace_id: str, workflow_id: str, run_id: str) -> RunRecord:
        record: RunRecord | None = None
        pending: list[PendingRow] = []
        for number, key, blob in await self.database.read(_RUN, shard_id, run_key(namespace_id, workflow_id, run_id)):
            if key is None:
                record = RunRecord(number, blob, pending)
            else:
                pending.append(PendingRow(number, key, blob))
        if record is None:
            raise NotFound(f"run {run_id} of workflow {workflow_id}")
        return record

    async def load_current(self, shard_id: int, namespace_id: str, workflow_id: str) -> CurrentRun:
        rows = await self.database.read(_CURRENT, shard_id, workflow_key(namespace_id, workflow_id))
        if not rows:
            raise NotFound(f"workflow {workflow_id}")
        return CurrentRun(*rows[0])

    async def delete_run(
        self, shard_id: int, range_id: int, namespace_id: str, workflow_id: str, run_id: str, branch_ids: Sequence[str]
    ) -> None:
        rows = await self.database.write(
            "SELECT delete_run($1, $2, $3, $4, $5, $6)",
            shard_id,
            range_id,
            run_key(namespace_id, workflow_id, run_id),
            workflow_key(namespace_id, workflow_id),
            run_id,
            [branch_key(branch_id) for branch_id in branch_ids],
        )
        _check_fence(shard_id, range_id, rows[0][0])

    async def list_runs(self, shard_id: int, page_size: int, token: bytes) -> tuple[list[tuple[str, str, str]], bytes]:
        rows = await self.database.read(_LIST_RUNS, shard_id, token, page_size + 1)
        next_token = b""
        if len(rows) > page_size:
            rows.pop()
            next_token = rows[-1][3]
        return [(row[0], row[1], row[2]) for row in rows], next_token

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
            return nodes
        sql = _BACKWARD if reverse else _FORWARD
        position = (2**62, 0) if reverse else (0, -1)
        key = branch_key(branch_id)
        page = PAGE
        while True:
            rows = await self.database.read(
                sql, shard_id, key, first_event_id, end_event_id, max_bytes, not nodes, page, *position
            )
            for node_id, txn_id, prev_txn_id, events, blob in rows:
                if blob is None:
                    return nodes
                nodes.append(HistoryNode(branch_id, node_id, txn_id, prev_txn_id, events, blob))
                max_bytes -= len(blob)
            if len(rows) < page or max_bytes < 0:
                return nodes
            position = nodes[-1][1:3]
            page = min(page * 4, 4096)

    # --- tasks -------------------------------------------------------------------------------------------------------

    async def read_tasks(
        self, shard_id: int, category: TaskCategory, after: tuple[int, int], until: tuple[int, int], limit: int
    ) -> list[TaskRow]:
        rows = await self.database.read(_TASKS, shard_id, category, *after, *until, limit)
        return [TaskRow(*row) for row in rows]

    async def delete_tasks(self, shard_id: int, category: TaskCategory, until: tuple[int, int]) -> None:
        """A process that lost the shard deletes nothing: what is done in its memory may be the next owner's to do."""
        range_id = self._shard_ranges.get(shard_id)
        while True:
            rows = await self.database.write(_DELETE_TASKS, shard_id, category, *until, range_id)
            if not rows or rows[0][0] < PIECE:
                return

    # --- task queues -------------------------------------------------------------------------------------------------

    async def lease_task_queue(self, key: TaskQueueKey, at_least: int = 1) -> TaskQueueRecord:
        queue = queue_key(key)
        await self._appends.settle(lambda append: append.key == queue)
        row = (await self.database.write(_LEASE, queue, *key, at_least))[0]
        self._queue_ranges[queue] = row[0]
        return TaskQueueRecord(*row)

    async def read_task_queue(self, key: TaskQueueKey) -> TaskQueueRecord:
        rows = await self.database.read(
            "SELECT range_id, ack_level, blob FROM task_queue WHERE queue_key = $1", queue_key(key)
        )
        if not rows:
            raise NotFound(f"task queue {key.name}")
        return TaskQueueRecord(*rows[0])

    async def update_task_queue(self, key: TaskQueueKey, range_id: int, ack_level: int, blob: bytes) -> None:
        if not await self.database.write(_UPDATE_QUEUE, queue_key(key), range_id, ack_level, blob):
            raise ConditionFailed(f"task queue {key.name} is not at range id {range_id}")

    async def append_backlog(self, key: TaskQueueKey, range_id: int, tasks: Sequence[BacklogTask]) -> None:
        self.database.check_open()
        queue = queue_key(key)
        size = sum([len(task.blob) for task in tasks])
        await self._appends.submit(_Append(queue, range_id, key.name, tasks), (queue,), size)

    async def _send_appends(self, items: list[Item[_Append]]) -> None:
        while items:
            items.sort(key=lambda item: item.write.key)
            appends = [item.write for item in items]
            try:
                failures = await self.database.write_group(
                    "SELECT * FROM append_backlogs($1, $2, $3, $4, $5)",
                    (
                        [append.key for append in appends],
                        [append.range_id for append in appends],
                        [append.key for append in appends for _ in append.tasks],
                        [task.level for append in appends for task in append.tasks],
                        [task.blob for append in appends for task in append.tasks],
                    ),
                )
            except asyncpg.PostgresError as e:
                if len(items) == 1:
                    items[0].fail(ConditionFailed(one_line(e)))
                    return
                middle = len(items) // 2
                await self._send_appends(items[:middle])
                items = items[middle:]
                continue
            except StoreError as e:
                for item in items:
                    item.fail(e)
                return
            failed = {place - 1: found for place, found in failures}
            for at, found in failed.items():
                wanted = appends[at].range_id
                items[at].fail(
                    ConditionFailed(f"task queue {appends[at].name} is at range id {found} (0: gone), not {wanted}")
                )
            if not failed:
                for item in items:
                    item.succeed()
                return
            items = [item for at, item in enumerate(items) if at not in failed]

    async def read_backlog(self, key: TaskQueueKey, after: int, limit: int) -> list[BacklogTask]:
        rows = await self.database.read(
            "SELECT level, blob FROM backlog WHERE queue_key = $1 AND level > $2 ORDER BY level LIMIT $3",
            queue_key(key),
            after,
            limit,
        )
        return [BacklogTask(*row) for row in rows]

    async def count_backlog(self, key: TaskQueueKey, after: int) -> int:
        rows = await self.database.read(
            "SELECT count(*) FROM backlog WHERE queue_key = $1 AND level > $2", queue_key(key), after
        )
        return rows[0][0]

    async def delete_backlog(self, key: TaskQueueKey, until: int) -> None:
        """A process that lost the queue deletes nothing."""
        queue = queue_key(key)
        range_id = self._queue_ranges.get(queue)
        while True:
            rows = await self.database.write(_DELETE_BACKLOG, queue, until, range_id)
            if rows[0][0] < PIECE:
                return

    async def list_task_queues(self, page_size: int, token: bytes) -> tuple[list[TaskQueueKey], bytes]:
        rows = await self.database.read(
            "SELECT namespace_id, name, type, queue_key FROM task_queue WHERE queue_key > $1"
            " ORDER BY queue_key LIMIT $2",
            token,
            page_size + 1,
        )
        next_token = b""
        if len(rows) > page_size:
            rows.pop()
            next_token = rows[-1][3]
        return [TaskQueueKey(row[0], row[1], row[2]) for row in rows], next_token

    async def delete_task_queue(self, key: TaskQueueKey, range_id: int) -> None:
        queue = queue_key(key)
        await self._appends.settle(lambda append: append.key == queue)
        found = (await self.database.write("SELECT delete_task_queue($1, $2)", queue, range_id))[0][0]
        if found != range_id:
            state = f"at range id {found}" if found else "gone"
            raise ConditionFailed(f"task queue {key.name} is {state}, not at range id {range_id}")
        self._queue_ranges.pop(queue, None)

    # --- documents ---------------------------------------------------------------------------------------------------

    async def get_document(self, kind: str, key: str) -> Document:
        rows = await self.database.read("SELECT version, blob FROM document WHERE kind = $1 AND key = $2", kind, key)
        if not rows:
            raise NotFound(f"{kind} {key}")
        return Document(key, *rows[0])

    async def put_document(self, kind: str, key: str, expected_version: int, blob: bytes) -> Document:
        if expected_version:
            rows = await self.database.write(
                "UPDATE document SET version = version + 1, blob = $4 WHERE kind = $1 AND key = $2 AND version = $3"
                " RETURNING version",
                kind,
                key,
                expected_version,
                blob,
            )
        else:
            rows = await self.database.write(
                "INSERT INTO document VALUES ($1, $2, 1, $3) ON CONFLICT DO NOTHING RETURNING version", kind, key, blob
            )
        if not rows:
            raise ConditionFailed(f"{kind} {key} is not at version {expected_version}")
        return Document(key, expected_version + 1, blob)

    async def delete_document(self, kind: str, key: str, expected_version: int) -> None:
        rows = await self.database.write(
            "DELETE FROM document WHERE kind = $1 AND key = $2 AND version = $3 RETURNING version",
            kind,
            key,
            expected_version,
        )
        if not rows:
            version = (await self.get_document(kind, key)).version  # or it raises NotFound
            raise ConditionFailed(f"{kind} {key} is at version {version}, not {expected_version}")

    async def list_documents(self, kind: str, after_key: str = "", limit: int = 1000) -> list[Document]:
        rows = await self.database.read(
            "SELECT key, version, blob FROM document WHERE kind = $1 AND key > $2 ORDER BY key LIMIT $3",
            kind,
            after_key,
            limit,
        )
        return [Document(*row) for row in rows]

    async def list_document_kinds(self) -> list[str]:
        return [row[0] for row in await self.database.read("SELECT DISTINCT kind FROM document ORDER BY kind")]

    # --- queues of messages ------------------------------------------------------------------------------------------

    async def enqueue(self, queue: str, blob: bytes) -> int:
        async with self._enqueuing:  # ids in order of arrival
            return (await self.database.write(_ENQUEUE, queue, blob))[0][0]

    async def read_queue(self, queue: str, after: int, limit: int) -> list[QueueMessage]:
        rows = await self.database.read(
            "SELECT message_id, blob FROM message WHERE queue = $1 AND message_id > $2 ORDER BY message_id LIMIT $3",
            queue,
            after,
            limit,
        )
        return [QueueMessage(*row) for row in rows]

    async def delete_messages(self, queue: str, until: int) -> int:
        rows = await self.database.write(
            "WITH gone AS (DELETE FROM message WHERE queue = $1 AND message_id <= $2 RETURNING 1)"
            " SELECT count(*) FROM gone",
            queue,
            until,
        )
        return rows[0][0]

    async def list_queues(self) -> list[tuple[str, int]]:
        rows = await self.database.read(
            "SELECT name, (SELECT count(*) FROM message WHERE queue = name) FROM queue ORDER BY name"
        )
        return [(row[0], row[1]) for row in rows]


def _keys(commit: Commit) -> list[Hashable]:
    shard_id = commit.shard_id
    keys: list[Hashable] = [(shard_id, run.namespace_id, run.workflow_id) for run in commit.runs]
    for current in commit.currents:
        keys.append((shard_id, current.namespace_id, current.workflow_id))
    return keys


def _check_fence(shard_id: int, range_id: int, found: int) -> None:
    if found != range_id:
        raise ShardFenced(f"shard {shard_id} is at range id {found}, not {range_id}")
