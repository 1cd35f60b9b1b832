"""How workflows come to be: by which id, how often, when, and until when."""

from __future__ import annotations

import asyncio
import time
from datetime import timedelta
from typing import Any

import pytest
from temporalio import activity, workflow
from temporalio.api.common.v1 import WorkflowType
from temporalio.api.enums.v1 import WorkflowIdConflictPolicy as RawConflictPolicy
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import StartWorkflowExecutionRequest
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError
from temporalio.common import RetryPolicy, WorkflowIDConflictPolicy, WorkflowIDReusePolicy
from temporalio.exceptions import (
    ApplicationError,
    RetryState,
    TerminatedError,
    TimeoutError,
    WorkflowAlreadyStartedError,
)

from sdk.world import SOON, World, events, name, types


@workflow.defn
class Once:
    """Ends as it is told."""

    @workflow.run
    async def run(self, end: str) -> str:
        if end == "fail":
            raise ApplicationError("told to fail", non_retryable=True)
        if end == "wait":
            await workflow.wait_condition(lambda: False)
        return end


async def ended(world: World, queue: str, end: str) -> str:
    """The id of a workflow that ended so."""
    handle = await world.client.start_workflow(Once.run, end, id=name("once"), task_queue=queue)
    if end == "fail":
        with pytest.raises(WorkflowFailureError):
            await handle.result()
    else:
        await handle.result()
    return handle.id


@pytest.mark.parametrize(
    ("policy", "after_completed", "after_failed"),
    [
        (WorkflowIDReusePolicy.ALLOW_DUPLICATE, True, True),
        (WorkflowIDReusePolicy.ALLOW_DUPLICATE_FAILED_ONLY, False, True),
        (WorkflowIDReusePolicy.REJECT_DUPLICATE, False, False),
    ],
    ids=lambda v: getattr(v, "name", str(v)),
)
async def test_id_reuse(world: World, policy: WorkflowIDReusePolicy, after_completed: bool, after_failed: bool) -> None:
    async with world.worker(Once) as queue:
        for end, allowed in (("done", after_completed), ("fail", after_failed)):
            workflow_id = await ended(world, queue, end)
            start = world.client.start_workflow(
                Once.run, "again", id=workflow_id, task_queue=queue, id_reuse_policy=policy
            )
            if allowed:
                assert await (await start).result() == "again"
            else:
                with pytest.raises(WorkflowAlreadyStartedError):
                    await start


async def test_id_conflict(world: World) -> None:
    async with world.worker(Once) as queue:
        workflow_id = name("once")

        async def start(policy: WorkflowIDConflictPolicy) -> Any:
            return await world.client.start_workflow(
                Once.run, "wait", id=workflow_id, task_queue=queue, id_conflict_policy=policy
            )

        first = await start(WorkflowIDConflictPolicy.UNSPECIFIED)
        with pytest.raises(WorkflowAlreadyStartedError) as taken:
            await start(WorkflowIDConflictPolicy.FAIL)
        assert taken.value.run_id == first.result_run_id
        same = await start(WorkflowIDConflictPolicy.USE_EXISTING)
        assert same.result_run_id == first.result_run_id
        other = await start(WorkflowIDConflictPolicy.TERMINATE_EXISTING)
        assert other.result_run_id != first.result_run_id
        with pytest.raises(WorkflowFailureError) as terminated:
            await first.result()
        assert isinstance(terminated.value.cause, TerminatedError)
        await other.terminate()


async def test_a_start_that_is_repeated_is_one(world: World) -> None:
    async with world.worker(Once) as queue:
        request = StartWorkflowExecutionRequest(
            namespace="default",
            workflow_id=name("once"),
            workflow_type=WorkflowType(name="Once"),
            task_queue=TaskQueue(name=queue),
            request_id=name("request"),
            workflow_id_conflict_policy=RawConflictPolicy.WORKFLOW_ID_CONFLICT_POLICY_FAIL,
        )
        request.input.payloads.add(metadata={"encoding": b"json/plain"}, data=b'"wait"')
        first = await world.client.workflow_service.start_workflow_execution(request)
        second = await world.client.workflow_service.start_workflow_execution(request)
        assert first.run_id == second.run_id
        world.recorder.started.add((request.workflow_id, first.run_id))
        await world.client.get_workflow_handle(request.workflow_id).terminate()


@workflow.defn
class ThirdTimeLucky:
    @workflow.run
    async def run(self) -> list[Any]:
        info = workflow.info()
        if info.attempt < 3:
            raise ApplicationError(f"attempt {info.attempt}", type="Unlucky")
        last = workflow.get_last_failure()
        return [info.attempt, str(last)]


