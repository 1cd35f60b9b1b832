"""Activities: what their workflows' histories say, when they are retried, and what their workers are told."""

from __future__ import annotations

from typing import Any

import pytest
from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import Priority
from temporalio.api.enums.v1 import PendingActivityState, RetryState, TimeoutType
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause
from temporalio.api.failure.v1 import Failure
from tests.history.support import (
    START,
    Run,
    application_failure,
    cancel_activity,
    complete_workflow,
    payloads,
    schedule_activity,
    start_timer,
)

from perdure.clock import MILLISECOND, SECOND, from_timestamp, to_duration
from perdure.history.core import activities, endings  # noqa: F401  (endings: the commands that end a run)
from perdure.history.core.completion import BadCommand
from perdure.history.core.tasks import DispatchActivity, TimeoutKind

LATE = activities.GRACE / SECOND
SCHEDULED = 5  # event id of the first activity of an answer


def scheduled(*commands: Command, settings: dict[str, Any] | None = None, **start: Any) -> Run:
    run = Run(settings, **start)
    run.answer(*(commands or (schedule_activity(),)))
    return run


def started(*commands: Command, **start: Any) -> Run:
    run = scheduled(*commands, **start)
    run.start_activity()
    return run


def complete(run: Run, activity_id: str = "a") -> None:
    run.do(lambda txn: activities.complete(txn, run.activity(activity_id), payloads("result"), "worker"))


def fail(run: Run, failure: Failure | None = None) -> None:
    run.do(lambda txn: activities.fail(txn, run.activity(), failure or application_failure(), "worker"))


def heartbeat(run: Run, text: str = "progress") -> None:
    run.do(lambda txn: activities.record_heartbeat(txn, run.activity(), payloads(text), "worker"))


def policy(command: Command, **fields: Any) -> Command:
    retry = command.schedule_activity_task_command_attributes.retry_policy
    for name, value in fields.items():
        if name.endswith("interval"):
            getattr(retry, name).CopyFrom(to_duration(round(value * SECOND)))
        elif name == "non_retryable_error_types":
            retry.non_retryable_error_types.extend(value)
        else:
            setattr(retry, name, value)
    return command


def info(run: Run) -> Any:
    (one,) = activities.pending_activity_infos(run.state, run.now)
    return one


# --- the path of one activity ---


def test_an_activity_is_scheduled_handed_out_started_and_completed() -> None:
    run = scheduled()
    assert run.types()[-1] == "ActivityTaskScheduled"
    assert run.handed_out == [(SCHEDULED, 0)]
    run.now += SECOND
    run.start_activity()
    assert run.types()[-1] == "ActivityTaskScheduled"  # a start makes no event
    run.now += SECOND
    complete(run)
    assert run.types()[-3:] == ["ActivityTaskStarted", "ActivityTaskCompleted", "WorkflowTaskScheduled"]
    begun, done = run.last("ActivityTaskStarted"), run.last("ActivityTaskCompleted")
    assert (begun.scheduled_event_id, begun.attempt, begun.identity, begun.request_id) == (5, 1, "worker", "poll")
    assert (done.scheduled_event_id, done.started_event_id) == (5, 6)
    assert done.result == payloads("result")
    assert from_timestamp(run.events[5].event_time) == START + SECOND  # when it started, not when it was written
    assert from_timestamp(run.events[6].event_time) == START + 2 * SECOND
    assert not run.timers
    assert not run.state.activities


def test_what_comes_in_during_a_workflow_task_follows_it() -> None:
    run = scheduled(schedule_activity(), start_timer("wake", 1))
    run.start_activity()
    run.advance(1)
    run.start_workflow_task()
    complete(run)
    assert "ActivityTaskCompleted" not in run.types()
    run.complete_workflow_task()
    assert run.types()[-4:] == [
        "WorkflowTaskCompleted",
        "ActivityTaskStarted",
        "ActivityTaskCompleted",
        "WorkflowTaskScheduled",
    ]
    assert run.last("ActivityTaskCompleted").started_event_id == run.events[-3].event_id


