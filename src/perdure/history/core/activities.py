"""Activities of a workflow: scheduled, started, retried, ended.

An attempt that starts makes no event: ActivityTaskStarted is written with the event that ends the activity, and tells
of the last attempt only. So retries leave nothing in the history; what they change is in the activity's row.

Deadlines are timers of their own, made when the deadline is known, so no step looks at other activities. Timers that
could only fire after the activity's end are not made. A heartbeat moves its deadline without touching the timer, which
is armed anew when it fires too early.
"""

from __future__ import annotations

from temporalio.api.activity.v1 import ActivityOptions
from temporalio.api.command.v1 import Command, ScheduleActivityTaskCommandAttributes
from temporalio.api.common.v1 import ActivityType, Payloads, RetryPolicy, WorkerVersionStamp
from temporalio.api.enums.v1 import CommandType, EventType, PendingActivityState, RetryState, TaskQueueKind, TimeoutType
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflow.v1 import PendingActivityInfo

from perdure.clock import MILLISECOND, SECOND, from_duration, from_timestamp, to_duration, to_timestamp
from perdure.config import dynamic
from perdure.history.core import attributes, buffering, retry, workflow_tasks
from perdure.history.core.apply import applies
from perdure.history.core.completion import Completion, command
from perdure.history.core.failures import shortened
from perdure.history.core.state import Activity, Kind, State
from perdure.history.core.tasks import ActivityRetry, ActivityTimeout, DispatchActivity, TimeoutKind
from perdure.history.core.txn import TimerKey, Txn

_KEPT_EVENT_BYTES = 64 * 1024
# A worker has its task a little later than the start is recorded, and its answer is a little on its way: what limits an
# attempt is enforced this much later, so that a worker which is just in time by its own clock is not too late.
GRACE = 100 * MILLISECOND
_TIMEOUT_NAMES = {
    TimeoutKind.START_TO_CLOSE: "StartToClose",
    TimeoutKind.SCHEDULE_TO_START: "ScheduleToStart",
    TimeoutKind.SCHEDULE_TO_CLOSE: "ScheduleToClose",
    TimeoutKind.HEARTBEAT: "Heartbeat",
}
_NO_TIME_FOR_RETRY = (
    "Not enough time to schedule next retry before activity ScheduleToClose timeout, giving up retrying"
)
_NOT_STARTED = Payloads()
_NOT_STARTED.payloads.add(metadata={"encoding": b"json/plain"}, data=b'"ACTIVITY_ID_NOT_STARTED"')
_RETRY = 0  # in a timer's key, where others have a TimeoutKind


def _key(activity: Activity, kind: int) -> TimerKey:
    return ("activity", activity.scheduled_event_id, kind)


# --- schedule ---


@command(CommandType.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK)
def _schedule(completion: Completion, source: Command) -> None:
    txn = completion.txn
    state, config, namespace = txn.state, txn.env.config, txn.env.namespace
    a = source.schedule_activity_task_command_attributes
    cause = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_SCHEDULE_ACTIVITY_ATTRIBUTES
    wrong = _normalize(txn, a)
    if wrong:
        raise attributes.bad(cause, wrong)
    if a.input.ByteSize() > config.get(dynamic.BLOB_SIZE_ERROR, namespace):
        why = "ScheduleActivityTaskCommandAttributes.Input exceeds size limit."
        raise attributes.bad(cause, why, terminate=True)
    limit = config.get(dynamic.PENDING_ACTIVITIES_ERROR, namespace)
    pending = len(state.activities)
    if 0 < limit <= pending:
        raise attributes.bad(
            Cause.WORKFLOW_TASK_FAILED_CAUSE_PENDING_ACTIVITIES_LIMIT_EXCEEDED,
            f"the number of pending activities, {pending}, has reached the per-workflow limit of {limit}",
        )
    if a.activity_id in state.activity_ids:
        raise attributes.bad(
            Cause.WORKFLOW_TASK_FAILED_CAUSE_SCHEDULE_ACTIVITY_DUPLICATE_ID,
            f"invalid history builder state for action: add-activitytask-scheduled-event, ActivityID: {a.activity_id}",
        )
    event = txn.event(EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED)
    scheduled = event.activity_task_scheduled_event_attributes
    scheduled.activity_id = a.activity_id
    scheduled.activity_type.CopyFrom(a.activity_type)
    scheduled.task_queue.CopyFrom(a.task_queue)
    if a.HasField("header"):
        scheduled.header.CopyFrom(a.header)
    if a.HasField("input"):
        scheduled.input.CopyFrom(a.input)
    scheduled.schedule_to_close_timeout.CopyFrom(a.schedule_to_close_timeout)
    scheduled.schedule_to_start_timeout.CopyFrom(a.schedule_to_start_timeout)
    scheduled.start_to_close_timeout.CopyFrom(a.start_to_close_timeout)
    scheduled.heartbeat_timeout.CopyFrom(a.heartbeat_timeout)
    scheduled.workflow_task_completed_event_id = completion.completed_event_id
    scheduled.retry_policy.CopyFrom(a.retry_policy)
    scheduled.use_workflow_build_id = a.use_workflow_build_id
    if a.HasField("priority"):
        scheduled.priority.CopyFrom(a.priority)
    completion.add(event, source)
    activity = state.activities[event.event_id]
    expiration = _expiration(activity)
    if expiration:
        _arm(txn, activity, TimeoutKind.SCHEDULE_TO_CLOSE, expiration)
    if (
        a.request_eager_execution
        and a.task_queue.name == state.info.task_queue
        and config.get(dynamic.ENABLE_EAGER_ACTIVITY, namespace)
    ):
        completion.after.append(lambda: _start_eagerly(completion, activity))
    else:
        dispatch(txn, activity)


