"""Updates: what their callers, the worker and the history see of them."""

from __future__ import annotations

import pytest
from temporalio.api.enums.v1 import EventType
from temporalio.api.enums.v1 import WorkflowExecutionStatus as Status
from temporalio.api.errordetails.v1 import MultiOperationExecutionFailure, WorkflowNotReadyFailure
from temporalio.api.protocol.v1 import Message
from temporalio.api.workflowservice.v1 import UpdateWorkflowExecutionResponse
from tests.history.live import (
    ACCEPTED,
    ADMITTED,
    COMPLETED,
    accept,
    cause_of,
    complete_workflow,
    continue_as_new,
    finish,
    live,
    marker,
    of_type,
    reject,
    request_of,
    shown,
    start_request,
    turn_of,
)

from perdure.errors import Code, ServiceError
from perdure.history.core import workflow_tasks

FIRST_TASK = ["WorkflowExecutionStarted", "WorkflowTaskScheduled", "WorkflowTaskStarted", "WorkflowTaskCompleted"]
TASK = ["WorkflowTaskScheduled", "WorkflowTaskStarted", "WorkflowTaskCompleted"]
ACCEPT, COMPLETE = "WorkflowExecutionUpdateAccepted", "WorkflowExecutionUpdateCompleted"


def result(response: UpdateWorkflowExecutionResponse) -> bytes:
    return response.outcome.success.payloads[0].data


# --- the path of one update ---


async def test_an_update_is_accepted_and_completed_with_events() -> None:
    async with live() as w:
        run_id = await w.idle()
        before = await w.stored_version(run_id)
        updated = w.soon(w.update("u"))
        task = await w.poll()
        assert shown(task) == [*FIRST_TASK, "WorkflowTaskScheduled", "WorkflowTaskStarted"]
        assert await w.types() == [*FIRST_TASK, "WorkflowTaskScheduled", "WorkflowTaskStarted"]
        assert await w.stored_version(run_id) == before, "what is not accepted is not written"
        (message,) = task.messages
        assert (message.id, message.protocol_instance_id, message.event_id) == ("u/request", "u", 5)
        assert request_of(message).input.name == "handler"
        acceptance, response = accept(message), finish("u", "done")
        await w.complete(task, turn_of(acceptance), marker(), turn_of(response), messages=[acceptance, response])
        answer = await updated
        assert (answer.stage, result(answer)) == (COMPLETED, b"done")
        assert answer.update_ref.update_id == "u"
        assert answer.update_ref.workflow_execution.run_id == run_id
        assert await w.types() == [*FIRST_TASK, *TASK, ACCEPT, "MarkerRecorded", COMPLETE]
        events = await w.events()
        accepted = of_type(events, ACCEPT).workflow_execution_update_accepted_event_attributes
        assert accepted.protocol_instance_id == "u"
        assert accepted.accepted_request_message_id == "u/request"
        assert accepted.accepted_request_sequencing_event_id == 5
        assert accepted.accepted_request.input.name == "handler"
        completed = of_type(events, COMPLETE).workflow_execution_update_completed_event_attributes
        assert (completed.accepted_event_id, completed.meta.update_id) == (8, "u")
        assert not w.context(run_id).memory


async def test_messages_that_no_command_names_come_after_the_commands() -> None:
    async with live() as w:
        await w.idle()
        updated = w.soon(w.update())
        task = await w.poll()
        await w.complete(task, marker(), messages=[accept(task.messages[0]), finish("u")])
        await updated
        assert (await w.types())[-3:] == ["MarkerRecorded", ACCEPT, COMPLETE]


async def test_a_rejected_update_leaves_nothing_behind() -> None:
    async with live() as w:
        run_id = await w.idle()
        before = await w.stored_version(run_id)
        updated = w.soon(w.update())
        task = await w.poll()
        reply = await w.complete(task, messages=[reject(task.messages[0], "not now")])
        assert reply.reset_history_event_id == 3
        answer = await updated
        assert (answer.stage, answer.outcome.failure.message) == (COMPLETED, "not now")
        assert await w.types() == FIRST_TASK
        assert await w.stored_version(run_id) == before
        with pytest.raises(ServiceError, match='update "u" not found'):
            await w.poll_update("u")
        # The run goes on as if nothing had been.
        await w.signal()
        assert shown(await w.poll())[4:] == ["WorkflowExecutionSignaled", *TASK[:2]]


