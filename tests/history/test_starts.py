"""Starting runs: what the id policies say, the same request once more, eager starts, signals that start."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from temporalio.api.errordetails.v1 import WorkflowExecutionAlreadyStartedFailure
from temporalio.api.workflowservice.v1 import (
    SignalWithStartWorkflowExecutionRequest,
    SignalWithStartWorkflowExecutionResponse,
    SignalWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest,
)
from tests.history.live import QUEUE, complete_workflow, start_request
from tests.history.service import Service, service
from tests.history.support import fail_workflow, payloads, type_name

from perdure.errors import Code, ServiceError

RUNNING, COMPLETED = 1, 2
USE_EXISTING = "WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING"
TERMINATE_EXISTING = "WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING"


async def refused(world: Service, **fields: Any) -> tuple[str, WorkflowExecutionAlreadyStartedFailure]:
    """The message and the typed detail of a start that is refused since the id is taken."""
    with pytest.raises(ServiceError) as caught:
        await world.start(**fields)
    assert caught.value.code == Code.ALREADY_EXISTS
    detail = caught.value.detail
    assert isinstance(detail, WorkflowExecutionAlreadyStartedFailure)
    return caught.value.message, detail


async def signal_with_start(world: Service, **fields: Any) -> SignalWithStartWorkflowExecutionResponse:
    request = SignalWithStartWorkflowExecutionRequest(
        **{
            "namespace": "default",
            "workflow_id": "workflow",
            "workflow_type": {"name": "Type"},
            "task_queue": {"name": QUEUE},
            "signal_name": "signal",
            **fields,
        }
    )
    return await world.history.signal_with_start_workflow_execution(world.namespace_id, request)


async def closed(world: Service, *, successfully: bool = True) -> str:
    run_id = (await world.start()).run_id
    await world.complete(await world.poll(), complete_workflow() if successfully else fail_workflow())
    return run_id


# --- the id is taken by a running run ---


async def test_a_second_start_of_a_running_workflow_is_refused() -> None:
    async with service() as world:
        first = await world.start(request_id="first")
        assert (first.started, first.status) == (True, RUNNING)
        message, detail = await refused(world)
        assert message == f"Workflow execution is already running. WorkflowId: workflow, RunId: {first.run_id}."
        assert (detail.start_request_id, detail.run_id) == ("first", first.run_id)


async def test_the_same_request_once_more_has_the_same_answer_even_after_the_end() -> None:
    async with service() as world:
        first = await world.start(request_id="first")
        again = await world.start(request_id="first")
        assert (again.run_id, again.started) == (first.run_id, True)
        await world.complete(await world.poll(), complete_workflow())
        again = await world.start(
            request_id="first", workflow_id_reuse_policy="WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE"
        )
        assert (again.run_id, again.started, again.status) == (first.run_id, True, COMPLETED)


async def test_use_existing_finds_the_running_run() -> None:
    async with service() as world:
        first = await world.start()
        found = await world.start(workflow_id_conflict_policy=USE_EXISTING)
        assert (found.run_id, found.started, found.status) == (first.run_id, False, RUNNING)
        assert await world.types() == ["WorkflowExecutionStarted", "WorkflowTaskScheduled"]


async def test_what_a_start_attaches_to_the_running_run() -> None:
    async with service() as world:
        first = await world.start()
        attach: dict[str, Any] = {
            "request_id": "second",
            "workflow_id_conflict_policy": USE_EXISTING,
            "on_conflict_options": {"attach_request_id": True, "attach_completion_callbacks": True},
            "completion_callbacks": [{"nexus": {"url": "http://localhost/called"}}],
        }
        found = await world.start(**attach)
        assert (found.run_id, found.started) == (first.run_id, False)
        assert found.link.workflow_event.request_id_ref.request_id == "second"
        again = await world.start(**attach)
        assert again.run_id == first.run_id
        updated = [e for e in await world.events() if type_name(e) == "WorkflowExecutionOptionsUpdated"]
        assert len(updated) == 1
        attributes = updated[0].workflow_execution_options_updated_event_attributes
        assert attributes.attached_request_id == "second"
        assert attributes.attached_completion_callbacks[0].nexus.url == "http://localhost/called"
        # Its own request, sent again, is that of this run too; also when it came while a workflow task was started.
        await world.poll()
        await world.start(**{**attach, "request_id": "third"})
        await world.start(**{**attach, "request_id": "third"})
        assert (await world.state(first.run_id)).run.buffered_count == 1


@pytest.mark.parametrize(
    "policy",
    [
        {"workflow_id_conflict_policy": TERMINATE_EXISTING},
        {"workflow_id_reuse_policy": "WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING", "workflow_id_conflict_policy": 0},
    ],
    ids=["conflict policy", "reuse policy"],
)
async def test_terminate_existing_replaces_the_running_run(policy: dict[str, Any]) -> None:
    async with service() as world:
        first = await world.start()
        second = await world.start(**policy)
        assert second.started
        assert second.run_id != first.run_id
        assert (await world.types(first.run_id))[-1] == "WorkflowExecutionTerminated"
        assert await world.types() == ["WorkflowExecutionStarted", "WorkflowTaskScheduled"]
        assert (await world.state(second.run_id)).open


async def test_of_many_starts_at_once_one_begins_a_run() -> None:
    async with service() as world:
        outcomes = await asyncio.gather(*(world.start() for _ in range(20)), return_exceptions=True)
        assert sum(not isinstance(o, BaseException) for o in outcomes) == 1
        world.matching.workflow_tasks.get_nowait()
        assert world.matching.workflow_tasks.empty()


async def test_of_many_replacing_starts_the_last_one_is_open() -> None:
    async with service() as world:
        starts = await asyncio.gather(*(world.start(workflow_id_conflict_policy=TERMINATE_EXISTING) for _ in range(8)))
        states = [await world.state(s.run_id) for s in starts]
        assert sum(s.open for s in states) == 1


# --- the id was that of a closed run ---


@pytest.mark.parametrize(
    ("policy", "after_success", "after_failure"),
    [
        ("ALLOW_DUPLICATE", True, True),
        ("ALLOW_DUPLICATE_FAILED_ONLY", False, True),
        ("REJECT_DUPLICATE", False, False),
    ],
)
@pytest.mark.parametrize("successfully", [True, False])
async def test_reuse_of_an_id(policy: str, after_success: bool, after_failure: bool, successfully: bool) -> None:
    async with service() as world:
        first = await closed(world, successfully=successfully)
        fields = {"workflow_id_reuse_policy": f"WORKFLOW_ID_REUSE_POLICY_{policy}"}
        if after_success if successfully else after_failure:
            assert (await world.start(**fields)).run_id != first
        else:
            message, detail = await refused(world, **fields)
            assert message.startswith("Workflow execution already finished")
            assert detail.run_id == first


async def test_conflict_policies_do_not_matter_for_a_closed_run() -> None:
    async with service() as world:
        first = await closed(world)
        assert (await world.start(workflow_id_conflict_policy=USE_EXISTING)).run_id != first


# --- what a start lays down ---


async def test_what_the_first_event_says() -> None:
    async with service() as world:
        await world.start(
            identity="starter",
            input=payloads("input"),
            workflow_execution_timeout={"seconds": 100},
            workflow_run_timeout={"seconds": 200},
            workflow_task_timeout={"seconds": 300},
            memo={"fields": {"k": payloads("v").payloads[0]}},
        )
        started = (await world.events())[0].workflow_execution_started_event_attributes
        assert started.input == payloads("input")
        assert (started.identity, started.attempt, started.workflow_id) == ("starter", 1, "workflow")
        # A run lasts no longer than its execution, and a workflow task no longer than its run.
        assert started.workflow_run_timeout.seconds == 100
        assert started.workflow_task_timeout.seconds == 100
        assert started.memo.fields["k"] == payloads("v").payloads[0]


async def test_a_start_delay_keeps_the_first_workflow_task_and_a_signal_does_not_shorten_it() -> None:
    async with service() as world:
        run_id = (await world.start(workflow_start_delay={"seconds": 10})).run_id
        signal = SignalWorkflowExecutionRequest(signal_name="signal", workflow_execution={"workflow_id": "workflow"})
        await world.history.signal_workflow_execution(world.namespace_id, signal)
        assert await world.types() == ["WorkflowExecutionStarted", "WorkflowExecutionSignaled"]
        await world.advance(9)
        assert world.matching.workflow_tasks.empty()
        await world.advance(2)
        assert (await world.poll()).started_event_id == 4
        assert (await world.state(run_id)).run.had_workflow_task


async def test_signal_with_start_ends_a_start_delay() -> None:
    async with service() as world:
        timeout = {"seconds": 60}
        await signal_with_start(
            world, request_id="one", workflow_start_delay={"seconds": 10}, workflow_task_timeout=timeout
        )
        assert (await world.types())[-1] == "WorkflowExecutionSignaled"
        await signal_with_start(world, request_id="two", workflow_start_delay={"seconds": 10})
        assert (await world.poll()).started_event_id == 5
        await world.advance(11)
        assert (await world.types()).count("WorkflowTaskScheduled") == 1


async def test_an_eager_start_has_its_first_workflow_task_with_the_answer() -> None:
    async with service() as world:
        request = start_request(request_eager_execution=True)
        started = await world.history.start_workflow_execution(world.namespace_id, request)
        task = started.eager_workflow_task
        assert [type_name(e) for e in task.history.events] == [
            "WorkflowExecutionStarted",
            "WorkflowTaskScheduled",
            "WorkflowTaskStarted",
        ]
        # Whoever did not get the answer asks again.
        again = await world.history.start_workflow_execution(world.namespace_id, request)
        assert again.eager_workflow_task.task_token == task.task_token
        await world.complete(task, complete_workflow())
        assert (await world.types())[-1] == "WorkflowExecutionCompleted"
        assert world.matching.workflow_tasks.empty()


# --- signal with start ---


async def test_signal_with_start_starts_and_signals_in_one_step() -> None:
    async with service() as world:
        response = await signal_with_start(world, request_id="one", signal_input=payloads("input"))
        assert response.started
        assert await world.types() == ["WorkflowExecutionStarted", "WorkflowExecutionSignaled", "WorkflowTaskScheduled"]
        again = await signal_with_start(world, request_id="one", signal_input=payloads("input"))
        assert again.run_id == response.run_id
        assert (await world.types()).count("WorkflowExecutionSignaled") == 1


async def test_signal_with_start_signals_the_running_run_and_starts_after_a_closed_one() -> None:
    async with service() as world:
        first = (await world.start()).run_id
        response = await signal_with_start(world, request_id="one")
        assert (response.run_id, response.started) == (first, False)
        await signal_with_start(world, request_id="one")
        assert (await world.types()).count("WorkflowExecutionSignaled") == 1
        terminate = TerminateWorkflowExecutionRequest(workflow_execution={"workflow_id": "workflow"})
        await world.history.terminate_workflow_execution(world.namespace_id, terminate)
        response = await signal_with_start(world, request_id="two")
        assert response.started
        assert response.run_id != first


async def test_signal_with_start_obeys_the_reuse_policy() -> None:
    async with service() as world:
        await closed(world)
        with pytest.raises(ServiceError) as caught:
            await signal_with_start(world, workflow_id_reuse_policy="WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE")
        assert caught.value.code == Code.ALREADY_EXISTS
