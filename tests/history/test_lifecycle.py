"""How runs end, and how they go on as other runs: continue-as-new, retries, cron; timeouts."""

from __future__ import annotations

from typing import Any

import pytest
from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import RetryPolicy, SearchAttributes, WorkflowExecution
from temporalio.api.enums.v1 import CommandType, ContinueAsNewInitiator, IndexedValueType, RetryState
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause
from temporalio.api.history.v1 import WorkflowExecutionStartedEventAttributes
from temporalio.api.workflowservice.v1 import RespondWorkflowTaskCompletedRequest
from tests.history.service import service
from tests.history.support import (
    SECOND,
    START,
    Run,
    application_failure,
    complete_workflow,
    fail_workflow,
    payloads,
    schedule_activity,
    start_timer,
)

from perdure.clock import HOUR, to_duration
from perdure.history import signal_calls
from perdure.history.api import ParentLink
from perdure.history.core import completion as commands
from perdure.history.core import continuation, lifecycle, workflow_tasks
from perdure.history.core.completion import BadCommand, Completion
from perdure.history.core.state import State
from perdure.history.core.tasks import (
    CloseExecution,
    DeleteAfterRetention,
    FirstWorkflowTask,
    RunTimeout,
    UpsertVisibility,
)
from perdure.history.core.txn import Txn

_COMMANDS = (signal_calls,)  # imported for the commands that they register
PARENT = ParentLink("namespace", "default", "parent", "parent run", 5, "root", "root run")
COMPLETED, FAILED, TIMED_OUT, CONTINUED = 2, 3, 7, 6


def answer(run: Run, command: Command) -> Txn:
    """The run's scheduled workflow task is answered with one command that ends it. Raises BadCommand."""
    run.start_workflow_task()
    task = run.state.run.workflow_task
    assert task is not None
    request = RespondWorkflowTaskCompletedRequest(identity="worker", commands=[command])
    txn = run.step()
    started = run.events[0].workflow_execution_started_event_attributes
    completed = workflow_tasks.complete(txn, task, request)
    commands.run_commands(Completion(txn, request, completed.event_id, started), [command])
    return run.commit(txn)


def first_event(txn: Txn | None) -> WorkflowExecutionStartedEventAttributes:
    assert txn is not None
    return txn.events[0].workflow_execution_started_event_attributes


def next_state(txn: Txn) -> State:
    assert txn.new_run is not None
    return txn.new_run.state


def continue_as_new(**fields: Any) -> Command:
    command = Command(command_type=CommandType.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION)
    a = command.continue_as_new_workflow_execution_command_attributes
    for name, value in fields.items():
        if isinstance(value, str | int):
            setattr(a, name, value)
        else:
            getattr(a, name).CopyFrom(value)
    return command


def retry_policy(**fields: Any) -> RetryPolicy:
    return RetryPolicy(
        initial_interval=to_duration(2 * SECOND),
        backoff_coefficient=2,
        maximum_interval=to_duration(100 * SECOND),
        **fields,
    )


def time_out(run: Run) -> Txn:
    txn = run.step()
    started = run.events[0].workflow_execution_started_event_attributes
    retry_state, new_run_id = continuation.after_failure(txn, started, continuation.timeout_failure())
    lifecycle.time_out(txn, retry_state, new_run_id)
    return run.commit(txn)


# --- the beginning ---


@pytest.mark.parametrize(
    ("execution", "run_timeout", "backoff", "deadline"),
    [(0, 0, 0, 0), (0, 30, 0, 30), (60, 30, 0, 30), (20, 0, 0, 20), (0, 30, 5, 35), (20, 0, 5, 25)],
)
def test_a_runs_deadline_is_the_earlier_of_its_own_and_its_executions(
    execution: int, run_timeout: int, backoff: int, deadline: int
) -> None:
    run = Run(execution_timeout=execution * SECOND, run_timeout=run_timeout * SECOND, first_backoff=backoff * SECOND)
    if deadline:
        assert run.timers[("run-timeout",)] == (START + deadline * SECOND, run.timers[("run-timeout",)][1])
        assert isinstance(run.timers[("run-timeout",)][1], RunTimeout)
    else:
        assert ("run-timeout",) not in run.timers


def test_a_run_with_a_backoff_waits_for_its_first_workflow_task() -> None:
    run = Run(first_backoff=5 * SECOND)
    assert run.types() == ["WorkflowExecutionStarted"]
    time, task = run.timers[("first-workflow-task",)]
    assert (time, type(task)) == (START + 5 * SECOND, FirstWorkflowTask)
    run.do(lifecycle.first_workflow_task_due)
    run.do(lifecycle.first_workflow_task_due)  # once is enough
    assert run.types() == ["WorkflowExecutionStarted", "WorkflowTaskScheduled"]