async def test_an_update_may_take_its_time_between_acceptance_and_completion() -> None:
    async with live() as w:
        run_id = await w.idle()
        updated = w.soon(w.update("u", ACCEPTED))
        task = await w.poll()
        await w.complete(task, messages=[accept(task.messages[0])])
        answer = await updated
        assert answer.stage == ACCEPTED
        assert not answer.HasField("outcome")
        assert not w.context(run_id).memory, "what is stored needs no memory while nobody waits"
        waiting = w.soon(w.poll_update("u"))
        await w.settle(waiting)
        await w.signal()
        await w.complete(await w.poll(), messages=[finish("u", "at last")])
        assert (await waiting).outcome.success.payloads[0].data == b"at last"


async def test_what_was_accepted_is_completed_after_a_restart() -> None:
    async with live() as w:
        await w.idle()
        updated = w.soon(w.update("u", ACCEPTED))
        task = await w.poll()
        await w.complete(task, messages=[accept(task.messages[0])])
        await updated
        await w.restart()
        again, waiting = w.soon(w.update("u")), w.soon(w.poll_update("u"))
        await w.settle(again)
        await w.signal()
        task = await w.poll()
        assert not task.messages
        await w.complete(task, messages=[finish("u", "durable")])
        assert result(await again) == b"durable"
        assert (await waiting).outcome.success.payloads[0].data == b"durable"
        await w.restart()
        assert result(await w.update("u")) == b"durable"


async def test_the_same_id_is_the_same_update() -> None:
    async with live() as w:
        await w.idle()
        first, second = w.soon(w.update()), w.soon(w.update())
        task = await w.poll()
        assert len(task.messages) == 1
        third = w.soon(w.update())
        await w.settle(third)
        reply = await w.complete(task, messages=[accept(task.messages[0]), finish("u", "once")])
        assert not reply.HasField("workflow_task")
        assert {result(await each) for each in (first, second, third)} == {b"once"}
        assert (await w.types()).count(ACCEPT) == 1


# --- with which workflow task it goes ---


async def test_an_update_goes_with_a_workflow_task_that_is_scheduled() -> None:
    async with live() as w:
        await w.idle()
        await w.signal()
        updated = w.soon(w.update())
        await w.settle(updated)
        task = await w.poll()
        assert shown(task)[4:] == ["WorkflowExecutionSignaled", *TASK[:2]]
        await w.complete(task, messages=[reject(task.messages[0])])
        assert (await updated).outcome.HasField("failure")
        assert (await w.types())[4:] == ["WorkflowExecutionSignaled", *TASK], "that one was not for the update alone"


async def test_an_update_that_comes_while_a_task_is_worked_on_goes_with_the_next() -> None:
    async with live() as w:
        await w.idle()
        await w.signal()
        task = await w.poll()
        updated = w.soon(w.update())
        await w.settle(updated)
        following = (await w.complete(task)).workflow_task
        assert [m.protocol_instance_id for m in following.messages] == ["u"]
        reply = await w.complete(following, messages=[reject(following.messages[0])])
        assert reply.reset_history_event_id == task.started_event_id
        await updated
        assert (await w.types())[4:] == ["WorkflowExecutionSignaled", *TASK]


async def test_updates_reach_the_worker_in_the_order_in_which_they_came() -> None:
    async with live() as w:
        await w.idle()
        await w.signal()
        updates = [w.soon(w.update(f"u{i}")) for i in range(5)]
        await w.settle(updates[-1])
        task = await w.poll()
        assert [m.protocol_instance_id for m in task.messages] == [f"u{i}" for i in range(5)]
        messages = [m for given in task.messages for m in (accept(given), finish(given.protocol_instance_id))]
        await w.complete(task, messages=messages)
        for update in updates:
            await update


async def test_an_event_makes_the_speculative_task_a_real_one() -> None:
    async with live() as w:
        await w.idle()
        updated = w.soon(w.update())
        task = await w.poll()
        await w.signal()
        assert (await w.types())[4:] == TASK[:2], "the signal waits until the worker has answered"
        reply = await w.complete(task, messages=[reject(task.messages[0])])
        assert not reply.reset_history_event_id
        assert (await updated).outcome.HasField("failure")
        assert (await w.types())[4:] == [*TASK, "WorkflowExecutionSignaled", *TASK[:2]]