def _normalize(txn: Txn, a: ScheduleActivityTaskCommandAttributes) -> str:
    """Fills in what is not set. What is wrong, "" for nothing."""
    config, info = txn.env.config, txn.state.info
    limit = config.get(dynamic.MAX_ID_LENGTH)
    if not a.task_queue.name:
        a.task_queue.name = info.task_queue
    if not a.task_queue.kind:
        a.task_queue.kind = TaskQueueKind.TASK_QUEUE_KIND_NORMAL
    if wrong := attributes.invalid_task_queue(a.task_queue.name, limit):
        return wrong
    if not a.activity_id:
        return "activityId is not set"
    if not a.activity_type.name:
        return "activityType is not set"
    if wrong := retry.invalid(a.retry_policy):
        return wrong
    defaults = config.get(dynamic.ACTIVITY_RETRY_DEFAULTS, txn.env.namespace)
    a.retry_policy.CopyFrom(retry.with_defaults(a.retry_policy, defaults))
    if wrong := attributes.invalid_id(a.activity_id, limit):
        return f"activityId {wrong}"
    if wrong := attributes.invalid_id(a.activity_type.name, limit):
        return f"activityType {wrong}"
    if a.HasField("priority") and (wrong := attributes.invalid_priority(a.priority)):
        return f"invalid priorities: {wrong}"
    return _normalize_timeouts(a, info.run_timeout)


def _normalize_timeouts(a: ScheduleActivityTaskCommandAttributes, run_timeout: int) -> str:
    """What is not set follows from what is, and nothing is longer than the run. Every timeout is there afterwards, if
    only as 0: some clients need that."""
    for what, timeout in (
        ("ScheduleToCloseTimeout", a.schedule_to_close_timeout),
        ("ScheduleToStartTimeout", a.schedule_to_start_timeout),
        ("StartToCloseTimeout", a.start_to_close_timeout),
        ("HeartbeatTimeout", a.heartbeat_timeout),
    ):
        if wrong := attributes.invalid_duration(timeout):
            return f"invalid {what}: {wrong}"
    to_close = from_duration(a.schedule_to_close_timeout)
    to_start = from_duration(a.schedule_to_start_timeout)
    one_attempt = from_duration(a.start_to_close_timeout)
    heartbeat = from_duration(a.heartbeat_timeout)
    if to_close:
        to_start = min(to_start or to_close, to_close)
        one_attempt = min(one_attempt or to_close, to_close)
    elif one_attempt:
        to_close = run_timeout
        to_start = to_start or run_timeout
    else:
        return (
            "a valid StartToCloseTimeout or ScheduleToCloseTimeout must be set on the activity. "
            f"ActivityId={a.activity_id} ActivityType={a.activity_type.name}"
        )
    if run_timeout:
        to_close = min(to_close, run_timeout)
        to_start = min(to_start, run_timeout)
        one_attempt = min(one_attempt, run_timeout)
        heartbeat = min(heartbeat, run_timeout)
    heartbeat = min(heartbeat, one_attempt)
    for timeout, value in (
        (a.schedule_to_close_timeout, to_close),
        (a.schedule_to_start_timeout, to_start),
        (a.start_to_close_timeout, one_attempt),
        (a.heartbeat_timeout, heartbeat),
    ):
        timeout.SetInParent()
        timeout.seconds, timeout.nanos = divmod(value, SECOND)
    return ""


