"""A task meets a waiting poll."""

from __future__ import annotations

import asyncio

import pytest
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest

from perdure.clock import MILLISECOND, SECOND
from perdure.errors import Code, ServiceError, internal, not_found, unavailable
from perdure.persistence.api import TaskQueueKey, Unavailable

from .world import NS, World, got, settle


async def loaded(world: World, queue: str = "q") -> None:
    """The task queue is in memory, with no backlog."""
    await world.engine.describe_task_queue(NS, DescribeTaskQueueRequest(task_queue=TaskQueue(name=queue)))
    world.store.calls.clear()


async def test_a_waiting_poll_gets_the_task_and_nothing_is_written(world: World) -> None:
    await loaded(world)
    poll = world.poll()
    await settle()
    await world.add("w1")
    assert await got(poll) == "w1"
    assert world.history.started["w1", 5].identity == "worker"
    assert world.history.started["w1", 5].task_queue == "q"
    assert "append_backlog" not in world.store.calls


async def test_the_response_is_historys_with_matchings_fields_added(world: World) -> None:
    for i in range(3):
        await world.add(f"w{i}")
    response = await world.poll()
    assert (response.task_token, response.attempt) == (b"w0/5", 1)
    assert response.backlog_count_hint == 3

    activity = world.poll_activity()
    await world.clock.advance(2 * SECOND)
    await world.add_activity("a")
    response = await activity
    assert response.task_token == b"a/5"
    # It had waited long, so there are more pollers than the load needs.
    assert response.poller_scaling_decision.poll_request_delta_suggestion == -1


async def test_polls_are_served_in_the_order_they_came(world: World) -> None:
    polls = [world.poll(f"worker{i}") for i in range(3)]
    await settle()
    for i in range(3):
        await world.add(f"w{i}")
    assert [await got(p) for p in polls] == ["w0", "w1", "w2"]


async def test_a_poll_answers_empty_at_its_deadline(world: World) -> None:
    poll = world.poll(timeout=10 * SECOND)
    await world.clock.advance(10 * SECOND - 1)
    assert not poll.done()
    await world.clock.advance(1)
    assert await got(poll) == ""
    await world.add("w1")
    assert world.history.calls == 0


async def test_a_poll_that_is_about_to_time_out_gets_no_task(world: World) -> None:
    late = world.poll(timeout=10 * SECOND)
    await world.clock.advance(10 * SECOND - 5 * MILLISECOND)
    fresh = world.poll()
    await settle()
    await world.add("w1")
    assert await got(late) == ""
    assert await got(fresh) == "w1"


async def test_a_cancelled_poll_takes_nothing(world: World) -> None:
    given_up, other = world.poll(), world.poll()
    await settle()
    given_up.cancel()
    # Even before the cancelled call had a chance to clean up.
    await world.add("w1")
    assert await got(other) == "w1"


async def test_a_poll_cancelled_between_match_and_start_leaves_the_task_to_another(world: World) -> None:
    await world.add("w1")
    poll = world.poll()
    while not world.engine.counters.dispatched and not poll.done():
        partition = next(iter(world.engine._partitions.values()))
        if partition._dispatching:
            poll.cancel()
            break
        await asyncio.sleep(0)
    await settle()
    assert world.history.started == {}
    assert await got(world.poll("another")) == "w1"


async def test_a_poll_cancelled_while_history_records_does_not_disturb_it(world: World) -> None:
    poll = world.poll()
    await settle()
    world.history.gate.clear()
    add = asyncio.create_task(world.add("w1"))
    await settle()
    poll.cancel()
    await settle()
    assert not add.done()
    world.history.gate.set()
    await add
    # It is started, and history's timeout is what brings it back: it is not handed out again.
    assert await got(world.poll(timeout=0)) == ""
    await world.add("w2")
    assert await got(world.poll()) == "w2"


@pytest.mark.parametrize("error", [not_found("gone"), ServiceError(Code.ALREADY_EXISTS, "started")])
async def test_a_task_that_history_has_no_use_for_is_dropped_and_the_poll_goes_on(
    world: World, error: ServiceError
) -> None:
    poll = world.poll()
    await settle()
    world.history.errors = [error]
    await world.add("stale")
    assert not poll.done()
    await world.add("w1")
    assert await got(poll) == "w1"
    assert world.engine.counters.dropped == 1


@pytest.mark.parametrize("error", [unavailable("moving"), internal("?"), RuntimeError("a bug")])
async def test_a_task_that_could_not_be_started_is_kept_and_tried_again(world: World, error: Exception) -> None:
    poll = world.poll()
    await settle()
    world.history.errors = [error]
    await world.add("w1")
    assert world.store.calls["append_backlog"] == 1
    assert not poll.done()
    await world.clock.advance(SECOND)
    assert await got(poll) == "w1"
    assert world.engine.counters.errors == (1 if isinstance(error, RuntimeError) else 0)


async def test_a_task_that_fails_again_and_again_does_not_hold_the_others_up(world: World) -> None:
    await world.add("bad")
    await world.add("good")
    world.history.errors = [unavailable("x")]
    poll = world.poll()
    assert await got(poll) == "good"
    world.history.errors = [unavailable("x")] * 5
    poll = world.poll()
    await world.clock.advance(20 * SECOND)
    assert await got(poll) == "bad"


async def test_a_task_that_can_be_neither_started_nor_written_is_refused(world: World) -> None:
    poll = world.poll()
    await settle()
    world.history.errors = [unavailable("x")]
    world.store.errors["append_backlog"] = [Unavailable("disk")]
    with pytest.raises(ServiceError) as e:
        await world.add("w1")
    assert e.value.code is Code.UNAVAILABLE
    await world.add("w1")
    assert await got(poll) == "w1"


async def test_an_add_that_is_cancelled_gives_the_poll_back(world: World) -> None:
    poll = world.poll()
    await settle()
    world.history.gate.clear()
    add = asyncio.create_task(world.add("w1"))
    await settle()
    add.cancel()
    await settle()
    world.history.gate.set()
    await world.add("w2")
    assert await got(poll) == "w2"


async def test_stopping_answers_all_polls_and_refuses_tasks(world: World) -> None:
    polls = [world.poll() for _ in range(3)]
    await settle()
    await world.engine.stop()
    assert [await got(p) for p in polls] == ["", "", ""]
    assert await got(world.poll()) == ""
    with pytest.raises(ServiceError) as e:
        await world.add("w1")
    assert e.value.code is Code.UNAVAILABLE


async def test_a_start_whose_outcome_was_unknown_reaches_a_poll_when_it_is_tried_again(world: World) -> None:
    poll = world.poll()
    await settle()
    world.history.errors_after = [unavailable("committed or not?")]
    await world.add("w1")
    await world.clock.advance(SECOND)
    assert await got(poll) == "w1"


async def test_stopping_lets_what_is_being_handed_out_finish(world: World) -> None:
    await world.add("w1")
    poll = world.poll()
    world.history.gate.clear()
    await settle()
    stop = asyncio.create_task(world.engine.stop())
    await settle()
    world.history.gate.set()
    await stop
    assert await got(poll) == "w1"
    assert await world.store.count_backlog(TaskQueueKey(NS, "q", 1), 0) == 0