async def test_an_event_before_the_worker_has_the_task_is_shown_with_it() -> None:
    async with live() as w:
        await w.idle()
        updated = w.soon(w.update())
        await w.settle(updated)
        await w.signal()
        task = await w.poll()
        assert shown(task)[4:] == ["WorkflowTaskScheduled", "WorkflowExecutionSignaled", "WorkflowTaskStarted"]
        await w.complete(task, messages=[accept(task.messages[0]), finish("u")])
        assert result(await updated) == b"done"


@pytest.mark.parametrize(("shown_twice", "markers", "kept"), [(True, 1, False), (False, 1, True), (True, 11, True)])
async def test_events_that_went_with_a_rejected_update(shown_twice: bool, markers: int, kept: bool) -> None:
    """The worker that can be shown events twice forgets them, unless they are many."""
    async with live() as w:
        await w.start()
        await w.complete(await w.poll(), *[marker()] * markers)
        updated = w.soon(w.update())
        task = await w.poll()
        reply = await w.complete(task, messages=[reject(task.messages[0])], shown_twice=shown_twice)
        await updated
        assert reply.reset_history_event_id == (0 if kept else 3)
        assert (await w.types())[4 + markers :] == (TASK if kept else [])


async def test_a_worker_that_does_not_take_a_speculative_task_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workflow_tasks, "SPECULATIVE_SCHEDULE_TO_START", 50_000_000)
    async with live() as w:
        run_id = await w.idle()
        updated = w.soon(w.update())
        await w.settle(updated)
        while await w.stored_version(run_id) < 4:
            watcher = w.history.shard(w.namespace_id, "workflow").watch(w.context(run_id).key)
            await watcher
        assert (await w.types())[4:] == ["WorkflowTaskScheduled", "WorkflowTaskTimedOut", "WorkflowTaskScheduled"]
        task = await w.poll()
        await w.complete(task, messages=[accept(task.messages[0]), finish("u")])
        assert result(await updated) == b"done"


async def test_a_heartbeat_does_not_answer_updates_nor_send_them_again() -> None:
    async with live() as w:
        await w.idle()
        updated = w.soon(w.update("u"))
        task = await w.poll()
        other = w.soon(w.update("v"))
        await w.settle(other)
        following = (await w.complete(task, heartbeat=True)).workflow_task
        assert [m.protocol_instance_id for m in following.messages] == ["v"]
        messages = [accept(task.messages[0]), finish("u"), reject(following.messages[0])]
        await w.complete(following, messages=messages)
        assert result(await updated) == b"done"
        assert (await other).outcome.HasField("failure")


async def test_an_update_goes_with_the_first_workflow_task() -> None:
    async with live() as w:
        await w.start()
        updated = w.soon(w.update())
        await w.settle(updated)
        task = await w.poll()
        reply = await w.complete(task, messages=[reject(task.messages[0])])
        assert not reply.reset_history_event_id
        assert (await updated).outcome.HasField("failure")
        assert await w.types() == FIRST_TASK


# --- workers that do not answer well ---


async def test_an_update_that_the_worker_ignores_is_rejected() -> None:
    async with live() as w:
        await w.idle()
        updated = w.soon(w.update())
        await w.complete(await w.poll())
        failure = (await updated).outcome.failure
        assert failure.application_failure_info.type == "UnprocessedUpdate"
        assert await w.types() == FIRST_TASK


async def test_when_the_workflow_task_fails_the_update_goes_with_the_next() -> None:
    async with live() as w:
        await w.idle()
        updated = w.soon(w.update())
        await w.fail(await w.poll())
        assert (await w.types())[4:] == [*TASK[:2], "WorkflowTaskFailed", *TASK[:1]]
        task = await w.poll()
        assert [m.protocol_instance_id for m in task.messages] == ["u"]
        await w.complete(task, messages=[accept(task.messages[0]), finish("u", "second try")])
        assert result(await updated) == b"second try"


def _without_sequence(message: Message) -> list[Message]:
    bad = accept(message)
    bad.body.value = b"\x0a\x09u/request"
    return [bad]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda m: [finish("u")], "received *update.Response message while in state Sent"),
        (lambda m: [accept(m), _renamed(accept(m))], "in state Accepted"),
        (_without_sequence, "accepted_request_sequencing_event_id is not set"),
        (lambda m: [finish("unknown")], "update unknown wasn't found on the server"),
        (lambda m: [Message(id="x", protocol_instance_id="u")], "received message with nil body"),
    ],
)
async def test_a_bad_message_fails_the_workflow_task(answer: object, why: str) -> None:
    async with live() as w:
        await w.idle()
        updated = w.soon(w.update())
        task = await w.poll()
        assert callable(answer)
        with pytest.raises(ServiceError) as refused:
            await w.complete(task, messages=answer(task.messages[0]))
        assert refused.value.code == Code.INVALID_ARGUMENT
        assert why in refused.value.message
        failed = of_type(await w.events(), "WorkflowTaskFailed")
        assert cause_of(failed) == "WORKFLOW_TASK_FAILED_CAUSE_BAD_UPDATE_WORKFLOW_EXECUTION_MESSAGE"
        with pytest.raises(ServiceError, match="unexpected workflow task failure") as told:
            await updated
        assert isinstance(told.value.detail, WorkflowNotReadyFailure)


