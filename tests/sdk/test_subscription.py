"""A subscription: bills by timer, is changed by signals, tells its state, and continues as new to keep its history
short."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity, workflow
from temporalio.client import WorkflowExecutionStatus, WorkflowHandle

from sdk.world import SANDBOX, SOON, World, events, name, types

PERIODS_A_RUN = 2


@dataclass
class Subscription:
    customer: str
    price: int
    period: float  # seconds
    bills: list[int] = field(default_factory=list)
    runs: int = 1


@activity.defn
async def bill(customer: str, price: int) -> int:
    return price


@workflow.defn
class SubscriptionWorkflow:
    @workflow.init
    def __init__(self, state: Subscription) -> None:
        self.state = state
        self.ended = False

    @workflow.run
    async def run(self, state: Subscription) -> Subscription:
        for _ in range(PERIODS_A_RUN):
            try:
                await workflow.wait_condition(lambda: self.ended, timeout=timedelta(seconds=self.state.period))
            except TimeoutError:
                paid = await workflow.execute_activity(
                    bill, args=[self.state.customer, self.state.price], start_to_close_timeout=SOON
                )
                self.state.bills.append(paid)
            if self.ended:
                return self.state
        self.state.runs += 1
        await workflow.wait_condition(workflow.all_handlers_finished)
        return workflow.continue_as_new(self.state, memo={"run": self.state.runs})

    @workflow.signal
    def set_price(self, price: int) -> None:
        self.state.price = price

    @workflow.signal
    def end(self) -> None:
        self.ended = True

    @workflow.query
    def bills(self) -> list[int]:
        return self.state.bills

    @workflow.query
    def runs(self) -> int:
        return self.state.runs


async def until(handle: WorkflowHandle[Any, Any], count: int) -> None:
    """Waits until it has billed so often."""
    while len(await handle.query(SubscriptionWorkflow.bills)) < count:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


@pytest.mark.parametrize("cached", [1000, 0], ids=["sticky", "not-sticky"])
async def test_subscription(world: World, cached: int) -> None:
    async with world.worker(
        SubscriptionWorkflow, activities=[bill], max_cached_workflows=cached, workflow_runner=SANDBOX
    ) as queue:
        started = await world.client.start_workflow(
            SubscriptionWorkflow.run,
            Subscription("ann", 10, period=0.3),
            id=name("subscription"),
            task_queue=queue,
            memo={"run": 1, "plan": "monthly"},
            # Without a cache the worker may lose a task when a query comes between; another one follows soon.
            task_timeout=timedelta(seconds=2),
        )
        handle = world.client.get_workflow_handle_for(SubscriptionWorkflow.run, started.id)
        await until(handle, 1)
        await handle.signal(SubscriptionWorkflow.set_price, 25)
        await until(handle, 5)
        assert await handle.query(SubscriptionWorkflow.runs) >= 3
        await handle.signal(SubscriptionWorkflow.end)
        state = await started.result()  # follows the runs
        assert state.bills[0] == 10
        assert len(state.bills) >= 5
        assert set(state.bills[2:]) == {25}
        assert state.bills == sorted(state.bills)

        # A closed workflow answers queries still.
        assert await handle.query(SubscriptionWorkflow.bills) == state.bills

        first = await world.client.get_workflow_handle(started.id, run_id=started.first_execution_run_id).describe()
        assert first.status == WorkflowExecutionStatus.CONTINUED_AS_NEW
        last = await handle.describe()
        assert last.status == WorkflowExecutionStatus.COMPLETED
        assert await last.memo() == {"run": state.runs}

        history = await events(world.client, started.id)
        begin = history[0].workflow_execution_started_event_attributes
        assert begin.first_execution_run_id == started.first_execution_run_id
        assert begin.continued_execution_run_id not in ("", last.run_id)
        assert begin.original_execution_run_id == last.run_id


@workflow.defn
class Timers:
    @workflow.run
    async def run(self) -> list[str]:
        told: list[str] = []

        async def wait(seconds: float) -> None:
            await workflow.sleep(seconds)
            told.append(str(seconds))

        tasks = [asyncio.create_task(wait(s)) for s in (0.4, 0.1, 0.2, 3600)]
        await asyncio.gather(*tasks[:3])
        tasks[3].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        begin = workflow.now()
        await workflow.sleep(0.3)
        assert workflow.now() - begin >= timedelta(seconds=0.3)
        return told


async def test_timers_fire_in_order_and_can_be_cancelled(world: World) -> None:
    async with world.worker(Timers) as queue:
        handle = await world.client.start_workflow(Timers.run, id=name("timers"), task_queue=queue)
        assert await handle.result() == ["0.1", "0.2", "0.4"]
        history = types(await events(world.client, handle.id))
        assert history.count("TimerStarted") == 5
        assert history.count("TimerFired") == 4
        assert history.count("TimerCanceled") == 1


@workflow.defn
class Collector:
    """Takes signals until it was told to stop."""

    def __init__(self) -> None:
        self.got: list[int] = []
        self.stop = False

    @workflow.run
    async def run(self) -> list[int]:
        await workflow.wait_condition(lambda: self.stop)
        return self.got

    @workflow.signal
    def add(self, i: int) -> None:
        self.got.append(i)

    @workflow.signal
    def finish(self) -> None:
        self.stop = True

    @workflow.query
    def so_far(self) -> list[int]:
        return self.got


async def test_signals_keep_their_order(world: World) -> None:
    async with world.worker(Collector) as queue:
        handle = await world.client.start_workflow(Collector.run, id=name("collector"), task_queue=queue)
        for i in range(100):
            await handle.signal(Collector.add, i)
        assert await handle.query(Collector.so_far) == list(range(100))
        await handle.signal(Collector.finish)
        assert await handle.result() == list(range(100))


async def test_signals_at_once_all_arrive(world: World) -> None:
    async with world.worker(Collector, max_cached_workflows=0) as queue:
        handle = await world.client.start_workflow(Collector.run, id=name("collector"), task_queue=queue)
        await asyncio.gather(*(handle.signal(Collector.add, i) for i in range(100)))
        await handle.signal(Collector.finish)
        assert sorted(await handle.result()) == list(range(100))


async def test_signal_with_start(world: World) -> None:
    async with world.worker(Collector) as queue:
        workflow_id = name("collector")
        for i in range(3):
            handle = await world.client.start_workflow(
                Collector.run, id=workflow_id, task_queue=queue, start_signal="add", start_signal_args=[i]
            )
        await handle.signal(Collector.finish)
        assert await handle.result() == [0, 1, 2]
        history = types(await events(world.client, workflow_id))
        assert history[:2] == ["WorkflowExecutionStarted", "WorkflowExecutionSignaled"]

        again = await world.client.start_workflow(
            Collector.run, id=workflow_id, task_queue=queue, start_signal="finish"
        )
        assert again.result_run_id != handle.result_run_id
        assert await again.result() == []