def test_completed_by_its_id_before_a_worker_had_it() -> None:
    run = scheduled()
    run.do(lambda txn: activities.complete(txn, run.activity(), None, "operator"))
    assert run.types()[-3:-1] == ["ActivityTaskStarted", "ActivityTaskCompleted"]
    assert run.last("ActivityTaskStarted").identity == "operator"


def test_an_eager_activity_is_started_with_the_answer_that_schedules_it() -> None:
    run = Run()
    completion = run.answer(schedule_activity(eager=True), schedule_activity("b"))
    assert completion.eager == [SCHEDULED]
    assert run.activity().started_time == run.now
    assert run.handed_out == [(SCHEDULED + 1, 0)]
    complete(run)
    assert run.last("ActivityTaskStarted").identity == "worker"


@pytest.mark.parametrize("why", ["another queue", "switched off", "canceled", "closed"])
def test_an_activity_that_cannot_be_eager(why: str) -> None:
    run = Run({"system.enableActivityEagerExecution": why != "switched off"})
    command = schedule_activity(queue="elsewhere" if why == "another queue" else "queue", eager=True)
    then = {"canceled": [cancel_activity(SCHEDULED)], "closed": [complete_workflow()]}.get(why, [])
    completion = run.answer(command, *then)
    assert completion.eager == []
    assert [t for t in run.tasks if isinstance(t, DispatchActivity)] == [
        DispatchActivity(scheduled_event_id=SCHEDULED)
    ] * (not then)


# --- what is scheduled ---


@pytest.mark.parametrize(
    ("given", "run_timeout", "expected"),
    [
        # schedule_to_close, schedule_to_start, start_to_close, heartbeat
        ({"schedule_to_close": 10}, 0, (10, 10, 10, 0)),
        ({"start_to_close": 10}, 0, (0, 0, 10, 0)),
        ({"start_to_close": 10}, 60, (60, 60, 10, 0)),
        ({"start_to_close": 10, "schedule_to_start": 5, "heartbeat": 20}, 0, (0, 5, 10, 10)),
        ({"schedule_to_close": 10, "schedule_to_start": 20, "start_to_close": 30}, 0, (10, 10, 10, 0)),
        ({"schedule_to_close": 100, "start_to_close": 90, "heartbeat": 80}, 60, (60, 60, 60, 60)),
        ({"schedule_to_close": 10, "start_to_close": 3, "heartbeat": 1}, 60, (10, 10, 3, 1)),
    ],
)
def test_timeouts_that_are_not_set_follow_from_those_that_are(
    given: dict[str, float], run_timeout: int, expected: tuple[int, ...]
) -> None:
    run = scheduled(schedule_activity(**given), run_timeout=run_timeout * SECOND)
    a = run.last("ActivityTaskScheduled")
    names = ("schedule_to_close_timeout", "schedule_to_start_timeout", "start_to_close_timeout", "heartbeat_timeout")
    assert all(a.HasField(name) for name in names)
    assert tuple(getattr(a, name).seconds for name in names) == expected


def test_the_retry_policy_is_filled_in() -> None:
    run = scheduled(policy(schedule_activity(), initial_interval=2))
    retry = run.last("ActivityTaskScheduled").retry_policy
    assert (retry.initial_interval.seconds, retry.maximum_interval.seconds) == (2, 200)
    assert (retry.backoff_coefficient, retry.maximum_attempts) == (2.0, 0)


def test_the_retry_policy_is_filled_in_from_the_configuration() -> None:
    defaults = {
        "InitialIntervalInSeconds": 3,
        "MaximumIntervalCoefficient": 10,
        "BackoffCoefficient": 1.5,
        "MaximumAttempts": 7,
    }
    run = scheduled(settings={"history.defaultActivityRetryPolicy": defaults})
    retry = run.last("ActivityTaskScheduled").retry_policy
    assert (retry.initial_interval.seconds, retry.maximum_interval.seconds) == (3, 30)
    assert (retry.backoff_coefficient, retry.maximum_attempts) == (1.5, 7)


