"""Several partitions behave as one task queue."""

from __future__ import annotations

import asyncio

import pytest

from perdure.clock import SECOND
from perdure.errors import ServiceError, unavailable

from .world import World, got, settle


@pytest.mark.parametrize("at_poll", [0, 1, 3])
@pytest.mark.parametrize("at_task", [0, 1, 2])
async def test_a_poll_and_a_task_meet_wherever_they_arrive(partitioned: World, at_poll: int, at_task: int) -> None:
    world = partitioned
    names = ["q", "/_sys/q/1", "/_sys/q/2", "/_sys/q/3"]
    poll = world.poll(queue=names[at_poll])
    await settle()
    await world.add("w1", queue=names[at_task])
    assert await got(poll) == "w1"
    assert world.history.started["w1", 5].task_queue == "q"

    # And the other way round.
    await world.add("w2", queue=names[at_task])
    assert await got(world.poll(queue=names[at_poll])) == "w2"
    assert world.history.calls == 2


async def test_every_task_is_handed_out_once(partitioned: World) -> None:
    world = partitioned
    names = [f"w{i}" for i in range(60)]
    for name in names[:30]:
        await world.add(name)
    polls = [world.poll() for _ in range(60)]
    await settle()
    for name in names[30:]:
        await world.add(name)
    assert sorted([await got(p) for p in polls]) == sorted(names)
    assert world.history.calls == 60


async def test_a_forwarded_poll_that_is_cancelled_takes_nothing(partitioned: World) -> None:
    world = partitioned
    poll = world.poll(queue="/_sys/q/1")
    await settle()
    poll.cancel()
    await settle()
    await world.add("w1", queue="/_sys/q/2")
    assert await got(world.poll(queue="/_sys/q/3")) == "w1"


async def test_a_forwarded_task_that_could_not_be_started_is_kept(partitioned: World) -> None:
    world = partitioned
    poll = world.poll(queue="/_sys/q/1")
    await settle()
    world.history.errors = [unavailable("x"), unavailable("x")]
    await world.add("w1", queue="/_sys/q/2")
    await world.clock.advance(SECOND)
    assert await got(poll) == "w1"


async def test_a_poll_that_met_a_task_in_vain_is_forwarded(partitioned: World) -> None:
    world = partitioned
    world.history.closed_workflows = {"w2"}
    await world.add("w1", queue="/_sys/q/1")  # on offer at the root
    await world.add("w2", queue="/_sys/q/1")
    assert await got(world.poll(queue="/_sys/q/1")) == "w1"


async def test_forwarded_polls_answer_empty_at_their_deadline_and_on_stop(partitioned: World) -> None:
    world = partitioned
    poll = world.poll(queue="/_sys/q/1", timeout=SECOND)
    await world.clock.advance(SECOND)
    assert await got(poll) == ""
    polls = [world.poll() for _ in range(8)]
    await settle()
    async with asyncio.timeout(3):
        await world.engine.stop()
    assert [await got(p) for p in polls] == [""] * 8


@pytest.mark.parametrize("name", ["/_sys/q", "/_sys//1", "/_sys/q/0", "/_sys/q/x", "/_sys//_sys/q/1/1"])
async def test_a_name_that_is_no_partition_is_refused(partitioned: World, name: str) -> None:
    with pytest.raises(ServiceError):
        await partitioned.add("w1", queue=name)