# --- the end ---


def test_the_end_of_a_run() -> None:
    run = Run(run_timeout=100 * SECOND, parent=PARENT)
    run.answer(start_timer("t", 10), schedule_activity("a", start_to_close=10))
    run.do(workflow_tasks.ensure_scheduled)
    del run.tasks[:]
    txn = answer(run, complete_workflow())
    state = run.state
    assert not state.open
    assert (state.run.status, state.run.close_event_id, state.run.close_time) == (COMPLETED, len(run.events), START)
    assert [type(t) for t in run.tasks] == [CloseExecution, UpsertVisibility]
    assert [(type(t.task), t.fire_time - START) for t in txn.timers] == [(DeleteAfterRetention, run.env.retention)]


def test_nothing_after_the_command_that_ends_the_run_counts() -> None:
    run = Run()
    run.start_workflow_task()
    run.complete_workflow_task(complete_workflow(), start_timer("t", 1))
    assert run.types()[-1] == "WorkflowExecutionCompleted"


def test_a_run_does_not_end_before_its_worker_has_seen_everything() -> None:
    run = Run()
    run.answer(start_timer("t", 1))
    run.do(workflow_tasks.ensure_scheduled)
    run.start_workflow_task()
    run.advance(2)
    assert run.state.buffered
    with pytest.raises(BadCommand) as bad:
        run.complete_workflow_task(complete_workflow())
    assert bad.value.cause == Cause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND


# --- continue as new ---


def test_continue_as_new_takes_over_what_it_does_not_set() -> None:
    run = Run(
        execution_timeout=HOUR,
        run_timeout=60 * SECOND,
        task_timeout=7 * SECOND,
        first_run_id="first",
        parent=PARENT,
        root=WorkflowExecution(workflow_id="root", run_id="root run"),
        identity="starter",
        memo=lifecycle.Memo(fields={"k": payloads("v").payloads[0]}),
        retry_policy=retry_policy(),
    )
    txn = answer(run, continue_as_new(input=payloads("next")))
    closing = run.last("WorkflowExecutionContinuedAsNew")
    started = first_event(txn.new_run)
    info = next_state(txn).info
    assert run.state.run.status == CONTINUED
    assert run.state.info.new_run_id == info.run_id == closing.new_execution_run_id
    assert (started.workflow_type.name, started.task_queue.name, started.input) == ("Type", "queue", payloads("next"))
    assert (info.run_timeout, info.task_timeout) == (60 * SECOND, 7 * SECOND)
    assert info.execution_expiration == START + HOUR  # that of the chain
    assert (info.first_run_id, info.continued_from_run_id) == ("first", "run")
    assert (info.parent_workflow_id, info.parent_initiated_event_id, info.root_workflow_id) == ("parent", 5, "root")
    assert started.initiator == ContinueAsNewInitiator.CONTINUE_AS_NEW_INITIATOR_WORKFLOW
    # These are the worker's to say.
    assert not started.HasField("memo")
    assert not started.HasField("retry_policy")


def test_continue_as_new_with_everything_set() -> None:
    settings = {"history.workflowIdReuseMinimalInterval": "0"}
    run = Run(settings=settings)
    run.env.search_attributes = {"CustomKeyword": IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD}
    attributes = SearchAttributes()
    attributes.indexed_fields["CustomKeyword"].CopyFrom(payloads("x").payloads[0])
    command = continue_as_new(
        workflow_run_timeout=to_duration(20 * SECOND),
        workflow_task_timeout=to_duration(30 * SECOND),
        backoff_start_interval=to_duration(5 * SECOND),
        cron_schedule="0 * * * *",
        retry_policy=retry_policy(maximum_attempts=3),
        memo=lifecycle.Memo(fields={"k": payloads("v").payloads[0]}),
        search_attributes=attributes,
        last_completion_result=payloads("last"),
    )
    a = command.continue_as_new_workflow_execution_command_attributes
    a.workflow_type.name, a.task_queue.name = "Other", "other queue"
    txn = answer(run, command)
    started = first_event(txn.new_run)
    assert (started.workflow_type.name, started.task_queue.name) == ("Other", "other queue")
    assert (started.workflow_run_timeout.seconds, started.workflow_task_timeout.seconds) == (20, 20)
    assert started.first_workflow_task_backoff.seconds == 5
    assert (started.cron_schedule, started.retry_policy.maximum_attempts) == ("0 * * * *", 3)
    assert started.memo.fields["k"] == payloads("v").payloads[0]
    assert started.search_attributes.indexed_fields["CustomKeyword"].metadata["type"] == b"Keyword"
    assert started.last_completion_result == payloads("last")
    assert next_state(txn).run.workflow_task is None  # it waits for the backoff