def _renamed(message: Message) -> Message:
    message.id += "-2"
    return message


async def test_a_command_that_names_no_message_fails_the_workflow_task() -> None:
    async with live() as w:
        await w.idle()
        await w.signal()
        with pytest.raises(ServiceError, match="referenced absent message ID nothing"):
            await w.complete(await w.poll(), turn_of(Message(id="nothing")))


async def test_an_update_that_was_accepted_in_a_refused_answer_was_not_accepted() -> None:
    async with live() as w:
        await w.idle()
        updated = w.soon(w.update())
        task = await w.poll()
        with pytest.raises(ServiceError):
            await w.complete(task, messages=[accept(task.messages[0]), finish("unknown")])
        with pytest.raises(ServiceError, match="unexpected workflow task failure"):
            await updated
        assert ACCEPT not in await w.types()


async def test_a_lost_update_whose_request_the_worker_sends_back_counts() -> None:
    async with live() as w:
        await w.idle()
        await w.signal()
        updated = w.soon(w.update())
        await w.settle(updated)
        task = await w.poll()
        await w.restart()
        await w.complete(task, messages=[accept(task.messages[0]), finish("u", "kept")])
        assert result(await w.update("u")) == b"kept"


async def test_a_run_whose_workflow_task_keeps_failing_takes_no_updates() -> None:
    async with live() as w:
        await w.start()
        await w.fail(await w.poll())
        await w.fail(await w.poll())
        with pytest.raises(ServiceError, match="Workflow Task in failed state") as error:
            await w.update()
        assert error.value.code == Code.FAILED_PRECONDITION


async def test_a_worker_with_a_speculative_task_of_before_a_restart_is_told_to_forget_it() -> None:
    async with live() as w:
        await w.idle()
        w.soon(w.update())
        task = await w.poll()
        await w.restart()
        with pytest.raises(ServiceError) as error:
            await w.complete(task, messages=[accept(task.messages[0]), finish("u")])
        assert error.value.code == Code.NOT_FOUND
        updated = w.soon(w.update())
        fresh = await w.poll()
        await w.complete(fresh, messages=[accept(fresh.messages[0]), finish("u", "fresh")])
        assert result(await updated) == b"fresh"


# --- the run ends ---


async def test_a_run_that_closes_fails_what_it_had_accepted() -> None:
    async with live() as w:
        await w.idle()
        updated = w.soon(w.update())
        task = await w.poll()
        await w.complete(task, complete_workflow(), messages=[accept(task.messages[0])])
        # The acceptance came after the end: it counts for nothing.
        with pytest.raises(ServiceError, match="aborted by closing workflow") as error:
            await updated
        assert error.value.code == Code.NOT_FOUND


async def test_an_update_accepted_and_left_open_by_the_end_of_its_run() -> None:
    async with live() as w:
        await w.idle()
        updated, accepted = w.soon(w.update()), w.soon(w.update(wait=ACCEPTED))
        task = await w.poll()
        acceptance = accept(task.messages[0])
        await w.complete(task, turn_of(acceptance), complete_workflow(), messages=[acceptance])
        for answer in (await updated, await accepted, await w.update(), await w.poll_update()):
            assert answer.stage == COMPLETED
            assert answer.outcome.failure.application_failure_info.type == "AcceptedUpdateCompletedWorkflow"
        with pytest.raises(ServiceError, match="workflow execution already completed"):
            await w.update("another")


@pytest.mark.parametrize("sent", [True, False])
async def test_an_update_that_was_not_accepted_when_its_run_was_terminated(sent: bool) -> None:
    async with live() as w:
        await w.idle()
        updated = w.soon(w.update())
        await w.settle(updated)
        if sent:
            await w.poll()
        await w.terminate()
        with pytest.raises(ServiceError, match="aborted by closing workflow") as error:
            await updated
        assert error.value.code == Code.NOT_FOUND


