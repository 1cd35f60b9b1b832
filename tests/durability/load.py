"""Workflows with a bit of everything, whose clients note what was acknowledged; and the check, whatever went wrong
meanwhile, that nothing of it is lost or was done twice."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Protocol, TypeVar

from temporalio import activity, workflow
from temporalio.api.common.v1 import Payloads, WorkflowExecution
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import SignalWorkflowExecutionRequest
from temporalio.client import Client, WorkflowUpdateRPCTimeoutOrCancelledError
from temporalio.common import RetryPolicy
from temporalio.exceptions import CancelledError, ChildWorkflowError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from sdk.world import check_histories

ROUNDS = 2
SIGNALS = 3
UPDATES = 2
QUEUE = "durable"

T = TypeVar("T")

# A task whose hand-out was lost with the server's process is noticed by its timeout: short ones make a short test.
TASK_TIMEOUT = timedelta(seconds=2)
ACTIVITY_TIMEOUT = timedelta(seconds=2)
STICKY_TIMEOUT = timedelta(seconds=1)

LOST = {RPCStatusCode.UNAVAILABLE, RPCStatusCode.DEADLINE_EXCEEDED, RPCStatusCode.CANCELLED, RPCStatusCode.UNKNOWN}


@activity.defn
async def double(n: int) -> int:
    await asyncio.sleep(random.random() * 0.05)
    return 2 * n


@workflow.defn
class Child:
    """Waits for its parent's word; continues as new until its last run."""

    def __init__(self) -> None:
        self.told = False

    @workflow.run
    async def run(self, n: int, runs: int) -> int:
        await workflow.wait_condition(lambda: self.told or workflow.info().continued_run_id is not None)
        done = await act(n)
        if runs > 1:
            workflow.continue_as_new(args=[n, runs - 1])
        return done

    @workflow.signal
    def go(self) -> None:
        self.told = True


@workflow.defn
class Cancelled:
    @workflow.run
    async def run(self) -> None:
        await workflow.wait_condition(lambda: False)


@workflow.defn
class Durable:
    def __init__(self) -> None:
        self.signals: list[int] = []
        self.updates: list[int] = []

    @workflow.run
    async def run(self, n: int) -> list[int]:
        done: list[int] = []
        for i in range(ROUNDS):
            done.append(await act(n + i))
            await workflow.sleep(timedelta(seconds=workflow.random().random() * 0.5))
            child = await workflow.start_child_workflow(
                Child.run,
                args=[n - i, 2 if i == 0 else 1],
                id=f"{workflow.info().workflow_id}/{i}",
                task_timeout=TASK_TIMEOUT,
            )
            await child.signal(Child.go)
            done.append(await child)
        await self.cancel_a_child()
        done += await asyncio.gather(*(act(n * i) for i in range(3)))
        await workflow.wait_condition(
            lambda: (
                len(set(self.signals)) == SIGNALS and len(self.updates) == UPDATES and workflow.all_handlers_finished()
            )
        )
        return done

    async def cancel_a_child(self) -> None:
        child = await workflow.start_child_workflow(
            Cancelled.run, id=f"{workflow.info().workflow_id}/cancelled", task_timeout=TASK_TIMEOUT
        )
        child.cancel()
        try:
            await child
        except ChildWorkflowError as e:
            assert isinstance(e.cause, CancelledError)

    @workflow.signal
    def tell(self, i: int) -> None:
        self.signals.append(i)

    @workflow.update
    async def change(self, i: int) -> int:
        changed = await act(i)
        self.updates.append(i)
        return changed


WORKFLOWS = [Durable, Child, Cancelled]


async def act(n: int) -> int:
    return await workflow.execute_activity(
        double,
        n,
        start_to_close_timeout=ACTIVITY_TIMEOUT,
        retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=100)),
    )


def expected(n: int) -> list[int]:
    done: list[int] = []
    for i in range(ROUNDS):
        done += [2 * (n + i), 2 * (n - i)]
    return done + [2 * n * i for i in range(3)]


@dataclass
class Acknowledged:
    """What the server answered OK. starts: workflow id to run id; signals and updates: by workflow id."""

    starts: dict[str, str] = field(default_factory=dict)
    signals: dict[str, set[int]] = field(default_factory=dict)
    updates: dict[str, set[str]] = field(default_factory=dict)


class Ask(Protocol):
    """How clients ask: what they do when there is no answer."""

    async def __call__(self, call: Callable[[], Awaitable[T]]) -> T: ...


async def once(call: Callable[[], Awaitable[T]]) -> T:
    """What the SDK does is enough."""
    return await call()


async def insisting(call: Callable[[], Awaitable[T]]) -> T:
    """Asks until there is an answer: while no server runs there is none."""
    while True:
        try:
            return await call()
        except RPCError as e:
            if e.status not in LOST:
                raise
        except WorkflowUpdateRPCTimeoutOrCancelledError:
            pass
        await asyncio.sleep(0.1)