def dispatch(txn: Txn, activity: Activity) -> None:
    """Lets a worker have the activity now."""
    _await_start(txn, activity)
    txn.task(DispatchActivity(scheduled_event_id=activity.scheduled_event_id, stamp=activity.stamp))


@applies(EventType.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED)
def _scheduled(state: State, event: HistoryEvent) -> None:
    a = event.activity_task_scheduled_event_attributes
    now = state.run.last_event_time
    activity = Activity(
        scheduled_event_id=event.event_id,
        activity_id=a.activity_id,
        activity_type=a.activity_type.name,
        task_queue=a.task_queue.name,
        scheduled_time=now,
        first_scheduled_time=now,
        schedule_to_close=from_duration(a.schedule_to_close_timeout),
        schedule_to_start=from_duration(a.schedule_to_start_timeout),
        start_to_close=from_duration(a.start_to_close_timeout),
        heartbeat=from_duration(a.heartbeat_timeout),
        retry_policy_proto=a.retry_policy.SerializeToString() if a.HasField("retry_policy") else b"",
        priority_proto=a.priority.SerializeToString() if a.HasField("priority") else b"",
        workflow_task_completed_event_id=a.workflow_task_completed_event_id,
    )
    state.put(Kind.ACTIVITY, event.event_id, activity)
    state.activity_ids[a.activity_id] = event.event_id
    if event.ByteSize() <= _KEPT_EVENT_BYTES:
        state.scheduled_events[event.event_id] = event


# --- deadlines ---


def _expiration(activity: Activity) -> int:
    """When schedule-to-close is over, 0 for never."""
    return activity.first_scheduled_time + activity.schedule_to_close if activity.schedule_to_close else 0


def _close_deadline(activity: Activity) -> int:
    """Of the started attempt, 0 for none."""
    return activity.started_time + activity.start_to_close + GRACE if activity.start_to_close else 0


def _heartbeat_deadline(activity: Activity) -> int:
    """Of the started attempt, 0 for none."""
    if not activity.heartbeat:
        return 0
    return max(activity.started_time, activity.heartbeat_time) + activity.heartbeat + GRACE


def _arm(txn: Txn, activity: Activity, kind: TimeoutKind, deadline: int) -> None:
    txn.timer(
        _key(activity, kind),
        deadline,
        ActivityTimeout(
            kind=kind,
            scheduled_event_id=activity.scheduled_event_id,
            attempt=activity.attempt,
            stamp=activity.stamp,
        ),
    )


def _await_start(txn: Txn, activity: Activity) -> None:
    """Arms schedule-to-start, counted from `scheduled_time`. The timer of schedule-to-close serves for both when it
    comes no later."""
    if activity.schedule_to_start:
        deadline = activity.scheduled_time + activity.schedule_to_start
        expiration = _expiration(activity)
        if not expiration or deadline < expiration:
            _arm(txn, activity, TimeoutKind.SCHEDULE_TO_START, deadline)


def _await_close(txn: Txn, activity: Activity) -> None:
    """Arms what limits a started attempt."""
    txn.cancel_timer(_key(activity, TimeoutKind.SCHEDULE_TO_START))
    expiration = _expiration(activity)
    deadline = _close_deadline(activity)
    if deadline and (not expiration or deadline <= expiration):
        _arm(txn, activity, TimeoutKind.START_TO_CLOSE, deadline)
    deadline = _heartbeat_deadline(activity)
    if deadline and (not expiration or deadline <= expiration):
        activity.heartbeat_timer_armed = deadline
        _arm(txn, activity, TimeoutKind.HEARTBEAT, deadline)


def _disarm_attempt(txn: Txn, activity: Activity) -> None:
    txn.cancel_timer(_key(activity, TimeoutKind.SCHEDULE_TO_START))
    txn.cancel_timer(_key(activity, TimeoutKind.START_TO_CLOSE))
    if activity.heartbeat:
        txn.cancel_timer(_key(activity, TimeoutKind.HEARTBEAT))


