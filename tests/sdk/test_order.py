"""An order: activities that are retried, one that fails for good, and what was done is undone."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity, workflow
from temporalio.client import WorkflowFailureError, WorkflowHandle
from temporalio.common import RetryPolicy
from temporalio.exceptions import ActivityError, ApplicationError, RetryState, TimeoutError, TimeoutType

from sdk.world import SANDBOX, SOON, World, events, name, types

QUICK = RetryPolicy(initial_interval=timedelta(milliseconds=20), backoff_coefficient=1.5, maximum_attempts=10)


@dataclass
class Order:
    id: str
    items: list[str]
    amount: int
    ship_fails: int = 0  # so many attempts fail
    declined: bool = False


@dataclass
class Shop:
    """The world outside: what the activities did to it."""

    done: Counter[str]
    progress: list[int]

    @activity.defn
    async def reserve(self, order: Order) -> str:
        self.done["reserve"] += 1
        return f"reservation of {len(order.items)}"

    @activity.defn
    async def release(self, order: Order) -> None:
        self.done["release"] += 1

    @activity.defn
    async def charge(self, order: Order) -> str:
        self.done["charge"] += 1
        if order.declined:
            raise ApplicationError("card declined", {"limit": 100}, type="Declined", non_retryable=True)
        return f"receipt of {order.amount}"

    @activity.defn
    async def refund(self, order: Order) -> None:
        self.done["refund"] += 1

    @activity.defn
    async def ship(self, order: Order) -> str:
        self.done["ship"] += 1
        if activity.info().attempt <= order.ship_fails:
            raise RuntimeError(f"no truck at attempt {activity.info().attempt}")
        return f"parcel at attempt {activity.info().attempt}"

    @activity.defn
    async def pack(self, order: Order) -> int:
        """Goes on where the attempt before stopped."""
        details = activity.info().heartbeat_details
        begin = details[0] if details else 0
        for i in range(begin, len(order.items)):
            self.progress.append(i)
            activity.heartbeat(i + 1)
            if i == 1 and not details:
                await asyncio.sleep(3600)  # hangs: only the heartbeat timeout can tell
        return begin

    def activities(self) -> list[Callable[..., Coroutine[Any, Any, Any]]]:
        return [self.reserve, self.release, self.charge, self.refund, self.ship, self.pack]


@workflow.defn
class OrderWorkflow:
    @workflow.run
    async def run(self, order: Order) -> list[str]:
        undo: list[Callable[..., Any]] = []
        told: list[str] = []
        try:
            undo.append(Shop.release)
            told.append(await self.step(Shop.reserve, order))
            told.append(await self.step(Shop.charge, order))
            undo.append(Shop.refund)
            told.append(await self.step(Shop.ship, order))
        except ActivityError as e:
            for compensation in reversed(undo):
                await self.step(compensation, order)
            raise ApplicationError(f"order {order.id} was undone", type="Undone", non_retryable=True) from e
        return told

    async def step(self, what: Callable[..., Any], order: Order) -> Any:
        return await workflow.execute_activity(what, order, start_to_close_timeout=SOON, retry_policy=QUICK)


@workflow.defn
class Packing:
    @workflow.run
    async def run(self, order: Order) -> int:
        return await workflow.execute_activity(
            Shop.pack,
            order,
            start_to_close_timeout=timedelta(minutes=1),
            heartbeat_timeout=timedelta(milliseconds=800),
            retry_policy=QUICK,
        )


@workflow.defn
class Hopeless:
    """Gives up by number of attempts, by type of error, by the time of all attempts."""

    @workflow.run
    async def run(self, order: Order) -> list[str]:
        told: list[str] = []
        limits: list[dict[str, Any]] = [
            {"retry_policy": RetryPolicy(initial_interval=timedelta(milliseconds=10), maximum_attempts=3)},
            {"retry_policy": RetryPolicy(non_retryable_error_types=["RuntimeError"])},
            {"schedule_to_close_timeout": timedelta(milliseconds=700), "retry_policy": QUICK},
        ]
        for limit in limits:
            try:
                await workflow.execute_activity(Shop.ship, order, start_to_close_timeout=SOON, **limit)
            except ActivityError as e:
                told.append(f"{RetryState(e.retry_state or 0).name}: {e.cause}")
        return told


@pytest.fixture
def shop() -> Shop:
    return Shop(Counter(), [])


@pytest.mark.parametrize("cached", [1000, 0], ids=["sticky", "not-sticky"])
async def test_order_with_retries(world: World, shop: Shop, cached: int) -> None:
    async with world.worker(
        OrderWorkflow,
        activities=shop.activities(),
        max_cached_workflows=cached,
        workflow_runner=SANDBOX,
    ) as queue:
        order = Order("1", ["a", "b"], 30, ship_fails=2)
        handle = await world.client.start_workflow(OrderWorkflow.run, order, id=name("order"), task_queue=queue)
        assert await handle.result() == ["reservation of 2", "receipt of 30", "parcel at attempt 3"]
        assert shop.done == {"reserve": 1, "charge": 1, "ship": 3}
        await only_last_attempt_is_in_history(world, handle)


async def only_last_attempt_is_in_history(world: World, handle: WorkflowHandle[Any, Any]) -> None:
    history = await events(world.client, handle.id)
    started = [e.activity_task_started_event_attributes for e in history if e.event_type == 11]
    assert [s.attempt for s in started] == [1, 1, 3]
    assert started[2].last_failure.message == "no truck at attempt 2"
    assert not started[0].HasField("last_failure")
    assert not {"ActivityTaskFailed", "ActivityTaskTimedOut"} & set(types(history))
    for earlier, later in itertools.pairwise(history):
        if earlier.HasField("activity_task_started_event_attributes"):
            assert later.HasField("activity_task_completed_event_attributes")


@pytest.mark.parametrize("cached", [1000, 0], ids=["sticky", "not-sticky"])
async def test_failing_order_is_undone(world: World, shop: Shop, cached: int) -> None:
    async with world.worker(OrderWorkflow, activities=shop.activities(), max_cached_workflows=cached) as queue:
        order = Order("2", ["a"], 500, declined=True)
        handle = await world.client.start_workflow(OrderWorkflow.run, order, id=name("order"), task_queue=queue)
        with pytest.raises(WorkflowFailureError) as failed:
            await handle.result()
        assert shop.done == {"reserve": 1, "charge": 1, "release": 1}
        error = failed.value.cause
        assert isinstance(error, ApplicationError)
        assert (error.message, error.type) == ("order 2 was undone", "Undone")
        assert isinstance(error.cause, ActivityError)
        assert error.cause.activity_type == "charge"
        assert error.cause.retry_state == RetryState.NON_RETRYABLE_FAILURE
        declined = error.cause.cause
        assert isinstance(declined, ApplicationError)
        assert (declined.message, declined.type, declined.details) == ("card declined", "Declined", ({"limit": 100},))


async def test_heartbeat_timeout_goes_on_from_the_last_details(world: World, shop: Shop) -> None:
    async with world.worker(
        Packing,
        activities=shop.activities(),
        max_heartbeat_throttle_interval=timedelta(milliseconds=1),
        default_heartbeat_throttle_interval=timedelta(milliseconds=1),
    ) as queue:
        handle = await world.client.start_workflow(
            Packing.run, Order("3", ["a", "b", "c", "d"], 1), id=name("packing"), task_queue=queue
        )
        assert await handle.result() == 2
        assert shop.progress == [0, 1, 2, 3]
        history = await events(world.client, handle.id)
        (started,) = [e.activity_task_started_event_attributes for e in history if e.event_type == 11]
        assert started.attempt == 2
        assert started.last_failure.timeout_failure_info.timeout_type == TimeoutType.HEARTBEAT


async def test_retries_end(world: World, shop: Shop) -> None:
    async with world.worker(Hopeless, activities=shop.activities()) as queue:
        order = Order("4", ["a"], 1, ship_fails=1000)
        handle = await world.client.start_workflow(Hopeless.run, order, id=name("hopeless"), task_queue=queue)
        by_attempts, by_type, by_time = await handle.result()
        assert by_attempts == "MAXIMUM_ATTEMPTS_REACHED: RuntimeError: no truck at attempt 3"
        assert by_type == "NON_RETRYABLE_FAILURE: RuntimeError: no truck at attempt 1"
        # The next attempt would not fit into the time.
        assert by_time.startswith("TIMEOUT: RuntimeError: no truck at attempt ")


@activity.defn
async def sleep_long() -> None:
    await asyncio.sleep(3600)


@workflow.defn
class Timeouts:
    @workflow.run
    async def run(self, timeouts: dict[str, float], queue: str | None) -> str:
        try:
            await workflow.execute_activity(
                sleep_long,
                task_queue=queue,
                retry_policy=RetryPolicy(maximum_attempts=1),
                **{f"{kind}_timeout": timedelta(seconds=seconds) for kind, seconds in timeouts.items()},  # type: ignore[arg-type]
            )
        except ActivityError as e:
            assert isinstance(e.cause, TimeoutError)
            return f"{TimeoutType(e.cause.type or 0).name} {RetryState(e.retry_state or 0).name}"
        return "no timeout"


@pytest.mark.parametrize(
    ("timeouts", "queue", "told"),
    [
        ({"start_to_close": 0.3}, None, "START_TO_CLOSE MAXIMUM_ATTEMPTS_REACHED"),
        ({"schedule_to_start": 0.3, "start_to_close": 10}, "nobody polls it", "SCHEDULE_TO_START TIMEOUT"),
        ({"schedule_to_close": 0.3}, None, "SCHEDULE_TO_CLOSE TIMEOUT"),
        ({"start_to_close": 20, "heartbeat": 0.3}, None, "HEARTBEAT MAXIMUM_ATTEMPTS_REACHED"),
    ],
)
async def test_activity_timeouts(world: World, timeouts: dict[str, float], queue: str | None, told: str) -> None:
    async with world.worker(Timeouts, activities=[sleep_long]) as worker_queue:
        handle = await world.client.start_workflow(
            Timeouts.run, args=[timeouts, queue], id=name("timeouts"), task_queue=worker_queue
        )
        kind, state = told.split()
        got_kind, got_state = (await handle.result()).split()
        assert got_kind == kind
        assert got_state in (state, "TIMEOUT")
        history = types(await events(world.client, handle.id))
        assert "ActivityTaskTimedOut" in history
        assert ("ActivityTaskStarted" in history) == (kind != "SCHEDULE_TO_START")
