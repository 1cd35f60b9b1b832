"""Sticky task queues, direct queries, and workers that shut down."""

from __future__ import annotations

import asyncio

import pytest
from temporalio.api.enums.v1 import QueryResultType
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest, RespondQueryTaskCompletedRequest

from perdure.clock import SECOND
from perdure.errors import Code, ServiceError, not_found
from perdure.matching.api import NoPoller, QueryOutcome

from .world import NS, World, got, settle, sticky

# --- sticky


async def test_a_sticky_queue_that_nobody_polls_refuses_tasks(world: World) -> None:
    with pytest.raises(NoPoller):
        await world.add_sticky("w1")
    poll = world.poll(queue=sticky(), timeout=SECOND)
    await world.clock.advance(SECOND)
    assert await got(poll) == ""
    await world.clock.advance(9 * SECOND)
    await world.add_sticky("w1")
    await world.clock.advance(2 * SECOND)
    with pytest.raises(NoPoller):
        await world.add_sticky("w2")


async def test_a_sticky_poll_gets_its_tasks_and_those_of_a_moment_without_poll(world: World) -> None:
    poll = world.poll(queue=sticky())
    await settle()
    await world.add_sticky("w1")
    await world.add_sticky("w2")
    assert await got(poll) == "w1"
    assert await got(world.poll(queue=sticky())) == "w2"
    starter = world.history.started["w2", 5]
    assert (starter.task_queue, starter.sticky_queue) == ("q", "sticky")
    # Nothing of it touches the store: history times sticky tasks out by itself.
    assert world.store.calls == {}


async def test_sticky_and_normal_polls_do_not_mix(world: World) -> None:
    on_sticky, on_normal = world.poll(queue=sticky()), world.poll()
    await settle()
    await world.add("normal")
    await world.add_sticky("stuck")
    assert await got(on_sticky) == "stuck"
    assert await got(on_normal) == "normal"


async def test_a_sticky_task_that_could_not_be_started_is_tried_again(world: World) -> None:
    poll = world.poll(queue=sticky())
    await settle()
    world.history.errors = [RuntimeError("a bug")]
    await world.add_sticky("w1")
    await world.clock.advance(SECOND)
    assert await got(poll) == "w1"


# --- shutdown


async def test_a_worker_that_shuts_down_gets_its_polls_back_and_no_more_tasks(world: World) -> None:
    polls = [world.poll(key="a"), world.poll(queue=sticky(), key="a"), world.poll("other", key="b")]
    await settle()
    await world.engine.cancel_polls(NS, "q", [1, 2], "a")
    assert [await got(p) for p in polls[:2]] == ["", ""]
    assert not polls[2].done()
    assert await got(world.poll(key="a")) == ""
    await world.add("w1")
    assert await got(polls[2]) == "w1"
    described = await world.engine.describe_task_queue(NS, DescribeTaskQueueRequest(task_queue=TaskQueue(name="q")))
    assert [p.identity for p in described.pollers] == ["other"]


async def test_a_poll_for_nexus_tasks_waits_and_ends_with_its_worker(world: World) -> None:
    polls = [world.poll_nexus(key="a"), world.poll_nexus(key="b"), world.poll_nexus(key="c")]
    await settle()
    await world.engine.cancel_polls(NS, "q", [1, 2, 3], "a")
    assert await got(polls[0]) == ""
    await settle()
    assert not polls[1].done()
    polls[2].cancel()
    await settle()
    await world.clock.advance(60 * SECOND)
    assert await got(polls[1]) == ""
    assert polls[2].cancelled()
    assert world.store.calls == {}


async def test_polls_for_nexus_tasks_end_when_the_server_stops(world: World) -> None:
    poll = world.poll_nexus()
    await settle()
    await world.engine.stop()
    assert await got(poll) == ""
    assert await got(world.poll_nexus()) == ""


async def test_an_unloaded_sticky_queue_has_no_poller_until_it_is_polled(world: World) -> None:
    poll = world.poll(queue=sticky())
    await settle()
    await world.engine.force_unload(NS, "sticky")
    assert await got(poll) == ""
    with pytest.raises(NoPoller):
        await world.add_sticky("w1")
    poll = world.poll(queue=sticky())
    await settle()
    await world.add_sticky("w1")
    assert await got(poll) == "w1"


