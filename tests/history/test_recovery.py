"""A history service that ends at once, and the next one on the same database: what was committed goes on."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.history.live import complete_workflow
from tests.history.service import Service, service
from tests.history.support import schedule_activity, start_timer

from perdure.errors import Code, ServiceError
from perdure.persistence.api import TaskCategory


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "perdure.db")


async def running(world: Service) -> None:
    """Until the first try of a task has failed."""
    await world.until(lambda: world.history.failures)


async def test_tasks_that_matching_has_not_got_are_dispatched_by_the_next_process(path: str) -> None:
    async with service(path) as world:
        world.matching.down = True
        await world.start()
        await running(world)
        await world.crash()
        task = await world.poll()
        assert task.started_event_id == 3
        await world.complete(task, schedule_activity("a"))
        world.matching.down = True
        await world.crash()
        await world.complete_activity(await world.poll_activity())
        assert (await world.types())[-1] == "WorkflowTaskScheduled"


async def test_a_task_is_handed_out_once_across_a_crash(path: str) -> None:
    async with service(path) as world:
        await world.start()
        _, lost = await world.next_workflow_task()
        await world.crash()
        # Matching may have it still, or again, or both: it is handed out once.
        await world.take(lost, request_id="one")
        assert (await world.take(lost, request_id="one")).started_event_id == 3
        with pytest.raises(ServiceError) as refused:
            await world.take(lost, request_id="other")
        assert refused.value.code == Code.ALREADY_EXISTS


@pytest.mark.parametrize("seconds", [30, 1000], ids=["soon", "far off"])
@pytest.mark.parametrize("late", [False, True], ids=["in time", "due while no process was there"])
async def test_timers_fire_after_a_crash(path: str, seconds: int, late: bool) -> None:
    async with service(path) as world:
        await world.start()
        await world.complete(await world.poll(), start_timer("t", seconds))
        begun = world.clock.now()
        if late:
            world.clock._now += seconds * 10**9
        await world.crash()
        if not late:
            world.clock._now = begun + (seconds - 2) * 10**9
            await world.advance(1)
            assert (await world.types())[-1] == "TimerStarted"
        await world.advance(2)
        await world.poll()
        assert (await world.types())[-3:] == ["TimerFired", "WorkflowTaskScheduled", "WorkflowTaskStarted"]


async def test_a_workflow_task_whose_worker_went_with_the_process_times_out(path: str) -> None:
    async with service(path) as world:
        await world.start(workflow_task_timeout={"seconds": 5})
        await world.poll()
        await world.crash()
        await world.advance(4)
        assert (await world.types())[-1] == "WorkflowTaskStarted"
        await world.advance(2)
        assert (await world.poll()).attempt == 2


async def test_a_run_timeout_and_a_retention_outlive_the_process(path: str) -> None:
    async with service(path) as world:
        run_id = (await world.start(workflow_run_timeout={"seconds": 20})).run_id
        await world.crash()
        await world.advance(21)
        await world.until_last("WorkflowExecutionTimedOut")
        await world.crash()
        world.clock._now += 3600 * 10**9
        await world.advance(1)

        async def gone() -> bool:
            try:
                await world.state(run_id)
            except ServiceError as error:
                return error.code == Code.NOT_FOUND
            return False

        await world.until(gone)
        assert (await world.visibility.count(world.namespace_id, "", {})).count == 0


async def test_lists_catch_up(path: str) -> None:
    async with service(path) as world:
        run_id = (await world.start()).run_id
        world.history.visibility = None  # type: ignore[assignment]
        await world.complete(await world.poll(), complete_workflow())
        await running(world)
        await world.crash()

        async def listed_as_closed() -> bool:
            found = await world.visibility.get(world.namespace_id, run_id)
            return found is not None and found.close_time > 0

        await world.until(listed_as_closed)


async def test_memory_is_lost_and_nothing_else(path: str) -> None:
    async with service(path) as world:
        run_id = (await world.start()).run_id
        await world.complete(await world.poll(), schedule_activity("a"), start_timer("t", 100))
        before = await world.state(run_id)
        await world.crash()
        after = await world.state(run_id)
        assert after is not before
        assert (after.run, after.info, after.activities, after.timers) == (
            before.run,
            before.info,
            before.activities,
            before.timers,
        )


async def test_the_former_owner_of_a_shard_cannot_write(path: str) -> None:
    async with service(path) as world:
        await world.start()
        task = await world.poll()
        former, world.history = world.history, await world.another_owner()
        world.history, present = former, world.history
        with pytest.raises(ServiceError) as refused:
            await world.complete(task, complete_workflow())
        assert refused.value.code == Code.UNAVAILABLE
        assert "another owner" in refused.value.message
        await former.stop(0)
        world.history = present
        await world.complete(task, complete_workflow())
        assert (await world.types())[-1] == "WorkflowExecutionCompleted"


async def test_done_tasks_are_not_kept(path: str) -> None:
    async with service(path) as world:
        await world.start()
        await world.complete(await world.poll(), start_timer("t", 1))
        await world.advance(2)
        await world.complete(await world.poll(), complete_workflow())

        async def kept() -> list[int]:
            return [
                len(await world.store.read_tasks(1, category, (0, 0), (2**62, 2**62), 100))
                for category in (TaskCategory.TRANSFER, TaskCategory.VISIBILITY, TaskCategory.TIMER)
            ]

        async def only_the_retention() -> bool:
            await world.advance(10)
            return await kept() == [0, 0, 1]

        await world.until(only_the_retention)
