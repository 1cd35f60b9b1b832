"""Signals, cancellation requests and terminations that a run receives."""

from __future__ import annotations

from typing import Any

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import (
    RequestCancelWorkflowExecutionRequest,
    SignalWorkflowExecutionRequest,
    SignalWorkflowExecutionResponse,
    TerminateWorkflowExecutionRequest,
)
from tests.history.live import complete_workflow, continue_as_new
from tests.history.service import Service, service
from tests.history.support import payloads

from perdure.errors import Code, ServiceError


async def signal(world: Service, *, child_only_of: WorkflowExecution | None = None, **fields: Any) -> Any:
    request = SignalWorkflowExecutionRequest(
        **{
            "namespace": "default",
            "workflow_execution": {"workflow_id": "workflow"},
            "signal_name": "signal",
            "request_id": "request",
            **fields,
        }
    )
    reply = await world.history.signal_workflow_execution(world.namespace_id, request, child_only_of=child_only_of)
    assert isinstance(reply, SignalWorkflowExecutionResponse)
    return reply.link.workflow_event


async def cancel(world: Service, **fields: Any) -> None:
    request = RequestCancelWorkflowExecutionRequest(
        **{"namespace": "default", "workflow_execution": {"workflow_id": "workflow"}, **fields}
    )
    await world.history.request_cancel_workflow_execution(world.namespace_id, request)


async def terminate(world: Service, **fields: Any) -> None:
    request = TerminateWorkflowExecutionRequest(
        **{"namespace": "default", "workflow_execution": {"workflow_id": "workflow"}, **fields}
    )
    await world.history.terminate_workflow_execution(world.namespace_id, request)


async def idle(world: Service, **fields: Any) -> str:
    """A run that has done its first workflow task."""
    run_id = (await world.start(**fields)).run_id
    await world.complete(await world.poll())
    return run_id


# --- signals ---


async def test_a_signal_wakes_the_workflow_and_carries_what_was_sent() -> None:
    async with service() as world:
        run_id = await idle(world)
        link = await signal(
            world, input=payloads("in"), header={"fields": {"h": {"data": b"1"}}}, identity="me", request_id="r"
        )
        assert (link.workflow_id, link.run_id, link.request_id_ref.request_id) == ("workflow", run_id, "r")
        assert (await world.types())[-2:] == ["WorkflowExecutionSignaled", "WorkflowTaskScheduled"]
        a = (await world.events())[-2].workflow_execution_signaled_event_attributes
        assert (a.signal_name, a.input, a.identity, a.request_id) == ("signal", payloads("in"), "me", "r")
        assert a.header.fields["h"].data == b"1"


async def test_a_signal_during_a_workflow_task_comes_after_its_answer() -> None:
    async with service() as world:
        await world.start()
        task = await world.poll()
        await signal(world)
        assert "WorkflowExecutionSignaled" not in await world.types()
        await world.complete(task)
        assert (await world.types())[-3:] == [
            "WorkflowTaskCompleted",
            "WorkflowExecutionSignaled",
            "WorkflowTaskScheduled",
        ]


async def test_a_workflow_cannot_end_before_it_has_seen_its_signals() -> None:
    async with service() as world:
        await world.start()
        task = await world.poll()
        await signal(world)
        with pytest.raises(ServiceError) as refused:
            await world.complete(task, complete_workflow())
        assert (refused.value.code, refused.value.message) == (Code.INVALID_ARGUMENT, "UnhandledCommand")
        assert (await world.types())[-3:] == [
            "WorkflowTaskFailed",
            "WorkflowExecutionSignaled",
            "WorkflowTaskScheduled",
        ]


async def test_the_same_signal_once_more_changes_nothing_even_after_a_crash_or_the_end(tmp_path: Any) -> None:
    async with service(str(tmp_path / "db")) as world:
        run_id = await idle(world)
        await signal(world, request_id="r")
        _, task = await world.next_workflow_task()
        await world.crash()
        await signal(world, request_id="r")
        assert (await world.types()).count("WorkflowExecutionSignaled") == 1
        await world.complete(await world.take(task), complete_workflow())
        assert (await signal(world, request_id="r")).run_id == run_id


async def test_signals_without_a_request_id_are_all_taken() -> None:
    async with service() as world:
        await idle(world)
        await signal(world, request_id="")
        await signal(world, request_id="")
        assert (await world.types()).count("WorkflowExecutionSignaled") == 2


async def test_a_run_takes_only_so_many_signals() -> None:
    async with service(history__maximumSignalsPerExecution=2) as world:
        await idle(world)
        await signal(world, request_id="1")
        await signal(world, request_id="2")
        with pytest.raises(ServiceError) as refused:
            await signal(world, request_id="3")
        assert refused.value.code == Code.INVALID_ARGUMENT
        assert refused.value.message == "exceeded workflow execution limit for signal events"
        await signal(world, request_id="2")  # had before: no new one