async def test_an_update_that_came_before_continue_as_new_is_for_the_caller_to_send_again() -> None:
    async with live() as w:
        old = await w.idle()
        first = w.soon(w.update("u1"))
        task = await w.poll()
        second = w.soon(w.update("u2"))
        await w.settle(second)
        acceptance = accept(task.messages[0])
        await w.complete(task, turn_of(acceptance), continue_as_new(), messages=[acceptance])
        failure = (await first).outcome.failure
        assert failure.application_failure_info.type == "AcceptedUpdateCompletedWorkflow"
        with pytest.raises(ServiceError, match="workflow is closing") as error:
            await second
        assert error.value.code == Code.RESOURCE_EXHAUSTED, "SDKs send such a one again"
        again = w.soon(w.update("u2"))
        task = await w.poll()
        assert task.workflow_execution.run_id != old
        while not task.messages:
            task = (await w.complete(task)).workflow_task
        await w.complete(task, messages=[accept(task.messages[0]), finish("u2", "next run")])
        assert result(await again) == b"next run"
        with pytest.raises(ServiceError, match="workflow execution already completed"):
            await w.update("u3", run_id=old)


async def test_a_run_that_tries_to_close_again_is_told_nothing_more() -> None:
    async with live() as w:
        await w.idle()
        await w.signal()
        task = await w.poll()
        await w.signal()
        with pytest.raises(ServiceError, match="UnhandledCommand"):
            await w.complete(task, complete_workflow())
        await w.signal("before it is tried again")
        task = await w.poll()
        for call in (w.signal(), w.update()):
            with pytest.raises(ServiceError, match="workflow is closing") as error:
                await call
            assert error.value.code == Code.RESOURCE_EXHAUSTED
        await w.complete(task, complete_workflow())
        assert (await w.types())[-1] == "WorkflowExecutionCompleted"


# --- waiting ---


async def test_a_long_wait_ends_with_how_far_the_update_came() -> None:
    async with live(history__longPollExpirationInterval="300ms") as w:
        await w.idle()
        assert (await w.update(seconds=0.3)).stage == ADMITTED
        task = await w.poll()
        await w.complete(task, messages=[accept(task.messages[0])])
        answer = await w.poll_update(seconds=0.3)
        assert answer.stage == ACCEPTED
        assert not answer.HasField("outcome")


async def test_a_callers_own_deadline_is_an_error() -> None:
    async with live() as w:
        await w.idle()
        with pytest.raises(ServiceError) as error:
            await w.update(seconds=0.05)
        assert error.value.code == Code.DEADLINE_EXCEEDED


async def test_a_poll_that_does_not_wait_says_how_far_the_update_is() -> None:
    async with live() as w:
        await w.idle()
        w.soon(w.update())
        task = await w.poll()
        assert (await w.poll_update(wait=0)).stage == ADMITTED  # pyright: ignore[reportArgumentType]
        await w.complete(task, messages=[accept(task.messages[0])])
        assert (await w.poll_update(wait=0)).stage == ACCEPTED  # pyright: ignore[reportArgumentType]


async def test_what_does_not_exist_is_not_found() -> None:
    async with live() as w:
        with pytest.raises(ServiceError) as error:
            await w.update()
        assert error.value.code == Code.NOT_FOUND
        await w.idle()
        with pytest.raises(ServiceError, match='update "nothing" not found'):
            await w.poll_update("nothing")
        with pytest.raises(ServiceError, match="workflow execution not found"):
            await w.update(first_execution_run_id="11111111-1111-4111-8111-111111111111")


# --- limits ---


async def test_only_so_many_updates_are_in_flight() -> None:
    async with live(history__maxInFlightUpdates=2) as w:
        await w.idle()
        first = w.soon(w.update("u0"))
        task = await w.poll()
        await w.complete(task, messages=[accept(task.messages[0])])
        second = w.soon(w.update("u1"))
        await w.settle(second)
        with pytest.raises(ServiceError, match="concurrent in-flight updates") as error:
            await w.update("u2")
        assert error.value.code == Code.RESOURCE_EXHAUSTED
        task = await w.poll()
        await w.complete(task, messages=[reject(task.messages[0]), finish("u0")])
        assert result(await first) == b"done"
        third = w.soon(w.update("u2"))
        await w.settle(third)


