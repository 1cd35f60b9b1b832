"""A fan-out: many children, some of which fail, are cancelled, or outlive their parent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from temporalio import workflow
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError
from temporalio.common import WorkflowIDReusePolicy
from temporalio.exceptions import (
    ApplicationError,
    CancelledError,
    ChildWorkflowError,
    TerminatedError,
    WorkflowAlreadyStartedError,
)
from temporalio.service import RPCError, RPCStatusCode
from temporalio.workflow import ChildWorkflowCancellationType, ParentClosePolicy

from sdk.world import SANDBOX, World, events, name, types


@workflow.defn
class Square:
    @workflow.run
    async def run(self, n: int) -> int:
        await workflow.sleep(0.05 * (n % 3))
        if n == 13:
            raise ApplicationError("thirteen", type="Unlucky")
        return n * n


@workflow.defn
class Waiting:
    """Until it is signalled or cancelled."""

    def __init__(self) -> None:
        self.told: list[str] = []

    @workflow.run
    async def run(self) -> str:
        await workflow.wait_condition(lambda: bool(self.told))
        return self.told[0]

    @workflow.signal
    def tell(self, what: str) -> None:
        self.told.append(what)


@workflow.defn
class FanOut:
    @workflow.run
    async def run(self, numbers: list[int]) -> list[int | str]:
        results: list[Any] = await asyncio.gather(
            *(workflow.execute_child_workflow(Square.run, n, id=f"{workflow.info().workflow_id}/{n}") for n in numbers),
            return_exceptions=True,
        )
        return [self.show(r) for r in results]

    def show(self, result: int | BaseException) -> int | str:
        if isinstance(result, int):
            return result
        assert isinstance(result, ChildWorkflowError)
        assert isinstance(result.cause, ApplicationError)
        return f"{result.cause.type}: {result.cause.message}"


@pytest.mark.parametrize("cached", [1000, 0], ids=["sticky", "not-sticky"])
async def test_children_and_a_failing_one(world: World, cached: int) -> None:
    async with world.worker(FanOut, Square, max_cached_workflows=cached, workflow_runner=SANDBOX) as queue:
        numbers = [*range(10), 13]
        handle = await world.client.start_workflow(FanOut.run, numbers, id=name("fanout"), task_queue=queue)
        assert await handle.result() == [*(n * n for n in range(10)), "Unlucky: thirteen"]
        history = types(await events(world.client, handle.id))
        assert history.count("StartChildWorkflowExecutionInitiated") == 11
        assert history.count("ChildWorkflowExecutionStarted") == 11
        assert history.count("ChildWorkflowExecutionCompleted") == 10
        assert history.count("ChildWorkflowExecutionFailed") == 1
        child = await world.client.get_workflow_handle(f"{handle.id}/3").describe()
        assert child.parent_id == handle.id
        assert child.parent_run_id == handle.first_execution_run_id
        assert child.raw_description.workflow_execution_info.root_execution.workflow_id == handle.id


@workflow.defn
class Leaving:
    """Starts three children, each with its own policy, and ends."""

    @workflow.run
    async def run(self) -> None:
        for policy in (ParentClosePolicy.TERMINATE, ParentClosePolicy.ABANDON, ParentClosePolicy.REQUEST_CANCEL):
            await workflow.start_child_workflow(
                Waiting.run, id=f"{workflow.info().workflow_id}/{policy.name}", parent_close_policy=policy
            )


async def test_parent_close_policies(world: World) -> None:
    async with world.worker(Leaving, Waiting) as queue:
        handle = await world.client.start_workflow(Leaving.run, id=name("leaving"), task_queue=queue)
        await handle.result()
        left = {p: world.client.get_workflow_handle(f"{handle.id}/{p}") for p in ("TERMINATE", "ABANDON")}
        with pytest.raises(WorkflowFailureError) as ended:
            await left["TERMINATE"].result()
        assert isinstance(ended.value.cause, TerminatedError)
        with pytest.raises(WorkflowFailureError) as ended:
            await world.client.get_workflow_handle(f"{handle.id}/REQUEST_CANCEL").result()
        assert isinstance(ended.value.cause, CancelledError)
        assert (await left["ABANDON"].describe()).status == WorkflowExecutionStatus.RUNNING
        await left["ABANDON"].signal(Waiting.tell, "bye")
        assert await left["ABANDON"].result() == "bye"


@workflow.defn
class Cancelling:
    """Cancels a child by each of the ways there are."""

    @workflow.run
    async def run(self, kind: int) -> str:
        child = await workflow.start_child_workflow(
            Waiting.run,
            id=f"{workflow.info().workflow_id}/child",
            cancellation_type=ChildWorkflowCancellationType(kind),
            parent_close_policy=ParentClosePolicy.ABANDON,
        )
        child.cancel()
        try:
            await child
        except ChildWorkflowError as e:
            await workflow.sleep(0.3)  # what a closed workflow still wants to cancel, is not
            return type(e.cause).__name__
        return "not cancelled"


@pytest.mark.parametrize("kind", list(ChildWorkflowCancellationType), ids=lambda k: k.name)
async def test_child_cancellation_types(world: World, kind: ChildWorkflowCancellationType) -> None:
    async with world.worker(Cancelling, Waiting) as queue:
        handle = await world.client.start_workflow(Cancelling.run, kind, id=name("cancelling"), task_queue=queue)
        assert await handle.result() == "CancelledError"
        child = world.client.get_workflow_handle(f"{handle.id}/child")
        if kind == ChildWorkflowCancellationType.ABANDON:
            assert (await child.describe()).status == WorkflowExecutionStatus.RUNNING
            await child.terminate()
        else:
            history = types(await events(world.client, handle.id))
            assert "ExternalWorkflowExecutionCancelRequested" in history
            with pytest.raises(WorkflowFailureError) as ended:
                await child.result()
            assert isinstance(ended.value.cause, CancelledError)


@workflow.defn
class Patient:
    """Its child and it are cancelled together."""

    @workflow.run
    async def run(self) -> str:
        return await workflow.execute_child_workflow(Waiting.run, id=f"{workflow.info().workflow_id}/child")


async def test_cancel_reaches_the_child(world: World) -> None:
    async with world.worker(Patient, Waiting) as queue:
        handle = await world.client.start_workflow(Patient.run, id=name("patient"), task_queue=queue)
        child = world.client.get_workflow_handle(f"{handle.id}/child")
        await until_it_exists(world, child.id)
        await handle.cancel()
        for cancelled in (handle, child):
            with pytest.raises(WorkflowFailureError) as ended:
                await cancelled.result()
            assert isinstance(ended.value.cause, CancelledError)
        history = types(await events(world.client, handle.id))
        assert "ChildWorkflowExecutionCanceled" in history
        assert history[-1] == "WorkflowExecutionCanceled"


async def until_it_exists(world: World, workflow_id: str) -> None:
    for _ in range(200):
        try:
            await world.client.get_workflow_handle(workflow_id).describe()
            return
        except RPCError as e:
            assert e.status == RPCStatusCode.NOT_FOUND
        await asyncio.sleep(0.05)
    raise AssertionError(f"{workflow_id} did not start")


@workflow.defn
class Clashing:
    @workflow.run
    async def run(self, taken: str, policy: int) -> str:
        try:
            await workflow.start_child_workflow(Waiting.run, id=taken, id_reuse_policy=WorkflowIDReusePolicy(policy))
        except WorkflowAlreadyStartedError as e:
            return f"{e.workflow_type} {e.workflow_id} is taken"
        return "started"


async def test_child_whose_id_is_taken(world: World) -> None:
    async with world.worker(Clashing, Waiting) as queue:
        taken = await world.client.start_workflow(Waiting.run, id=name("taken"), task_queue=queue)
        clash = [taken.id, WorkflowIDReusePolicy.ALLOW_DUPLICATE.value]
        handle = await world.client.start_workflow(Clashing.run, args=clash, id=name("clashing"), task_queue=queue)
        assert await handle.result() == f"Waiting {taken.id} is taken"
        assert "StartChildWorkflowExecutionFailed" in types(await events(world.client, handle.id))
        await taken.signal(Waiting.tell, "done")
        assert await taken.result() == "done"
        clash[1] = WorkflowIDReusePolicy.REJECT_DUPLICATE.value
        handle = await world.client.start_workflow(Clashing.run, args=clash, id=name("clashing"), task_queue=queue)
        assert await handle.result() == f"Waiting {taken.id} is taken"


@workflow.defn
class Meddling:
    """Signals and cancels workflows that are not its children."""

    @workflow.run
    async def run(self, other: str, cancel: str) -> list[str]:
        told: list[str] = []
        await workflow.get_external_workflow_handle_for(Waiting.run, other).signal(Waiting.tell, "hello")
        await workflow.get_external_workflow_handle(cancel).cancel()
        try:
            await workflow.get_external_workflow_handle("nobody has this id").signal("tell", "x")
        except ApplicationError as e:
            told.append(e.message)
        try:
            await workflow.get_external_workflow_handle("nobody has this id").cancel()
        except ApplicationError as e:
            told.append(e.message)
        child = await workflow.start_child_workflow(Waiting.run)
        await child.signal(Waiting.tell, "child")
        told.append(await child)
        return told


async def test_external_signal_and_cancel(world: World) -> None:
    async with world.worker(Meddling, Waiting) as queue:
        signalled, cancelled = [
            await world.client.start_workflow(Waiting.run, id=name("waiting"), task_queue=queue) for _ in range(2)
        ]
        handle = await world.client.start_workflow(
            Meddling.run, args=[signalled.id, cancelled.id], id=name("meddling"), task_queue=queue
        )
        *not_found, child = await handle.result()
        assert child == "child"
        assert len(not_found) == 2
        assert all("not" in message.lower() and "found" in message.lower() for message in not_found)
        assert await signalled.result() == "hello"
        with pytest.raises(WorkflowFailureError):
            await cancelled.result()
        signal = next(
            e.workflow_execution_signaled_event_attributes
            for e in await events(world.client, signalled.id)
            if e.HasField("workflow_execution_signaled_event_attributes")
        )
        assert signal.external_workflow_execution.workflow_id == handle.id
