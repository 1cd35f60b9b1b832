"""Cancellation as workflows see it: what is shielded goes on, what cleans up may take its time."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from temporalio import activity, workflow
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError
from temporalio.exceptions import CancelledError
from temporalio.service import RPCError, RPCStatusCode

from sdk.world import SOON, World, events, name, types

log: list[str] = []


@activity.defn
async def note(what: str) -> str:
    log.append(what)
    return what


@workflow.defn
class Scopes:
    def __init__(self) -> None:
        self.waiting = False

    @workflow.run
    async def run(self, obeys: bool) -> str:
        shielded = asyncio.create_task(self.important())
        try:
            self.waiting = True
            await asyncio.gather(asyncio.shield(shielded), workflow.sleep(3600))
        except asyncio.CancelledError:
            await workflow.execute_activity(note, "clean up", start_to_close_timeout=SOON)
            await shielded
            if obeys:
                raise
        return "went on"

    async def important(self) -> None:
        await workflow.sleep(0.3)
        await workflow.execute_activity(note, "important", start_to_close_timeout=SOON)

    @workflow.query
    def ready(self) -> bool:
        return self.waiting


@pytest.mark.parametrize("cached", [1000, 0], ids=["sticky", "not-sticky"])
@pytest.mark.parametrize("obeys", [True, False])
async def test_cancel(world: World, obeys: bool, cached: int) -> None:
    log.clear()
    async with world.worker(Scopes, activities=[note], max_cached_workflows=cached) as queue:
        handle = await world.client.start_workflow(Scopes.run, obeys, id=name("scopes"), task_queue=queue)
        assert await handle.query(Scopes.ready)
        await handle.cancel()
        await handle.cancel()  # a second one changes nothing
        if obeys:
            with pytest.raises(WorkflowFailureError) as ended:
                await handle.result()
            assert isinstance(ended.value.cause, CancelledError)
            assert (await handle.describe()).status == WorkflowExecutionStatus.CANCELED
        else:
            assert await handle.result() == "went on"
        assert sorted(log) == ["clean up", "important"]
        history = types(await events(world.client, handle.id))
        assert history.count("WorkflowExecutionCancelRequested") == 1
        assert history.count("TimerCanceled") == 1
        with pytest.raises(RPCError) as gone:
            await world.client.get_workflow_handle(name("nobody")).cancel()
        assert gone.value.status == RPCStatusCode.NOT_FOUND


async def test_cancel_before_the_first_task(world: World) -> None:
    queue = name("tq")
    handle = await world.client.start_workflow(Scopes.run, True, id=name("scopes"), task_queue=queue)
    await handle.cancel()
    async with world.worker(Scopes, activities=[note], task_queue=queue):
        with pytest.raises(WorkflowFailureError) as ended:
            await handle.result()
        assert isinstance(ended.value.cause, CancelledError)


@workflow.defn
class Racing:
    @workflow.run
    async def run(self) -> str:
        tasks = [asyncio.create_task(workflow.sleep(s)) for s in (0.1, 3600)]
        done, pending = await workflow.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in pending:
            task.cancel()
        async with asyncio.timeout(0.2):
            try:
                await workflow.execute_activity(
                    note, "never", task_queue="nobody polls it", schedule_to_close_timeout=timedelta(hours=1)
                )
            finally:
                await workflow.execute_activity(note, "raced", start_to_close_timeout=SOON)
        return f"{len(done)} done"


async def test_a_workflow_cancels_what_it_began(world: World) -> None:
    log.clear()
    async with world.worker(Racing, activities=[note], workflow_failure_exception_types=[TimeoutError]) as queue:
        handle = await world.client.start_workflow(Racing.run, id=name("racing"), task_queue=queue)
        with pytest.raises(WorkflowFailureError):
            await handle.result()
        assert log == ["raced"]
        history = types(await events(world.client, handle.id))
        assert history.count("ActivityTaskCancelRequested") == 1
        assert history.count("TimerCanceled") == 1
