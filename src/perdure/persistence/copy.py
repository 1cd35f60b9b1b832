"""A whole stopped server to another database: `copy(source, target, shards)`.

An execution belongs to a shard by its namespace's id, its workflow id and the number of shards. So where the target has
another number of them, each run goes to the shard that its ids have there, and with it go its current record, its
history (also of the branches that it began on, which are of the same workflow id), and its tasks. Ids of tasks are
unique within a shard only: they are numbered anew, in their order. Range ids of the target's shards and task queues
begin above those of the source, so that whatever is numbered by them goes on above what was copied.

How far it is stands in a document of the target. A copy that was cut off goes on from there, as long as the source has
not run meanwhile; no server starts on a database that holds such a document. What was written after the document's last
state is written again: everything here can be repeated. Visibility is not read: each run says what it shows there.

Versions of runs and documents, which only tell writers of one database apart, begin anew.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Final

import msgspec

from perdure.cluster.shardmap import shard_of
from perdure.history.core import tasks as core_tasks
from perdure.history.core.state import State, load, visibility_record
from perdure.persistence.api import (
    BacklogTask,
    Commit,
    ConditionFailed,
    CurrentConflict,
    CurrentRun,
    CurrentWrite,
    Document,
    HistoryNode,
    NotFound,
    PendingRow,
    RunRecord,
    RunWrite,
    ShardFenced,
    Store,
    StoreError,
    TaskCategory,
    TaskQueueKey,
    TaskRow,
)
from perdure.persistence.open import COPY_PROGRESS, OpenDatabase, is_unfinished_copy

CLUSTER: Final = ("cluster", "self")
MEMBER: Final = "member"
"""The kind of the documents by which running servers say that they are there: not copied."""

LISTEN: Final = 4.0
"""Seconds. Servers give their signs every second or so."""

_PAGE = 256
_AT_ONCE = 32
"""Runs under way at once: as many chunks of a history are in memory."""
_CHUNK_BYTES = 1 << 20
_CHUNK_ROWS = 500
_RANGE_BITS = 24  # task ids of one range id of a shard
_ATTEMPTS = 100
_BEGIN, _END = (-1, -1), (2**62, 2**62)
_LAST_EVENT = 2**62

Report = Callable[[str], None]
RunKey = tuple[str, str, str]  # namespace id, workflow id, run id


class CopyRefused(StoreError):
    """The message is one clear line for an operator."""


class CopyDiffers(StoreError):
    """The copy is not what the source is. The message says where."""


class Progress(msgspec.Struct):
    """fingerprint: of the source when the copy began. shards: of the target. phase: of PHASES. shard, category: of the
    source, where the phase goes by them. token: of the listing, what is before it is done. after: (fire time, task id).
    task_id: the last one given in the target."""

    fingerprint: str
    shards: int
    phase: str = "documents"
    shard: int = 1
    category: int = 0
    token: bytes = b""
    after: tuple[int, int] = _BEGIN
    task_id: int = 0


@dataclass(slots=True)
class Content:
    """counts: records of a sort. digests: the sum of their digests, which does not depend on their order."""

    counts: dict[str, int] = field(default_factory=dict[str, int])
    digests: dict[str, int] = field(default_factory=dict[str, int])

    def add(self, sort: str, fields: Iterable[bytes | str | int]) -> None:
        digest = hashlib.blake2b(digest_size=16)
        for value in fields:
            data = value if isinstance(value, bytes) else str(value).encode()
            digest.update(b"%d:" % len(data))
            digest.update(data)
        self.counts[sort] = self.counts.get(sort, 0) + 1
        self.digests[sort] = (self.digests.get(sort, 0) + int.from_bytes(digest.digest(), "big")) % 2**128


async def copy(
    source: OpenDatabase,
    target: OpenDatabase,
    shards: int,
    report: Report = lambda _: None,
    *,
    listen: float = LISTEN,
) -> Content:
    """Copies everything and compares both; returns what there is. shards: of the target; a copy that goes on must be
    given the same. report: gets lines on how far it is. listen: seconds to wait for a sign of servers that seem to
    have the databases. Raises CopyRefused, CopyDiffers, StoreError."""
    cluster = await _cluster(source.store)
    if cluster is None:
        raise CopyRefused("the source is empty: no server has ever started on it")
    if await is_unfinished_copy(source.store):
        raise CopyRefused("the source is a copy that was not finished")
    for name, store in (("source", source.store), ("target", target.store)):
        running = await _running(store, listen)
        if running:
            raise CopyRefused(f"the {name} is in use by {', '.join(running)}")
    job = _Copy(source, target, cluster, shards, report)
    await job.begin()
    return await job.run()


class _Copy:
    def __init__(
        self, source: OpenDatabase, target: OpenDatabase, cluster: dict[str, object], shards: int, report: Report
    ) -> None:
        self._source = source.store
        self._target = target.store
        self._visibility = target.visibility
        self._cluster = cluster
        self._source_shards = int(str(cluster["shards"]))
        self._shards = shards
        self._report = report
        self._fences: dict[int, int] = {}  # range ids of the target's shards
        self._highest_range = 0  # of the source's shards
        self._progress: Progress
        self._progress_version = 0
        self._slots = asyncio.Semaphore(_AT_ONCE)
        self._done = 0

    # --- where it stands ---------------------------------------------------------------------------------------------

    async def _fingerprint(self) -> str:
        """Changes whenever a server starts on the source."""
        ranges = [(shard.shard_id, shard.range_id) for shard in await self._source.list_shards()]
        content = msgspec.json.encode([self._cluster, ranges], order="sorted")
        return hashlib.blake2b(content, digest_size=16).hexdigest()

    async def begin(self) -> None:
        shards = await self._source.list_shards()
        self._highest_range = max((shard.range_id for shard in shards), default=0)
        fingerprint = await self._fingerprint()
        found = await _document(self._target, *COPY_PROGRESS)
        if found is None:
            if not await _is_empty(self._target):
                raise CopyRefused("the target is not empty")
            self._progress = Progress(fingerprint, self._shards)
        else:
            self._progress = msgspec.json.decode(found.blob, type=Progress)
            self._progress_version = found.version
            if self._progress.fingerprint != fingerprint:
                raise CopyRefused(
                    "the target holds an unfinished copy of something else, or the source has run since that began:"
                    " begin anew with an empty target"
                )
            if self._progress.shards != self._shards:
                raise CopyRefused(f"the target holds an unfinished copy with {self._progress.shards} shards")
            self._report(f"going on with: {self._progress.phase}")
        await self._save()
        at_least = self._highest_range + 1

        async def acquire(shard_id: int) -> None:
            async with self._slots:
                record = await self._target.acquire_shard(shard_id, "copy", at_least)
            self._fences[shard_id] = record.range_id

        await asyncio.gather(*(acquire(i + 1) for i in range(self._shards)))

    async def _save(self) -> None:
        blob = msgspec.json.encode(self._progress)
        try:
            document = await self._target.put_document(*COPY_PROGRESS, self._progress_version, blob)
        except ConditionFailed:
            raise CopyRefused("another copy to the same target is under way") from None
        self._progress_version = document.version

    async def run(self) -> Content:
        phases: dict[str, Callable[[], Awaitable[None]]] = {
            "documents": self._documents,
            "runs": self._runs,
            "tasks": self._tasks,
            "task queues": self._task_queues,
            "messages": self._messages,
        }
        names = [*phases, "comparison"]
        for phase, following in pairwise(names):
            if self._progress.phase == phase:
                self._done = 0
                try:
                    await phases[phase]()
                except ShardFenced:
                    raise CopyRefused("another copy to the same target is under way") from None
                self._report(f"{phase}: {self._done:,} copied")
                self._progress = Progress(
                    self._progress.fingerprint, self._shards, following, task_id=self._progress.task_id
                )
                await self._save()
        self._report("comparing the copy with the source")
        content = await self._compare()
        if await self._fingerprint() != self._progress.fingerprint:
            raise CopyRefused("a server was started on the source during the copy: begin anew with an empty target")
        await self._finish()
        return content

    async def _finish(self) -> None:
        # Ids of tasks that owners of the target give are above those given here.
        at_least = (self._progress.task_id >> _RANGE_BITS) + 1
        for shard_id, range_id in self._fences.items():
            if range_id < at_least:
                await self._target.acquire_shard(shard_id, "copy", at_least)
        blob = msgspec.json.encode({**self._cluster, "shards": self._shards})
        await self._put_document(CLUSTER[0], Document(CLUSTER[1], 0, blob))
        await self._target.delete_document(*COPY_PROGRESS, self._progress_version)

    # --- the phases --------------------------------------------------------------------------------------------------

    async def _documents(self) -> None:
        async for kind, document in _all_documents(self._source):
            await self._put_document(kind, document)
            self._done += 1

    async def _put_document(self, kind: str, document: Document) -> None:
        try:
            await self._target.put_document(kind, document.key, 0, document.blob)
        except ConditionFailed:
            found = await self._target.get_document(kind, document.key)
            if found.blob != document.blob:
                raise CopyDiffers(f"the target has another {kind} {document.key}") from None

    async def _runs(self) -> None:
        progress = self._progress
        while progress.shard <= self._source_shards:
            keys, token = await self._source.list_runs(progress.shard, _PAGE, progress.token)
            await _all(self._slots, [self._copy_run(progress.shard, key) for key in keys])
            self._done += len(keys)
            progress.token = token
            if not token:
                progress.shard += 1
            await self._save()
            self._report(f"runs: {self._done:,} copied")

    async def _copy_run(self, shard_id: int, key: RunKey) -> None:
        namespace_id, workflow_id, run_id = key
        target_shard = shard_of(namespace_id, workflow_id, self._shards)
        record = await self._source.load_run(shard_id, *key)
        state = _loaded(key, record)
        current = await _current(self._source, shard_id, key)
        again = False  # something of it is there already: of the copy before, or of a run that began on its branch
        for attempt in range(_ATTEMPTS):
            try:
                await self._write_run(shard_id, target_shard, key, record, state, current, again)
                break
            except (ConditionFailed, CurrentConflict) as error:
                if attempt == _ATTEMPTS - 1 or (
                    isinstance(error, CurrentConflict) and error.found is not None and error.found.run_id != run_id
                ):
                    raise CopyDiffers(f"run {run_id} of workflow {workflow_id} does not fit: {error}") from error
                again = True
        await self._visibility.upsert(visibility_record(state))

    async def _write_run(
        self,
        shard_id: int,
        target_shard: int,
        key: RunKey,
        record: RunRecord,
        state: State,
        current: CurrentRun | None,
        again: bool,
    ) -> None:
        """In as many commits as its size takes. Nodes of a branch are written in their order, so what is there of a
        branch is its beginning."""
        version = 0
        if again:
            try:
                version = (await self._target.load_run(target_shard, *key)).version
            except NotFound:
                pass

        async def commit(put: Sequence[PendingRow], nodes: Sequence[HistoryNode]) -> None:
            nonlocal version
            write = RunWrite(*key, version, record.state, put, (), nodes)
            currents = [CurrentWrite(key[0], key[1], "", current)] if current is not None and version == 0 else []
            await self._target.commit(Commit(target_shard, self._fences[target_shard], [write], currents))
            version += 1

        put: list[PendingRow] = []
        nodes: list[HistoryNode] = []
        size = 0
        for row in record.pending:
            put.append(row)
            size += len(row.blob)
            if size > _CHUNK_BYTES or len(put) >= _CHUNK_ROWS:
                await commit(put, ())
                put, size = [], 0
        for branch_id in _branches(state):
            first = 1
            if again:
                last = await self._target.read_history(target_shard, branch_id, 1, _LAST_EVENT, 1, reverse=True)
                if last:
                    first = last[0].node_id + last[0].events
            async for chunk in _branch(self._source, shard_id, branch_id, first):
                for node in chunk:
                    nodes.append(node)
                    size += len(node.blob)
                    if size > _CHUNK_BYTES or len(nodes) >= _CHUNK_ROWS:
                        await commit(put, nodes)
                        put, nodes, size = [], [], 0
        if put or nodes or version == 0:
            await commit(put, nodes)

    async def _tasks(self) -> None:
        progress = self._progress
        categories = sorted(TaskCategory)
        while progress.shard <= self._source_shards:
            progress.category = progress.category or categories[0]
            rows = await self._source.read_tasks(
                progress.shard, TaskCategory(progress.category), progress.after, _END, _PAGE
            )
            by_shard: dict[int, list[TaskRow]] = {}
            for row in rows:
                progress.task_id += 1
                by_shard.setdefault(self._shard_of_task(progress.shard, row), []).append(
                    row._replace(task_id=progress.task_id)
                )
            await _all(self._slots, [self._put_tasks(shard_id, some) for shard_id, some in by_shard.items()])
            self._done += len(rows)
            if len(rows) == _PAGE:
                progress.after = (rows[-1].fire_time, rows[-1].task_id)
            else:
                progress.after = _BEGIN
                place = categories.index(TaskCategory(progress.category)) + 1
                if place < len(categories):
                    progress.category = categories[place]
                else:
                    progress.category = 0
                    progress.shard += 1
            if rows or progress.shard > self._source_shards:
                await self._save()

    def _shard_of_task(self, shard_id: int, row: TaskRow) -> int:
        task = _task(row)
        if task is None:  # unreadable: the target's server sets it aside, as the source's would have
            return (shard_id - 1) % self._shards + 1
        return shard_of(task.namespace_id, task.workflow_id, self._shards)

    async def _put_tasks(self, shard_id: int, rows: Sequence[TaskRow]) -> None:
        fence = self._fences[shard_id]
        try:
            await self._target.commit(Commit(shard_id, fence, tasks=rows))
        except ConditionFailed:
            for row in rows:  # some are there already
                try:
                    await self._target.commit(Commit(shard_id, fence, tasks=[row]))
                except ConditionFailed:
                    place = (row.fire_time, row.task_id)
                    found = await self._target.read_tasks(
                        shard_id, TaskCategory(row.category), (row.fire_time, row.task_id - 1), place, 1
                    )
                    if found != [row]:
                        raise CopyDiffers(f"the target has another task {row.task_id} in shard {shard_id}") from None

    async def _task_queues(self) -> None:
        progress = self._progress
        while True:
            keys, token = await self._source.list_task_queues(_PAGE, progress.token)
            await _all(self._slots, [self._copy_task_queue(key) for key in keys])
            self._done += len(keys)
            if not token:
                break
            progress.token = token
            await self._save()

    async def _copy_task_queue(self, key: TaskQueueKey) -> None:
        record = await self._source.read_task_queue(key)
        lease = await self._target.lease_task_queue(key, record.range_id)
        after = record.ack_level
        async for there in _backlog(self._target, key, after):
            after = there[-1].level
        async for batch in _backlog(self._source, key, after):
            await self._target.append_backlog(key, lease.range_id, batch)
        await self._target.update_task_queue(key, lease.range_id, record.ack_level, record.blob)

    async def _messages(self) -> None:
        counts = dict(await self._target.list_queues())
        for queue, _ in await self._source.list_queues():
            skip = counts.get(queue, 0)
            async for blobs in _queue(self._source, queue):
                for blob in blobs[skip:]:
                    await self._target.enqueue(queue, blob)
                self._done += len(blobs)
                skip = max(0, skip - len(blobs))

    # --- comparison --------------------------------------------------------------------------------------------------

    async def _compare(self) -> Content:
        there = await content_of(self._target, self._shards, self._visibility_matches)
        here = await content_of(self._source, self._source_shards)
        for sort in {**here.counts, **there.counts}:
            ours, copied = here.counts.get(sort, 0), there.counts.get(sort, 0)
            if ours != copied:
                raise CopyDiffers(f"{sort}: {ours:,} in the source, {copied:,} in the copy")
            if here.digests[sort] != there.digests[sort]:
                raise CopyDiffers(f"{sort}: {ours:,} in both, but their checksums differ")
        return here

    async def _visibility_matches(self, state: State) -> None:
        expected = visibility_record(state)
        found = await self._visibility.get(expected.namespace_id, expected.run_id)
        if found is None or (found.version, found.status, found.close_time) != (
            expected.version,
            expected.status,
            expected.close_time,
        ):
            raise CopyDiffers(f"visibility does not show run {expected.run_id} of workflow {expected.workflow_id}")


async def content_of(store: Store, shards: int, each: Callable[[State], Awaitable[None]] | None = None) -> Content:
    """Counts and digests of all that a copy takes along. each: called with every run's state. Raises CopyDiffers where
    something is in a shard that it does not belong to."""
    content = Content()
    slots = asyncio.Semaphore(_AT_ONCE)

    async def run(shard_id: int, key: RunKey) -> None:
        if shard_of(key[0], key[1], shards) != shard_id:
            raise CopyDiffers(f"workflow {key[1]} is in shard {shard_id}, where it does not belong")
        record = await store.load_run(shard_id, *key)
        content.add("runs", (*key, record.state))
        for row in record.pending:
            content.add("rows of runs", (*key, *row))
        current = await _current(store, shard_id, key)
        if current is not None:
            content.add("current runs", (*key, current.status, current.blob))
        state = _loaded(key, record)
        for branch_id in _branches(state):
            async for chunk in _branch(store, shard_id, branch_id, 1):
                for node in chunk:
                    content.add("batches of events", (key[2], *node))
        if each is not None:
            await each(state)

    for shard_id in range(1, shards + 1):
        token = b""
        while True:
            keys, token = await store.list_runs(shard_id, _PAGE, token)
            await _all(slots, [run(shard_id, key) for key in keys])
            if not token:
                break
        for category in TaskCategory:
            after = _BEGIN
            while rows := await store.read_tasks(shard_id, category, after, _END, _PAGE):
                for row in rows:
                    task = _task(row)
                    if task is not None and shard_of(task.namespace_id, task.workflow_id, shards) != shard_id:
                        raise CopyDiffers(f"task {row.task_id} is in shard {shard_id}, where it does not belong")
                    content.add("tasks", (row.category, row.fire_time, row.blob))
                after = (rows[-1].fire_time, rows[-1].task_id)
    async for kind, document in _all_documents(store):
        content.add("documents", (kind, document.key, document.blob))
    token = b""
    while True:
        keys, token = await store.list_task_queues(_PAGE, token)
        for key in keys:
            record = await store.read_task_queue(key)
            content.add("task queues", (*key, record.ack_level, record.blob))
            async for batch in _backlog(store, key, record.ack_level):
                for task in batch:
                    content.add("tasks in backlogs", (*key, *task))
        if not token:
            break
    for queue, _ in await store.list_queues():
        async for blobs in _queue(store, queue):
            for blob in blobs:
                content.add("messages", (queue, blob))
    return content


# --- reading ---------------------------------------------------------------------------------------------------------


async def _all(slots: asyncio.Semaphore, jobs: Sequence[Awaitable[None]]) -> None:
    """Runs them side by side; the first error ends the others."""

    async def one(job: Awaitable[None]) -> None:
        async with slots:
            await job

    running = [asyncio.ensure_future(one(job)) for job in jobs]
    try:
        await asyncio.gather(*running)
    except BaseException:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
        raise


async def _document(store: Store, kind: str, key: str) -> Document | None:
    try:
        return await store.get_document(kind, key)
    except NotFound:
        return None


async def _cluster(store: Store) -> dict[str, object] | None:
    document = await _document(store, *CLUSTER)
    return None if document is None else msgspec.json.decode(document.blob, type=dict[str, object])


async def _running(store: Store, listen: float) -> list[str]:
    """Names of the servers that use the database: those whose documents change."""
    before = {document.key: document.version for document in await store.list_documents(MEMBER)}
    if not before:
        return []
    await asyncio.sleep(listen)
    names: list[str] = []
    for document in await store.list_documents(MEMBER):
        if before.get(document.key) != document.version:
            member = msgspec.json.decode(document.blob, type=dict[str, object])
            names.append(str(member.get("name", document.key)))
    return names


async def _is_empty(store: Store) -> bool:
    return not (
        set(await store.list_document_kinds()) - {MEMBER}
        or await store.list_shards()
        or (await store.list_task_queues(1, b""))[0]
        or await store.list_queues()
    )


async def _current(store: Store, shard_id: int, key: RunKey) -> CurrentRun | None:
    """The current record of its workflow id, if it names this run."""
    try:
        current = await store.load_current(shard_id, key[0], key[1])
    except NotFound:
        return None
    return current if current.run_id == key[2] else None


def _loaded(key: RunKey, record: RunRecord) -> State:
    try:
        return load(record.version, record.state, record.pending)
    except (msgspec.DecodeError, KeyError) as error:
        raise CopyRefused(f"run {key[2]} of workflow {key[1]} cannot be read: {error}") from error


def _branches(state: State) -> list[str]:
    return list(dict.fromkeys([*(branch_id for branch_id, _ in state.info.history_ancestors), state.run.branch_id]))


async def _branch(store: Store, shard_id: int, branch_id: str, first: int) -> AsyncIterator[list[HistoryNode]]:
    while nodes := await store.read_history(shard_id, branch_id, first, _LAST_EVENT, _CHUNK_BYTES):
        yield nodes
        first = nodes[-1].node_id + nodes[-1].events


async def _backlog(store: Store, key: TaskQueueKey, after: int) -> AsyncIterator[list[BacklogTask]]:
    while batch := await store.read_backlog(key, after, _PAGE):
        yield batch
        after = batch[-1].level


async def _queue(store: Store, queue: str) -> AsyncIterator[list[bytes]]:
    after = 0
    while messages := await store.read_queue(queue, after, _PAGE):
        yield [message.blob for message in messages]
        after = messages[-1].message_id


async def _all_documents(store: Store) -> AsyncIterator[tuple[str, Document]]:
    for kind in await store.list_document_kinds():
        if kind == MEMBER:
            continue
        after = ""
        while page := await store.list_documents(kind, after, _PAGE):
            for document in page:
                if (kind, document.key) not in (CLUSTER, COPY_PROGRESS):
                    yield kind, document
            after = page[-1].key


def _task(row: TaskRow) -> core_tasks.Task | None:
    """None when it cannot be read."""
    try:
        return core_tasks.decode(row.blob)
    except msgspec.DecodeError:
        return None
