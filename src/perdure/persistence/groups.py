"""Writes in groups: what waits while a group is under way is the next one."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable, Sequence
from typing import Any, Final, Generic, TypeVar

T = TypeVar("T")

LARGEST: Final = 128  # writes in a group
LARGEST_BYTES: Final = 8 << 20
LANES: Final = 3
"""Groups under way at once."""

FULL: Final = 16
"""As many writes as this are worth a group of their own while another one is under way; fewer wait for it to end, and
are one group then. A group costs the database and us the same work whether it is large or small."""

PATIENCE: Final = 0.004
"""Seconds after which a second group starts in any case: the first may be waiting for a lock."""


async def outcome(write: asyncio.Future[T]) -> T:
    """What comes of a write. A caller that is cancelled meanwhile learns it all the same, and goes on as if it were
    not: for whoever could not stop in the middle without losing track of what was written."""
    while True:
        try:
            return await asyncio.shield(write)
        except asyncio.CancelledError:
            if write.cancelled():
                raise


class Item(Generic[T]):
    """One write. keys: of what it touches; two writes with a key in common are never in one group, nor in two at once,
    and keep their order. size: bytes, roughly."""

    __slots__ = ("_ended", "future", "keys", "size", "write")

    def __init__(self, write: T, keys: Sequence[Hashable], size: int, future: asyncio.Future[Any]) -> None:
        self.write = write
        self.keys = keys
        self.size = size
        self.future = future  # the caller may have cancelled it
        self._ended: asyncio.Future[None] | None = None

    @property
    def ended(self) -> asyncio.Future[None]:
        """Done when the write is, for whoever is not its caller."""
        if self._ended is None:
            self._ended = self.future.get_loop().create_future()
        return self._ended

    def end(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)

    def succeed(self, result: Any = None) -> None:
        if not self.future.done():
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        if not self.future.done():
            self.future.set_exception(error)


class Groups(Generic[T]):
    """send: writes a group, and lets each of its items succeed or fail; it does not raise."""

    def __init__(self, send: Callable[[list[Item[T]]], Awaitable[None]]) -> None:
        self._send = send
        self._loop = asyncio.get_running_loop()
        self._waiting: list[Item[T]] = []
        self._taken: set[Hashable] = set()  # keys of groups under way
        self._under_way: set[asyncio.Task[None]] = set()
        self._items: dict[Item[T], None] = {}  # waiting or under way, in order of arrival
        self._scheduled = False
        self._hurry: asyncio.TimerHandle | None = None

    def submit(self, write: T, keys: Sequence[Hashable], size: int = 0) -> asyncio.Future[Any]:
        item = Item(write, keys, size, self._loop.create_future())
        self._waiting.append(item)
        self._items[item] = None
        if not self._scheduled and len(self._under_way) < LANES:
            # Not at once: what the loop's other ready callbacks write comes into the same group.
            self._scheduled = True
            self._loop.call_soon(self._start)
        return item.future

    async def settle(self, touches: Callable[[T], bool]) -> None:
        """Returns when those of the present writes that match are done."""
        ended = [item.ended for item in self._items if touches(item.write)]
        if ended:
            await asyncio.wait(ended)

    async def drain(self) -> None:
        while self._items:
            await asyncio.wait([item.ended for item in self._items])

    def _start(self) -> None:
        self._scheduled = False
        while self._waiting and len(self._under_way) < LANES:
            if self._under_way and len(self._waiting) < FULL * len(self._under_way):
                if self._hurry is None:
                    self._hurry = self._loop.call_later(PATIENCE, self._start_anyway)
                return
            if not self._start_one():
                return

    def _start_anyway(self) -> None:
        self._hurry = None
        if self._waiting and len(self._under_way) < LANES and self._start_one() and self._waiting:
            self._start()

    def _start_one(self) -> bool:
        group, keys = self._take()
        if not group:
            return False
        self._taken |= keys
        task = self._loop.create_task(self._run(group, keys))
        self._under_way.add(task)
        return True

    def _take(self) -> tuple[list[Item[T]], set[Hashable]]:
        """Those that wait, but for what must wait longer for another one's sake."""
        waiting = self._waiting
        group: list[Item[T]] = []
        keys: set[Hashable] = set()
        left: list[Item[T]] = []
        taken = self._taken
        behind: set[Hashable] = set()  # keys of those that are left
        size = 0
        for place, item in enumerate(waiting):
            if len(group) == LARGEST or (group and size + item.size > LARGEST_BYTES):
                left += waiting[place:]
                break
            for key in item.keys:
                if key in keys or key in taken or key in behind:
                    behind.update(item.keys)
                    left.append(item)
                    break
            else:
                group.append(item)
                keys.update(item.keys)
                size += item.size
        self._waiting = left
        return group, keys

    async def _run(self, group: list[Item[T]], keys: set[Hashable]) -> None:
        try:
            await self._send(group)
        except BaseException as e:
            for item in group:
                item.fail(e if isinstance(e, Exception) else asyncio.CancelledError())
            if not isinstance(e, Exception):
                raise
        finally:
            items = self._items
            for item in group:
                del items[item]
                item.end()
            self._taken -= keys
            task = asyncio.current_task()
            assert task is not None
            self._under_way.discard(task)
            if self._hurry is not None:
                self._hurry.cancel()
                self._hurry = None
            if self._waiting and not self._scheduled:
                # After the callers of this group had their turn: what they write next comes along.
                self._scheduled = True
                self._loop.call_soon(self._start)