async def test_signals_find_no_closed_or_unknown_workflow() -> None:
    async with service() as world:
        with pytest.raises(ServiceError) as refused:
            await signal(world)
        assert refused.value.code == Code.NOT_FOUND
        await world.start()
        await world.complete(await world.poll(), complete_workflow())
        with pytest.raises(ServiceError) as refused:
            await signal(world)
        assert (refused.value.code, refused.value.message) == (
            Code.NOT_FOUND,
            "workflow execution already completed",
        )


async def test_a_signal_without_a_run_id_reaches_the_current_run() -> None:
    async with service() as world:
        first = (await world.start()).run_id
        await world.complete(await world.poll(), continue_as_new())
        assert (await signal(world)).run_id != first
        with pytest.raises(ServiceError) as refused:
            await signal(world, request_id="2", workflow_execution={"workflow_id": "workflow", "run_id": first})
        assert refused.value.code == Code.NOT_FOUND


async def test_a_signal_for_a_child_only_is_not_taken_by_another() -> None:
    async with service() as world:
        await idle(world)
        with pytest.raises(ServiceError) as refused:
            await signal(world, child_only_of=WorkflowExecution(workflow_id="parent", run_id="run"))
        assert (refused.value.code, refused.value.message) == (Code.NOT_FOUND, "workflow parent does not match")


async def test_a_signal_does_not_end_a_start_delay_and_a_cancellation_request_does() -> None:
    async with service() as world:
        await world.start(workflow_start_delay={"seconds": 60})
        await signal(world)
        assert (await world.types())[-1] == "WorkflowExecutionSignaled"
        await cancel(world)
        assert (await world.types())[-2:] == ["WorkflowExecutionCancelRequested", "WorkflowTaskScheduled"]
        await world.complete(await world.poll())
        await world.advance(61)
        assert (await world.types())[-1] == "WorkflowTaskCompleted"


# --- cancellation requests ---


async def test_a_run_is_asked_to_cancel_once() -> None:
    async with service() as world:
        await idle(world)
        await cancel(world, request_id="1", reason="enough", identity="me")
        await cancel(world, request_id="1")
        await cancel(world, request_id="2")
        assert (await world.types())[-2:] == ["WorkflowExecutionCancelRequested", "WorkflowTaskScheduled"]
        a = (await world.events())[-2].workflow_execution_cancel_requested_event_attributes
        assert (a.cause, a.identity) == ("enough", "me")


async def test_cancelling_what_is_closed_already_is_no_error() -> None:
    async with service() as world:
        await world.start()
        await world.complete(await world.poll(), complete_workflow())
        await cancel(world)
        assert (await world.types())[-1] == "WorkflowExecutionCompleted"


async def test_a_chain_is_cancelled_by_its_first_run() -> None:
    async with service() as world:
        first = (await world.start()).run_id
        await world.complete(await world.poll(), continue_as_new())
        with pytest.raises(ServiceError) as refused:
            await cancel(world, first_execution_run_id="00000000-0000-4000-8000-000000000000")
        assert refused.value.code == Code.NOT_FOUND
        await cancel(
            world, workflow_execution={"workflow_id": "workflow", "run_id": first}, first_execution_run_id=first
        )
        assert "WorkflowExecutionCancelRequested" in await world.types()


# --- terminations ---


async def test_a_termination_during_a_workflow_task_keeps_the_signals_that_came() -> None:
    async with service() as world:
        await world.start()
        task = await world.poll()
        await signal(world)
        await terminate(world, reason="why", details=payloads("d"), identity="me")
        assert (await world.types())[-3:] == [
            "WorkflowTaskFailed",
            "WorkflowExecutionSignaled",
            "WorkflowExecutionTerminated",
        ]
        a = (await world.events())[-1].workflow_execution_terminated_event_attributes
        assert (a.reason, a.details, a.identity) == ("why", payloads("d"), "me")
        with pytest.raises(ServiceError) as refused:
            await world.complete(task)
        assert refused.value.code == Code.NOT_FOUND


async def test_a_closed_run_cannot_be_terminated() -> None:
    async with service() as world:
        await world.start()
        await terminate(world)
        with pytest.raises(ServiceError) as refused:
            await terminate(world)
        assert (refused.value.code, refused.value.message) == (Code.NOT_FOUND, "workflow execution already completed")


async def test_a_chain_is_terminated_by_its_first_run() -> None:
    async with service() as world:
        first = (await world.start()).run_id
        await world.complete(await world.poll(), continue_as_new())
        with pytest.raises(ServiceError) as refused:
            await terminate(world, first_execution_run_id="00000000-0000-4000-8000-000000000000")
        assert refused.value.code == Code.NOT_FOUND
        await terminate(world, first_execution_run_id=first)
        assert (await world.types())[-1] == "WorkflowExecutionTerminated"