def test_a_chain_of_very_short_runs_is_slowed_down() -> None:
    run = Run()
    assert first_event(answer(run, continue_as_new()).new_run).first_workflow_task_backoff.seconds == 1
    run = Run()
    run.now += 2 * SECOND
    assert first_event(answer(run, continue_as_new()).new_run).first_workflow_task_backoff.seconds == 0


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"cron_schedule": "every now and then"}, "invalid CronSchedule"),
        ({"workflow_run_timeout": to_duration(-SECOND)}, "negative duration"),
        ({"retry_policy": RetryPolicy(maximum_attempts=-1)}, "MaximumAttempts cannot be negative"),
    ],
)
def test_a_bad_continue_as_new_is_refused(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(BadCommand, match=why) as bad:
        answer(Run(), continue_as_new(**fields))
    assert bad.value.cause == Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_CONTINUE_AS_NEW_ATTRIBUTES


# --- retry ---


def test_a_failed_run_is_retried_as_its_policy_says() -> None:
    run = Run(
        retry_policy=retry_policy(), input=payloads("input"), memo=lifecycle.Memo(), attempt=2, run_timeout=60 * SECOND
    )
    txn = answer(run, fail_workflow())
    failed = run.last("WorkflowExecutionFailed")
    started = first_event(txn.new_run)
    assert run.state.run.status == FAILED
    assert failed.retry_state == RetryState.RETRY_STATE_IN_PROGRESS
    assert failed.new_execution_run_id == next_state(txn).info.run_id
    assert (started.attempt, started.first_workflow_task_backoff.seconds) == (3, 4)
    assert started.input == payloads("input")
    assert started.continued_failure.message == "failed"
    assert started.initiator == ContinueAsNewInitiator.CONTINUE_AS_NEW_INITIATOR_RETRY
    assert started.workflow_run_timeout.seconds == 60
    assert started.retry_policy == retry_policy()
    assert started.first_execution_run_id == "run"


@pytest.mark.parametrize(
    ("fields", "failure", "state"),
    [
        ({}, {}, RetryState.RETRY_STATE_RETRY_POLICY_NOT_SET),
        ({"retry_policy": retry_policy()}, {"non_retryable": True}, RetryState.RETRY_STATE_NON_RETRYABLE_FAILURE),
        (
            {"retry_policy": retry_policy(non_retryable_error_types=["Bad"])},
            {"type": "Bad"},
            RetryState.RETRY_STATE_NON_RETRYABLE_FAILURE,
        ),
        (
            {"retry_policy": retry_policy(maximum_attempts=2), "attempt": 2},
            {},
            RetryState.RETRY_STATE_MAXIMUM_ATTEMPTS_REACHED,
        ),
        ({"retry_policy": retry_policy(), "execution_timeout": SECOND}, {}, RetryState.RETRY_STATE_TIMEOUT),
    ],
)
def test_a_failed_run_that_is_not_retried(
    fields: dict[str, Any], failure: dict[str, Any], state: RetryState.ValueType
) -> None:
    run = Run(**fields)
    txn = answer(run, fail_workflow(**failure))
    assert txn.new_run is None
    assert run.last("WorkflowExecutionFailed").retry_state == state
    assert not run.last("WorkflowExecutionFailed").new_execution_run_id


def test_a_run_that_timed_out_is_retried_too() -> None:
    run = Run(retry_policy=retry_policy(), run_timeout=10 * SECOND)
    run.now += 10 * SECOND
    txn = time_out(run)
    assert run.state.run.status == TIMED_OUT
    assert run.last("WorkflowExecutionTimedOut").retry_state == RetryState.RETRY_STATE_IN_PROGRESS
    assert first_event(txn.new_run).continued_failure.HasField("timeout_failure_info")
    assert next_state(txn).info.run_expiration == run.now + 12 * SECOND  # its time begins after the backoff


# --- cron ---


def test_a_cron_run_that_completes_is_followed_by_its_next_turn() -> None:
    run = Run(cron_schedule="* * * * *", input=payloads("input"))
    command = complete_workflow()
    command.complete_workflow_execution_command_attributes.result.CopyFrom(payloads("result"))
    txn = answer(run, command)
    started = first_event(txn.new_run)
    assert run.last("WorkflowExecutionCompleted").new_execution_run_id == next_state(txn).info.run_id
    assert started.last_completion_result == payloads("result")
    assert started.initiator == ContinueAsNewInitiator.CONTINUE_AS_NEW_INITIATOR_CRON_SCHEDULE
    assert (started.cron_schedule, started.attempt, started.input) == ("* * * * *", 1, payloads("input"))
    begins = START + started.first_workflow_task_backoff.seconds * SECOND
    assert begins % (60 * SECOND) == 0
    assert START < begins <= START + 60 * SECOND


def test_a_cron_run_that_fails_is_followed_by_its_next_turn_which_knows_of_it() -> None:
    run = Run(cron_schedule="* * * * *", last_completion_result=payloads("before"))
    started = first_event(answer(run, fail_workflow(non_retryable=True)).new_run)
    assert started.continued_failure == application_failure(non_retryable=True)
    assert started.last_completion_result == payloads("before")


def test_a_cron_chain_ends_with_its_execution() -> None:
    run = Run(cron_schedule="0 0 1 1 *", execution_timeout=HOUR)
    assert answer(run, complete_workflow()).new_run is None


# --- with a database ---


async def test_a_run_that_goes_on_is_one_step_for_whoever_looks() -> None:
    async with service() as world:
        first = (await world.start(cron_schedule="* * * * *")).run_id
        await world.advance(61)
        task = await world.poll()
        await world.complete(task, complete_workflow())
        current = await world.shard.current(world.namespace_id, "workflow")
        assert current is not None
        assert current.run_id == (await world.state(first)).info.new_run_id
        assert await world.types() == ["WorkflowExecutionStarted"]
        await world.advance(61)
        assert (await world.poll()).workflow_execution.run_id == current.run_id


async def test_the_run_timeout_ends_a_run_and_its_retry_goes_on() -> None:
    async with service() as world:
        first = (
            await world.start(
                workflow_run_timeout={"seconds": 3},
                workflow_execution_timeout={"seconds": 60},
                retry_policy={"maximum_attempts": 2},
            )
        ).run_id
        await world.advance(3.5)

        async def retried() -> bool:
            current = await world.shard.current(world.namespace_id, "workflow")
            return current is not None and current.run_id != first

        await world.until(retried)
        assert (await world.types(first))[-1] == "WorkflowExecutionTimedOut"
        await world.advance(6)
        await world.until_last("WorkflowExecutionTimedOut")
        timed_out = (await world.events())[-1].workflow_execution_timed_out_event_attributes
        assert timed_out.retry_state == RetryState.RETRY_STATE_MAXIMUM_ATTEMPTS_REACHED


async def test_heartbeats_of_a_workflow_task_count_as_one_task() -> None:
    async with service(history__workflowTaskHeartbeatTimeout="30s") as world:
        await world.start(workflow_task_timeout={"seconds": 60})
        task = await world.poll()
        for _ in range(3):
            await world.advance(9)
            task = (await world.complete(task, heartbeat=True, inline=True)).workflow_task
            assert task.started_event_id
        await world.advance(9)
        reply = await world.complete(task, heartbeat=True, inline=True)
        assert not reply.HasField("workflow_task")
        # It has heartbeated for too long: another worker shall have it.
        assert (await world.types())[-2:] == ["WorkflowTaskTimedOut", "WorkflowTaskScheduled"]


async def test_a_sticky_queue_without_a_poller_gives_its_task_to_the_normal_one() -> None:
    async with service() as world:
        await world.start()
        await world.complete(await world.poll(), start_timer("t", 1), sticky="sticky")
        await world.advance(2)
        queue, task = await world.next_workflow_task()
        assert queue.name == "sticky"
        # It is taken there, and shows only what is new.
        shown = await world.take(task, sticky="sticky")
        assert shown.previous_started_event_id == 3
        assert shown.history.events[0].event_id == 4
        await world.complete(shown, start_timer("u", 1), sticky="sticky")
        world.matching.sticky_polled = False
        await world.advance(2)
        queue, task = await world.next_workflow_task()
        assert queue.name == "queue"
        assert (await world.take(task)).history.events[0].event_id == 1


async def test_a_sticky_worker_that_does_not_take_its_task_in_time_loses_it_to_the_normal_queue() -> None:
    async with service() as world:
        await world.start()
        await world.complete(await world.poll(), start_timer("t", 1), sticky="sticky")
        await world.advance(2)
        queue, stale = await world.next_workflow_task()
        assert queue.name == "sticky"
        await world.advance(6)
        queue, task = await world.next_workflow_task()
        assert queue.name == "queue"
        with pytest.raises(Exception, match="Workflow task not found"):
            await world.take(stale)
        assert (await world.take(task)).attempt == 1
