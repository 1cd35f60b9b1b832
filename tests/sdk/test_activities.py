"""Activities that are completed from elsewhere, cancelled, run by the worker itself, or handed out at once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity, workflow
from temporalio.client import AsyncActivityCancelledError, AsyncActivityHandle, WorkflowFailureError
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError, FailureError, is_cancelled_exception
from temporalio.service import RPCError, RPCStatusCode

from sdk.world import SOON, World, events, name, types

NO_THROTTLE = {
    "max_heartbeat_throttle_interval": timedelta(milliseconds=1),
    "default_heartbeat_throttle_interval": timedelta(milliseconds=1),
}


@dataclass
class Desk:
    """Takes work in, to be done elsewhere."""

    tokens: asyncio.Queue[bytes] = field(default_factory=asyncio.Queue)

    @activity.defn
    async def leave(self) -> str:
        self.tokens.put_nowait(activity.info().task_token)
        activity.raise_complete_async()


@workflow.defn
class Elsewhere:
    @workflow.run
    async def run(self) -> str:
        try:
            return await workflow.execute_activity(
                Desk.leave,
                activity_id="desk",
                start_to_close_timeout=timedelta(seconds=20),
                heartbeat_timeout=timedelta(seconds=10),
                cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
                retry_policy=RetryPolicy(maximum_attempts=2, initial_interval=timedelta(milliseconds=10)),
            )
        except ActivityError as e:
            if is_cancelled_exception(e):
                return "cancelled"
            assert isinstance(e.cause, ApplicationError)
            return f"failed: {e.cause.message}"


@pytest.mark.parametrize("by", ["token", "id"])
async def test_completion_from_elsewhere(world: World, by: str) -> None:
    desk = Desk()
    async with world.worker(Elsewhere, activities=[desk.leave]) as queue:

        async def left() -> tuple[Any, AsyncActivityHandle]:
            handle = await world.client.start_workflow(Elsewhere.run, id=name("elsewhere"), task_queue=queue)
            return handle, await taken(handle)

        async def taken(handle: Any) -> AsyncActivityHandle:
            token = await desk.tokens.get()
            if by == "token":
                return world.client.get_async_activity_handle(task_token=token)
            return world.client.get_async_activity_handle(workflow_id=handle.id, run_id=None, activity_id="desk")

        handle, desk_handle = await left()
        await desk_handle.heartbeat("half")
        pending = (await handle.describe()).raw_description.pending_activities
        assert [p.activity_id for p in pending] == ["desk"]
        assert pending[0].heartbeat_details.payloads[0].data == b'"half"'
        await desk_handle.complete("done")
        assert await handle.result() == "done"
        with pytest.raises(RPCError) as gone:
            await desk_handle.complete("again")
        assert gone.value.status == RPCStatusCode.NOT_FOUND

        handle, desk_handle = await left()
        await desk_handle.fail(RuntimeError("first"))
        desk_handle = await taken(handle)
        await desk_handle.fail(ApplicationError("second"))
        assert await handle.result() == "failed: second"

        handle, desk_handle = await left()
        await handle.cancel()
        with pytest.raises(AsyncActivityCancelledError):
            while True:
                await desk_handle.heartbeat()
                await asyncio.sleep(0.02)
        await desk_handle.report_cancellation("details")
        assert await handle.result() == "cancelled"


@dataclass
class Cancellable:
    begun: asyncio.Event = field(default_factory=asyncio.Event)
    cancelled: bool = False

    @activity.defn
    async def hold(self, ends_well: bool) -> str:
        self.begun.set()
        try:
            while True:
                activity.heartbeat()
                await asyncio.sleep(0.02)
        except asyncio.CancelledError:
            self.cancelled = True
            if ends_well:
                return "done all the same"
            raise


@workflow.defn
class Holding:
    @workflow.run
    async def run(self, kind: int, ends_well: bool) -> str:
        try:
            return await workflow.execute_activity(
                Cancellable.hold,
                ends_well,
                start_to_close_timeout=timedelta(minutes=1),
                heartbeat_timeout=timedelta(seconds=5),
                cancellation_type=workflow.ActivityCancellationType(kind),
            )
        except ActivityError as e:
            assert isinstance(e.cause, CancelledError)
            return "cancelled"


@pytest.mark.parametrize("ends_well", [False, True], ids=["obeys", "completes"])
@pytest.mark.parametrize("kind", list(workflow.ActivityCancellationType), ids=lambda k: k.name)
async def test_cancellation_types(world: World, kind: workflow.ActivityCancellationType, ends_well: bool) -> None:
    held = Cancellable()
    async with world.worker(Holding, activities=[held.hold], **NO_THROTTLE) as queue:
        handle = await world.client.start_workflow(
            Holding.run, args=[kind, ends_well], id=name("holding"), task_queue=queue
        )
        await held.begun.wait()
        await handle.cancel()
        waits = kind == workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED
        assert await handle.result() == ("done all the same" if waits and ends_well else "cancelled")
        history = types(await events(world.client, handle.id))
        assert ("ActivityTaskCancelRequested" in history) == (kind != workflow.ActivityCancellationType.ABANDON)
        assert ("ActivityTaskCanceled" in history) == (waits and not ends_well)
        assert held.cancelled or not waits


@workflow.defn
class NeverBegun:
    """Cancels an activity that no worker has taken."""

    @workflow.run
    async def run(self) -> str:
        doing = workflow.start_activity(
            Cancellable.hold,
            False,
            task_queue="nobody polls it",
            start_to_close_timeout=SOON,
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )
        await workflow.sleep(0.1)
        doing.cancel()
        try:
            return await doing
        except ActivityError as e:
            return type(e.cause).__name__


async def test_cancelled_before_it_began(world: World) -> None:
    async with world.worker(NeverBegun) as queue:
        handle = await world.client.start_workflow(NeverBegun.run, id=name("never"), task_queue=queue)
        assert await handle.result() == "CancelledError"
        history = types(await events(world.client, handle.id))
        assert "ActivityTaskCanceled" in history
        assert "ActivityTaskStarted" not in history


attempts: list[int] = []


@activity.defn
async def add(a: int, b: int) -> int:
    return a + b


@activity.defn
async def fails_twice() -> int:
    attempts.append(activity.info().attempt)
    if activity.info().attempt < 3:
        raise RuntimeError("not yet")
    return activity.info().attempt


@workflow.defn
class Local:
    """Markers: local activities, a patch; and a side effect that is deterministic."""

    @workflow.run
    async def run(self) -> list[Any]:
        done = await workflow.execute_local_activity(add, args=[1, 2], start_to_close_timeout=SOON)
        tried = await workflow.execute_local_activity(
            fails_twice,
            start_to_close_timeout=SOON,
            retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=10)),
        )
        try:
            await workflow.execute_local_activity(
                fails_twice, start_to_close_timeout=SOON, retry_policy=RetryPolicy(maximum_attempts=1)
            )
        except FailureError as e:
            failed = str(e.cause or e)
        patched = workflow.patched("a change")
        await workflow.sleep(0.05)
        return [done, tried, failed, patched, len(str(workflow.uuid4()))]


@pytest.mark.parametrize("cached", [1000, 0], ids=["sticky", "not-sticky"])
async def test_local_activities_and_patches_are_markers(world: World, cached: int) -> None:
    attempts.clear()
    async with world.worker(Local, activities=[add, fails_twice], max_cached_workflows=cached) as queue:
        handle = await world.client.start_workflow(Local.run, id=name("local"), task_queue=queue)
        assert await handle.result() == [3, 3, "RuntimeError: not yet", True, 36]
        assert attempts == [1, 2, 3, 1]
        history = await events(world.client, handle.id)
        markers = [
            e.marker_recorded_event_attributes.marker_name
            for e in history
            if e.HasField("marker_recorded_event_attributes")
        ]
        assert markers == ["core_local_activity"] * 3 + ["core_patch"]
        assert not any(t.startswith("ActivityTask") for t in types(history))
        (upserted,) = [
            e.upsert_workflow_search_attributes_event_attributes.search_attributes.indexed_fields
            for e in history
            if e.HasField("upsert_workflow_search_attributes_event_attributes")
        ]
        assert list(upserted) == ["TemporalChangeVersion"]


@activity.defn
async def slow(seconds: float) -> str:
    await asyncio.sleep(seconds)
    return "slept"


@workflow.defn
class LongLocal:
    @workflow.run
    async def run(self) -> str:
        return await workflow.execute_local_activity(slow, 3.5, start_to_close_timeout=SOON)


async def test_a_long_local_activity_keeps_its_workflow_task(world: World) -> None:
    """The worker answers the workflow task before its timeout, and asks for a new one at once."""
    async with world.worker(LongLocal, activities=[slow]) as queue:
        handle = await world.client.start_workflow(
            LongLocal.run, id=name("long-local"), task_queue=queue, task_timeout=timedelta(seconds=2)
        )
        assert await handle.result() == "slept"
        history = types(await events(world.client, handle.id))
        assert history.count("WorkflowTaskCompleted") > 1
        assert not {"WorkflowTaskTimedOut", "WorkflowTaskFailed"} & set(history)


@workflow.defn
class Adding:
    @workflow.run
    async def run(self, n: int) -> int:
        return sum(
            await asyncio.gather(
                *(workflow.execute_activity(add, args=[i, 1], start_to_close_timeout=SOON) for i in range(n))
            )
        )


@pytest.mark.parametrize("eager", [True, False])
async def test_eager_activities_and_polled_ones(world: World, eager: bool) -> None:
    async with world.worker(Adding, activities=[add], disable_eager_activity_execution=not eager) as queue:
        handle = await world.client.start_workflow(Adding.run, 20, id=name("adding"), task_queue=queue)
        assert await handle.result() == sum(range(1, 21))
        history = types(await events(world.client, handle.id))
        assert history.count("ActivityTaskStarted") == history.count("ActivityTaskCompleted") == 20


async def test_activity_on_another_worker(world: World) -> None:
    async with world.worker(Routed, check=False) as queue, world.worker(activities=[add], check=False) as other:
        handle = await world.client.start_workflow(Routed.run, other, id=name("routed"), task_queue=queue)
        assert await handle.result() == 7
        await world.check(Routed)


@workflow.defn
class Routed:
    @workflow.run
    async def run(self, queue: str) -> int:
        return await workflow.execute_activity(add, args=[3, 4], task_queue=queue, start_to_close_timeout=SOON)


@activity.defn
async def oversized() -> bytes:
    return b"x" * (3 * 1024 * 1024)


@workflow.defn
class Oversized:
    @workflow.run
    async def run(self) -> int:
        return len(
            await workflow.execute_activity(
                oversized, start_to_close_timeout=SOON, retry_policy=RetryPolicy(maximum_attempts=1)
            )
        )


async def test_a_result_above_the_limit_fails_the_activity(world: World) -> None:
    async with world.worker(Oversized, activities=[oversized]) as queue:
        handle = await world.client.start_workflow(Oversized.run, id=name("oversized"), task_queue=queue)
        with pytest.raises(WorkflowFailureError) as failed:
            await handle.result()
        assert isinstance(failed.value.cause, ActivityError)
