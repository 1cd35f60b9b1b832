"""Tasks with a time. Those due soon are in a heap in memory; the others only in the store, and are read as their time
comes near, so memory does not grow with how many sleep."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Awaitable, Callable
from functools import partial

from perdure.clock import SECOND, Clock, TimerHandle
from perdure.history.core import tasks
from perdure.history.core.tasks import Task
from perdure.history.queues.retrying import Attempts, Retrying
from perdure.persistence.api import ExecutionStore, StoreError, TaskCategory

Handler = Callable[[Task], Awaitable[None]]
_WINDOW = 120 * SECOND
_PAGE = 2000
_LAST_ID = 2**62


class Entry:
    """A timer in memory. `cancel` makes it void without a search: it is dropped when its time comes."""

    __slots__ = ("attempts", "canceled", "fire_time", "task", "task_id")

    def __init__(self, fire_time: int, task_id: int, task: Task) -> None:
        self.fire_time = fire_time
        self.task_id = task_id
        self.task: Task | None = task
        self.attempts: Attempts | None = None
        self.canceled = False

    @property
    def durable(self) -> bool:
        """It has a row."""
        return self.task_id > 0

    def cancel(self) -> None:
        self.canceled = True
        self.task = None

    def __lt__(self, other: Entry) -> bool:
        return (self.fire_time, self.task_id) < (other.fire_time, other.task_id)


class TimerQueue:
    """reserve → start (committed) or release (not committed), as in ImmediateQueue."""

    def __init__(
        self,
        store: ExecutionStore,
        shard_id: int,
        clock: Clock,
        handler: Handler,
        retrying: Retrying,
        concurrency: int = 256,
    ) -> None:
        self._store = store
        self._shard_id = shard_id
        self._clock = clock
        self._handler = handler
        self._retrying = retrying
        self._concurrency = concurrency
        self._heap: list[Entry] = []
        self._known: set[int] = set()  # task ids in the heap or running, that have a row
        self._reserved: dict[int, int] = {}  # task id -> fire time, not committed yet
        self._active: dict[int, int] = {}  # task id -> fire time, running
        self._window_end = 0  # rows up to here are in memory
        self._loading = False
        self._running: set[asyncio.Task[None]] = set()
        self._wake: TimerHandle | None = None
        self._wake_time = 0
        self._deleted = 0
        self._stopped = False
        self._abandoned = False
        self._unrecorded = 0

    @property
    def size(self) -> int:
        """Timers in memory."""
        return len(self._heap) + len(self._active)

    def reserve(self, fire_time: int, task_id: int) -> int:
        """The fire time for its row: never before what is being deleted as done, or the row could vanish unseen."""
        fire_time = max(fire_time, self._deleted + 1)
        self._reserved[task_id] = fire_time
        return fire_time

    def release(self, task_id: int) -> None:
        self._reserved.pop(task_id, None)

    def start(self, fire_time: int, task_id: int, task: Task) -> Entry | None:
        """None when it is far off: then the store alone has it."""
        self._reserved.pop(task_id, None)
        if self._stopped or fire_time > self._window_end:
            return None
        if task_id in self._known:
            return None  # read from the store in the meantime
        self._known.add(task_id)
        return self._push(Entry(fire_time, task_id, task))

    def start_unrecorded(self, fire_time: int, task: Task) -> Entry:
        """A timer without a row."""
        self._unrecorded -= 1
        return self._push(Entry(fire_time, self._unrecorded, task))

    def _push(self, entry: Entry) -> Entry:
        heapq.heappush(self._heap, entry)
        if self._wake is None or entry.fire_time < self._wake_time:
            self._schedule_wake()
        return entry

    def _schedule_wake(self) -> None:
        if self._wake is not None:
            self._wake.cancel()
            self._wake = None
        if self._stopped or not self._heap:
            return
        self._wake_time = self._heap[0].fire_time
        self._wake = self._clock.call_at(self._wake_time, self._fire)

    def _fire(self) -> None:
        self._wake = None
        now = self._clock.now()
        heap = self._heap
        while heap and not self._stopped:
            entry = heap[0]
            if entry.canceled:
                heapq.heappop(heap)
                self._known.discard(entry.task_id)
                continue
            if entry.fire_time > now:
                break
            if len(self._running) >= self._concurrency:
                return  # goes on when one ends
            heapq.heappop(heap)
            self._active[entry.task_id] = entry.fire_time
            self._spawn(entry)
        self._schedule_wake()

    def _spawn(self, entry: Entry) -> None:
        if self._stopped:
            return
        running = asyncio.ensure_future(self._run(entry))
        self._running.add(running)
        running.add_done_callback(self._ended)

    def _ended(self, running: asyncio.Task[None]) -> None:
        full = len(self._running) >= self._concurrency
        self._running.discard(running)
        if full and self._wake is None:
            self._fire()

    async def _run(self, entry: Entry) -> None:
        task = entry.task
        if task is not None:  # else it was canceled meanwhile
            try:
                await self._handler(task)
            except Exception as error:
                entry.attempts = entry.attempts or self._retrying.begin(TaskCategory.TIMER, task)
                wait = await entry.attempts.failed(error)
                if wait is not None:
                    # Out of the way of the others meanwhile; it stays active, so its row stays.
                    self._clock.call_at(self._clock.now() + wait, partial(self._spawn, entry))
                    return
        self._active.pop(entry.task_id, None)
        self._known.discard(entry.task_id)

    async def load(self) -> None:
        """Moves the window on and reads the rows that it now covers. Called at start (when it covers all that is past)
        and every few seconds."""
        if self._loading or self._stopped:
            return
        now = self._clock.now()
        if self._window_end >= now + _WINDOW // 2:
            return
        self._loading = True
        try:
            after = (self._window_end, _LAST_ID)
            target = now + _WINDOW
            # From here on what is committed within the window comes to the heap by itself.
            previous, self._window_end = self._window_end, target
            try:
                while not self._stopped:
                    rows = await self._store.read_tasks(
                        self._shard_id, TaskCategory.TIMER, after, (target, _LAST_ID), _PAGE
                    )
                    for row in rows:
                        if row.task_id in self._known or row.task_id in self._reserved:
                            continue
                        task = self._retrying.decode(TaskCategory.TIMER, row.blob, tasks.decode)
                        if task is not None:
                            self._known.add(row.task_id)
                            self._push(Entry(row.fire_time, row.task_id, task))
                    if len(rows) < _PAGE:
                        break
                    after = (rows[-1].fire_time, rows[-1].task_id)
                    while len(self._heap) > 50 * _PAGE and self._heap[0].fire_time <= self._clock.now():  # noqa: ASYNC110
                        await asyncio.sleep(0.01)
            except StoreError:
                self._window_end = previous  # once more, soon
                raise
        finally:
            self._loading = False

    async def delete_done(self) -> None:
        """Deletes the rows of all timers up to the earliest that is not done."""
        if self._loading or self._abandoned:
            return
        until = min(self._clock.now(), self._window_end)
        if self._heap:
            until = min(until, self._heap[0].fire_time)
        for times in (self._active, self._reserved):
            if times:
                until = min(until, *times.values())
        if until - 1 > self._deleted:
            self._deleted = until - 1
            await self._store.delete_tasks(self._shard_id, TaskCategory.TIMER, (until - 1, _LAST_ID))

    def abandon(self) -> None:
        """Nothing more is started or deleted: which rows there are is not known any more. `stop` follows."""
        self._stopped = self._abandoned = True

    async def stop(self, grace: float, *, cancel: bool = True) -> None:
        """As of ImmediateQueue."""
        self._stopped = True
        if self._wake is not None:
            self._wake.cancel()
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=grace)
            if late and cancel:
                for task in late:
                    task.cancel()
                await asyncio.wait(late, timeout=1)