def test_without_a_task_queue_it_goes_to_that_of_the_workflow() -> None:
    run = scheduled(schedule_activity(queue=""))
    assert run.last("ActivityTaskScheduled").task_queue.name == "queue"
    assert run.activity().task_queue == "queue"


def test_user_metadata_header_and_priority_are_in_the_event() -> None:
    command = schedule_activity()
    command.user_metadata.summary.data = b"summary"
    a = command.schedule_activity_task_command_attributes
    a.header.fields["trace"].data = b"1"
    a.priority.CopyFrom(Priority(priority_key=3))
    run = scheduled(command)
    assert run.events[-1].user_metadata.summary.data == b"summary"
    event = run.last("ActivityTaskScheduled")
    assert event.header.fields["trace"].data == b"1"
    assert event.priority.priority_key == 3


def wrong(**fields: Any) -> Command:
    command = schedule_activity(**({"start_to_close": 10} if "timeouts" not in fields else fields.pop("timeouts")))
    a = command.schedule_activity_task_command_attributes
    for name, value in fields.items():
        if name == "activity_type":
            a.activity_type.name = value
        elif name == "queue":
            a.task_queue.name = value
        elif name == "priority":
            a.priority.CopyFrom(value)
        else:
            setattr(a, name, value)
    return command


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (wrong(activity_id=""), "activityId is not set"),
        (wrong(activity_type=""), "activityType is not set"),
        (wrong(activity_id="i" * 1001), "activityId exceeds length limit. Length=1001 Limit=1000"),
        (wrong(activity_type="i" * 1001), "activityType exceeds length limit. Length=1001 Limit=1000"),
        (wrong(queue="q" * 1001), "taskQueue length exceeds limit"),
        (wrong(queue="/_sys/q"), "task queue name cannot start with reserved prefix /_sys/"),
        (wrong(priority=Priority(priority_key=-1)), "invalid priorities: priority key can't be negative"),
        (
            wrong(timeouts={"schedule_to_start": 5}),
            "a valid StartToCloseTimeout or ScheduleToCloseTimeout must be set on the activity. "
            "ActivityId=a ActivityType=Activity",
        ),
        (wrong(timeouts={"start_to_close": -5}), "invalid StartToCloseTimeout: negative duration"),
        (
            policy(schedule_activity(), initial_interval=5, maximum_interval=1),
            "MaximumInterval cannot be less than InitialInterval on retry policy.",
        ),
        (
            policy(schedule_activity(), backoff_coefficient=0.5),
            "BackoffCoefficient cannot be less than 1 on retry policy.",
        ),
        (policy(schedule_activity(), maximum_attempts=-1), "MaximumAttempts cannot be negative on retry policy."),
        (
            policy(schedule_activity(), non_retryable_error_types=["TemporalTimeout:Nonsense"]),
            "Invalid timeout type value: Nonsense.",
        ),
    ],
)
def test_attributes_that_are_refused(command: Command, message: str) -> None:
    with pytest.raises(BadCommand) as refused:
        scheduled(command)
    assert refused.value.cause == Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_SCHEDULE_ACTIVITY_ATTRIBUTES
    assert refused.value.message == f"BadScheduleActivityAttributes: {message}"
    assert not refused.value.terminate


def test_an_id_of_a_pending_activity_is_refused_and_free_again_after_its_end() -> None:
    with pytest.raises(BadCommand) as refused:
        scheduled(schedule_activity(), schedule_activity())
    assert refused.value.cause == Cause.WORKFLOW_TASK_FAILED_CAUSE_SCHEDULE_ACTIVITY_DUPLICATE_ID
    run = started()
    complete(run)
    run.answer(schedule_activity())
    assert run.activity().scheduled_event_id > SCHEDULED


