"""Children, and signals and cancellation requests from workflow to workflow, over a real database."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import CommandType, ParentClosePolicy
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    GetWorkflowExecutionHistoryRequest,
    GetWorkflowExecutionHistoryResponse,
    PollWorkflowTaskQueueResponse,
    RequestCancelWorkflowExecutionRequest,
    SignalWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest,
)
from tests.history.live import complete_workflow, continue_as_new
from tests.history.service import Service, service
from tests.history.support import fail_workflow, payloads, type_name

from perdure.errors import Code, ServiceError

TERMINATE = ParentClosePolicy.PARENT_CLOSE_POLICY_TERMINATE
REQUEST_CANCEL = ParentClosePolicy.PARENT_CLOSE_POLICY_REQUEST_CANCEL
ABANDON = ParentClosePolicy.PARENT_CLOSE_POLICY_ABANDON


def start_child(workflow_id: str = "child", **fields: Any) -> Command:
    command = Command(command_type=CommandType.COMMAND_TYPE_START_CHILD_WORKFLOW_EXECUTION)
    a = command.start_child_workflow_execution_command_attributes
    a.MergeFrom(type(a)(**{"workflow_id": workflow_id, "workflow_type": {"name": "Child"}, **fields}))
    return command


def signal_other(workflow_id: str, **fields: Any) -> Command:
    command = Command(command_type=CommandType.COMMAND_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION)
    a = command.signal_external_workflow_execution_command_attributes
    a.MergeFrom(type(a)(**{"execution": {"workflow_id": workflow_id}, "signal_name": "signal", **fields}))
    return command


def cancel_other(workflow_id: str, **fields: Any) -> Command:
    command = Command(command_type=CommandType.COMMAND_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION)
    a = command.request_cancel_external_workflow_execution_command_attributes
    a.MergeFrom(type(a)(**{"workflow_id": workflow_id, **fields}))
    return command


def cancel_workflow() -> Command:
    command = Command(command_type=CommandType.COMMAND_TYPE_CANCEL_WORKFLOW_EXECUTION)
    command.cancel_workflow_execution_command_attributes.SetInParent()
    return command


async def events(world: Service, workflow_id: str = "workflow", run_id: str = "") -> list[HistoryEvent]:
    request = GetWorkflowExecutionHistoryRequest()
    request.execution.workflow_id = workflow_id
    request.execution.run_id = run_id
    try:
        reply = await world.history.get_workflow_execution_history(world.namespace_id, request, world.clock.now())
    except ServiceError as error:
        if error.code == Code.NOT_FOUND:
            return []
        raise
    return list(GetWorkflowExecutionHistoryResponse.FromString(reply).history.events)


async def types(world: Service, workflow_id: str = "workflow", run_id: str = "") -> list[str]:
    return [type_name(e) for e in await events(world, workflow_id, run_id)]


async def until_there(world: Service, name: str, workflow_id: str = "workflow") -> HistoryEvent:
    """The last event of this type, as soon as there is one."""
    found: list[HistoryEvent] = []

    async def there() -> bool:
        found[:] = [e for e in await events(world, workflow_id) if type_name(e) == name]
        return bool(found)

    await world.until(there)
    return found[-1]


async def poll(world: Service, workflow_id: str) -> PollWorkflowTaskQueueResponse:
    """The next workflow task of this workflow; what others get is put back."""
    while True:
        queue, task = await world.next_workflow_task()
        if task.workflow_id == workflow_id:
            return await world.take(task)
        world.matching.workflow_tasks.put_nowait((queue, task))
        await world.quiet()


async def parent_and_child(world: Service, **fields: Any) -> str:
    """Both have begun, and the parent knows it. The child's run id."""
    await world.start()
    await world.complete(await poll(world, "workflow"), start_child(**fields))
    started = await until_there(world, "ChildWorkflowExecutionStarted")
    await world.complete(await poll(world, "workflow"))
    return started.child_workflow_execution_started_event_attributes.workflow_execution.run_id


async def end_of_child(world: Service, *commands: Command) -> Any:
    await world.complete(await poll(world, "child"), *commands)


