"""Workflow tasks: normal, transient and speculative ones, stickiness, the buffer."""

from __future__ import annotations

from typing import Any

import pytest
from temporalio.api.enums.v1 import TaskQueueKind
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause
from temporalio.api.workflowservice.v1 import RespondWorkflowTaskCompletedRequest, SignalWorkflowExecutionRequest
from tests.history.support import SECOND, START, Run, application_failure, payloads, type_name

from perdure.history.core import lifecycle, signals, workflow_tasks
from perdure.history.core.state import WorkflowTask
from perdure.history.core.tasks import DispatchWorkflowTask, TimeoutKind, WorkflowTaskTimeout
from perdure.history.core.txn import Txn, batches

UNHANDLED = Cause.WORKFLOW_TASK_FAILED_CAUSE_WORKFLOW_WORKER_UNHANDLED_FAILURE


def signal(run: Run, name: str = "signal", size: int = 0) -> None:
    request = SignalWorkflowExecutionRequest(signal_name=name, input=payloads("x" * size))
    run.do(lambda txn: signals.receive(txn, request))


def fail(run: Run) -> None:
    def failed(txn: Txn) -> None:
        workflow_tasks.fail(txn, UNHANDLED, application_failure(), "worker")
        workflow_tasks.schedule(txn)

    run.do(failed)


def time_out(run: Run, kind: TimeoutKind) -> None:
    def timed_out(txn: Txn) -> None:
        workflow_tasks.time_out(txn, kind)
        workflow_tasks.schedule(txn)

    run.do(timed_out)


def complete(run: Run) -> None:
    """An answer without commands."""
    task = pending(run)
    run.do(lambda txn: workflow_tasks.complete(txn, task, RespondWorkflowTaskCompletedRequest(identity="worker")))


def make_sticky(run: Run) -> None:
    run.state.run.sticky_queue = "sticky"
    run.state.run.sticky_timeout = 5 * SECOND


def pending(run: Run) -> WorkflowTask:
    task = run.state.run.workflow_task
    assert task is not None
    return task


def timer(run: Run, key: str) -> tuple[float, WorkflowTaskTimeout]:
    """Seconds from now, and what fires."""
    time, task = run.timers[(key,)]
    assert isinstance(task, WorkflowTaskTimeout)
    return (time - run.now) / SECOND, task


def schedule_speculative(run: Run) -> Txn:
    txn = run.step()
    workflow_tasks.schedule(txn, speculative=True)
    return run.commit(txn)


def idle(**fields: Any) -> Run:
    """A run that has done its first workflow task: 4 events."""
    run = Run(**fields)
    run.start_workflow_task()
    complete(run)
    return run


# --- normal ---


def test_a_normal_one_has_its_events_as_they_happen() -> None:
    run = Run(task_timeout=7 * SECOND)
    assert run.types() == ["WorkflowExecutionStarted", "WorkflowTaskScheduled"]
    scheduled = run.last("WorkflowTaskScheduled")
    assert (scheduled.attempt, scheduled.start_to_close_timeout.seconds, scheduled.task_queue.name) == (1, 7, "queue")
    assert next(t for t in run.tasks if isinstance(t, DispatchWorkflowTask)).scheduled_event_id == 2
    run.start_workflow_task()
    assert run.last("WorkflowTaskStarted").scheduled_event_id == 2
    assert timer(run, "workflow-task") == (7, WorkflowTaskTimeout("", "", "", TimeoutKind.START_TO_CLOSE, 2, 1))
    complete(run)
    completed = run.last("WorkflowTaskCompleted")
    assert (completed.scheduled_event_id, completed.started_event_id) == (2, 3)
    assert run.state.run.last_started_event_id == 3
    assert run.state.run.workflow_task is None
    assert ("workflow-task",) not in run.timers


def test_there_is_one_at_a_time() -> None:
    run = Run()
    signal(run)
    signal(run)
    assert run.types().count("WorkflowTaskScheduled") == 1


def test_the_run_is_told_to_continue_as_new_when_its_history_is_long() -> None:
    run = Run(settings={"limit.historyCount.suggestContinueAsNew": 6})
    run.start_workflow_task()
    assert not run.last("WorkflowTaskStarted").suggest_continue_as_new
    complete(run)
    signal(run)
    run.start_workflow_task()
    assert run.last("WorkflowTaskStarted").suggest_continue_as_new


# --- failures: transient ---


def test_only_the_first_of_a_row_of_failures_is_in_the_history() -> None:
    run = Run()
    for attempt in range(1, 6):
        assert pending(run).attempt == attempt
        run.start_workflow_task()
        fail(run)
    assert run.types()[1:] == ["WorkflowTaskScheduled", "WorkflowTaskStarted", "WorkflowTaskFailed"]
    assert run.state.run.workflow_task_attempt == 6


def test_one_that_keeps_failing_is_given_ever_longer() -> None:
    run = Run()
    longest: list[float] = []
    for _ in range(12):
        run.start_workflow_task()
        longest.append(timer(run, "workflow-task")[0])
        fail(run)
    assert longest[:6] == [10, 10, 10, 15, 20, 30]
    assert longest[-3:] == [10 + 320, 10 + 600, 10 + 600]  # 10 minutes at most


