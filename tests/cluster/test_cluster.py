"""Members of a cluster share the work, and every workflow ends right wherever its parts are."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker
from tests.cluster.members import cluster

SOON = timedelta(seconds=10)


@activity.defn
async def double(n: int) -> int:
    return 2 * n


@workflow.defn
class Child:
    @workflow.run
    async def run(self, n: int) -> int:
        return await workflow.execute_activity(double, n, start_to_close_timeout=SOON)


@workflow.defn
class Whole:
    """A bit of everything that goes from shard to shard."""

    def __init__(self) -> None:
        self.added = 0

    @workflow.run
    async def run(self, n: int) -> int:
        result = await workflow.execute_activity(double, n, start_to_close_timeout=SOON)
        result += await workflow.execute_child_workflow(Child.run, n)
        await workflow.sleep(0.05)
        await workflow.wait_condition(lambda: self.added > 0)
        return result + self.added

    @workflow.signal
    def add(self, n: int) -> None:
        self.added += n

    @workflow.query
    def seen(self) -> int:
        return self.added

    @workflow.update
    async def put(self, n: int) -> int:
        self.added += n
        return self.added


def worker(client: Client) -> Worker:
    return Worker(
        client,
        task_queue="queue",
        workflows=[Whole, Child],
        activities=[double],
        workflow_runner=UnsandboxedWorkflowRunner(),
    )


async def one(client: Client, n: int, update: bool = False) -> None:
    handle = await client.start_workflow(Whole.run, n, id=f"whole-{n}", task_queue="queue")
    if update:
        assert await handle.execute_update(Whole.put, 5) == 5
    else:
        await handle.signal(Whole.add, 5)
    assert await handle.result() == 4 * n + 5
    assert await handle.query(Whole.seen) == 5


@pytest.mark.parametrize("partitions", [1, 3])
async def test_work_is_shared_by_members(partitions: int) -> None:
    settings = {f"matching__numTaskqueue{kind}Partitions": partitions for kind in ("Read", "Write")}
    async with cluster("one", "two", "three", **settings) as world:
        assert all(world.owned(name) for name in world.members)
        async with worker(await world.client("one")), worker(await world.client("two")):
            client = await world.client("three")
            await asyncio.gather(*(one(client, n, n % 3 == 0) for n in range(30)))