async def one(client: Client, n: int, seed: int, spread: float, acknowledged: Acknowledged, ask: Ask) -> None:
    """Within `spread` seconds starts a workflow, signals and updates it, and waits for its result."""
    randomly = random.Random(f"{seed}/{n}")
    workflow_id = f"durable-{n}"
    await asyncio.sleep(randomly.random() * spread)
    request_id = f"start-{n}"
    handle = await ask(
        lambda: client.start_workflow(
            Durable.run, n, id=workflow_id, task_queue=QUEUE, task_timeout=TASK_TIMEOUT, request_id=request_id
        )
    )
    acknowledged.starts[workflow_id] = handle.result_run_id or ""
    acknowledged.signals[workflow_id] = set()
    acknowledged.updates[workflow_id] = set()

    async def signal(i: int) -> None:
        await asyncio.sleep(randomly.random() * 4)
        request = SignalWorkflowExecutionRequest(
            namespace=client.namespace,
            workflow_execution=WorkflowExecution(workflow_id=workflow_id),
            signal_name="tell",
            request_id=f"signal-{n}-{i}",
            input=Payloads(payloads=await client.data_converter.encode([i])),
        )
        await ask(lambda: client.workflow_service.signal_workflow_execution(request, retry=True))
        acknowledged.signals[workflow_id].add(i)

    async def update(i: int) -> None:
        await asyncio.sleep(randomly.random() * 4)
        assert await ask(lambda: handle.execute_update(Durable.change, i, id=f"update-{i}")) == 2 * i
        acknowledged.updates[workflow_id].add(f"update-{i}")

    await asyncio.gather(*(signal(i) for i in range(SIGNALS)), *(update(i) for i in range(UPDATES)))
    assert await ask(handle.result) == expected(n)


async def run(
    client: Client | Sequence[Client],
    workflows: int,
    seed: int,
    spread: float,
    seconds: float,
    meanwhile: Awaitable[None],
    ask: Ask = insisting,
) -> None:
    """Starts them within `spread` seconds; all, and what happens `meanwhile`, must come to an end within `seconds`.
    client: if there are several, each has a worker, and its share of the workflows."""
    acknowledged = Acknowledged()
    clients = [client] if isinstance(client, Client) else client

    async def happens() -> None:
        await meanwhile

    async with AsyncExitStack() as workers:
        for client in clients:
            await workers.enter_async_context(
                Worker(
                    client,
                    task_queue=QUEUE,
                    workflows=WORKFLOWS,
                    activities=[double],
                    workflow_runner=UnsandboxedWorkflowRunner(),
                    sticky_queue_schedule_to_start_timeout=STICKY_TIMEOUT,
                )
            )
        async with asyncio.timeout(seconds), asyncio.TaskGroup() as tasks:
            tasks.create_task(happens())
            for n in range(workflows):
                tasks.create_task(one(clients[n % len(clients)], n, seed, spread, acknowledged, ask))
        await check(clients[0], acknowledged, workflows)


async def check(client: Client, acknowledged: Acknowledged, workflows: int) -> None:
    assert len(acknowledged.starts) == workflows
    histories = await check_histories(client, set(acknowledged.starts.items()), WORKFLOWS)
    assert len(histories) == workflows * (1 + ROUNDS + 1 + 1)  # children, a second run of one, a cancelled one
    for workflow_id, run_id in acknowledged.starts.items():
        history = histories[workflow_id, run_id]
        assert sorted(int(s) for s in signals(history)) == sorted(acknowledged.signals[workflow_id])  # each once
        updates = [
            e.workflow_execution_update_accepted_event_attributes.accepted_request.meta.update_id
            for e in history
            if e.HasField("workflow_execution_update_accepted_event_attributes")
        ]
        assert sorted(updates) == sorted(acknowledged.updates[workflow_id])  # each once
    for history in histories.values():
        check_activities(history)


def signals(history: list[HistoryEvent]) -> Iterator[bytes]:
    for event in history:
        if event.HasField("workflow_execution_signaled_event_attributes"):
            yield event.workflow_execution_signaled_event_attributes.input.payloads[0].data


def check_activities(history: list[HistoryEvent]) -> None:
    """Each was scheduled, and completed once with what its input says."""
    inputs: dict[int, int] = {}
    completed: list[int] = []
    for event in history:
        if event.HasField("activity_task_scheduled_event_attributes"):
            inputs[event.event_id] = int(event.activity_task_scheduled_event_attributes.input.payloads[0].data)
        elif event.HasField("activity_task_completed_event_attributes"):
            attributes = event.activity_task_completed_event_attributes
            assert int(attributes.result.payloads[0].data) == 2 * inputs[attributes.scheduled_event_id]
            completed.append(attributes.scheduled_event_id)
    assert sorted(completed) == sorted(inputs)
