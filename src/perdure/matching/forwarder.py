"""From a partition to its parent: a task that finds no poller and a poll that finds no task meet in the root.

Partitions form a tree. The parent may be in another process, so whatever goes up is plain data and may be answered
late or never; a task that went up and whose answer was lost is offered again, and history refuses the second.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from temporalio.api.workflowservice.v1 import DescribeTaskQueueResponse

from perdure.history.api import Poller
from perdure.matching.api import MatchingClient, TaskRef


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


class PartitionClient(MatchingClient, Protocol):
    """Matching as the members of a cluster ask it of each other, where partitions are named. name: of a partition."""

    async def offer_task(
        self, namespace_id: str, name: str, task_queue_type: int, task: TaskRef, deadline: int
    ) -> bool:
        """See `Forwarder.offer`."""
        ...

    async def forward_poll(
        self, namespace_id: str, name: str, task_queue_type: int, poller: Poller, deadline: int, rate: float | None
    ) -> bytes:
        """See `Forwarder.poll`."""
        ...

    async def load_partition(self, namespace_id: str, name: str, task_queue_type: int) -> None:
        """The task queue is in use: what this partition has in its backlog is to come to the root."""
        ...

    async def describe_partition(self, namespace_id: str, name: str, task_queue_type: int) -> DescribeTaskQueueResponse:
        """All that may be asked of it."""
        ...


class RemoteForwarder:
    """The parent may be with another member."""

    def __init__(self, client: PartitionClient, namespace_id: str, parent: str, task_queue_type: int) -> None:
        self._client = client
        self._parent = (namespace_id, parent, task_queue_type)

    async def offer(self, task: TaskRef, deadline: int) -> bool:
        return await self._client.offer_task(*self._parent, task, deadline)

    async def poll(self, poller: Poller, deadline: int, rate: float | None) -> bytes:
        return await self._client.forward_poll(*self._parent, poller, deadline, rate)
