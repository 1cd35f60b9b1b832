"""User timers."""

from __future__ import annotations

import pytest
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause
from tests.history.support import SECOND, START, Run, cancel_timer, complete_workflow, start_timer

from perdure.history.core import endings  # noqa: F401  (registers the commands that end a run)
from perdure.history.core.completion import BadCommand


def test_a_timer_fires_at_its_time_and_wakes_the_workflow() -> None:
    run = Run()
    run.answer(start_timer("t", 5))
    run.advance(4.9)
    assert run.types()[-1] == "TimerStarted"
    run.advance(0.1)
    assert run.types()[-2:] == ["TimerFired", "WorkflowTaskScheduled"]
    fired = run.last("TimerFired")
    assert (fired.timer_id, fired.started_event_id) == ("t", 5)
    assert run.now == START + 5 * SECOND
    assert not run.state.timers


def test_a_timer_of_no_duration_fires_at_once() -> None:
    run = Run()
    run.answer(start_timer("t", 0))
    run.advance(0)
    assert "TimerFired" in run.types()


def test_firing_twice_or_after_the_cancel_does_nothing() -> None:
    run = Run()
    run.answer(start_timer("t", 1), start_timer("u", 1))
    tasks = [task for _, task in run.timers.values()]
    run.advance(1)
    before = run.types()
    for task in tasks:
        run.fire(task)
    assert run.types() == before


def test_a_timer_started_again_under_its_old_id_is_not_fired_by_the_old_one() -> None:
    run = Run()
    run.answer(start_timer("t", 1), start_timer("wake", 0.5))
    (old,) = [task for key, (_, task) in run.timers.items() if key == ("timer", "t")]
    run.advance(0.5)
    run.answer(cancel_timer("t"), start_timer("t", 10))
    run.advance(1)
    run.fire(old)
    assert "t" in run.state.timers
    run.advance(10)
    assert run.last("TimerFired").timer_id == "t"


def test_timers_that_are_due_together_are_told_in_one_workflow_task_in_order() -> None:
    run = Run()
    run.answer(start_timer("c", 1), start_timer("a", 1), start_timer("b", 0.5))
    run.now += 2 * SECOND  # all are late
    run.advance(0)
    assert run.types()[-4:] == ["TimerFired", "TimerFired", "TimerFired", "WorkflowTaskScheduled"]
    fired = [e.timer_fired_event_attributes.timer_id for e in run.events if e.HasField("timer_fired_event_attributes")]
    assert fired == ["b", "c", "a"]
    assert not run.timers


def test_canceling() -> None:
    run = Run()
    run.answer(start_timer("t", 5), start_timer("wake", 1))
    run.advance(1)
    run.answer(cancel_timer("t"))
    canceled = run.last("TimerCanceled")
    assert (canceled.timer_id, canceled.started_event_id, canceled.identity) == ("t", 5, "worker")
    assert not run.timers
    run.advance(10)
    assert run.types()[-1] == "TimerCanceled"


def test_canceling_in_the_answer_that_started_it() -> None:
    run = Run()
    run.answer(start_timer("t", 5), cancel_timer("t"))
    assert run.types()[-2:] == ["TimerStarted", "TimerCanceled"]
    run.advance(10)
    assert run.types()[-1] == "TimerCanceled"


def test_a_firing_that_the_worker_does_not_know_of_is_taken_back_by_the_cancel() -> None:
    run = Run()
    run.answer(start_timer("t", 5), start_timer("wake", 1))
    run.advance(1)
    run.start_workflow_task()
    run.advance(5)
    assert run.state.buffered
    run.complete_workflow_task(cancel_timer("t"), complete_workflow())
    assert run.types()[-2:] == ["TimerCanceled", "WorkflowExecutionCompleted"]
    assert "t" not in [e.timer_fired_event_attributes.timer_id for e in run.events]


def test_a_firing_in_the_buffer_keeps_the_workflow_from_closing() -> None:
    run = Run()
    run.answer(start_timer("t", 5), start_timer("wake", 1))
    run.advance(1)
    run.start_workflow_task()
    run.advance(5)
    with pytest.raises(BadCommand) as refused:
        run.complete_workflow_task(complete_workflow())
    assert refused.value.cause == Cause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND


@pytest.mark.parametrize(
    ("commands", "cause", "message"),
    [
        (
            [start_timer("t", 5), start_timer("t", 5)],
            Cause.WORKFLOW_TASK_FAILED_CAUSE_START_TIMER_DUPLICATE_ID,
            "StartTimerDuplicateId: invalid history builder state for action: add-timer-started-event, TimerID: t",
        ),
        (
            [start_timer("", 5)],
            Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_START_TIMER_ATTRIBUTES,
            "BadStartTimerAttributes: TimerId is not set on StartTimerCommand.",
        ),
        (
            [start_timer("t", -5)],
            Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_START_TIMER_ATTRIBUTES,
            "BadStartTimerAttributes: An invalid StartToFireTimeout is set on StartTimerCommand: negative duration. "
            "TimerId=t",
        ),
        (
            [cancel_timer("t")],
            Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_CANCEL_TIMER_ATTRIBUTES,
            "BadCancelTimerAttributes: invalid history builder state for action: add-timer-canceled-event, TimerID: t",
        ),
        (
            [cancel_timer("")],
            Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_CANCEL_TIMER_ATTRIBUTES,
            "BadCancelTimerAttributes: TimerId is not set on CancelTimerCommand.",
        ),
    ],
)
def test_what_is_refused(commands: list, cause: int, message: str) -> None:  # type: ignore[type-arg]
    run = Run()
    with pytest.raises(BadCommand) as refused:
        run.answer(*commands)
    assert (refused.value.cause, refused.value.message) == (cause, message)


def test_an_id_that_is_too_long_is_refused() -> None:
    run = Run()
    with pytest.raises(BadCommand, match="exceeds length limit"):
        run.answer(start_timer("ä" * 501, 5))
    Run().answer(start_timer("ä" * 500, 5))


def test_a_timer_beyond_a_hundred_years_is_cut_to_that() -> None:
    run = Run()
    run.answer(start_timer("t", 200 * 365 * 86400))
    assert run.state.timers["t"].fire_time == START + 100 * 365 * 86400 * SECOND
