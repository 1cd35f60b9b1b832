"""Activities and timers with real matching and a real database: what a worker gets, and which answers count."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import Priority
from temporalio.api.enums.v1 import PendingActivityState
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    PollActivityTaskQueueRequest,
    PollActivityTaskQueueResponse,
    RecordActivityTaskHeartbeatByIdRequest,
    RecordActivityTaskHeartbeatRequest,
    RespondActivityTaskCanceledByIdRequest,
    RespondActivityTaskCanceledRequest,
    RespondActivityTaskCompletedByIdRequest,
    RespondActivityTaskCompletedRequest,
    RespondActivityTaskFailedByIdRequest,
    RespondActivityTaskFailedRequest,
)
from tests.history.live import QUEUE, Live, live, of_type
from tests.history.support import (
    application_failure,
    cancel_activity,
    payloads,
    schedule_activity,
    start_timer,
)

from perdure import tokens
from perdure.errors import ServiceError
from perdure.history.api import Poller
from perdure.matching.api import TaskRef
from perdure.tokens import ActivityTaskToken


class World:
    def __init__(self, it: Live, run_id: str) -> None:
        self.live = it
        self.run_id = run_id

    async def poll(self, seconds: float = 10) -> PollActivityTaskQueueResponse:
        request = PollActivityTaskQueueRequest(identity="activity worker", task_queue=TaskQueue(name=QUEUE))
        deadline = self.live.deadline(seconds)
        reply = await self.live.matching.poll_activity_task_queue(self.live.namespace_id, request, deadline)
        return PollActivityTaskQueueResponse.FromString(reply)

    async def until(self, event: str, times: int = 1) -> None:
        key = (self.live.namespace_id, "workflow", self.run_id)
        while True:
            news = self.live.history.shard(self.live.namespace_id, "workflow").watch(key)
            if (await self.live.types()).count(event) >= times:
                news.cancel()
                return
            await news

    async def complete(self, token: bytes) -> None:
        request = RespondActivityTaskCompletedRequest(task_token=token, identity="w", result=payloads("result"))
        await self.live.history.respond_activity_task_completed(self.live.namespace_id, request)

    async def fail(self, token: bytes) -> None:
        request = RespondActivityTaskFailedRequest(task_token=token, failure=application_failure(), identity="w")
        await self.live.history.respond_activity_task_failed(self.live.namespace_id, request)

    async def heartbeat(self, token: bytes) -> bool:
        """Whether the activity is to be canceled."""
        request = RecordActivityTaskHeartbeatRequest(task_token=token, details=payloads("progress"))
        reply = await self.live.history.record_activity_task_heartbeat(self.live.namespace_id, request)
        return reply.cancel_requested

    async def cancel(self, token: bytes) -> None:
        request = RespondActivityTaskCanceledRequest(task_token=token, details=payloads("why"), identity="w")
        await self.live.history.respond_activity_task_canceled(self.live.namespace_id, request)


@asynccontextmanager
async def scheduled(*commands: Command, start: dict[str, Any] | None = None, **settings: Any) -> AsyncGenerator[World]:
    """A run whose first workflow task has been answered with these commands."""
    async with live(**settings) as it:
        run_id = await it.start(**(start or {}))
        await it.complete(await it.poll(), *(commands or (schedule_activity(),)))
        yield World(it, run_id)


async def refused(call: Awaitable[Any]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(ServiceError) as error:
        await call
    return error.value.code, error.value.message


GONE = (
    grpc.StatusCode.NOT_FOUND,
    "invalid activityID or activity already timed out or invoking workflow is completed",
)


async def test_what_a_worker_gets() -> None:
    command = schedule_activity(schedule_to_close=60, start_to_close=30, heartbeat=5)
    attributes = command.schedule_activity_task_command_attributes
    attributes.header.fields["trace"].data = b"1"
    attributes.priority.CopyFrom(Priority(priority_key=2))
    start = {"priority": Priority(priority_key=4, fairness_key="tenant")}
    async with scheduled(command, start=start) as world:
        task = await world.poll()
        event = of_type(await world.live.events(), "ActivityTaskScheduled")
        assert (task.activity_id, task.activity_type.name, task.attempt) == ("a", "Activity", 1)
        assert (task.workflow_execution.workflow_id, task.workflow_execution.run_id) == ("workflow", world.run_id)
        assert (task.workflow_type.name, task.workflow_namespace) == ("Type", "default")
        assert task.input == payloads("input")
        assert task.header.fields["trace"].data == b"1"
        assert task.scheduled_time == task.current_attempt_scheduled_time == event.event_time
        assert task.started_time.ToNanoseconds() >= task.scheduled_time.ToNanoseconds()
        assert (task.schedule_to_close_timeout.seconds, task.start_to_close_timeout.seconds) == (60, 30)
        assert task.heartbeat_timeout.seconds == 5
        assert task.retry_policy == event.activity_task_scheduled_event_attributes.retry_policy
        assert task.priority == Priority(priority_key=2, fairness_key="tenant")
        token = tokens.decode(task.task_token, ActivityTaskToken)
        assert (token.workflow_id, token.activity_id, token.attempt) == ("workflow", "a", 1)


async def test_a_completed_activity_wakes_its_workflow_and_cannot_complete_again() -> None:
    async with scheduled() as world:
        task = await world.poll()
        await world.complete(task.task_token)
        assert (await world.live.poll()).task_token
        assert await refused(world.complete(task.task_token)) == GONE
        done = of_type(await world.live.events(), "ActivityTaskCompleted").activity_task_completed_event_attributes
        assert (done.result, done.identity) == (payloads("result"), "w")


async def test_a_hand_out_is_recorded_once() -> None:
    async with scheduled() as world:
        task = await world.poll()
        token = tokens.decode(task.task_token, ActivityTaskToken)
        reference = TaskRef(world.live.namespace_id, "workflow", world.run_id, token.scheduled_event_id, 0, 0)
        activity = world.live.context(world.run_id).loaded.activities[token.scheduled_event_id]
        again = Poller(identity="activity worker", request_id=activity.request_id, task_queue=QUEUE)
        reply = await world.live.history.record_activity_task_started(reference, again)
        assert PollActivityTaskQueueResponse.FromString(reply) == task
        another = Poller(identity="another", request_id="another", task_queue=QUEUE)
        code, _ = await refused(world.live.history.record_activity_task_started(reference, another))
        assert code == grpc.StatusCode.ALREADY_EXISTS
        await world.fail(task.task_token)
        code, _ = await refused(world.live.history.record_activity_task_started(reference, another))
        assert code == grpc.StatusCode.NOT_FOUND  # its stamp is that of the first attempt


async def test_a_failed_attempt_comes_back_with_what_it_had_reported() -> None:
    command = schedule_activity()
    command.schedule_activity_task_command_attributes.retry_policy.initial_interval.nanos = 20_000_000
    async with scheduled(command) as world:
        first = await world.poll()
        assert await world.heartbeat(first.task_token) is False
        await world.fail(first.task_token)
        second = await world.poll()
        assert (second.attempt, second.heartbeat_details) == (2, payloads("progress"))
        assert second.input == payloads("input")
        assert second.scheduled_time == first.scheduled_time
        assert second.current_attempt_scheduled_time.ToNanoseconds() > first.started_time.ToNanoseconds()
        assert await refused(world.complete(first.task_token)) == GONE
        assert await refused(world.fail(first.task_token)) == GONE
        assert await refused(world.heartbeat(first.task_token)) == GONE
        await world.complete(second.task_token)
        begun = of_type(await world.live.events(), "ActivityTaskStarted").activity_task_started_event_attributes
        assert (begun.attempt, begun.last_failure.message, begun.identity) == (2, "failed", "activity worker")


async def test_everything_goes_on_after_a_restart() -> None:
    command = schedule_activity("b")
    command.schedule_activity_task_command_attributes.retry_policy.initial_interval.nanos = 50_000_000
    async with scheduled(schedule_activity(), command, start_timer("t", 0.1)) as world:
        by_id = {t.activity_id: t for t in (await world.poll(), await world.poll())}
        await world.heartbeat(by_id["a"].task_token)
        await world.fail(by_id["b"].task_token)
        await world.live.restart()
        again = await world.poll()
        assert (again.activity_id, again.attempt, again.input) == ("b", 2, payloads("input"))
        await world.complete(again.task_token)
        await world.complete(by_id["a"].task_token)
        await world.until("TimerFired")
        assert (await world.live.types()).count("ActivityTaskCompleted") == 2


async def test_an_activity_that_is_handed_out_again_after_a_restart_is_started_once() -> None:
    async with scheduled() as world:
        await world.live.restart()  # its transfer task may have run, or not
        task = await world.poll()
        assert task.activity_id == "a"
        assert not (await world.poll(0.05)).task_token


async def test_an_eager_activity_comes_with_the_reply() -> None:
    async with live() as it:
        run_id = await it.start()
        reply = await it.complete(await it.poll(), schedule_activity(eager=True))
        (task,) = reply.activity_tasks
        assert (task.activity_id, task.attempt, task.input) == ("a", 1, payloads("input"))
        world = World(it, run_id)
        assert not (await world.poll(0.05)).task_token
        await world.complete(task.task_token)
        assert "ActivityTaskCompleted" in await it.types()


async def test_canceling_a_running_activity() -> None:
    async with scheduled(schedule_activity(), start_timer("t", 0)) as world:
        task = await world.poll()
        token = tokens.decode(task.task_token, ActivityTaskToken)
        assert await refused(world.cancel(task.task_token)) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "unable to mark activity as canceled without activity being request canceled first",
        )
        await world.live.complete(await world.live.poll(), cancel_activity(token.scheduled_event_id))
        assert await world.heartbeat(task.task_token) is True
        await world.cancel(task.task_token)
        canceled = of_type(await world.live.events(), "ActivityTaskCanceled").activity_task_canceled_event_attributes
        assert (canceled.details, canceled.identity) == (payloads("why"), "w")


async def test_by_id() -> None:
    name = {"namespace": "default", "workflow_id": "workflow", "activity_id": "a"}
    async with scheduled(schedule_activity(), start_timer("t", 0)) as world:
        history, namespace_id = world.live.history, world.live.namespace_id
        task = await world.poll()
        token = tokens.decode(task.task_token, ActivityTaskToken)
        beat = RecordActivityTaskHeartbeatByIdRequest(**name, details=payloads("by id"))
        await history.record_activity_task_heartbeat_by_id(namespace_id, beat)
        fail = RespondActivityTaskFailedByIdRequest(**name, run_id=world.run_id, failure=application_failure())
        await history.respond_activity_task_failed_by_id(namespace_id, fail)
        # Nobody has the second attempt yet.
        assert await refused(history.respond_activity_task_failed_by_id(namespace_id, fail)) == GONE
        assert await refused(history.record_activity_task_heartbeat_by_id(namespace_id, beat)) == GONE
        again = await world.poll()
        assert again.heartbeat_details == payloads("by id")
        await world.live.complete(await world.live.poll(), cancel_activity(token.scheduled_event_id))
        cancel = RespondActivityTaskCanceledByIdRequest(**name)
        await history.respond_activity_task_canceled_by_id(namespace_id, cancel)
        assert await refused(history.respond_activity_task_canceled_by_id(namespace_id, cancel)) == (
            grpc.StatusCode.NOT_FOUND,
            "cannot find pending activity with ActivityID a, check workflow execution history for more details",
        )


async def test_completed_by_id_although_nobody_has_it() -> None:
    async with scheduled() as world:
        request = RespondActivityTaskCompletedByIdRequest(workflow_id="workflow", activity_id="a", identity="operator")
        await world.live.history.respond_activity_task_completed_by_id(world.live.namespace_id, request)
        begun = of_type(await world.live.events(), "ActivityTaskStarted").activity_task_started_event_attributes
        assert begun.identity == "operator"
        assert not (await world.poll(0.05)).task_token


async def test_of_a_closed_workflow() -> None:
    async with scheduled() as world:
        task = await world.poll()
        await world.live.terminate()
        closed = (grpc.StatusCode.NOT_FOUND, "workflow execution already completed")
        assert await refused(world.complete(task.task_token)) == closed
        assert await refused(world.heartbeat(task.task_token)) == closed
        request = RespondActivityTaskCompletedByIdRequest(workflow_id="workflow", activity_id="a")
        call = world.live.history.respond_activity_task_completed_by_id(world.live.namespace_id, request)
        assert await refused(call) == closed


async def test_timeouts_come_by_themselves() -> None:
    command = schedule_activity(start_to_close=0.05)
    command.schedule_activity_task_command_attributes.retry_policy.maximum_attempts = 1
    async with scheduled(command, schedule_activity("b", queue="nobody", schedule_to_close=0.05)) as world:
        assert (await world.poll()).activity_id == "a"
        await world.until("ActivityTaskTimedOut", 2)


async def test_activities_of_one_answer_are_all_handed_out() -> None:
    many = [schedule_activity(str(i)) for i in range(50)]
    async with scheduled(*many) as world:
        tasks = [await world.poll() for _ in many]
        assert sorted(int(t.activity_id) for t in tasks) == list(range(50))
        await asyncio.gather(*(world.complete(t.task_token) for t in tasks))
        assert (await world.live.types()).count("ActivityTaskCompleted") == 50


async def test_described() -> None:
    async with scheduled() as world:
        request = DescribeWorkflowExecutionRequest()
        request.execution.workflow_id = "workflow"
        await world.poll()
        reply = await world.live.history.describe_workflow_execution(world.live.namespace_id, request)
        (activity,) = reply.pending_activities
        assert activity.state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
        assert activity.last_worker_identity == "activity worker"
