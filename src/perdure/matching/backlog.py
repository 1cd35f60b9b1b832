"""The tasks of one physical task queue that wait in the store.

Levels: each lease of the queue (its range id) owns a block of them, so they are unique over all owners, and what lies
below the own block does not change any more. A writer appends what came in meanwhile as one batch. What it appended
goes straight into memory as long as everything before it is there too and the buffer has room; otherwise a reader
fetches it when the buffer has run low. Tasks finish in any order; the ack level follows the oldest unfinished one, and
what lies below it is deleted in batches.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any

import msgspec

from perdure.clock import MILLISECOND, MINUTE, SECOND, Clock, TimerHandle
from perdure.errors import NotOwned, ServiceError, unavailable
from perdure.matching.api import TaskRef
from perdure.matching.matcher import DEFAULT_PRIORITY, Entry
from perdure.persistence.api import BacklogTask, ConditionFailed, StoreError, TaskQueueKey, TaskQueueStore

log = logging.getLogger(__name__)

BLOCK = 100_000  # levels of one lease
_DELETE_DELAY = SECOND
_PERSIST_INTERVAL = MINUTE
_READ_RETRY = 500 * MILLISECOND

_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(TaskRef).decode

Spawn = Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]
"""Runs a coroutine as a task that the engine holds on to, and logs what it did not expect."""


class Backlog:
    """loaded(entry): a task came into memory; `batch_loaded()` follows once for several.

    count: tasks not finished, as far as known. read_level: everything up to it was loaded. ack_level: everything up to
    it is finished."""

    def __init__(
        self,
        store: TaskQueueStore,
        key: TaskQueueKey,
        clock: Clock,
        spawn: Spawn,
        loaded: Callable[[Entry], None],
        batch_loaded: Callable[[], None],
        *,
        read_batch: int,
        reload_at: int,
        append_batch: int,
        delete_batch: int,
    ) -> None:
        self._store = store
        self._key = key
        self._clock = clock
        self._spawn = spawn
        self._loaded = loaded
        self._batch_loaded = batch_loaded
        self._read_batch = read_batch
        self._reload_at = reload_at
        self._append_batch = append_batch
        self._delete_batch = delete_batch

        self.ready = False
        self.range_id = 0
        self.ack_level = 0
        self.read_level = 0
        self.count = 0
        self.loaded_by_priority: dict[int, int] = {}
        self._blob = b""
        self._next_level = 0
        self._unread = False  # the store may hold tasks above the read level
        self._in_memory = 0
        self._unfinished: deque[tuple[int, int]] = deque()  # (level, created) of loaded tasks, oldest first
        self._finished: set[int] = set()  # of those, the ones that are finished
        self._pending: list[tuple[Entry, asyncio.Future[None]]] = []
        self._load_task: asyncio.Task[None] | None = None
        self._write_task: asyncio.Task[None] | None = None
        self._read_task: asyncio.Task[None] | None = None
        self._delete_task: asyncio.Task[None] | None = None
        self._delete_timer: TimerHandle | None = None
        self._acked = 0  # finished tasks not deleted yet
        self._persisted_at = 0
        self._persisted_ack = 0
        self._closed = False

    # --- state, for the others

    @property
    def block(self) -> tuple[int, int]:
        """First and last level of the own lease."""
        if not self.range_id:
            return 0, 0
        return (self.range_id - 1) * BLOCK + 1, self.range_id * BLOCK

    def oldest(self) -> int | None:
        """When the oldest unfinished task in memory was created."""
        return self._unfinished[0][1] if self._unfinished else None

    def count_by_priority(self) -> dict[int, int]:
        counts = {p: n for p, n in self.loaded_by_priority.items() if n}
        unread = self.count - self._in_memory
        if unread > 0:
            counts[DEFAULT_PRIORITY] = counts.get(DEFAULT_PRIORITY, 0) + unread
        return counts

    @property
    def idle(self) -> bool:
        """No write is on its way."""
        return self._write_task is None and not self._pending and self._load_task is None

    def is_stuck_at(self, level: int) -> bool:
        """This task alone keeps many finished ones from being forgotten."""
        return (
            len(self._finished) > 10 * self._read_batch and bool(self._unfinished) and self._unfinished[0][0] == level
        )

    # --- lease

    async def load(self) -> None:
        """Takes the lease and starts reading. Raises ServiceError UNAVAILABLE; then call it again later."""
        if self.ready:
            return
        if self._load_task is None:
            self._load_task = self._spawn(self._load())
        await asyncio.shield(self._load_task)

    async def _load(self) -> None:
        try:
            await self._lease()
            self.read_level = self.ack_level
            self.count = await self._store.count_backlog(self._key, self.ack_level)
            self._unread = self.count > 0
            self.ready = True
            self._read_more()
        except StoreError as e:
            raise unavailable(f"task queue {self._key.name} could not be loaded") from e
        finally:
            self._load_task = None

    async def _lease(self) -> None:
        record = await self._store.lease_task_queue(self._key)
        self.range_id = record.range_id
        self._blob = record.blob
        if not self.ready:
            self.ack_level = self._persisted_ack = record.ack_level
            self._persisted_at = self._clock.now()
        self._next_level = self.block[0]
        # Another owner may have written between this lease and the last.
        self._unread = True

    # --- writer

    async def append(self, entry: Entry) -> None:
        """Its task is durable when it returns, and the entry perhaps taken into memory, with its level. Raises
        ServiceError UNAVAILABLE: perhaps it is not durable."""
        if self._closed:
            raise NotOwned(f"task queue {self._key.name}")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._pending.append((entry, future))
        if self._write_task is None:
            self._write_task = self._spawn(self._write())
        await future

    async def _write(self) -> None:
        try:
            while self._pending:
                batch = self._pending[: self._append_batch]
                del self._pending[: self._append_batch]
                error: ServiceError | None = None
                try:
                    await self._append([entry for entry, _ in batch])
                except StoreError as e:
                    log.warning("tasks not written to task queue %s: %s", self._key.name, e)
                    error = unavailable("task queue storage is not available")
                except Exception:
                    log.exception("tasks not written to task queue %s", self._key.name)
                    error = unavailable("task queue storage failed")
                for _, future in batch:
                    if not future.done():
                        if error is None:
                            future.set_result(None)
                        else:
                            future.set_exception(error)
        finally:
            self._write_task = None

    async def _append(self, entries: list[Entry]) -> None:
        for attempt in (1, 2, 3):
            if self._next_level + len(entries) - 1 > self.block[1]:
                await self._lease()
            first = self._next_level
            # Levels are not used twice, not even where the write's outcome is unknown.
            self._next_level += len(entries)
            rows = [BacklogTask(first + i, _encode(entry.task)) for i, entry in enumerate(entries)]
            try:
                await self._store.append_backlog(self._key, self.range_id, rows)
                break
            except ConditionFailed:
                if attempt == 3:
                    raise
                await self._lease()
        last = first + len(entries) - 1
        # A read that ended meanwhile may have brought, and counted, some.
        self.count += max(0, last - max(self.read_level, first - 1))
        if self._unread or self._read_task is not None or self._in_memory >= self._read_batch:
            self._unread = True
            self._read_more()
        elif first > self.read_level:
            for i, entry in enumerate(entries):
                entry.level = first + i
                self._take_in(entry)
            self.read_level = last
            self._batch_loaded()

    # --- reader

    def _read_more(self) -> None:
        if self._unread and self._read_task is None and self._in_memory <= self._reload_at and not self._closed:
            self._read_task = self._spawn(self._read())

    async def _read(self) -> None:
        try:
            while self._unread and self._in_memory <= self._reload_at and not self._closed:
                self._unread = False
                try:
                    rows = await self._store.read_backlog(self._key, self.read_level, self._read_batch)
                except StoreError as e:
                    self._unread = True
                    log.warning("backlog of task queue %s not read: %s", self._key.name, e)
                    await self._clock.sleep(_READ_RETRY)
                    continue
                if len(rows) >= self._read_batch:
                    self._unread = True
                for level, blob in rows:
                    try:
                        task = _decode(blob)
                    except msgspec.DecodeError:
                        log.error("unreadable task %d of task queue %s dropped", level, self._key.name)
                        self.count -= 1
                        continue
                    self._take_in(Entry(task, level))
                if rows:
                    self.read_level = rows[-1].level
                self.count = max(self.count, self._in_memory) if self._unread else self._in_memory
                self._batch_loaded()
        finally:
            self._read_task = None

    def _take_in(self, entry: Entry) -> None:
        self._unfinished.append((entry.level, entry.task.created))
        self._in_memory += 1
        priority = entry.priority
        self.loaded_by_priority[priority] = self.loaded_by_priority.get(priority, 0) + 1
        self._loaded(entry)

    # --- acks

    def finish(self, entry: Entry) -> None:
        """The task is done: started, dropped or expired."""
        self.count -= 1
        self._in_memory -= 1
        self.loaded_by_priority[entry.priority] -= 1
        unfinished = self._unfinished
        if unfinished[0][0] != entry.level:
            self._finished.add(entry.level)
        else:
            unfinished.popleft()
            self._acked += 1
            finished = self._finished
            while unfinished and unfinished[0][0] in finished:
                finished.discard(unfinished.popleft()[0])
                self._acked += 1
            # With nothing left, everything read is done.
            self.ack_level = unfinished[0][0] - 1 if unfinished else max(self.read_level, entry.level)
            self._delete_later()
        if self._unread:
            self._read_more()

    def _delete_later(self) -> None:
        if self._delete_task is not None or self._closed:
            return
        if self._acked >= self._delete_batch:
            self._delete_now()
        elif self._delete_timer is None:
            self._delete_timer = self._clock.call_at(self._clock.now() + _DELETE_DELAY, self._delete_now)

    def _delete_now(self) -> None:
        if self._delete_timer is not None:
            self._delete_timer.cancel()
            self._delete_timer = None
        if self._delete_task is None and not self._closed:
            self._delete_task = self._spawn(self._delete())

    async def _delete(self) -> None:
        self._acked = 0
        try:
            await self._store.delete_backlog(self._key, self.ack_level)
            now = self._clock.now()
            if now - self._persisted_at >= _PERSIST_INTERVAL:
                await self._persist()
                self._persisted_at = now
        except StoreError as e:
            log.info("finished tasks of task queue %s not deleted yet: %s", self._key.name, e)
        finally:
            self._delete_task = None
        if self._acked:
            self._delete_later()

    async def _persist(self) -> None:
        ack_level = self.ack_level
        if ack_level == self._persisted_ack:
            return
        try:
            await self._store.update_task_queue(self._key, self.range_id, ack_level, self._blob)
            self._persisted_ack = ack_level
        except ConditionFailed:
            # Another owner has the queue. It reads what is not deleted; the next append here takes the lease again.
            pass

    def stop_reading(self) -> None:
        """Nothing more comes into memory; what is there may still finish."""
        self._closed = True
        if self._read_task is not None:
            self._read_task.cancel()

    async def close(self) -> None:
        """Finishes the writes on their way, then records how far the tasks are done."""
        self.stop_reading()
        if self._delete_timer is not None:
            self._delete_timer.cancel()
            self._delete_timer = None
        for task in (self._load_task, self._write_task, self._delete_task):
            if task is not None:
                await asyncio.wait([task])
        if not self.ready:
            return
        try:
            if self._acked:
                await self._store.delete_backlog(self._key, self.ack_level)
            await self._persist()
        except StoreError as e:
            log.info("ack level of task queue %s not written: %s", self._key.name, e)
