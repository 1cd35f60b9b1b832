"""From a partition to its parent: a task that finds no poller and a poll that finds no task meet in the root.

Partitions form a tree. The parent may be in another process, so whatever goes up is plain data and may be answered
late or never; a task that went up and whose answer was lost is offered again, and history refuses the second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from perdure.history.api import Poller
from perdure.matching.api import TaskRef


class Forwarder(Protocol):
    async def offer(self, task: TaskRef, deadline: int) -> bool:
        """Whether the parent handed the task to a poller and history recorded it as started (or refused it for good).
        deadline: nanoseconds until when it may wait for a poller, 0: not at all."""
        ...

    async def poll(self, poller: Poller, deadline: int, rate: float | None) -> bytes:
        """A long poll at the parent, answered as there."""
        ...


def parent_of(index: int, children: int) -> int:
    """The parent partition; children: how many a partition has at most."""
    return (index - 1) // children


class LocalForwarder:
    """The parent is in this process. It is looked up with each call: it may have been unloaded meanwhile."""

    def __init__(self, parent: Callable[[], Forwarder]) -> None:
        self._parent = parent

    async def offer(self, task: TaskRef, deadline: int) -> bool:
        return await self._parent().offer(task, deadline)

    async def poll(self, poller: Poller, deadline: int, rate: float | None) -> bytes:
        return await self._parent().poll(poller, deadline, rate)
