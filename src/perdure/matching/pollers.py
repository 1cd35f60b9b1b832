"""Who polls: a poll that waits, and the workers that polled lately."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator

from temporalio.api.common.v1 import WorkerVersionCapabilities
from temporalio.api.deployment.v1 import WorkerDeploymentOptions
from temporalio.api.taskqueue.v1 import PollerInfo

from perdure.clock import MILLISECOND, Clock, TimerHandle, to_timestamp
from perdure.history.api import Poller

# A task is not given to a call that is about to time out: its answer might not be read any more.
_MARGIN = 20 * MILLISECOND

UNLIMITED_RATE = 100_000.0
"""Tasks a second of a worker that set no limit, as it is reported."""


class Poll:
    """One long poll. `future` gets the serialized response, b"" when there is none.

    last_offer: from then on no task is offered to it. forwarding: the call at the parent, while it is forwarded."""

    __slots__ = ("arrived", "deadline", "forwarding", "future", "last_offer", "poller", "rate", "timer")

    def __init__(self, poller: Poller, arrived: int, deadline: int, rate: float | None = None) -> None:
        self.poller = poller
        self.arrived = arrived
        self.deadline = deadline
        self.last_offer = deadline - min(_MARGIN, (deadline - arrived) // 4)
        self.rate = rate
        self.future: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self.timer: TimerHandle | None = None
        self.forwarding: asyncio.Task[bytes] | None = None

    def answer(self, response: bytes) -> bool:
        """False when nobody waits for it any more."""
        if self.future.done():
            return False
        self.future.set_result(response)
        return True

    def arm(self, clock: Clock, expired: Callable[[], object]) -> None:
        self.timer = clock.call_at(self.deadline, expired)

    def disarm(self) -> None:
        if self.timer is not None:
            self.timer.cancel()
            self.timer = None


class _Seen:
    __slots__ = ("last_access", "poller", "rate")

    def __init__(self, poller: Poller, rate: float | None, last_access: int) -> None:
        self.poller = poller
        self.rate = rate
        self.last_access = last_access


class PollerHistory:
    """The workers that polled a task queue within the last minutes, by identity."""

    __slots__ = ("_limit", "_seen")

    def __init__(self, limit: int = 10_000) -> None:
        self._seen: dict[str, _Seen] = {}
        self._limit = limit

    def __len__(self) -> int:
        return len(self._seen)

    def record(self, poller: Poller, rate: float | None, now: int) -> None:
        seen = self._seen.get(poller.identity)
        if seen is None:
            if len(self._seen) >= self._limit:
                oldest = min(self._seen, key=lambda identity: self._seen[identity].last_access)
                del self._seen[oldest]
            self._seen[poller.identity] = _Seen(poller, rate, now)
            return
        seen.poller = poller
        seen.rate = rate
        seen.last_access = now

    def touch(self, poller: Poller, now: int) -> None:
        """Its poll ended."""
        seen = self._seen.get(poller.identity)
        if seen is not None:
            seen.last_access = now

    def forget_worker(self, worker_instance_key: str) -> None:
        for identity in [i for i, s in self._seen.items() if s.poller.worker_instance_key == worker_instance_key]:
            del self._seen[identity]

    def forget_before(self, earliest: int) -> None:
        for identity in [i for i, s in self._seen.items() if s.last_access < earliest]:
            del self._seen[identity]

    def infos(self, earliest: int) -> Iterator[PollerInfo]:
        for identity, seen in self._seen.items():
            if seen.last_access < earliest:
                continue
            info = PollerInfo(
                last_access_time=to_timestamp(seen.last_access),
                identity=identity,
                rate_per_second=UNLIMITED_RATE if seen.rate is None else seen.rate,
            )
            if seen.poller.worker_version:
                info.worker_version_capabilities.CopyFrom(
                    WorkerVersionCapabilities.FromString(seen.poller.worker_version)
                )
            if seen.poller.deployment_options:
                info.deployment_options.CopyFrom(WorkerDeploymentOptions.FromString(seen.poller.deployment_options))
            yield info