def _disarm(txn: Txn, activity: Activity) -> None:
    _disarm_attempt(txn, activity)
    txn.cancel_timer(_key(activity, TimeoutKind.SCHEDULE_TO_CLOSE))
    if activity.attempt > 1:
        txn.cancel_timer(_key(activity, _RETRY))


# --- start ---


def waiting(state: State, scheduled_event_id: int, stamp: int) -> Activity | None:
    """The activity, if a worker may have what was dispatched under this stamp."""
    activity = state.activities.get(scheduled_event_id) if state.open else None
    if activity is None or activity.stamp != stamp or activity.started_time or activity.paused:
        return None
    return activity


def start(
    txn: Txn, activity: Activity, request_id: str, identity: str, worker_version: WorkerVersionStamp | None = None
) -> None:
    """A worker takes the activity."""
    activity.started_time = activity.last_started_time = txn.now
    activity.request_id = request_id
    activity.started_identity = identity
    activity.build_id_proto = worker_version.SerializeToString() if worker_version is not None else b""
    _await_close(txn, activity)
    txn.put(Kind.ACTIVITY, activity.scheduled_event_id, activity)


def _start_eagerly(completion: Completion, activity: Activity) -> None:
    """After all commands of the answer: one of them may have canceled the activity, or closed the run."""
    txn = completion.txn
    if waiting(txn.state, activity.scheduled_event_id, activity.stamp) is activity:
        start(txn, activity, txn.env.new_id(), completion.request.identity)
        completion.eager.append(activity.scheduled_event_id)


# --- heartbeat ---


def record_heartbeat(txn: Txn, activity: Activity, details: Payloads | None, identity: str) -> None:
    activity.heartbeat_time = txn.now
    activity.heartbeat_details_proto = details.SerializeToString() if details is not None else b""
    if identity:
        activity.last_worker_identity = identity
    txn.put(Kind.ACTIVITY, activity.scheduled_event_id, activity)


# --- end ---


def _record_end(
    txn: Txn, activity: Activity, event: HistoryEvent, worker_version: WorkerVersionStamp | None = None
) -> None:
    """Records the event that ends the activity, after the start of its last attempt if that has started, and wakes the
    workflow."""
    started_event_id = 0
    if activity.started_time:
        started = txn.event(EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED)
        started.event_time.CopyFrom(to_timestamp(activity.started_time))
        a = started.activity_task_started_event_attributes
        a.scheduled_event_id = activity.scheduled_event_id
        a.attempt = activity.attempt
        a.request_id = activity.request_id
        a.identity = activity.started_identity
        if activity.last_failure_proto:
            a.last_failure.ParseFromString(activity.last_failure_proto)
        if worker_version is not None:
            a.worker_version.CopyFrom(worker_version)
        elif activity.build_id_proto:
            a.worker_version.ParseFromString(activity.build_id_proto)
        started_event_id = txn.record(started).event_id
    closing = getattr(event, event.WhichOneof("attributes") or "")
    closing.scheduled_event_id = activity.scheduled_event_id
    closing.started_event_id = started_event_id  # 0 if it waits in the buffer, with the closing event after it
    txn.record(event)
    _disarm(txn, activity)


def complete(
    txn: Txn,
    activity: Activity,
    result: Payloads | None,
    identity: str,
    worker_version: WorkerVersionStamp | None = None,
) -> None:
    if not activity.started_time:
        start(txn, activity, "", identity)  # completed by its id, by somebody who has not polled for it
    event = txn.event(EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED)
    a = event.activity_task_completed_event_attributes
    if result is not None:
        a.result.CopyFrom(result)
    a.identity = identity
    _record_end(txn, activity, event, worker_version)
    workflow_tasks.ensure_scheduled(txn)


def fail(
    txn: Txn,
    activity: Activity,
    failure: Failure | None,
    identity: str,
    worker_version: WorkerVersionStamp | None = None,
) -> None:
    """The started attempt failed: there is another one, or the activity has failed."""
    activity.last_attempt_complete_time = txn.now
    state = _retry(txn, activity, failure)
    if state == RetryState.RETRY_STATE_IN_PROGRESS:
        return
    event = txn.event(EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED)
    a = event.activity_task_failed_event_attributes
    if failure is not None:
        a.failure.CopyFrom(failure)
    a.identity = identity
    a.retry_state = state
    _record_end(txn, activity, event, worker_version)
    workflow_tasks.ensure_scheduled(txn)