def test_the_number_of_pending_activities_is_limited() -> None:
    settings = {"limit.numPendingActivities.error": 2}
    with pytest.raises(BadCommand) as refused:
        scheduled(schedule_activity("a"), schedule_activity("b"), schedule_activity("c"), settings=settings)
    assert refused.value.cause == Cause.WORKFLOW_TASK_FAILED_CAUSE_PENDING_ACTIVITIES_LIMIT_EXCEEDED
    assert refused.value.message == (
        "PendingActivitiesLimitExceeded: the number of pending activities, 2, has reached the per-workflow limit of 2"
    )


def test_an_input_that_is_too_large_ends_the_workflow() -> None:
    command = schedule_activity()
    command.schedule_activity_task_command_attributes.input.payloads[0].data = b"x" * 2**21
    with pytest.raises(BadCommand, match=r"Input exceeds size limit\.") as refused:
        scheduled(command)
    assert refused.value.terminate


# --- retries ---


def test_a_failed_attempt_is_followed_by_another_without_events() -> None:
    run = started()
    run.now += SECOND
    fail(run)
    assert run.types()[-1] == "ActivityTaskScheduled"
    assert run.handed_out == [(SCHEDULED, 0)]
    run.advance(0.999)
    assert run.handed_out == [(SCHEDULED, 0)]
    run.advance(0.001)
    assert run.handed_out == [(SCHEDULED, 0), (SCHEDULED, 1)]
    run.start_activity(request_id="second")
    complete(run)
    begun = run.last("ActivityTaskStarted")
    assert (begun.attempt, begun.request_id, begun.last_failure.message) == (2, "second", "failed")
    assert not run.timers


def test_waits_between_attempts_grow_to_the_longest() -> None:
    run = started(policy(schedule_activity(), initial_interval=1, backoff_coefficient=3, maximum_interval=5))
    waits: list[float] = []
    for _ in range(4):
        fail(run)
        waits.append((run.activity().scheduled_time - run.now) / SECOND)
        run.advance(waits[-1])
        run.start_activity()
    assert waits == [1, 3, 5, 5]


def test_the_activity_may_say_how_long_to_wait() -> None:
    run = started(policy(schedule_activity(), maximum_interval=5))
    failure = application_failure()
    failure.application_failure_info.next_retry_delay.seconds = 30
    fail(run, failure)
    assert run.activity().scheduled_time == run.now + 30 * SECOND
    run.advance(30)
    run.start_activity()
    fail(run)
    assert run.activity().scheduled_time == run.now + 2 * SECOND


@pytest.mark.parametrize(
    ("command", "failure", "state"),
    [
        (
            policy(schedule_activity(), maximum_attempts=1),
            application_failure(),
            RetryState.RETRY_STATE_MAXIMUM_ATTEMPTS_REACHED,
        ),
        (
            schedule_activity(),
            application_failure(non_retryable=True),
            RetryState.RETRY_STATE_NON_RETRYABLE_FAILURE,
        ),
        (
            policy(schedule_activity(), non_retryable_error_types=["Fatal"]),
            application_failure(type="Fatal"),
            RetryState.RETRY_STATE_NON_RETRYABLE_FAILURE,
        ),
        (
            schedule_activity(schedule_to_close=0.5),
            application_failure(),
            RetryState.RETRY_STATE_TIMEOUT,
        ),
    ],
)
def test_failures_that_are_final(command: Command, failure: Failure, state: int) -> None:
    run = started(command)
    fail(run, failure)
    assert run.types()[-3:] == ["ActivityTaskStarted", "ActivityTaskFailed", "WorkflowTaskScheduled"]
    failed = run.last("ActivityTaskFailed")
    assert failed.retry_state == state
    assert failed.failure == failure
    assert (failed.scheduled_event_id, failed.started_event_id) == (5, 6)
    assert not run.timers


