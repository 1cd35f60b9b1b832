"""Members of a cluster share the work, and every workflow ends right wherever its parts are."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from datetime import timedelta

import pytest
from temporalio import activity, workflow
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    DescribeNamespaceRequest,
    DescribeTaskQueueRequest,
    RegisterNamespaceRequest,
)
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker
from tests.cluster.members import cluster
from tests.sdk.world import check_histories

from perdure.history import shard

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


Started = set[tuple[str, str]]


async def one(client: Client, n: int, started: Started, update: bool = False) -> None:
    handle = await client.start_workflow(Whole.run, n, id=f"whole-{n}", task_queue="queue")
    started.add((handle.id, handle.first_execution_run_id or ""))
    if update:
        assert await handle.execute_update(Whole.put, 5) == 5
    else:
        await handle.signal(Whole.add, 5)
    assert await handle.result() == 4 * n + 5
    assert await handle.query(Whole.seen) == 5


async def many(client: Client, numbers: Iterable[int], started: Started) -> None:
    await asyncio.gather(*(one(client, n, started, n % 3 == 0) for n in numbers))


@pytest.mark.parametrize("partitions", [1, 3])
async def test_work_is_shared_by_members(partitions: int) -> None:
    settings = {f"matching__numTaskqueue{kind}Partitions": partitions for kind in ("Read", "Write")}
    async with cluster("one", "two", "three", **settings) as world:
        assert all(world.owned(name) for name in world.members)
        started: Started = set()
        async with worker(await world.client("one")), worker(await world.client("two")):
            client = await world.client("three")
            await many(client, range(30), started)
        await check_histories(client, started, [Whole, Child])


async def test_services_run_apart() -> None:
    async with cluster() as world:
        await world.add("front", "frontend")
        await world.add("past", "history")
        await world.add("pairs", "matching")
        await world.until(world.settled)
        started: Started = set()
        client = await world.client("front")
        async with worker(client):
            await many(client, range(10), started)


async def test_a_member_that_leaves_hands_over_under_load() -> None:
    async with cluster("one", "two", "three") as world:
        started: Started = set()
        client = await world.client("one")
        async with worker(client), worker(await world.client("one")):
            running = asyncio.create_task(many(client, range(40), started))
            for _ in range(2):
                await asyncio.sleep(0.3)
                began = time.monotonic()
                await world.leave("two")
                await world.until(world.settled, 1)
                assert time.monotonic() - began < 3
                await world.add("two")
                await world.until(world.settled, 2)
            await running
        await check_histories(client, started, [Whole, Child])


async def test_others_go_on_when_a_member_is_gone_at_once() -> None:
    async with cluster("one", "two", "three") as world:
        started: Started = set()
        client = await world.client("one")
        async with worker(client), worker(await world.client("one")):
            running = asyncio.create_task(many(client, range(40), started))
            await asyncio.sleep(0.3)
            await world.crash("two")
            await world.until(world.settled, 5)
            await world.add("two")
            await asyncio.sleep(0.3)
            await world.crash("three")
            await running
            await world.until(world.settled, 5)
        await check_histories(client, started, [Whole, Child])


async def test_a_member_that_stood_still_writes_nothing_when_it_goes_on() -> None:
    async with cluster("one", "two") as world:
        started: Started = set()
        client = await world.client("one")
        async with worker(client), worker(await world.client("one")):
            running = asyncio.create_task(many(client, range(40), started))
            await asyncio.sleep(0.3)
            frozen = world.members["two"]
            world.connections["two"].freeze()
            assert frozen.history is not None
            had = {shard.shard_id: shard for shard in frozen.history.shards.live()}
            await world.until(lambda: len(world.owned("one")) == 16, 5)
            world.connections["two"].thaw()
            await running
            await world.until(world.settled, 5)
            assert had
            assert all(shard.closed for shard in had.values())
        await check_histories(client, started, [Whole, Child])


async def test_commits_of_which_nobody_knows_whether_they_happened() -> None:
    async with cluster("one", "two") as world:
        started: Started = set()
        client = await world.client("one")
        async with worker(client), worker(await world.client("two")):
            for connection in world.connections.values():
                connection.doubtful = 5
            await asyncio.gather(*(one(client, n, started) for n in range(20)))
            for connection in world.connections.values():
                connection.doubtful = 0
        await check_histories(client, started, [Whole, Child])


async def test_a_shard_that_has_used_up_its_task_ids_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard, "_RANGE_BITS", 7)
    async with cluster("one") as world:
        started: Started = set()
        client = await world.client("one")
        async with worker(client):
            await many(client, range(40), started)
        history = world.members["one"].history
        assert history is not None
        assert max(shard.range_id for shard in history.shards.live()) > 1
        await check_histories(client, started, [Whole, Child])


async def test_a_namespace_is_there_for_all_at_once() -> None:
    async with cluster("one", "two") as world:
        one_, two = await world.client("one"), await world.client("two")
        for i in range(3):
            request = RegisterNamespaceRequest(namespace=f"new-{i}")
            request.workflow_execution_retention_period.FromTimedelta(timedelta(days=1))
            await one_.workflow_service.register_namespace(request)
            described = await two.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace=f"new-{i}"))
            assert described.namespace_info.name == f"new-{i}"


async def test_task_queues_are_described_as_a_whole() -> None:
    async with cluster("one", "two", "three") as world:
        client = await world.client("one")
        for n in range(12):
            await client.start_workflow(Whole.run, n, id=f"waiting-{n}", task_queue="queue")
        request = DescribeTaskQueueRequest(namespace="default", task_queue=TaskQueue(name="queue"), report_stats=True)
        for name in world.members:
            described = await (await world.client(name)).workflow_service.describe_task_queue(request)
            assert described.stats.approximate_backlog_count == 12
        async with worker(await world.client("two")):
            async with asyncio.timeout(10):
                while not described.pollers:
                    described = await client.workflow_service.describe_task_queue(request)
            assert len(described.pollers) == 1