def fails(times: int, error: Callable[[], Exception], real: Any, *, after: bool = False) -> Any:
    """A call that fails at first. after: having done its work."""
    left = [times]

    async def call(*args: Any, **kwargs: Any) -> Any:
        if left[0] and not after:
            left[0] -= 1
            raise error()
        result = await real(*args, **kwargs)
        if left[0]:
            left[0] -= 1
            raise error()
        return result

    return call


def unavailable() -> ServiceError:
    return ServiceError(Code.UNAVAILABLE, "not reached")


# --- a child's life ---


async def test_a_parent_is_told_that_its_child_started_and_how_it_ended() -> None:
    async with service() as world:
        run_id = (await world.start()).run_id
        command = start_child(
            input=payloads("in"),
            header={"fields": {"h": {"data": b"1"}}},
            memo={"fields": {"m": {"data": b"2"}}},
            priority={"priority_key": 2},
            control="control",
        )
        command.user_metadata.summary.data = b"summary"
        await world.complete(await poll(world, "workflow"), command)
        child = await poll(world, "child")
        started = child.history.events[0]
        a = started.workflow_execution_started_event_attributes
        assert (a.input, a.header.fields["h"].data, a.memo.fields["m"].data) == (payloads("in"), b"1", b"2")
        assert (a.task_queue.name, a.workflow_type.name, a.priority.priority_key) == ("queue", "Child", 2)
        assert (a.parent_workflow_execution.workflow_id, a.parent_workflow_execution.run_id) == ("workflow", run_id)
        assert (a.parent_workflow_namespace, a.parent_initiated_event_id) == ("default", 5)
        assert (a.root_workflow_execution.workflow_id, a.root_workflow_execution.run_id) == ("workflow", run_id)
        assert started.user_metadata.summary.data == b"summary"
        done = complete_workflow()
        done.complete_workflow_execution_command_attributes.result.CopyFrom(payloads("out"))
        await world.complete(child, done)
        event = await until_there(world, "ChildWorkflowExecutionCompleted")
        assert await types(world) == [
            "WorkflowExecutionStarted",
            "WorkflowTaskScheduled",
            "WorkflowTaskStarted",
            "WorkflowTaskCompleted",
            "StartChildWorkflowExecutionInitiated",
            "ChildWorkflowExecutionStarted",
            "WorkflowTaskScheduled",
            "ChildWorkflowExecutionCompleted",
        ]
        completed = event.child_workflow_execution_completed_event_attributes
        assert completed.result == payloads("out")
        assert (completed.initiated_event_id, completed.started_event_id) == (5, 6)
        assert completed.workflow_execution == child.workflow_execution
        assert (await events(world))[5].child_workflow_execution_started_event_attributes.header == a.header


async def test_a_grandchild_has_the_root_of_its_parent() -> None:
    async with service() as world:
        run_id = (await world.start()).run_id
        await world.complete(await poll(world, "workflow"), start_child("child"))
        await world.complete(await poll(world, "child"), start_child("grandchild"))
        task = await poll(world, "grandchild")
        a = task.history.events[0].workflow_execution_started_event_attributes
        assert (a.root_workflow_execution.workflow_id, a.root_workflow_execution.run_id) == ("workflow", run_id)
        assert a.parent_workflow_execution.workflow_id == "child"


async def test_a_child_that_fails_is_told_so() -> None:
    async with service() as world:
        await parent_and_child(world)
        await end_of_child(world, fail_workflow(type="Broken"))
        event = await until_there(world, "ChildWorkflowExecutionFailed")
        a = event.child_workflow_execution_failed_event_attributes
        assert a.failure.application_failure_info.type == "Broken"
        assert a.retry_state == 5  # RETRY_POLICY_NOT_SET


async def test_a_child_that_is_terminated_or_canceled_or_out_of_time_is_told_so() -> None:
    async with service() as world:
        await parent_and_child(world)
        request = TerminateWorkflowExecutionRequest()
        request.workflow_execution.workflow_id = "child"
        await world.history.terminate_workflow_execution(world.namespace_id, request)
        await until_there(world, "ChildWorkflowExecutionTerminated")
    async with service() as world:
        await parent_and_child(world)
        await end_of_child(world, cancel_workflow())
        await until_there(world, "ChildWorkflowExecutionCanceled")
    async with service() as world:
        await parent_and_child(world, workflow_run_timeout={"seconds": 30})
        await world.advance(31)
        await until_there(world, "ChildWorkflowExecutionTimedOut")


