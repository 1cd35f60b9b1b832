"""Pairs tasks and polls of one physical task queue. It decides only: what a pair leads to is its owner's affair.

Tasks go by priority key, then by age; polls by age. Everything here runs between two awaits, so a task is at any
moment either in here or in the hands of one caller, never in both or in none.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from heapq import heapify, heappop, heappush

from temporalio.api.common.v1 import Priority
from temporalio.api.query.v1 import WorkflowQuery

from perdure.clock import Clock, TimerHandle
from perdure.matching.api import TaskRef
from perdure.matching.pollers import Poll
from perdure.matching.rates import NEVER, TokenBucket

DEFAULT_PRIORITY = 3
PRIORITY_LEVELS = 5


def priority_key(task: TaskRef) -> int:
    """1 (first) to 5."""
    if not task.priority:
        return DEFAULT_PRIORITY
    return min(Priority.FromString(task.priority).priority_key or DEFAULT_PRIORITY, PRIORITY_LEVELS)


class Entry:
    """A task that waits for a poller.

    level: its place in the backlog; 0 when it is not from there. attempts: how often handing it out failed.
    request_id: of the attempt that failed, "" for none. History may have recorded it all the same, and then answers
    only to the same id.
    query, query_token: of a direct query. done: whoever waits for this task; a direct query's gets an error only (its
    answer comes another way), a forwarded task's gets whether it was handed out. dead: nobody wants it any more."""

    __slots__ = (
        "attempts",
        "dead",
        "done",
        "level",
        "priority",
        "query",
        "query_token",
        "queued",
        "request_id",
        "task",
    )

    def __init__(
        self,
        task: TaskRef,
        level: int = 0,
        query: WorkflowQuery | None = None,
        query_token: bytes = b"",
        done: asyncio.Future[bool] | asyncio.Future[bytes] | None = None,
    ) -> None:
        self.task = task
        self.priority = priority_key(task)
        self.level = level
        self.attempts = 0
        self.request_id = ""
        self.query = query
        self.query_token = query_token
        self.done = done
        self.dead = False
        self.queued = False


class Matcher:
    """on_match(entry, poll): both are out of here now and given to the owner. on_expired(entry): dropped.
    on_due(): a task that was to wait is there; the owner calls `match`."""

    def __init__(
        self,
        clock: Clock,
        on_match: Callable[[Entry, Poll], None],
        on_expired: Callable[[Entry], None],
        on_due: Callable[[], None],
    ) -> None:
        self._clock = clock
        self._on_match = on_match
        self._on_expired = on_expired
        self._on_due = on_due
        self._tasks: list[tuple[int, int, int, Entry]] = []
        self._dead = 0
        self._count = 0
        self._delayed: dict[Entry, TimerHandle] = {}
        self._limit_timer: TimerHandle | None = None
        self.polls: OrderedDict[Poll, None] = OrderedDict()
        self.limit = TokenBucket()
        self.limited_at = 0  # when the limit last held a task back

    def __len__(self) -> int:
        """Tasks that wait for a poller."""
        return len(self._tasks) - self._dead

    # --- polls

    def add_poll(self, poll: Poll) -> None:
        self.polls[poll] = None

    def return_poll(self, poll: Poll) -> None:
        """One that was taken in vain: it keeps its place before the younger ones."""
        self.polls[poll] = None
        self.polls.move_to_end(poll, last=False)

    def remove_poll(self, poll: Poll) -> None:
        self.polls.pop(poll, None)

    def take_poll(self, now: int) -> Poll | None:
        """The oldest one that can take a task; it is out of here then."""
        polls = self.polls
        while polls:
            poll, _ = polls.popitem(last=False)
            if poll.future.done():
                continue
            poll.disarm()
            if now > poll.last_offer:
                poll.answer(b"")
                continue
            return poll
        return None

    # --- tasks

    def add_task(self, entry: Entry) -> None:
        """Call `match` after it (once, for several)."""
        self._count += 1
        entry.queued = True
        heappush(self._tasks, (entry.priority, entry.level, self._count, entry))

    def add_task_at(self, entry: Entry, when: int) -> None:
        """Not before `when`."""

        def due() -> None:
            del self._delayed[entry]
            if not entry.dead:
                self.add_task(entry)
                self._on_due()

        self._delayed[entry] = self._clock.call_at(when, due)

    def drop_task(self, entry: Entry) -> None:
        """Nobody waits for it any more."""
        entry.dead = True
        if not entry.queued:
            return
        self._dead += 1
        if self._dead > 64 and self._dead * 2 > len(self._tasks):
            self._tasks = [t for t in self._tasks if not t[3].dead]
            heapify(self._tasks)
            self._dead = 0

    def first_task(self, now: int) -> Entry | None:
        """The one that is next, still in here; dead and expired ones before it are dropped."""
        while self._tasks:
            entry = self._tasks[0][3]
            if entry.dead:
                self._pop()
                self._dead -= 1
            elif entry.task.expires and entry.task.expires <= now:
                self._pop()
                self._on_expired(entry)
            else:
                return entry
        return None

    def take_task(self, now: int) -> Entry | None:
        if self.first_task(now) is None:
            return None
        return self._pop()

    def _pop(self) -> Entry:
        entry = heappop(self._tasks)[3]
        entry.queued = False
        return entry

    # --- pairs

    def may_dispatch(self, now: int) -> bool:
        """Whether the rate limit allows one more task now. If not, `match` is called when it does."""
        delay = self.limit.delay(now)
        if not delay:
            return True
        self.limited_at = now
        if self._limit_timer is None and delay != NEVER:
            self._limit_timer = self._clock.call_at(now + delay, self._limit_over)
        return False

    def _limit_over(self) -> None:
        self._limit_timer = None
        self.match()

    def set_rate(self, rate: float | None, now: int) -> None:
        if rate == self.limit.rate:
            return
        self.limit.set_rate(rate, now)
        if self._limit_timer is not None:
            self._limit_timer.cancel()
            self._limit_timer = None
        self.match()

    def match(self) -> None:
        if not self._tasks or not self.polls:
            return
        now = self._clock.now()
        while self.polls:
            if self.first_task(now) is None or not self.may_dispatch(now):
                return
            poll = self.take_poll(now)
            if poll is None:
                return
            entry = self._pop()
            self.limit.take()
            self._on_match(entry, poll)

    def close(self) -> list[Entry]:
        """Cancels the timers, answers the polls, and gives up the tasks: those that are still wanted."""
        entries = [*(t[3] for t in self._tasks), *self._delayed]
        for handle in self._delayed.values():
            handle.cancel()
        self._delayed.clear()
        if self._limit_timer is not None:
            self._limit_timer.cancel()
            self._limit_timer = None
        self._tasks.clear()
        self._dead = 0
        while self.polls:
            poll, _ = self.polls.popitem()
            poll.disarm()
            poll.answer(b"")
        return [e for e in entries if not e.dead]
