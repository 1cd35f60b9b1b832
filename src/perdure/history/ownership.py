"""Which shards this process has. It takes those that it is to have, gives up others in order, and drops one at once
when a write shows that it has lost it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from perdure.clock import MILLISECOND, SECOND, Clock
from perdure.errors import NotOwned
from perdure.history.shard import Shard
from perdure.persistence.api import StoreError

log = logging.getLogger("perdure.history")

_DRAIN = 0.2  # seconds that running calls have when a shard is given up
_FIRST_WAIT = 50 * MILLISECOND
_LONGEST_WAIT = 5 * SECOND
_STEPPED_ASIDE = 2 * SECOND  # so long a shard that was asked for by another member is left to it
_LEFT_BEHIND = 5 * SECOND  # after this a shard that should be another's is given up though nobody asked
_STARTING = 8  # shards taken at the same time


class Shards:
    """owned: shard 1, 2, …; None where this process does not have it, or is about to.

    make: a shard object, not acquired. ask: called before shards are taken: asks those who have them to give them up;
    None for a process that is alone."""

    def __init__(
        self,
        count: int,
        make: Callable[[int], Shard],
        clock: Clock,
        ask: Callable[[list[int]], Awaitable[None]] | None = None,
    ) -> None:
        self.owned: list[Shard | None] = [None] * count
        self.wanted: set[int] = set()
        self.ask = ask
        self._make = make
        self._clock = clock
        self._ready: dict[int, asyncio.Future[None]] = {}
        self._acquiring: dict[int, asyncio.Task[None]] = {}
        self._aside: dict[int, int] = {}  # shard id -> until when it is left to another
        self._unwanted_since: dict[int, int] = {}
        self._emptied: asyncio.Future[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._limit = asyncio.Semaphore(_STARTING)

    # --- finding

    def live(self) -> list[Shard]:
        return [shard for shard in self.owned if shard is not None]

    async def ready(self, shard_id: int, timeout: float) -> Shard:
        """The shard; waits while it is being taken. Raises NotOwned."""
        shard = self.owned[shard_id - 1]
        if shard is None and shard_id in self.wanted:
            ready = self._ready.get(shard_id)
            if ready is None:
                ready = self._ready[shard_id] = asyncio.get_running_loop().create_future()
            await asyncio.wait([ready], timeout=timeout)
            shard = self.owned[shard_id - 1]
        if shard is None:
            raise NotOwned(f"shard {shard_id}")
        return shard

    # --- taking

    async def take_all(self) -> None:
        """For a process that is alone. Raises StoreError."""
        self.wanted = set(range(1, len(self.owned) + 1))
        shards = [self._make(shard_id) for shard_id in sorted(self.wanted)]
        for shard in shards:
            await shard.acquire()
            self.owned[shard.shard_id - 1] = shard
        for shard in shards:
            await shard.recover()

    def want(self, shard_ids: Iterable[int]) -> None:
        """From now on this process is to have these. Those that it should not have are given up when their next owner
        asks for them, or in a few seconds."""
        wanted = set(shard_ids)
        for shard_id in wanted - self.wanted:
            self._aside.pop(shard_id, None)
        self.wanted = wanted
        self.reconcile()

    def reconcile(self) -> None:
        """Now and then, too."""
        now = self._clock.now()
        missing = [
            shard_id
            for shard_id in self.wanted
            if self.owned[shard_id - 1] is None
            and shard_id not in self._acquiring
            and self._aside.get(shard_id, 0) <= now
        ]
        if missing:
            asking = self._spawn(self.ask(missing)) if self.ask is not None else None
            for shard_id in missing:
                self._acquire_soon(shard_id, asking)
        unwanted = {s.shard_id for s in self.live()} - self.wanted
        self._unwanted_since = {i: self._unwanted_since.get(i, now) for i in unwanted}
        late = [i for i, since in self._unwanted_since.items() if now - since >= _LEFT_BEHIND]
        if late:
            self._spawn(self.release(late))

    def _acquire_soon(self, shard_id: int, asking: asyncio.Task[None] | None, wait: int = 0) -> None:
        task = self._acquiring[shard_id] = self._spawn(self._acquire(shard_id, asking, wait))
        task.add_done_callback(lambda _: self._acquiring.pop(shard_id, None))

    async def _acquire(self, shard_id: int, asking: asyncio.Task[None] | None, wait: int) -> None:
        if asking is not None:
            await asyncio.wait([asking])
        attempt = 0
        while True:
            if wait:
                await self._clock.sleep(wait)
            if shard_id not in self.wanted:
                return
            shard = self._make(shard_id)
            try:
                async with self._limit:
                    await shard.acquire()
                    await shard.recover()
            except StoreError as e:
                log.warning("shard %d not taken yet: %s", shard_id, e)
                await shard.drop()
                wait = _jittered(min(_LONGEST_WAIT, _FIRST_WAIT << min(attempt, 10)))
                attempt += 1
                continue
            if shard.closed:
                wait = _jittered(_FIRST_WAIT)  # it was lost while it recovered
                continue
            self.owned[shard_id - 1] = shard
            ready = self._ready.pop(shard_id, None)
            if ready is not None and not ready.done():
                ready.set_result(None)
            return

    # --- giving up

    async def release(self, shard_ids: Iterable[int]) -> None:
        """Returns when nothing runs in these shards here any more. They are not taken back soon."""
        shards: list[Shard] = []
        until = self._clock.now() + _STEPPED_ASIDE
        for shard_id in shard_ids:
            self._aside[shard_id] = until
            shard = self.owned[shard_id - 1]
            if shard is not None:
                self.owned[shard_id - 1] = None
                shards.append(shard)
        await asyncio.gather(*(shard.drain(_DRAIN) for shard in shards))
        if self._emptied is not None and not self.live() and not self._emptied.done():
            self._emptied.set_result(None)

    async def empty(self, timeout: float) -> None:
        """Waits until all are given up, for so many seconds at most."""
        if self.live():
            self._emptied = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._emptied], timeout=timeout)

    def lost(self, shard: Shard, fenced: bool) -> None:
        """A write showed that another has the shard (fenced), or its outcome is not known. Either way nothing that is
        in memory counts any more."""
        if self.owned[shard.shard_id - 1] is shard:
            self.owned[shard.shard_id - 1] = None
            log.warning("shard %d %s", shard.shard_id, "was taken by another" if fenced else "begins anew")
            if fenced and self.ask is None:
                self.wanted.discard(shard.shard_id)  # whoever took it from a process that is alone is its successor
            elif shard.shard_id in self.wanted and shard.shard_id not in self._acquiring:
                # To raise the range id waits for the write of unknown outcome, or makes it void; then what it touched
                # is read again. Two who both believe that a shard is theirs give each other some time.
                wait = _jittered(SECOND if fenced else _FIRST_WAIT)
                self._acquire_soon(shard.shard_id, None, wait)
        self._spawn(shard.drop())

    def drop_all(self) -> None:
        """At once: others may have them already."""
        self.wanted = set()
        for shard in self.live():
            self.owned[shard.shard_id - 1] = None
            self._spawn(shard.drop())

    async def stop(self, grace: float) -> None:
        self.wanted = set()
        for task in list(self._acquiring.values()):
            task.cancel()
        shards = self.live()
        await asyncio.gather(*(shard.close(grace) for shard in shards))
        self.owned[:] = [None] * len(self.owned)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace + 1)

    def _spawn(self, coro: Coroutine[Any, Any, None] | Awaitable[None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.ensure_future(coro)  # type: ignore[assignment]
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("unexpected error with the shards", exc_info=task.exception())


def _jittered(wait: int) -> int:
    return int(wait * random.uniform(0.5, 1.5))