async def test_the_last_run_of_a_childs_chain_is_its_end() -> None:
    async with service() as world:
        first = await parent_and_child(world)
        await end_of_child(world, continue_as_new())
        await world.advance(2)  # so short a run is followed with a delay
        task = await poll(world, "child")
        assert task.workflow_execution.run_id != first
        await world.complete(task, complete_workflow())
        event = await until_there(world, "ChildWorkflowExecutionCompleted")
        a = event.child_workflow_execution_completed_event_attributes
        assert a.workflow_execution == task.workflow_execution
        assert not any(name.startswith("ChildWorkflowExecutionC") for name in (await types(world))[:-2])


async def test_the_end_of_a_child_waits_for_the_answer_of_the_parents_workflow_task() -> None:
    async with service() as world:
        await world.start()
        await world.complete(await poll(world, "workflow"), start_child())
        child = await poll(world, "child")  # so the parent has a workflow task for the start
        parent = await poll(world, "workflow")
        await world.complete(child, complete_workflow())
        await world.until(lambda: not world.shard.transfers.size)
        await world.complete(parent)
        assert (await types(world))[-3:] == [
            "WorkflowTaskCompleted",
            "ChildWorkflowExecutionCompleted",
            "WorkflowTaskScheduled",
        ]


async def test_a_child_with_a_taken_id_does_not_start() -> None:
    async with service() as world:
        await world.start(workflow_id="child")
        await world.start()
        await world.complete(await poll(world, "workflow"), start_child(control="control"))
        event = await until_there(world, "StartChildWorkflowExecutionFailed")
        a = event.start_child_workflow_execution_failed_event_attributes
        assert (a.cause, a.control, a.initiated_event_id) == (1, "control", 5)  # WORKFLOW_ALREADY_EXISTS
        await world.complete(await poll(world, "workflow"), complete_workflow())
        assert (await types(world, "child"))[-1] == "WorkflowTaskScheduled"  # it was never a child


async def test_a_pending_child_is_described() -> None:
    async with service() as world:
        run_id = await parent_and_child(world, parent_close_policy=ABANDON)
        request = DescribeWorkflowExecutionRequest()
        request.execution.workflow_id = "workflow"
        description = await world.history.describe_workflow_execution(world.namespace_id, request)
        (child,) = description.pending_children
        assert (child.workflow_id, child.run_id, child.workflow_type_name) == ("child", run_id, "Child")
        assert (child.initiated_id, child.parent_close_policy) == (5, ABANDON)


async def test_only_so_many_children_may_be_pending() -> None:
    async with service(limit__numPendingChildExecutions__error=2) as world:
        await world.start()
        with pytest.raises(ServiceError) as refused:
            await world.complete(await poll(world, "workflow"), start_child("1"), start_child("2"), start_child("3"))
        assert refused.value.message == (
            "PendingChildWorkflowsLimitExceeded: the number of pending child workflow executions, 2, has reached the "
            "per-workflow limit of 2"
        )
        assert not await types(world, "1")


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"workflow_id": ""}, "Required field WorkflowId is not set"),
        ({"workflow_type": {"name": ""}}, "Required field WorkflowType is not set"),
        ({"workflow_id": "x" * 1001}, "WorkflowId on StartChildWorkflowExecutionCommand exceeds length limit"),
        ({"workflow_run_timeout": {"seconds": -1}}, "Invalid WorkflowRunTimeout"),
        ({"retry_policy": {"backoff_coefficient": 0.5}}, "BackoffCoefficient cannot be less than 1"),
        ({"cron_schedule": "never"}, "invalid CronSchedule"),
        ({"namespace": "unknown"}, "Namespace unknown is not found."),
        ({"priority": {"priority_key": -1}}, "priority key can't be negative"),
    ],
)
async def test_a_child_that_cannot_be_started_fails_the_workflow_task(fields: dict[str, Any], why: str) -> None:
    async with service() as world:
        await world.start()
        with pytest.raises(ServiceError) as refused:
            await world.complete(await poll(world, "workflow"), start_child(**fields))
        assert refused.value.message.startswith("BadStartChildExecutionAttributes: ")
        assert why in refused.value.message
        failed = await until_there(world, "WorkflowTaskFailed")
        assert failed.workflow_task_failed_event_attributes.failure.message == refused.value.message