def cancel(txn: Txn, activity: Activity, details: Payloads | None, identity: str) -> None:
    """The worker has canceled the started activity, as it was requested to."""
    assert activity.cancel_requested
    _record_end(txn, activity, _canceled_event(txn, activity, details, identity))
    workflow_tasks.ensure_scheduled(txn)


def _canceled_event(txn: Txn, activity: Activity, details: Payloads | None, identity: str) -> HistoryEvent:
    event = txn.event(EventType.EVENT_TYPE_ACTIVITY_TASK_CANCELED)
    a = event.activity_task_canceled_event_attributes
    a.scheduled_event_id = activity.scheduled_event_id
    a.latest_cancel_requested_event_id = activity.cancel_request_id
    a.identity = identity
    if details is not None:
        a.details.CopyFrom(details)
    return event


# --- retry ---


def _retry(txn: Txn, activity: Activity, failure: Failure | None) -> RetryState.ValueType:
    """Schedules the next attempt after a failure, if there is to be one (IN_PROGRESS); otherwise why not, and nothing
    has changed."""
    if not activity.retry_policy_proto:
        return RetryState.RETRY_STATE_RETRY_POLICY_NOT_SET
    if activity.cancel_requested:
        return RetryState.RETRY_STATE_CANCEL_REQUESTED
    policy = RetryPolicy.FromString(activity.retry_policy_proto)
    if failure is not None:
        info = failure.application_failure_info
        if failure.HasField("application_failure_info") and info.HasField("next_retry_delay"):
            policy.maximum_interval.CopyFrom(info.next_retry_delay)  # the activity itself knows best
    decision = retry.decide(policy, activity.attempt, txn.now, _expiration(activity), failure)
    if decision.wait is None:
        return decision.state
    _disarm_attempt(txn, activity)
    activity.attempt += 1
    activity.stamp += 1
    activity.scheduled_time = txn.now + decision.wait
    activity.started_time = activity.started_event_id = 0
    activity.request_id = ""
    activity.last_worker_identity = activity.started_identity
    activity.started_identity = ""
    activity.heartbeat_timer_armed = 0
    if failure is not None:
        limit = txn.env.config.get(dynamic.ACTIVITY_FAILURE_SIZE, txn.env.namespace)
        activity.last_failure_proto = shortened(failure, limit).SerializeToString()
    else:
        activity.last_failure_proto = b""
    txn.put(Kind.ACTIVITY, activity.scheduled_event_id, activity)
    if not activity.paused:
        txn.timer(
            _key(activity, _RETRY),
            activity.scheduled_time,
            ActivityRetry(
                scheduled_event_id=activity.scheduled_event_id, attempt=activity.attempt, stamp=activity.stamp
            ),
        )
        _await_start(txn, activity)
    return RetryState.RETRY_STATE_IN_PROGRESS


# --- time ---


def time_out(txn: Txn, task: ActivityTimeout) -> None:
    """One of the timers of an activity fires. Does nothing when it no longer applies."""
    state = txn.state
    activity = state.activities.get(task.scheduled_event_id) if state.open else None
    if activity is None:
        return
    kind = TimeoutKind(task.kind)
    if kind == TimeoutKind.SCHEDULE_TO_CLOSE:
        deadline = _expiration(activity)
        to_start = activity.scheduled_time + activity.schedule_to_start
        if not activity.started_time and activity.schedule_to_start and to_start <= deadline:
            kind = TimeoutKind.SCHEDULE_TO_START  # it is over at the same time, and says more
    elif task.attempt != activity.attempt or bool(activity.started_time) == (kind == TimeoutKind.SCHEDULE_TO_START):
        return
    elif kind == TimeoutKind.SCHEDULE_TO_START:
        deadline = activity.scheduled_time + activity.schedule_to_start if activity.schedule_to_start else 0
    elif kind == TimeoutKind.START_TO_CLOSE:
        deadline = _close_deadline(activity)
    else:
        if activity.heartbeat_timer_armed > txn.now:
            return  # this one fires a second time: the next one is armed already
        deadline = _heartbeat_deadline(activity)
        if deadline > txn.now:
            activity.heartbeat_timer_armed = deadline
            txn.put(Kind.ACTIVITY, activity.scheduled_event_id, activity)
            _arm(txn, activity, TimeoutKind.HEARTBEAT, deadline)
    if not deadline or deadline > txn.now:
        return
    _timed_out(txn, activity, kind)