def test_a_transient_one_shows_the_events_that_it_would_have_and_gets_them_when_it_completes() -> None:
    run = Run()
    run.start_workflow_task()
    fail(run)
    run.now += SECOND
    run.start_workflow_task()
    assert [(type_name(e), e.event_id) for e in workflow_tasks.unwritten_events(run.state)] == [
        ("WorkflowTaskScheduled", 5),
        ("WorkflowTaskStarted", 6),
    ]
    run.now += SECOND
    complete(run)
    assert run.types()[4:] == ["WorkflowTaskScheduled", "WorkflowTaskStarted", "WorkflowTaskCompleted"]
    assert [e.event_time.seconds - START // SECOND for e in run.events[4:]] == [0, 1, 2]
    assert run.last("WorkflowTaskScheduled").attempt == 2
    assert run.state.run.workflow_task_attempt == 1


def test_a_transient_one_becomes_normal_when_there_is_something_new_to_tell() -> None:
    run = Run()
    run.start_workflow_task()
    fail(run)
    signal(run)
    run.start_workflow_task()
    assert run.types()[4:] == ["WorkflowExecutionSignaled", "WorkflowTaskScheduled", "WorkflowTaskStarted"]
    fail(run)
    assert run.types()[-1] == "WorkflowTaskFailed"


def test_what_comes_while_a_transient_one_is_started_makes_the_next_one_normal() -> None:
    run = Run()
    run.start_workflow_task()
    fail(run)
    run.start_workflow_task()
    signal(run)
    assert run.types()[-1] == "WorkflowTaskFailed"
    fail(run)
    assert run.types()[4:] == ["WorkflowExecutionSignaled", "WorkflowTaskScheduled"]
    assert pending(run).attempt == 1


def test_a_timeout_counts_like_a_failure() -> None:
    run = Run()
    run.start_workflow_task()
    time_out(run, TimeoutKind.START_TO_CLOSE)
    timed_out = run.last("WorkflowTaskTimedOut")
    assert (timed_out.scheduled_event_id, timed_out.started_event_id, timed_out.timeout_type) == (2, 3, 1)
    assert pending(run).attempt == 2


# --- stickiness ---


def test_with_a_sticky_worker_it_goes_to_its_queue_which_has_a_time_to_take_it() -> None:
    run = idle()
    make_sticky(run)
    signal(run)
    scheduled = run.last("WorkflowTaskScheduled").task_queue
    assert (scheduled.name, scheduled.kind, scheduled.normal_name) == (
        "sticky",
        TaskQueueKind.TASK_QUEUE_KIND_STICKY,
        "queue",
    )
    dispatched = run.tasks[-1]
    assert isinstance(dispatched, DispatchWorkflowTask)
    assert (dispatched.task_queue, dispatched.sticky) == ("sticky", True)
    assert timer(run, "workflow-task-start")[0] == 5
    run.start_workflow_task()
    assert ("workflow-task-start",) not in run.timers


def test_a_sticky_worker_that_does_not_take_it_loses_its_stickiness_and_nothing_else() -> None:
    run = idle()
    make_sticky(run)
    signal(run)
    time_out(run, TimeoutKind.SCHEDULE_TO_START)
    timed_out = run.last("WorkflowTaskTimedOut")
    assert (timed_out.started_event_id, timed_out.timeout_type) == (0, TimeoutKind.SCHEDULE_TO_START)
    assert (run.last("WorkflowTaskScheduled").task_queue.name, pending(run).attempt) == ("queue", 1)


@pytest.mark.parametrize("how", ["fails", "times out"])
def test_the_first_failure_on_a_sticky_queue_is_held_against_the_stickiness(how: str) -> None:
    run = idle()
    make_sticky(run)
    signal(run)
    run.start_workflow_task()
    if how == "fails":
        fail(run)
    else:
        time_out(run, TimeoutKind.START_TO_CLOSE)
    assert (run.last("WorkflowTaskScheduled").task_queue.name, pending(run).attempt) == ("queue", 1)
    run.start_workflow_task()
    fail(run)
    assert pending(run).attempt == 2


# --- speculative ---


def test_a_speculative_one_that_is_discarded_never_was() -> None:
    run = idle()
    before = run.state.rows()[0]
    txn = schedule_speculative(run)
    assert not txn.dirty
    assert [t.durable for t in txn.timers] == [False]
    assert len(txn.memory_dispatches) == 1
    run.start_workflow_task()
    txn = run.step()
    workflow_tasks.discard_speculative(txn)
    run.commit(txn)
    assert len(run.events) == 4
    assert run.state.rows()[0] == before


def test_a_speculative_one_that_completes_has_events() -> None:
    run = idle()
    schedule_speculative(run)
    run.start_workflow_task()
    complete(run)
    assert run.types()[4:] == ["WorkflowTaskScheduled", "WorkflowTaskStarted", "WorkflowTaskCompleted"]


def test_a_speculative_one_that_fails_or_times_out_has_events() -> None:
    run = idle()
    schedule_speculative(run)
    run.start_workflow_task()
    fail(run)
    assert run.types()[4:] == ["WorkflowTaskScheduled", "WorkflowTaskStarted", "WorkflowTaskFailed"]
    run = idle()
    schedule_speculative(run)
    time_out(run, TimeoutKind.SCHEDULE_TO_START)
    assert run.types()[4:6] == ["WorkflowTaskScheduled", "WorkflowTaskTimedOut"]
    assert pending(run).attempt == 1


def test_an_event_makes_a_waiting_speculative_one_normal() -> None:
    run = idle()
    schedule_speculative(run)
    del run.tasks[:]
    signal(run)
    assert run.types()[4:] == ["WorkflowTaskScheduled", "WorkflowExecutionSignaled"]
    assert not pending(run).speculative
    # What was in memory only is durable now.
    assert [type(t) for t in run.tasks] == [DispatchWorkflowTask]
    run.start_workflow_task()
    assert run.types()[-1] == "WorkflowTaskStarted"


def test_an_event_makes_a_started_speculative_one_normal_and_waits_for_its_end() -> None:
    run = idle()
    schedule_speculative(run)
    run.start_workflow_task()
    del run.timers[("workflow-task",)]
    run.now += 3 * SECOND
    signal(run)
    assert run.types()[4:] == ["WorkflowTaskScheduled", "WorkflowTaskStarted"]
    assert timer(run, "workflow-task")[0] == 7
    assert run.state.run.buffered_count == 1
    complete(run)
    assert run.types()[6:] == ["WorkflowTaskCompleted", "WorkflowExecutionSignaled", "WorkflowTaskScheduled"]


def test_a_speculative_one_stays_on_its_queue_when_the_stickiness_is_reset_meanwhile() -> None:
    run = idle()
    make_sticky(run)
    schedule_speculative(run)
    run.do(workflow_tasks.clear_sticky)
    signal(run)
    assert run.last("WorkflowTaskScheduled").task_queue.name == "sticky"
    assert timer(run, "workflow-task-start")[0] == 5
    assert run.tasks[-1].sticky  # type: ignore[attr-defined]


def test_after_a_failure_there_are_no_speculative_ones() -> None:
    run = Run()
    run.start_workflow_task()
    run.do(lambda txn: workflow_tasks.fail(txn, UNHANDLED, None, "worker"))
    txn = run.step()
    workflow_tasks.schedule(txn, speculative=True)
    assert txn.dirty
    assert not pending(run).speculative


# --- the buffer ---


def test_what_comes_while_it_is_started_follows_its_end() -> None:
    run = Run()
    run.start_workflow_task()
    signal(run, "a")
    signal(run, "b")
    assert len(run.events) == 3
    complete(run)
    assert run.types()[3:] == [
        "WorkflowTaskCompleted",
        "WorkflowExecutionSignaled",
        "WorkflowExecutionSignaled",
        "WorkflowTaskScheduled",
    ]
    assert [e.workflow_execution_signaled_event_attributes.signal_name for e in run.events[4:6]] == ["a", "b"]


@pytest.mark.parametrize(("limit", "value"), [("Batch", 3), ("SizeInBytes", 2000)])
def test_too_much_in_the_buffer_fails_the_workflow_task(limit: str, value: int) -> None:
    run = Run(settings={f"history.maximumBufferedEvents{limit}": value})
    run.start_workflow_task()
    count = 0
    while run.types()[-1] == "WorkflowTaskStarted":
        signal(run, size=500)
        count += 1
        assert count < 10
    assert count == 4
    failed = run.last("WorkflowTaskFailed")
    assert failed.cause == Cause.WORKFLOW_TASK_FAILED_CAUSE_FORCE_CLOSE_COMMAND
    assert run.types()[4:8] == ["WorkflowExecutionSignaled"] * 4
    assert not run.state.buffered
    assert not pending(run).started_event_id


def test_a_run_that_is_closed_from_outside_has_what_waited_in_its_history() -> None:
    run = Run()
    run.start_workflow_task()
    signal(run)
    run.do(lambda txn: lifecycle.terminate(txn, "enough", None, "operator"))
    assert run.types()[3:] == ["WorkflowTaskFailed", "WorkflowExecutionSignaled", "WorkflowExecutionTerminated"]
    assert not run.state.buffered


# --- stored batches ---


def test_a_stored_batch_ends_with_what_a_workflow_task_is_given() -> None:
    run = idle()
    signal(run)
    run.start_workflow_task()
    txn = run.step()
    workflow_tasks.complete(txn, pending(run), RespondWorkflowTaskCompletedRequest())
    workflow_tasks.schedule(txn, dispatch=False)
    workflow_tasks.start(txn, "poll", "worker")
    lifecycle.terminate(txn, "", None, "")
    types = [[type_name(e) for e in batch] for batch in batches(txn.events)]
    assert types == [
        ["WorkflowTaskCompleted", "WorkflowTaskScheduled", "WorkflowTaskStarted"],
        ["WorkflowTaskFailed", "WorkflowExecutionTerminated"],
    ]
    assert batches(txn.events[:3]) == [txn.events[:3]]