# --- the parent ends first ---


async def test_children_end_or_go_on_after_their_parent_as_their_policy_says() -> None:
    async with service() as world:
        await world.start()
        await world.complete(
            await poll(world, "workflow"),
            start_child("terminated"),
            start_child("canceled", parent_close_policy=REQUEST_CANCEL),
            start_child("abandoned", parent_close_policy=ABANDON),
        )
        for child in ("terminated", "canceled", "abandoned"):
            await world.complete(await poll(world, child))
        await world.complete(await poll(world, "workflow"), complete_workflow())
        event = await until_there(world, "WorkflowExecutionTerminated", "terminated")
        a = event.workflow_execution_terminated_event_attributes
        assert (a.reason, a.identity) == ("by parent close policy", "history-service")
        event = await until_there(world, "WorkflowExecutionCancelRequested", "canceled")
        assert event.workflow_execution_cancel_requested_event_attributes.external_workflow_execution.workflow_id == (
            "workflow"
        )
        await world.until(lambda: not world.shard.transfers.size)
        assert (await types(world, "abandoned"))[-1] == "WorkflowTaskCompleted"


async def test_the_policy_reaches_the_current_run_of_a_childs_chain() -> None:
    async with service() as world:
        await parent_and_child(world)
        await end_of_child(world, continue_as_new())
        await signal(world, "workflow")
        await world.complete(await poll(world, "workflow"), complete_workflow())
        await until_there(world, "WorkflowExecutionTerminated", "child")


async def test_a_child_that_another_now_has_the_id_of_is_left_alone() -> None:
    async with service() as world:
        await parent_and_child(world)
        # The child ends, but its parent is not told yet: it ends too.
        world.history.record_child_closed = fails(10, unavailable, world.history.record_child_closed)
        await end_of_child(world, complete_workflow())
        await world.start(workflow_id="child")
        await signal(world, "workflow")
        await world.complete(await poll(world, "workflow"), complete_workflow())
        await world.quiet()
        await world.quiet()
        assert (await types(world, "child"))[-1] == "WorkflowTaskScheduled"


async def signal(world: Service, workflow_id: str) -> None:
    request = SignalWorkflowExecutionRequest(signal_name="signal")
    request.workflow_execution.workflow_id = workflow_id
    await world.history.signal_workflow_execution(world.namespace_id, request)


@pytest.mark.parametrize("policy", [TERMINATE, REQUEST_CANCEL, ABANDON], ids=["terminate", "cancel", "abandon"])
async def test_a_parent_that_ends_while_its_child_is_being_started(policy: ParentClosePolicy.ValueType) -> None:
    async with service() as world:
        await world.start()
        real = world.history.start_child_workflow

        async def start_then_parent_ends(*args: Any) -> str:
            run_id = await real(*args)
            request = TerminateWorkflowExecutionRequest()
            request.workflow_execution.workflow_id = "workflow"
            await world.history.terminate_workflow_execution(world.namespace_id, request)
            return run_id

        world.history.start_child_workflow = start_then_parent_ends
        await world.complete(await poll(world, "workflow"), start_child(parent_close_policy=policy))
        if policy == TERMINATE:
            await until_there(world, "WorkflowExecutionTerminated", "child")
            await world.until(lambda: not world.shard.transfers.size)
            assert world.matching.workflow_tasks.empty()
        else:
            task = await poll(world, "child")
            told = "WorkflowExecutionCancelRequested" in [type_name(e) for e in task.history.events]
            assert told == (policy == REQUEST_CANCEL)
        assert (await types(world))[-1] == "WorkflowExecutionTerminated"


@pytest.mark.parametrize("policy", [TERMINATE, ABANDON], ids=["terminate", "abandon"])
async def test_a_parent_that_ends_before_its_child_is_started(policy: ParentClosePolicy.ValueType) -> None:
    async with service() as world:
        await world.start()
        task = await poll(world, "workflow")
        await world.complete(task, start_child(parent_close_policy=policy), complete_workflow())
        if policy == ABANDON:
            assert (await poll(world, "child")).started_event_id == 3
        else:
            await world.until(lambda: not world.shard.transfers.size)
            assert await types(world, "child") in ([], ["WorkflowExecutionStarted", "WorkflowExecutionTerminated"])