def _timed_out(txn: Txn, activity: Activity, kind: TimeoutKind) -> None:
    failure = _timeout_failure(kind, f"activity {_TIMEOUT_NAMES[kind]} timeout")
    if activity.started_time:
        activity.last_attempt_complete_time = txn.now
    if kind in (TimeoutKind.START_TO_CLOSE, TimeoutKind.HEARTBEAT):
        state = _retry(txn, activity, failure)
    elif activity.cancel_requested:
        state = RetryState.RETRY_STATE_CANCEL_REQUESTED
    else:
        state = RetryState.RETRY_STATE_TIMEOUT  # the activity's own time is over, not that of an attempt
    if state == RetryState.RETRY_STATE_IN_PROGRESS:
        return
    if state == RetryState.RETRY_STATE_TIMEOUT and kind != TimeoutKind.SCHEDULE_TO_START:
        failure = _timeout_failure(TimeoutKind.SCHEDULE_TO_CLOSE, _NO_TIME_FOR_RETRY)
    if activity.heartbeat_details_proto:
        failure.timeout_failure_info.last_heartbeat_details.ParseFromString(activity.heartbeat_details_proto)
    if activity.last_failure_proto:
        failure.cause.ParseFromString(activity.last_failure_proto)
    event = txn.event(EventType.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT)
    a = event.activity_task_timed_out_event_attributes
    a.failure.CopyFrom(failure)
    a.retry_state = state
    _record_end(txn, activity, event)
    workflow_tasks.ensure_scheduled(txn)


def _timeout_failure(kind: TimeoutKind, message: str) -> Failure:
    failure = Failure(message=message, source="Server")
    failure.timeout_failure_info.timeout_type = TimeoutType.ValueType(kind)
    return failure


# --- cancellation ---


@command(CommandType.COMMAND_TYPE_REQUEST_CANCEL_ACTIVITY_TASK)
def _request_cancel(completion: Completion, source: Command) -> None:
    txn = completion.txn
    state = txn.state
    scheduled_event_id = source.request_cancel_activity_task_command_attributes.scheduled_event_id
    cause = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_REQUEST_CANCEL_ACTIVITY_ATTRIBUTES
    if scheduled_event_id <= 0:
        raise attributes.bad(cause, "ScheduledEventId is not set on RequestCancelActivityTaskCommand.")
    activity = state.activities.get(scheduled_event_id)
    if activity.cancel_requested if activity is not None else not _ended_in_buffer(state, scheduled_event_id):
        raise attributes.bad(
            cause,
            "invalid history builder state for action: add-activitytask-cancel-requested-event, "
            f"ScheduledEventID: {scheduled_event_id}",
        )
    event = txn.event(EventType.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED)
    a = event.activity_task_cancel_requested_event_attributes
    a.scheduled_event_id = scheduled_event_id
    a.workflow_task_completed_event_id = completion.completed_event_id
    completion.add(event, source)
    if activity is not None and not activity.started_time:
        # No worker has it, so it ends here. The event comes after those of the answer's commands, as if from outside.
        buffering.hold(txn.state, _canceled_event(txn, activity, _NOT_STARTED, completion.request.identity))
        _disarm(txn, activity)
        completion.needs_workflow_task = True


def _ended_in_buffer(state: State, scheduled_event_id: int) -> bool:
    """It has ended, but the worker has not been told yet."""

    def ends(event: HistoryEvent) -> bool:
        field = _ENDS.get(event.event_type)
        return field is not None and getattr(event, field).scheduled_event_id == scheduled_event_id

    return buffering.find(state, ends) is not None


# --- events ---

_ENDS = {
    EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED: "activity_task_completed_event_attributes",
    EventType.EVENT_TYPE_ACTIVITY_TASK_FAILED: "activity_task_failed_event_attributes",
    EventType.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT: "activity_task_timed_out_event_attributes",
    EventType.EVENT_TYPE_ACTIVITY_TASK_CANCELED: "activity_task_canceled_event_attributes",
}