def test_attempts_are_counted() -> None:
    run = started(policy(schedule_activity(), maximum_attempts=3))
    for _ in range(2):
        fail(run)
        run.advance(10)
        run.start_activity()
    fail(run)
    assert run.last("ActivityTaskStarted").attempt == 3
    assert run.last("ActivityTaskFailed").retry_state == RetryState.RETRY_STATE_MAXIMUM_ATTEMPTS_REACHED


def test_an_attempt_begins_only_within_schedule_to_close() -> None:
    run = started(policy(schedule_activity(schedule_to_close=10), backoff_coefficient=1, initial_interval=3))
    for _ in range(3):
        fail(run)
        run.advance(3)
        run.start_activity()
    assert run.now == START + 9 * SECOND
    fail(run)
    assert run.last("ActivityTaskFailed").retry_state == RetryState.RETRY_STATE_TIMEOUT


def test_the_next_attempt_gets_the_last_heartbeat_details() -> None:
    run = started()
    heartbeat(run)
    fail(run)
    assert run.activity().heartbeat_details_proto == payloads("progress").SerializeToString()


def test_a_large_failure_is_kept_short_but_told_in_full() -> None:
    run = started(policy(schedule_activity(), maximum_attempts=2))
    cause = application_failure("c" * 10_000)
    failure = application_failure("m" * 1_000, type="Type")
    failure.stack_trace = "é" * 10_000
    failure.cause.CopyFrom(cause)
    fail(run, failure)
    kept = info(run).last_failure
    assert kept.ByteSize() < 4300
    assert kept.message == "Failure exceeds size limit."
    assert (kept.cause.message, kept.cause.application_failure_info.type) == ("m" * 1_000, "Type")
    run.advance(1)
    run.start_activity()
    fail(run, failure)
    assert run.last("ActivityTaskFailed").failure == failure


# --- timeouts ---


def test_an_attempt_that_does_not_answer_is_tried_again() -> None:
    run = started(policy(schedule_activity(start_to_close=10), maximum_attempts=2))
    run.advance(10 + LATE)
    assert run.activity().attempt == 2
    assert info(run).last_failure.message == "activity StartToClose timeout"
    run.advance(1)
    run.start_activity()
    heartbeat(run)
    run.advance(10 + LATE)
    out = run.last("ActivityTaskTimedOut")
    assert out.retry_state == RetryState.RETRY_STATE_MAXIMUM_ATTEMPTS_REACHED
    assert out.failure.message == "activity StartToClose timeout"
    assert out.failure.source == "Server"
    assert out.failure.timeout_failure_info.timeout_type == TimeoutType.TIMEOUT_TYPE_START_TO_CLOSE
    assert out.failure.timeout_failure_info.last_heartbeat_details == payloads("progress")
    assert out.failure.cause.timeout_failure_info.timeout_type == TimeoutType.TIMEOUT_TYPE_START_TO_CLOSE
    assert run.last("ActivityTaskStarted").attempt == 2
    assert not run.timers


def test_a_kind_of_timeout_may_be_final() -> None:
    run = started(policy(schedule_activity(), non_retryable_error_types=["TemporalTimeout:StartToClose"]))
    run.advance(10 + LATE)
    assert run.last("ActivityTaskTimedOut").retry_state == RetryState.RETRY_STATE_NON_RETRYABLE_FAILURE


def test_nobody_takes_it_in_time() -> None:
    run = scheduled(schedule_activity(schedule_to_start=5, start_to_close=10))
    run.advance(5)
    assert run.types()[-2:] == ["ActivityTaskTimedOut", "WorkflowTaskScheduled"]
    out = run.last("ActivityTaskTimedOut")
    assert out.failure.message == "activity ScheduleToStart timeout"
    assert out.failure.timeout_failure_info.timeout_type == TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_START
    assert (out.retry_state, out.started_event_id) == (RetryState.RETRY_STATE_TIMEOUT, 0)