# --- every step may be done twice, or be the last before a crash ---


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("step", ["start_child_workflow", "schedule_first_workflow_task"])
async def test_a_child_starts_once_wherever_its_start_is_cut_off(tmp_path: Any, step: str, after: bool) -> None:
    async with service(str(tmp_path / "db")) as world:
        await world.start()
        setattr(world.history, step, fails(1000, unavailable, getattr(world.history, step), after=after))
        await world.complete(await poll(world, "workflow"), start_child())
        await world.until(lambda: world.history.failures)
        await world.crash()
        await until_there(world, "ChildWorkflowExecutionStarted")
        await until_there(world, "WorkflowTaskScheduled", "child")
        await world.until(lambda: not world.shard.transfers.size)
        assert (await types(world)).count("ChildWorkflowExecutionStarted") == 1
        assert await types(world, "child") == ["WorkflowExecutionStarted", "WorkflowTaskScheduled"]


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_the_end_of_a_child_is_told_once_wherever_that_is_cut_off(tmp_path: Any, after: bool) -> None:
    async with service(str(tmp_path / "db")) as world:
        await parent_and_child(world)
        world.history.record_child_closed = fails(1000, unavailable, world.history.record_child_closed, after=after)
        await end_of_child(world, complete_workflow())
        await world.until(lambda: world.history.failures)
        await world.crash()
        await until_there(world, "ChildWorkflowExecutionCompleted")
        await world.until(lambda: not world.shard.transfers.size)
        assert (await types(world)).count("ChildWorkflowExecutionCompleted") == 1


async def test_a_child_that_ends_before_its_parent_knows_of_it_has_started_first() -> None:
    async with service() as world:
        await world.start()
        world.history.start_child_workflow = fails(1, unavailable, world.history.start_child_workflow, after=True)
        await world.complete(await poll(world, "workflow"), start_child())
        await world.until(lambda: world.history.failures)
        request = TerminateWorkflowExecutionRequest()
        request.workflow_execution.workflow_id = "child"
        await world.history.terminate_workflow_execution(world.namespace_id, request)
        event = await until_there(world, "ChildWorkflowExecutionTerminated")
        names = await types(world)
        assert names[5] == "ChildWorkflowExecutionStarted"
        assert event.child_workflow_execution_terminated_event_attributes.started_event_id == 6
        await world.advance(2)
        assert (await types(world)).count("ChildWorkflowExecutionStarted") == 1


# --- signals and cancellation requests ---


async def test_a_workflow_signals_another() -> None:
    async with service() as world:
        run_id = (await world.start()).run_id
        await world.start(workflow_id="other")
        command = signal_other(
            "other", input=payloads("in"), header={"fields": {"h": {"data": b"1"}}}, control="control"
        )
        await world.complete(await poll(world, "workflow"), command)
        a = (
            await until_there(world, "ExternalWorkflowExecutionSignaled")
        ).external_workflow_execution_signaled_event_attributes
        assert (a.initiated_event_id, a.control, a.workflow_execution.workflow_id) == (5, "control", "other")
        s = (
            await until_there(world, "WorkflowExecutionSignaled", "other")
        ).workflow_execution_signaled_event_attributes
        assert (s.input, s.header.fields["h"].data, s.identity) == (payloads("in"), b"1", "history-service")
        assert s.external_workflow_execution == WorkflowExecution(workflow_id="workflow", run_id=run_id)


@pytest.mark.parametrize("target", ["unknown", "workflow", "closed", "no child"])
async def test_a_signal_that_reaches_nobody_fails(target: str) -> None:
    async with service() as world:
        await world.start(workflow_id="closed")
        await world.complete(await poll(world, "closed"), complete_workflow())
        await world.start(workflow_id="no child")
        await world.start()
        await world.complete(await poll(world, "workflow"), signal_other(target, child_workflow_only=True, control="c"))
        event = await until_there(world, "SignalExternalWorkflowExecutionFailed")
        a = event.signal_external_workflow_execution_failed_event_attributes
        assert (a.cause, a.control) == (1, "c")  # EXTERNAL_WORKFLOW_EXECUTION_NOT_FOUND
        assert (await types(world))[-1] == "WorkflowTaskScheduled"


