"""Dispatch rates that workers set, and what DescribeTaskQueue tells."""

from __future__ import annotations

import pytest
from temporalio.api.enums.v1 import DescribeTaskQueueMode, RateLimitSource
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueRequest,
    DescribeTaskQueueResponse,
    ListTaskQueuePartitionsRequest,
)

from perdure.clock import MINUTE, SECOND, from_duration, from_timestamp
from perdure.errors import ServiceError

from .world import NS, World, got, settle

ENHANCED = DescribeTaskQueueMode.DESCRIBE_TASK_QUEUE_MODE_ENHANCED


async def describe(world: World, name: str = "q", **more: object) -> DescribeTaskQueueResponse:
    return await world.engine.describe_task_queue(
        NS,
        DescribeTaskQueueRequest(task_queue=TaskQueue(name=name), **more),  # type: ignore[arg-type]
    )


async def test_a_worker_limits_how_fast_its_task_queue_goes(world: World) -> None:
    for i in range(20):
        await world.add_activity(f"a{i}")
    polls = [world.poll_activity(rate=2) for _ in range(20)]
    await settle()
    assert sum(p.done() for p in polls) == 2
    await world.clock.advance(5 * SECOND)
    assert sum(p.done() for p in polls) == 12
    assert (await describe(world, task_queue_type=2, report_stats=True)).stats.rate_limiting_active


async def test_a_rate_below_one_a_second(world: World) -> None:
    for i in range(3):
        await world.add_activity(f"a{i}")
    polls = [world.poll_activity(rate=0.5) for _ in range(3)]
    done = []
    for _ in range(5):
        await settle()
        done.append(sum(p.done() for p in polls))
        await world.clock.advance(SECOND)
    assert done == [1, 1, 2, 2, 3]


async def test_a_rate_of_zero_stops_a_task_queue(world: World) -> None:
    poll = world.poll_activity(rate=0)
    await settle()
    await world.add_activity("a")
    await world.clock.advance(30 * SECOND)
    assert not poll.done()
    poll2 = world.poll_activity(rate=10)
    assert await got(poll) == "a"
    poll2.cancel()


async def test_pollers_are_described(world: World) -> None:
    assert not (await describe(world)).pollers
    started = world.clock.now()
    poll = world.poll("first")
    await world.clock.advance(SECOND)
    rated = world.poll_activity("second", rate=7)
    await settle()
    workflow = (await describe(world)).pollers
    assert [(p.identity, from_timestamp(p.last_access_time), p.rate_per_second) for p in workflow] == [
        ("first", started, 100_000)
    ]
    activity = await describe(world, task_queue_type=2)
    assert [(p.identity, p.rate_per_second) for p in activity.pollers] == [("second", 7)]
    assert activity.effective_rate_limit.requests_per_second == 7
    assert activity.effective_rate_limit.rate_limit_source == RateLimitSource.RATE_LIMIT_SOURCE_WORKER
    for p in (poll, rated):
        p.cancel()
    await settle()
    await world.clock.advance(5 * MINUTE + 1)
    assert not (await describe(world)).pollers


async def test_backlog_and_rates_are_described_when_asked(world: World) -> None:
    for i in range(6):
        await world.add(f"w{i}")
    await world.clock.advance(10 * SECOND)
    for _ in range(2):
        await world.poll()
    plain = await describe(world)
    assert not plain.HasField("stats") and not plain.HasField("task_queue_status")
    full = await describe(world, report_stats=True, include_task_queue_status=True)
    assert full.stats.approximate_backlog_count == 4
    assert from_duration(full.stats.approximate_backlog_age) == 10 * SECOND
    assert full.stats.tasks_add_rate == pytest.approx(0.6)
    assert full.stats.tasks_dispatch_rate == pytest.approx(0.2)
    assert full.stats_by_priority_key[3].approximate_backlog_count == 4
    status = full.task_queue_status
    assert (status.backlog_count_hint, status.read_level - status.ack_level) == (4, 4)
    assert status.task_id_block.start_id <= status.ack_level <= status.task_id_block.end_id
    await world.clock.advance(MINUTE)
    assert (await describe(world, report_stats=True)).stats.tasks_add_rate == 0


async def test_the_backlog_of_a_queue_that_is_not_in_memory_is_described(world: World) -> None:
    for i in range(3):
        await world.add(f"w{i}")
    await world.engine.stop()
    world.engine = world.new_engine()
    assert (await describe(world, report_stats=True)).stats.approximate_backlog_count == 3


async def test_enhanced_mode_describes_both_types(world: World) -> None:
    poll = world.poll("me")
    await world.add_activity("a")
    await settle()
    response = await describe(world, api_mode=ENHANCED, report_stats=True, report_pollers=True)
    types = response.versions_info[""].types_info
    assert [p.identity for p in types[1].pollers] == ["me"]
    assert types[2].stats.approximate_backlog_count == 1
    poll.cancel()


async def test_partitions_are_described_together(partitioned: World) -> None:
    world = partitioned
    for i in range(20):
        await world.add(f"w{i}")
    assert (await describe(world, report_stats=True)).stats.approximate_backlog_count == 20
    with pytest.raises(ServiceError, match="DescribeTaskQueue stats are only supported for the root partition"):
        await describe(world, "/_sys/q/1", report_stats=True)
    listed = await world.engine.list_task_queue_partitions(
        NS, ListTaskQueuePartitionsRequest(task_queue=TaskQueue(name="q"))
    )
    assert [p.key for p in listed.workflow_task_queue_partitions] == ["q", "/_sys/q/1", "/_sys/q/2", "/_sys/q/3"]