def test_nobody_takes_a_later_attempt_in_time() -> None:
    run = started(schedule_activity(schedule_to_start=5, start_to_close=10))
    fail(run)
    run.advance(5.5)
    assert run.activity().attempt == 2  # counted from the end of the wait
    run.advance(0.5)
    out = run.last("ActivityTaskTimedOut")
    assert out.failure.timeout_failure_info.timeout_type == TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_START
    assert out.failure.cause.message == "failed"


def test_nobody_takes_it_until_its_whole_time_is_over() -> None:
    run = scheduled(schedule_activity(schedule_to_close=5))
    assert len(run.timers) == 1
    run.advance(5)
    out = run.last("ActivityTaskTimedOut")
    assert out.failure.timeout_failure_info.timeout_type == TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_START


def test_its_whole_time_is_over_while_it_runs() -> None:
    run = scheduled(schedule_activity(schedule_to_close=5))
    run.advance(1)
    run.start_activity()
    run.advance(4)
    out = run.last("ActivityTaskTimedOut")
    assert out.failure.timeout_failure_info.timeout_type == TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE
    assert out.failure.message == (
        "Not enough time to schedule next retry before activity ScheduleToClose timeout, giving up retrying"
    )
    assert out.retry_state == RetryState.RETRY_STATE_TIMEOUT
    assert out.started_event_id


def test_its_whole_time_is_over_while_it_waits_for_the_next_attempt() -> None:
    run = started(policy(schedule_activity(schedule_to_close=5, start_to_close=2), initial_interval=4))
    fail(run)
    run.advance(4)
    run.advance(1)
    out = run.last("ActivityTaskTimedOut")
    assert out.failure.timeout_failure_info.timeout_type == TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE
    assert out.failure.cause.message == "failed"
    assert "ActivityTaskStarted" not in run.types()
    assert not run.timers


def test_an_attempt_times_out_with_no_time_for_another() -> None:
    run = started(schedule_activity(schedule_to_close=5, start_to_close=4.5))
    run.advance(4.5 + LATE)
    out = run.last("ActivityTaskTimedOut")
    assert out.failure.timeout_failure_info.timeout_type == TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_CLOSE
    assert out.retry_state == RetryState.RETRY_STATE_TIMEOUT


def test_heartbeats_keep_an_attempt_alive_and_make_no_timers() -> None:
    run = started(schedule_activity(start_to_close=100, heartbeat=2))
    for _ in range(100):
        run.advance(0.125)
        heartbeat(run)
    assert run.activity().attempt == 1
    assert len(run.fired) == 6  # too early each time, and armed anew: once a heartbeat timeout, not once a heartbeat
    run.advance(1.999 + LATE)
    assert run.activity().attempt == 1
    run.advance(0.001)
    assert run.activity().attempt == 2
    failure = info(run).last_failure
    assert failure.message == "activity Heartbeat timeout"
    assert failure.timeout_failure_info.timeout_type == TimeoutType.TIMEOUT_TYPE_HEARTBEAT


def test_an_attempt_without_any_heartbeat_times_out() -> None:
    run = started(policy(schedule_activity(start_to_close=100, heartbeat=2), maximum_attempts=1))
    run.advance(2 + LATE)
    out = run.last("ActivityTaskTimedOut")
    assert out.failure.timeout_failure_info.timeout_type == TimeoutType.TIMEOUT_TYPE_HEARTBEAT
    assert not run.timers


def test_a_heartbeat_timer_that_fires_twice_is_armed_once() -> None:
    run = started(schedule_activity(start_to_close=100, heartbeat=2))
    (timer,) = [task for key, (_, task) in run.timers.items() if key[-1] == TimeoutKind.HEARTBEAT]
    run.advance(1)
    heartbeat(run)
    run.advance(1 + LATE)
    armed = dict(run.timers)
    run.fire(timer)
    assert run.timers == armed