async def test_a_signal_too_many_fails() -> None:
    async with service(history__maximumSignalsPerExecution=1) as world:
        await world.start(workflow_id="other")
        await signal(world, "other")
        await world.start()
        await world.complete(await poll(world, "workflow"), signal_other("other"))
        event = await until_there(world, "SignalExternalWorkflowExecutionFailed")
        assert (
            event.signal_external_workflow_execution_failed_event_attributes.cause == 3
        )  # SIGNAL_COUNT_LIMIT_EXCEEDED


async def test_a_child_is_signalled_as_a_child() -> None:
    async with service() as world:
        await parent_and_child(world)
        await signal(world, "workflow")
        await world.complete(await poll(world, "workflow"), signal_other("child", child_workflow_only=True))
        await until_there(world, "ExternalWorkflowExecutionSignaled")


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
async def test_a_signal_is_delivered_once_wherever_that_is_cut_off(tmp_path: Any, after: bool) -> None:
    async with service(str(tmp_path / "db")) as world:
        await world.start(workflow_id="other")
        await world.start()
        real = world.history.signal_workflow_execution
        world.history.signal_workflow_execution = fails(1000, unavailable, real, after=after)
        await world.complete(await poll(world, "workflow"), signal_other("other"))
        await world.until(lambda: world.history.failures)
        await world.crash()
        await until_there(world, "ExternalWorkflowExecutionSignaled")
        assert (await types(world, "other")).count("WorkflowExecutionSignaled") == 1


async def test_a_workflow_asks_another_to_cancel() -> None:
    async with service() as world:
        run_id = (await world.start()).run_id
        await world.start(workflow_id="other")
        await world.complete(await poll(world, "workflow"), cancel_other("other", reason="why"))
        event = await until_there(world, "ExternalWorkflowExecutionCancelRequested")
        assert event.external_workflow_execution_cancel_requested_event_attributes.initiated_event_id == 5
        asked = await until_there(world, "WorkflowExecutionCancelRequested", "other")
        a = asked.workflow_execution_cancel_requested_event_attributes
        assert (a.cause, a.external_initiated_event_id) == ("why", 5)
        assert a.external_workflow_execution == WorkflowExecution(workflow_id="workflow", run_id=run_id)


@pytest.mark.parametrize("target", ["unknown", "workflow", "no child"])
async def test_a_cancellation_request_that_reaches_nobody_fails(target: str) -> None:
    async with service() as world:
        await world.start(workflow_id="no child")
        await world.start()
        await world.complete(await poll(world, "workflow"), cancel_other(target, child_workflow_only=True, control="c"))
        event = await until_there(world, "RequestCancelExternalWorkflowExecutionFailed")
        a = event.request_cancel_external_workflow_execution_failed_event_attributes
        assert (a.cause, a.control) == (1, "c")


async def test_a_workflow_that_is_closed_already_counts_as_asked_to_cancel() -> None:
    async with service() as world:
        await world.start(workflow_id="closed")
        await world.complete(await poll(world, "closed"), complete_workflow())
        await world.start()
        await world.complete(await poll(world, "workflow"), cancel_other("closed"))
        await until_there(world, "ExternalWorkflowExecutionCancelRequested")


async def test_a_child_is_not_started_and_canceled_in_one_answer() -> None:
    async with service() as world:
        await world.start()
        with pytest.raises(ServiceError) as refused:
            await world.complete(await poll(world, "workflow"), start_child(), cancel_other("child"))
        assert "Start and RequestCancel for child workflow is not allowed" in refused.value.message


async def test_a_canceled_child_that_waits_for_its_cron_turn_begins_to_end() -> None:
    async with service() as world:
        await world.start()
        await world.complete(await poll(world, "workflow"), start_child(cron_schedule="0 0 1 1 *"))
        await until_there(world, "ChildWorkflowExecutionStarted")
        request = RequestCancelWorkflowExecutionRequest()
        request.workflow_execution.workflow_id = "child"
        await world.history.request_cancel_workflow_execution(world.namespace_id, request)
        await world.complete(await poll(world, "child"), cancel_workflow())
        await until_there(world, "ChildWorkflowExecutionCanceled")