async def test_so_many_updates_in_all_and_a_word_before_it_comes_to_that() -> None:
    async with live(history__maxTotalUpdates=2, history__maxTotalUpdates__suggestContinueAsNewThreshold=0.5) as w:
        await w.idle()
        for i in range(2):
            updated = w.soon(w.update(f"u{i}"))
            task = await w.poll()
            started = task.history.events[-1].workflow_task_started_event_attributes
            assert started.suggest_continue_as_new
            await w.complete(task, messages=[accept(task.messages[0]), finish(f"u{i}")])
            await updated
        with pytest.raises(ServiceError, match="total number of distinct updates") as error:
            await w.update("u2")
        assert error.value.code == Code.FAILED_PRECONDITION
        assert result(await w.update("u0")) == b"done"


async def test_the_size_of_what_is_in_flight_is_bounded() -> None:
    async with live(history__maxInFlightUpdatePayloads=100) as w:
        run_id = await w.idle()
        with pytest.raises(ServiceError, match="total payload size of in-flight updates"):
            await w.update(request={"input": {"args": {"payloads": [{"data": b"x" * 200}]}}})
        assert not w.context(run_id).memory


# --- update with start ---


async def test_an_update_goes_with_the_first_workflow_task_of_the_run_that_it_starts() -> None:
    async with live() as w:
        request = start_request()
        both = w.soon(w.start_and_update(request))
        task = await w.poll()
        assert [m.protocol_instance_id for m in task.messages] == ["u"]
        assert shown(task) == FIRST_TASK[:3]
        await w.complete(task, messages=[accept(task.messages[0]), finish("u", "both")])
        start, update = (await both).responses
        assert start.start_workflow.started
        assert start.start_workflow.run_id == task.workflow_execution.run_id
        assert result(update.update_workflow) == b"both"
        # Asked once more, it is the same workflow and the same update.
        start, update = (await w.start_and_update(request)).responses
        assert not start.start_workflow.started
        assert start.start_workflow.run_id == task.workflow_execution.run_id
        assert result(update.update_workflow) == b"both"


async def test_a_running_workflow_is_updated_when_the_caller_allows() -> None:
    async with live() as w:
        run_id = await w.idle()
        with pytest.raises(ServiceError) as error:
            await w.start_and_update(start_request())
        assert error.value.code == Code.ALREADY_EXISTS
        detail = error.value.detail
        assert isinstance(detail, MultiOperationExecutionFailure)
        assert [s.code for s in detail.statuses] == [6, 10]
        request = start_request(workflow_id_conflict_policy="WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING")
        both = w.soon(w.start_and_update(request))
        task = await w.poll()
        await w.complete(task, messages=[accept(task.messages[0]), finish("u", "used")])
        start, update = (await both).responses
        assert (start.start_workflow.started, start.start_workflow.run_id) == (False, run_id)
        assert start.start_workflow.status == Status.WORKFLOW_EXECUTION_STATUS_RUNNING
        assert result(update.update_workflow) == b"used"


async def test_a_run_that_closes_before_it_took_the_update_is_started_anew() -> None:
    async with live() as w:
        run_id = await w.idle()
        request = start_request(workflow_id_conflict_policy="WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING")
        both = w.soon(w.start_and_update(request))
        await w.settle(both)
        await w.terminate()
        task = await w.poll()
        assert task.workflow_execution.run_id != run_id
        await w.complete(task, messages=[accept(task.messages[0]), finish("u", "new run")])
        start, update = (await both).responses
        assert start.start_workflow.started
        assert result(update.update_workflow) == b"new run"


async def test_an_update_that_fails_after_the_start_says_that_the_start_was_done() -> None:
    async with live() as w:
        both = w.soon(w.start_and_update(start_request()))
        await w.complete(await w.poll(), complete_workflow())
        with pytest.raises(ServiceError, match="Update failed") as error:
            await both
        detail = error.value.detail
        assert isinstance(detail, MultiOperationExecutionFailure)
        assert [s.code for s in detail.statuses] == [0, 5]


async def test_a_request_id_of_an_accepted_update_is_kept() -> None:
    async with live() as w:
        run_id = await w.idle()
        updated = w.soon(w.update(request={"request_id": "mine"}))
        task = await w.poll()
        await w.complete(task, messages=[accept(task.messages[0]), finish("u")])
        link = (await updated).link.workflow_event
        assert link.request_id_ref.request_id == "mine"
        record = w.context(run_id).loaded.request_ids["mine"]
        assert record.event_type == EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED
