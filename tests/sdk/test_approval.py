"""An approval: decided by updates, which are validated, accepted and answered; or by nobody, in time."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

import pytest
from temporalio import activity, workflow
from temporalio.client import (
    WithStartWorkflowOperation,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateStage,
)
from temporalio.common import QueryRejectCondition, WorkflowIDConflictPolicy
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from sdk.world import SANDBOX, SOON, World, events, name, types


@dataclass
class Vote:
    who: str
    yes: bool


@activity.defn
async def write_down(who: str) -> str:
    return f"{who} is written down"


@workflow.defn
class Approval:
    def __init__(self) -> None:
        self.votes: dict[str, bool] = {}

    @workflow.run
    async def run(self, needed: int, seconds: float) -> str:
        try:
            await workflow.wait_condition(
                lambda: sum(self.votes.values()) >= needed, timeout=timedelta(seconds=seconds)
            )
        except TimeoutError:
            return f"expired with {sorted(self.votes)}"
        await workflow.wait_condition(workflow.all_handlers_finished)
        return f"approved by {sorted(self.votes)}"

    @workflow.update
    async def vote(self, vote: Vote) -> str:
        written = await workflow.execute_activity(write_down, vote.who, start_to_close_timeout=SOON)
        self.votes[vote.who] = vote.yes
        return written

    @vote.validator
    def check_vote(self, vote: Vote) -> None:
        if vote.who in self.votes:
            raise ApplicationError(f"{vote.who} has voted", type="Twice")

    @workflow.update
    async def fail(self) -> None:
        raise ApplicationError("no luck", type="Luck")

    @workflow.update
    def count(self) -> int:
        return len(self.votes)

    @workflow.query
    def tally(self) -> dict[str, bool]:
        return self.votes

    @workflow.query
    def broken(self) -> None:
        raise ValueError("the query broke")


def application(error: WorkflowUpdateFailedError) -> tuple[str, str | None]:
    assert isinstance(error.cause, ApplicationError)
    return error.cause.message, error.cause.type


@pytest.mark.parametrize("cached", [1000, 0], ids=["sticky", "not-sticky"])
async def test_approval(world: World, cached: int) -> None:
    async with world.worker(
        Approval, activities=[write_down], max_cached_workflows=cached, workflow_runner=SANDBOX
    ) as queue:
        handle = await world.client.start_workflow(Approval.run, args=[2, 60], id=name("approval"), task_queue=queue)
        assert await handle.query(Approval.tally) == {}
        assert await handle.execute_update(Approval.vote, Vote("ann", True)) == "ann is written down"
        with pytest.raises(WorkflowUpdateFailedError) as rejected:
            await handle.execute_update(Approval.vote, Vote("ann", False))
        assert application(rejected.value) == ("ann has voted", "Twice")
        with pytest.raises(WorkflowUpdateFailedError) as failed:
            await handle.execute_update(Approval.fail)
        assert application(failed.value) == ("no luck", "Luck")
        assert await handle.query(Approval.tally) == {"ann": True}
        assert await handle.execute_update(Approval.count) == 1

        update = await handle.start_update(
            Approval.vote, Vote("bob", True), wait_for_stage=WorkflowUpdateStage.ACCEPTED, id="bobs vote"
        )
        assert await update.result() == "bob is written down"
        assert await handle.result() == "approved by ['ann', 'bob']"

        # Who comes late is told by id what became of it.
        assert await handle.get_update_handle("bobs vote", result_type=str).result() == "bob is written down"
        with pytest.raises(RPCError) as gone:
            await handle.execute_update(Approval.vote, Vote("eve", True))
        assert gone.value.status == RPCStatusCode.NOT_FOUND

        history = types(await events(world.client, handle.id))
        assert history.count("WorkflowExecutionUpdateAccepted") == 4
        assert history.count("WorkflowExecutionUpdateCompleted") == 4


async def test_approval_that_nobody_gives(world: World) -> None:
    async with world.worker(Approval, activities=[write_down]) as queue:
        handle = await world.client.start_workflow(Approval.run, args=[2, 0.5], id=name("approval"), task_queue=queue)
        await handle.execute_update(Approval.vote, Vote("ann", True))
        assert await handle.result() == "expired with ['ann']"


async def test_a_repeated_update_is_the_same_one(world: World) -> None:
    async with world.worker(Approval, activities=[write_down]) as queue:
        handle = await world.client.start_workflow(Approval.run, args=[2, 60], id=name("approval"), task_queue=queue)
        told = await asyncio.gather(
            *(handle.execute_update(Approval.vote, Vote("ann", True), id="once") for _ in range(5))
        )
        assert told == ["ann is written down"] * 5
        assert await handle.execute_update(Approval.vote, Vote("eve", True), id="once") == "ann is written down"
        await handle.execute_update(Approval.vote, Vote("bob", True))
        assert await handle.result() == "approved by ['ann', 'bob']"


async def test_many_updates_at_once(world: World) -> None:
    async with world.worker(Approval, activities=[write_down]) as queue:
        handle = await world.client.start_workflow(Approval.run, args=[8, 60], id=name("approval"), task_queue=queue)
        await asyncio.gather(*(handle.execute_update(Approval.vote, Vote(f"v{i}", True)) for i in range(8)))
        assert await handle.result() == f"approved by {[f'v{i}' for i in range(8)]}"


async def test_rejected_updates_leave_no_trace(world: World) -> None:
    async with world.worker(Approval, activities=[write_down]) as queue:
        handle = await world.client.start_workflow(Approval.run, args=[1, 60], id=name("approval"), task_queue=queue)
        await handle.execute_update(Approval.vote, Vote("ann", False))
        before = len(await events(world.client, handle.id))
        for _ in range(3):
            with pytest.raises(WorkflowUpdateFailedError):
                await handle.execute_update(Approval.vote, Vote("ann", True))
        assert len(await events(world.client, handle.id)) == before
        await handle.execute_update(Approval.vote, Vote("bob", True))
        assert await handle.result() == "approved by ['ann', 'bob']"


async def test_update_with_start(world: World) -> None:
    async with world.worker(Approval, activities=[write_down]) as queue:
        workflow_id = name("approval")

        async def vote(who: str) -> str:
            start = WithStartWorkflowOperation(
                Approval.run,
                args=[2, 60],
                id=workflow_id,
                task_queue=queue,
                id_conflict_policy=WorkflowIDConflictPolicy.USE_EXISTING,
            )
            told = await world.client.execute_update_with_start_workflow(
                Approval.vote, Vote(who, True), start_workflow_operation=start
            )
            assert (await start.workflow_handle()).id == workflow_id
            return told

        assert await vote("ann") == "ann is written down"
        assert await vote("bob") == "bob is written down"
        handle = world.client.get_workflow_handle(workflow_id)
        assert await handle.result() == "approved by ['ann', 'bob']"


async def test_update_waits_for_a_worker(world: World) -> None:
    queue = name("tq")
    handle = await world.client.start_workflow(Approval.run, args=[1, 60], id=name("approval"), task_queue=queue)
    vote = asyncio.create_task(handle.execute_update(Approval.vote, Vote("ann", True)))
    await asyncio.sleep(0.3)
    assert not vote.done()
    async with world.worker(Approval, activities=[write_down], task_queue=queue):
        assert await vote == "ann is written down"
        assert await handle.result() == "approved by ['ann']"


async def test_queries_that_fail(world: World) -> None:
    async with world.worker(Approval, activities=[write_down]) as queue:
        handle = await world.client.start_workflow(Approval.run, args=[1, 0.2], id=name("approval"), task_queue=queue)
        with pytest.raises(WorkflowQueryFailedError, match="the query broke"):
            await handle.query(Approval.broken)
        with pytest.raises(WorkflowQueryFailedError, match="nothing_of_that_name"):
            await handle.query("nothing_of_that_name")
        assert await handle.result() == "expired with []"
        assert await handle.query(Approval.tally) == {}
        with pytest.raises(WorkflowQueryRejectedError):
            await handle.query(Approval.tally, reject_condition=QueryRejectCondition.NOT_OPEN)
        with pytest.raises(RPCError) as unknown:
            await world.client.get_workflow_handle("nobody has this id").query("tally")
        assert unknown.value.status == RPCStatusCode.NOT_FOUND
