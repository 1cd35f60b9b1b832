"""Tasks that find no poll wait in the store."""

from __future__ import annotations

import asyncio

import pytest
from temporalio.api.common.v1 import Priority

from perdure.clock import MINUTE, SECOND
from perdure.errors import Code, ServiceError
from perdure.matching.backlog import BLOCK
from perdure.persistence.api import TaskQueueKey, Unavailable

from .world import NS, World, got, settle

KEY = TaskQueueKey(NS, "q", 1)


async def drain(world: World, n: int) -> list[str]:
    return [await got(world.poll()) for _ in range(n)]


async def stored(world: World) -> int:
    return await world.store.count_backlog(KEY, 0)


async def test_tasks_come_out_in_the_order_they_went_in(world: World) -> None:
    for i in range(5):
        await world.add(f"w{i}")
    assert await drain(world, 5) == [f"w{i}" for i in range(5)]
    assert await got(world.poll(timeout=0)) == ""


async def test_tasks_added_at_once_are_written_together(world: World) -> None:
    await world.add("first")
    await asyncio.gather(*(world.add(f"w{i}") for i in range(50)))
    assert world.store.calls["append_backlog"] <= 3
    assert set(await drain(world, 51)) == {"first", *(f"w{i}" for i in range(50))}


async def test_the_backlog_survives_a_process_that_is_killed(world: World) -> None:
    for i in range(4):
        await world.add(f"w{i}")
    assert await got(world.poll()) == "w0"
    # No stop: the first engine is just not used any more.
    old, world.engine = world.engine, world.new_engine()
    # w0 may come again, but history refuses it.
    assert await drain(world, 3) == ["w1", "w2", "w3"]
    await old.stop()


async def test_a_stopped_engine_leaves_only_what_is_not_done(world: World) -> None:
    for i in range(4):
        await world.add(f"w{i}")
    assert await drain(world, 2) == ["w0", "w1"]
    await world.engine.stop()
    assert await stored(world) == 2
    world.engine = world.new_engine()
    calls = world.history.calls
    assert await drain(world, 2) == ["w2", "w3"]
    assert world.history.calls == calls + 2


async def test_done_tasks_are_deleted_up_to_the_oldest_that_is_not(world: World) -> None:
    for i in range(5):
        await world.add(f"w{i}")
    world.history.errors = [RuntimeError("first one fails")]
    polls = [world.poll() for _ in range(4)]
    assert {await got(p) for p in polls} == {"w1", "w2", "w3", "w4"}
    partition = world.engine._partitions[KEY]
    assert partition.backlog is not None
    assert partition.backlog.ack_level == BLOCK * (partition.backlog.range_id - 1)
    poll = world.poll()
    await world.clock.advance(SECOND)
    assert await got(poll) == "w0"
    await world.clock.advance(2 * SECOND)
    deleting = partition.backlog._delete_task
    if deleting is not None:
        await deleting
    assert await stored(world) == 0
    assert partition.backlog.ack_level == partition.backlog.read_level


async def test_a_long_backlog_is_read_in_pages(world: World) -> None:
    world.config.set("matching.getTasksBatchSize", 20)
    world.config.set("matching.getTasksReloadAt", 5)
    names = [f"w{i:03}" for i in range(150)]
    for name in names:
        await world.add(name)
    partition = world.engine._partitions[KEY]
    assert partition.backlog is not None
    assert len(partition.matcher) <= 20
    assert partition.backlog.count == 150
    assert await drain(world, 150) == names
    assert partition.backlog.count == 0


async def test_a_block_of_levels_that_is_used_up_is_followed_by_the_next(world: World) -> None:
    await world.add("w0")
    backlog = world.engine._partitions[KEY].backlog
    assert backlog is not None
    backlog._next_level = backlog.block[1]
    await asyncio.gather(*(world.add(f"w{i}") for i in range(1, 5)))
    assert backlog.range_id == 2
    assert set(await drain(world, 5)) == {f"w{i}" for i in range(5)}


async def test_a_lease_that_another_took_is_taken_again_and_the_others_tasks_are_found(world: World) -> None:
    await world.add("w0")
    first, second = world.engine, world.new_engine()
    world.engine = second
    await world.add("w1")
    world.engine = first
    await world.add("w2")
    assert set(await drain(world, 3)) == {"w0", "w1", "w2"}
    await second.stop()


async def test_more_urgent_tasks_go_first(world: World) -> None:
    for name, key in [("normal", 0), ("low", 5), ("high", 1), ("also normal", 3)]:
        await world.add(name, priority=Priority(priority_key=key).SerializeToString())
    assert await drain(world, 4) == ["high", "normal", "also normal", "low"]


async def test_tasks_past_their_expiry_are_dropped(world: World) -> None:
    await world.add("short", expires=world.clock.now() + SECOND)
    await world.add("long", expires=world.clock.now() + MINUTE)
    await world.clock.advance(2 * SECOND)
    assert await drain(world, 1) == ["long"]
    assert world.engine._partitions[KEY].backlog.count == 0  # type: ignore[union-attr]


async def test_an_old_backlog_goes_before_a_new_task(world: World) -> None:
    await world.add_activity("old")
    blocked = world.poll_activity(rate=0)
    await world.clock.advance(10 * SECOND)
    assert not blocked.done()
    await world.add_activity("new")
    # A poll without a limit lifts it.
    free = world.poll_activity()
    assert [await got(blocked), await got(free)] == ["old", "new"]


async def test_a_store_that_fails_is_reported_and_recovered_from(world: World) -> None:
    world.store.errors["lease_task_queue"] = [Unavailable("disk"), Unavailable("disk")]
    with pytest.raises(ServiceError) as e:
        await world.add("w0")
    assert e.value.code is Code.UNAVAILABLE
    poll = world.poll()
    await world.clock.advance(5 * SECOND)
    await world.add("w1")
    assert await got(poll) == "w1"

    world.store.errors["append_backlog"] = [Unavailable("disk")]
    with pytest.raises(ServiceError):
        await world.add("w2")
    await world.add("w3")
    assert await got(world.poll()) == "w3"


async def test_task_queues_that_nobody_uses_are_unloaded(world: World) -> None:
    await world.add("w0")
    poll = world.poll(queue="other")
    await settle()
    for _ in range(7):
        await world.clock.advance(MINUTE)
    assert await got(poll) == ""
    for _ in range(7):
        await world.clock.advance(MINUTE)
    assert world.engine._partitions == {}
    assert await drain(world, 1) == ["w0"]
