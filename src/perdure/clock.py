"""Time is handed in: nothing else in perdure reads a clock or sleeps.

Times are integers, nanoseconds since 1970 UTC, so that they go into protobuf timestamps and integer columns
unrounded. Durations are integers of nanoseconds too.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Protocol

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

MICROSECOND = 1_000
MILLISECOND = 1_000_000
SECOND = 1_000_000_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR


class TimerHandle(Protocol):
    def cancel(self) -> None: ...


class Clock(Protocol):
    def now(self) -> int:
        """Nanoseconds since 1970 UTC; never runs backwards within a process."""
        ...

    def call_at(self, when: int, callback: Callable[[], object]) -> TimerHandle:
        """Calls `callback` in the running event loop at `when` (at once if that is past)."""
        ...

    async def sleep(self, duration: int) -> None: ...


class RealClock:
    """The machine's clock. A step of the wall clock backwards (NTP) is flattened, not passed on."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last = 0

    def now(self) -> int:
        now = time.time_ns()
        if now < self._last:
            return self._last
        self._last = now
        return now

    def call_at(self, when: int, callback: Callable[[], object]) -> TimerHandle:
        delay = max(0, when - self.now()) / SECOND
        return asyncio.get_running_loop().call_later(delay, callback)

    async def sleep(self, duration: int) -> None:
        await asyncio.sleep(max(0, duration) / SECOND)


def to_timestamp(ns: int) -> Timestamp:
    seconds, nanos = divmod(ns, SECOND)
    return Timestamp(seconds=seconds, nanos=nanos)


def from_timestamp(timestamp: Timestamp) -> int:
    return timestamp.seconds * SECOND + timestamp.nanos


def to_duration(ns: int) -> Duration:
    """A Duration's nanos carry the sign of its seconds."""
    seconds, nanos = divmod(abs(ns), SECOND)
    return Duration(seconds=seconds, nanos=nanos) if ns >= 0 else Duration(seconds=-seconds, nanos=-nanos)


def from_duration(duration: Duration) -> int:
    return duration.seconds * SECOND + duration.nanos