@applies(EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED)
def _started(state: State, event: HistoryEvent) -> None:
    a = event.activity_task_started_event_attributes
    activity = state.activities[a.scheduled_event_id]
    activity.started_event_id = event.event_id
    activity.started_time = from_timestamp(event.event_time)
    activity.attempt = a.attempt
    activity.request_id = a.request_id
    activity.started_identity = a.identity
    state.put(Kind.ACTIVITY, a.scheduled_event_id, activity)


@applies(*_ENDS)
def _ended(state: State, event: HistoryEvent) -> None:
    scheduled_event_id = getattr(event, _ENDS[event.event_type]).scheduled_event_id
    activity = state.activities[scheduled_event_id]
    state.remove(Kind.ACTIVITY, scheduled_event_id)
    # While the end waited in the buffer, an answer may have scheduled another activity under the same id.
    if state.activity_ids.get(activity.activity_id) == scheduled_event_id:
        del state.activity_ids[activity.activity_id]
    state.scheduled_events.pop(scheduled_event_id, None)


@applies(EventType.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED)
def _cancel_requested(state: State, event: HistoryEvent) -> None:
    activity = state.activities.get(event.activity_task_cancel_requested_event_attributes.scheduled_event_id)
    if activity is not None:  # otherwise it has ended in the buffer
        activity.cancel_requested = True
        activity.cancel_request_id = event.event_id
        state.put(Kind.ACTIVITY, activity.scheduled_event_id, activity)


# --- what users see ---


def pending_activity_infos(state: State, now: int) -> list[PendingActivityInfo]:
    return [_pending_info(activity, now) for activity in state.activities.values()]


def _pending_info(activity: Activity, now: int) -> PendingActivityInfo:
    started = bool(activity.started_time)
    if activity.cancel_requested:
        shown = PendingActivityState.PENDING_ACTIVITY_STATE_CANCEL_REQUESTED
    elif activity.paused:
        shown = (
            PendingActivityState.PENDING_ACTIVITY_STATE_PAUSE_REQUESTED
            if started
            else PendingActivityState.PENDING_ACTIVITY_STATE_PAUSED
        )
    elif started:
        shown = PendingActivityState.PENDING_ACTIVITY_STATE_STARTED
    else:
        shown = PendingActivityState.PENDING_ACTIVITY_STATE_SCHEDULED
    policy = RetryPolicy.FromString(activity.retry_policy_proto)
    info = PendingActivityInfo(
        activity_id=activity.activity_id,
        activity_type=ActivityType(name=activity.activity_type),
        state=shown,
        attempt=activity.attempt,
        maximum_attempts=policy.maximum_attempts,
        scheduled_time=to_timestamp(activity.scheduled_time),
        last_worker_identity=activity.started_identity or activity.last_worker_identity,
        paused=activity.paused,
        activity_options=ActivityOptions(
            task_queue=TaskQueue(name=activity.task_queue, normal_name=activity.task_queue),
            schedule_to_close_timeout=to_duration(activity.schedule_to_close),
            schedule_to_start_timeout=to_duration(activity.schedule_to_start),
            start_to_close_timeout=to_duration(activity.start_to_close),
            heartbeat_timeout=to_duration(activity.heartbeat),
            retry_policy=policy,
        ),
    )
    for field, time in (
        (info.last_started_time, activity.last_started_time),
        (info.last_heartbeat_time, activity.heartbeat_time),
        (info.last_attempt_complete_time, activity.last_attempt_complete_time),
        (info.expiration_time, _expiration(activity)),
    ):
        if time:
            field.CopyFrom(to_timestamp(time))
    if activity.heartbeat_details_proto:
        info.heartbeat_details.ParseFromString(activity.heartbeat_details_proto)
    if activity.last_failure_proto:
        info.last_failure.ParseFromString(activity.last_failure_proto)
    if activity.priority_proto:
        info.priority.ParseFromString(activity.priority_proto)
        info.activity_options.priority.CopyFrom(info.priority)
    if not started and not activity.paused and activity.scheduled_time > now:
        info.next_attempt_schedule_time.CopyFrom(to_timestamp(activity.scheduled_time))
        info.current_retry_interval.CopyFrom(to_duration(activity.scheduled_time - activity.last_attempt_complete_time))
    return info