def test_a_heartbeat_of_an_earlier_attempt_does_not_count() -> None:
    run = started(schedule_activity(start_to_close=100, heartbeat=2))
    heartbeat(run)
    fail(run)
    run.advance(1)
    run.start_activity()
    run.advance(1.999 + LATE)
    assert run.activity().attempt == 2
    run.advance(0.001)
    assert run.activity().attempt == 3


def test_timers_of_what_is_over_do_nothing() -> None:
    run = started(schedule_activity(schedule_to_close=60, start_to_close=10, heartbeat=5, schedule_to_start=7))
    old = [task for _, task in run.timers.values()]
    fail(run)
    old += [task for _, task in run.timers.values()]
    run.advance(1)
    run.start_activity()
    complete(run)
    before = run.types()
    run.advance(1000)
    for task in old:
        run.fire(task)
    assert [t for t in run.types()[len(before) :] if t.startswith("Activity")] == []
    assert len(run.handed_out) == 2


def test_a_timeout_of_the_last_attempt_does_not_hit_the_next() -> None:
    run = started(schedule_activity(start_to_close=10))
    (old,) = [task for _, task in run.timers.values()]
    fail(run)
    run.advance(9.5)
    run.start_activity()
    run.advance(1)
    run.fire(old)
    assert run.activity().attempt == 2
    assert run.activity().started_time


# --- cancellation ---


def test_canceling_what_no_worker_has_ends_it_behind_the_answer() -> None:
    run = scheduled(schedule_activity(), start_timer("wake", 1))
    run.advance(1)
    run.answer(cancel_activity(SCHEDULED), start_timer("next", 1))
    assert run.types()[-4:] == [
        "ActivityTaskCancelRequested",
        "TimerStarted",
        "ActivityTaskCanceled",
        "WorkflowTaskScheduled",
    ]
    canceled = run.last("ActivityTaskCanceled")
    assert (canceled.scheduled_event_id, canceled.started_event_id) == (SCHEDULED, 0)
    assert canceled.latest_cancel_requested_event_id == run.events[-4].event_id
    assert canceled.details.payloads[0].data == b'"ACTIVITY_ID_NOT_STARTED"'
    assert not run.state.activities
    assert list(run.timers) == [("timer", "next")]


def test_canceling_between_two_attempts_ends_it() -> None:
    run = started(schedule_activity(), start_timer("wake", 0.5))
    fail(run)
    run.advance(0.5)
    run.answer(cancel_activity(SCHEDULED))
    assert run.types()[-2:] == ["ActivityTaskCanceled", "WorkflowTaskScheduled"]
    run.advance(100)
    assert run.handed_out == [(SCHEDULED, 0)]


def test_canceling_what_runs_is_told_to_its_worker() -> None:
    run = started(schedule_activity(), start_timer("wake", 1))
    run.advance(1)
    run.answer(cancel_activity(SCHEDULED))
    assert run.types()[-1] == "ActivityTaskCancelRequested"
    assert run.activity().cancel_requested
    assert info(run).state == PendingActivityState.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED
    run.do(lambda txn: activities.cancel(txn, run.activity(), payloads("why"), "worker"))
    assert run.types()[-3:] == ["ActivityTaskStarted", "ActivityTaskCanceled", "WorkflowTaskScheduled"]
    canceled = run.last("ActivityTaskCanceled")
    assert canceled.details == payloads("why")
    assert canceled.latest_cancel_requested_event_id == run.events[-4].event_id


def test_what_is_to_be_canceled_is_not_tried_again() -> None:
    run = started(schedule_activity(), start_timer("wake", 1))
    run.advance(1)
    run.answer(cancel_activity(SCHEDULED))
    fail(run)
    assert run.last("ActivityTaskFailed").retry_state == RetryState.RETRY_STATE_CANCEL_REQUESTED


def test_a_timeout_of_what_is_to_be_canceled() -> None:
    run = started(schedule_activity(schedule_to_close=5), start_timer("wake", 1))
    run.advance(1)
    run.answer(cancel_activity(SCHEDULED))
    run.advance(5)
    out = run.last("ActivityTaskTimedOut")
    assert out.retry_state == RetryState.RETRY_STATE_CANCEL_REQUESTED


def test_it_may_complete_although_it_is_to_be_canceled() -> None:
    run = started(schedule_activity(), start_timer("wake", 1))
    run.advance(1)
    run.answer(cancel_activity(SCHEDULED))
    complete(run)
    assert run.types()[-2] == "ActivityTaskCompleted"


def test_canceling_in_the_answer_that_schedules() -> None:
    run = scheduled(schedule_activity(), cancel_activity(SCHEDULED))
    assert run.types()[-4:] == [
        "ActivityTaskScheduled",
        "ActivityTaskCancelRequested",
        "ActivityTaskCanceled",
        "WorkflowTaskScheduled",
    ]
    assert run.handed_out == []


def test_canceling_what_has_ended_without_the_worker_knowing() -> None:
    run = started(schedule_activity(), start_timer("wake", 1))
    run.advance(1)
    run.start_workflow_task()
    complete(run)
    run.complete_workflow_task(cancel_activity(SCHEDULED))
    assert run.types()[-4:] == [
        "ActivityTaskCancelRequested",
        "ActivityTaskStarted",
        "ActivityTaskCompleted",
        "WorkflowTaskScheduled",
    ]


def test_a_workflow_may_cancel_and_end_in_one_answer() -> None:
    run = scheduled(schedule_activity(), start_timer("wake", 1))
    run.advance(1)
    run.answer(cancel_activity(SCHEDULED), complete_workflow())
    assert run.types()[-2:] == ["ActivityTaskCancelRequested", "WorkflowExecutionCompleted"]
    assert not run.state.buffered


@pytest.mark.parametrize(
    ("commands", "message"),
    [
        ([cancel_activity(0)], "ScheduledEventId is not set on RequestCancelActivityTaskCommand."),
        (
            [cancel_activity(99)],
            "invalid history builder state for action: add-activitytask-cancel-requested-event, ScheduledEventID: 99",
        ),
    ],
)
def test_canceling_what_is_not_there_is_refused(commands: list[Command], message: str) -> None:
    with pytest.raises(BadCommand) as refused:
        scheduled(*commands)
    assert refused.value.cause == Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_REQUEST_CANCEL_ACTIVITY_ATTRIBUTES
    assert refused.value.message == f"BadRequestCancelActivityAttributes: {message}"


# --- what users see of it ---


def test_describing_an_activity_through_its_life() -> None:
    run = scheduled(policy(schedule_activity(start_to_close=10, schedule_to_close=60), maximum_attempts=5))
    shown = info(run)
    assert (shown.activity_id, shown.activity_type.name, shown.attempt) == ("a", "Activity", 1)
    assert shown.state == PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
    assert (shown.maximum_attempts, from_timestamp(shown.expiration_time)) == (5, START + 60 * SECOND)
    assert not shown.HasField("next_attempt_schedule_time")
    assert shown.activity_options.task_queue.name == "queue"
    run.now += SECOND
    run.start_activity()
    run.now += SECOND
    heartbeat(run)
    shown = info(run)
    assert shown.state == PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
    assert from_timestamp(shown.last_started_time) == START + SECOND
    assert from_timestamp(shown.last_heartbeat_time) == START + 2 * SECOND
    assert shown.heartbeat_details == payloads("progress")
    fail(run)
    run.now += 300 * MILLISECOND
    shown = info(run)
    assert shown.state == PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
    assert (shown.attempt, shown.last_failure.message, shown.last_worker_identity) == (2, "failed", "worker")
    assert from_timestamp(shown.last_attempt_complete_time) == START + 2 * SECOND
    assert from_timestamp(shown.next_attempt_schedule_time) == START + 3 * SECOND
    assert shown.current_retry_interval.seconds == 1
    run.advance(1)
    assert not info(run).HasField("next_attempt_schedule_time")