# --- direct queries


def ask(world: World, queue: TaskQueue | None = None, timeout: int = 10 * SECOND) -> asyncio.Task[QueryOutcome]:
    return asyncio.create_task(
        world.engine.query_workflow(
            queue or TaskQueue(name="q"),
            world.task("w1"),
            WorkflowQuery(query_type="state"),
            world.clock.now() + timeout,
        )
    )


async def answer(world: World, token: bytes, namespace_id: str = NS) -> None:
    await world.engine.respond_query_task_completed(
        namespace_id,
        RespondQueryTaskCompletedRequest(
            task_token=token, completed_type=QueryResultType.QUERY_RESULT_TYPE_ANSWERED, error_message="42"
        ),
    )


@pytest.mark.parametrize("poll_first", [True, False])
@pytest.mark.parametrize("on_sticky", [True, False])
async def test_a_query_reaches_a_poll_and_its_answer_the_caller(
    world: World, poll_first: bool, on_sticky: bool
) -> None:
    queue = sticky() if on_sticky else TaskQueue(name="q")
    if on_sticky:
        await got(world.poll(queue=queue, timeout=0))
        first = world.poll(queue=queue, timeout=SECOND)
        await world.clock.advance(SECOND)
        await got(first)
    if poll_first:
        poll = world.poll(queue=queue)
        await settle()
        query = ask(world, queue)
    else:
        query = ask(world, queue)
        await settle()
        poll = world.poll(queue=queue)
    task = await poll
    assert task.query.query_type == "state"
    assert world.history.started == {}
    await answer(world, task.task_token)
    outcome = RespondQueryTaskCompletedRequest.FromString((await query).response)
    assert outcome.error_message == "42"
    with pytest.raises(ServiceError) as e:
        await answer(world, task.task_token)
    assert e.value.code is Code.NOT_FOUND


async def test_a_query_without_any_worker_says_so(world: World) -> None:
    with pytest.raises(NoPoller):
        await ask(world, sticky())
    query = ask(world)
    await world.clock.advance(9 * SECOND)
    with pytest.raises(ServiceError, match="no poller seen for task queue recently, worker may be down") as e:
        await query
    assert e.value.code is Code.FAILED_PRECONDITION
    # Nobody gets the question after that.
    assert await got(world.poll(timeout=0)) == ""
    poll = world.poll(timeout=SECOND)
    await world.clock.advance(SECOND)
    assert await got(poll) == ""


async def test_a_query_that_is_not_answered_in_time_fails(world: World) -> None:
    poll = world.poll()
    query = ask(world)
    task = await poll
    await world.clock.advance(10 * SECOND)
    with pytest.raises(ServiceError) as e:
        await query
    assert e.value.code is Code.DEADLINE_EXCEEDED
    with pytest.raises(ServiceError, match="query task not found, or already expired"):
        await answer(world, task.task_token)


async def test_a_query_that_history_cannot_make_fails_and_the_poll_goes_on(world: World) -> None:
    poll = world.poll()
    await settle()
    world.history.errors = [not_found("workflow not found for ID: w1")]
    with pytest.raises(ServiceError, match="workflow not found for ID: w1"):
        await ask(world)
    await world.add("w2")
    assert await got(poll) == "w2"


async def test_an_answer_is_taken_from_its_own_namespace_only(world: World) -> None:
    poll, query = world.poll(), ask(world)
    task = await poll
    with pytest.raises(ServiceError) as e:
        await answer(world, task.task_token, "another-namespace")
    assert e.value.code is Code.INVALID_ARGUMENT
    with pytest.raises(ServiceError):
        await answer(world, b"nonsense")
    query.cancel()


async def test_stopping_fails_open_queries(world: World) -> None:
    query = ask(world)
    await settle()
    await world.engine.stop()
    with pytest.raises(ServiceError) as e:
        await query
    assert e.value.code is Code.UNAVAILABLE
