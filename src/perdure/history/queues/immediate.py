"""Tasks that run at once (transfer, visibility): handed over in memory after their commit; their rows are for recovery
and are deleted in batches behind the oldest that is not done."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from functools import partial

from perdure.history.core import tasks
from perdure.history.core.tasks import Task
from perdure.history.queues.retrying import Attempts, Retrying
from perdure.persistence.api import ExecutionStore, StoreError, TaskCategory

Handler = Callable[[Task], Awaitable[None]]
_PAGE = 500


class ImmediateQueue:
    """reserve → start (committed) or release (not committed). Tasks run concurrently, in order of their start."""

    def __init__(
        self,
        store: ExecutionStore,
        shard_id: int,
        category: TaskCategory,
        handler: Handler,
        retrying: Retrying,
        concurrency: int = 256,
    ) -> None:
        self._store = store
        self._shard_id = shard_id
        self._category = category
        self._handler = handler
        self._retrying = retrying
        self._concurrency = concurrency
        self._outstanding: dict[int, None] = {}  # ids in ascending order: reserved, waiting or running
        self._waiting: deque[tuple[int, Task, Attempts | None]] = deque()
        self._running: set[asyncio.Task[None]] = set()
        self._highest = 0
        self._deleted = 0
        self._stopped = False
        self._abandoned = False

    @property
    def size(self) -> int:
        return len(self._outstanding)

    def reserve(self, task_id: int) -> None:
        self._outstanding[task_id] = None
        self._highest = task_id

    def release(self, task_id: int) -> None:
        self._outstanding.pop(task_id, None)

    def start(self, task_id: int, task: Task, attempts: Attempts | None = None) -> None:
        if self._stopped:
            return
        if len(self._running) < self._concurrency:
            self._spawn(task_id, task, attempts)
        else:
            self._waiting.append((task_id, task, attempts))

    def start_unrecorded(self, task: Task) -> None:
        """A task without a row."""
        self.start(0, task)

    def _spawn(self, task_id: int, task: Task, attempts: Attempts | None) -> None:
        running = asyncio.ensure_future(self._run(task_id, task, attempts))
        self._running.add(running)
        running.add_done_callback(self._ended)

    def _ended(self, running: asyncio.Task[None]) -> None:
        self._running.discard(running)
        while self._waiting and len(self._running) < self._concurrency and not self._stopped:
            self._spawn(*self._waiting.popleft())

    async def _run(self, task_id: int, task: Task, attempts: Attempts | None) -> None:
        try:
            await self._handler(task)
        except Exception as error:
            attempts = attempts or self._retrying.begin(self._category, task)
            wait = await attempts.failed(error)
            if wait is not None:
                # Out of the way of the others meanwhile; it stays outstanding, so its row stays.
                clock = self._retrying.clock
                clock.call_at(clock.now() + wait, partial(self.start, task_id, task, attempts))
                return
        self._outstanding.pop(task_id, None)

    async def recover(self) -> None:
        """Starts what was committed before this process had the shard. Called once, before anything is reserved."""
        after = (0, 0)
        while not self._stopped:
            rows = await self._store.read_tasks(self._shard_id, self._category, after, (0, 2**62), _PAGE)
            for row in rows:
                task = self._retrying.decode(self._category, row.blob, tasks.decode)
                if task is not None:
                    self.reserve(row.task_id)
                    self.start(row.task_id, task)
            if len(rows) < _PAGE:
                return
            after = (0, rows[-1].task_id)
            while len(self._outstanding) > 4 * _PAGE and not self._stopped:  # noqa: ASYNC110 (at start only)
                await asyncio.sleep(0.01)

    async def delete_done(self) -> None:
        """Deletes the rows of all tasks up to the oldest that is not done."""
        if self._abandoned:
            return
        done = next(iter(self._outstanding)) - 1 if self._outstanding else self._highest
        if done > self._deleted:
            await self._store.delete_tasks(self._shard_id, self._category, (0, done))
            self._deleted = done

    def abandon(self) -> None:
        """Nothing more is started or deleted: which rows there are is not known any more. `stop` follows."""
        self._stopped = self._abandoned = True

    async def stop(self, grace: float, *, cancel: bool = True) -> None:
        """Waits up to grace seconds for what runs; what does not end is run again by the next owner of the shard.
        cancel: it is cancelled; else it may end later, but nothing follows from it."""
        self._stopped = True
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=grace)
            if late and cancel:
                for task in late:
                    task.cancel()
                await asyncio.wait(late, timeout=1)
        try:
            await self.delete_done()
        except StoreError:
            pass