async def test_workflow_retry_policy(world: World) -> None:
    async with world.worker(ThirdTimeLucky) as queue:
        retry = RetryPolicy(initial_interval=timedelta(milliseconds=100), backoff_coefficient=2)
        handle = await world.client.start_workflow(
            ThirdTimeLucky.run, id=name("lucky"), task_queue=queue, retry_policy=retry
        )
        assert await handle.result() == [3, "Unlucky: attempt 2"]
        first = (await events(world.client, handle.id, handle.result_run_id or ""))[-1]
        failed = first.workflow_execution_failed_event_attributes
        assert failed.retry_state == RetryState.IN_PROGRESS
        assert failed.new_execution_run_id

        given_up = await world.client.start_workflow(
            ThirdTimeLucky.run,
            id=name("lucky"),
            task_queue=queue,
            retry_policy=RetryPolicy(initial_interval=timedelta(milliseconds=50), maximum_attempts=2),
        )
        with pytest.raises(WorkflowFailureError) as unlucky:
            await given_up.result()
        assert str(unlucky.value.cause) == "Unlucky: attempt 2"


@workflow.defn
class Counting:
    @workflow.run
    async def run(self) -> int:
        last: int | None = workflow.get_last_completion_result(int)
        return (last or 0) + 1


async def test_cron(world: World) -> None:
    async with world.worker(Counting) as queue:
        handle = await world.client.start_workflow(
            Counting.run, id=name("cron"), task_queue=queue, cron_schedule="@every 1s"
        )
        run_id = handle.result_run_id or ""
        for turn in range(1, 4):
            await world.client.get_workflow_handle(handle.id, run_id=run_id).result(follow_runs=False)
            history = await events(world.client, handle.id, run_id)
            completed = history[-1].workflow_execution_completed_event_attributes
            assert completed.result.payloads[0].data == str(turn).encode()
            run_id = completed.new_execution_run_id
        await world.client.get_workflow_handle(handle.id).terminate()


async def test_start_delay(world: World) -> None:
    async with world.worker(Once) as queue:
        begin = time.monotonic()
        handle = await world.client.start_workflow(
            Once.run, "late", id=name("once"), task_queue=queue, start_delay=timedelta(seconds=0.8)
        )
        assert await handle.result() == "late"
        assert time.monotonic() - begin >= 0.8


@pytest.mark.parametrize("kind", ["run_timeout", "execution_timeout"])
async def test_timeouts_of_workflows(world: World, kind: str) -> None:
    async with world.worker(Once) as queue:
        handle = await world.client.start_workflow(
            Once.run, "wait", id=name("once"), task_queue=queue, **{kind: timedelta(seconds=1)}
        )
        with pytest.raises(WorkflowFailureError) as failed:
            await handle.result()
        assert isinstance(failed.value.cause, TimeoutError)
        assert (await handle.describe()).status == WorkflowExecutionStatus.TIMED_OUT


async def test_eager_start(world: World) -> None:
    """The worker of the same process takes the first task from the answer of the start."""
    async with world.worker(Once) as queue:
        handle = await world.client.start_workflow(
            Once.run, "at once", id=name("once"), task_queue=queue, request_eager_start=True
        )
        assert await handle.result() == "at once"
        history = await events(world.client, handle.id)
        assert history[0].workflow_execution_started_event_attributes.eager_execution_accepted
        assert types(history)[:3] == ["WorkflowExecutionStarted", "WorkflowTaskScheduled", "WorkflowTaskStarted"]


@activity.defn
async def one() -> int:
    return 1


@workflow.defn
class Long:
    """Continues as new when the server suggests it, or its argument says so."""

    @workflow.run
    async def run(self, total: int, runs: int) -> int:
        for _ in range(5):
            total += await workflow.execute_activity(one, start_to_close_timeout=SOON)
        if runs > 1:
            workflow.continue_as_new(args=[total, runs - 1])
        return total


@pytest.mark.parametrize("cached", [1000, 0], ids=["sticky", "not-sticky"])
async def test_continue_as_new_many_times(world: World, cached: int) -> None:
    async with world.worker(Long, activities=[one], max_cached_workflows=cached) as queue:
        handle = await world.client.start_workflow(Long.run, args=[0, 4], id=name("long"), task_queue=queue)
        assert await handle.result() == 20


async def test_many_workflows_at_once(world: World) -> None:
    async with world.worker(Long, activities=[one], max_cached_workflows=20) as queue:
        results = await asyncio.gather(
            *(
                world.client.execute_workflow(Long.run, args=[i, 2], id=name("long"), task_queue=queue)
                for i in range(60)
            )
        )
        assert results == [i + 10 for i in range(60)]


class Bug(Exception):
    pass


broken = True


@workflow.defn
class Buggy:
    @workflow.run
    async def run(self) -> str:
        if broken:
            raise Bug("a fault of the code is no failure of the workflow")
        return "fixed"


async def test_a_failed_workflow_task_is_tried_again(world: World) -> None:
    global broken
    broken = True
    async with world.worker(Buggy) as queue:
        handle = await world.client.start_workflow(
            Buggy.run, id=name("buggy"), task_queue=queue, task_timeout=timedelta(seconds=1)
        )
        while "WorkflowTaskFailed" not in types(await events(world.client, handle.id)):  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await asyncio.sleep(1.5)  # for another attempt, which leaves no events
        broken = False
        assert await handle.result() == "fixed"
        history = types(await events(world.client, handle.id))
        assert history.count("WorkflowTaskFailed") == 1
        assert history.count("WorkflowTaskStarted") == 2
