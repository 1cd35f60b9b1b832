"""Workflow tasks: scheduled, started, completed, failed, timed out.

Three kinds. A normal one has its events in the history as they happen. After a failure on the normal queue the next one
is transient (attempt > 1): as long as nothing else happens its failures leave no events, or a worker that crashes in a
loop would fill the history. A speculative one exists only to bring updates to a worker: if the worker rejects them all,
it leaves nothing behind. Both get the ids that their events would have; `materialize` and `complete` write them.
"""

from __future__ import annotations

from collections.abc import Sequence

from temporalio.api.common.v1 import WorkerVersionStamp
from temporalio.api.enums.v1 import EventType, SuggestContinueAsNewReason, TaskQueueKind, TimeoutType
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import RespondWorkflowTaskCompletedRequest

from perdure.clock import SECOND, to_duration, to_timestamp
from perdure.config import dynamic
from perdure.history.core.apply import applies
from perdure.history.core.state import RUNNING, State, WorkflowTask
from perdure.history.core.tasks import DispatchWorkflowTask, TimeoutKind, WorkflowTaskTimeout
from perdure.history.core.txn import Txn

SPECULATIVE_SCHEDULE_TO_START = 5 * SECOND
_BACKOFF_AFTER_ATTEMPT = 3
_FIRST_BACKOFF = 5 * SECOND
_TIMEOUT_KEY = ("workflow-task",)
_START_TIMEOUT_KEY = ("workflow-task-start",)


def _queue(state: State, sticky_queue: str) -> TaskQueue:
    if sticky_queue:
        return TaskQueue(
            name=sticky_queue, kind=TaskQueueKind.TASK_QUEUE_KIND_STICKY, normal_name=state.info.task_queue
        )
    return TaskQueue(name=state.info.task_queue, kind=TaskQueueKind.TASK_QUEUE_KIND_NORMAL)


def clear_sticky(txn: Txn) -> None:
    run = txn.state.run
    if run.sticky_queue:
        run.sticky_queue = ""
        run.sticky_timeout = 0
        txn.touch()


# --- schedule ---


def ensure_scheduled(txn: Txn) -> None:
    """The run has something to tell its worker: schedules a workflow task unless one is pending, or the first one is
    still to come (start delay, child whose parent is being told)."""
    run = txn.state.run
    if run.status == RUNNING and run.workflow_task is None and run.had_workflow_task:
        schedule(txn)


def schedule(
    txn: Txn, *, dispatch: bool = True, original_scheduled_time: int = 0, speculative: bool = False
) -> WorkflowTask:
    """dispatch: make the task that brings it to a worker; False when the caller hands it out itself."""
    state = txn.state
    run = state.run
    assert run.workflow_task is None
    if txn.flush_buffer():
        # There are new events: an attempt counted against a history that nobody has seen would be wrong.
        run.workflow_task_attempt = 1
        speculative = False
    attempt = run.workflow_task_attempt
    if attempt > 1:
        speculative = False
    timeout = _start_to_close(txn, attempt)
    if speculative or attempt > 1:
        task = WorkflowTask(
            scheduled_event_id=run.next_event_id, attempt=attempt, speculative=speculative, timeout=timeout
        )
        task.scheduled_time = task.original_scheduled_time = txn.now
        task.sticky_queue = run.sticky_queue
        run.workflow_task = task
        run.had_workflow_task = True
        txn.dirty = txn.dirty or not speculative
    else:
        event = txn.event(EventType.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED)
        attributes = event.workflow_task_scheduled_event_attributes
        attributes.task_queue.CopyFrom(_queue(state, run.sticky_queue))
        attributes.start_to_close_timeout.CopyFrom(to_duration(timeout))
        attributes.attempt = attempt
        txn.record(event)
        task = run.workflow_task
        assert task is not None
    if original_scheduled_time:
        task.original_scheduled_time = original_scheduled_time
    if dispatch:
        _dispatch(txn, task)
    return task


def _dispatch(txn: Txn, task: WorkflowTask) -> None:
    run = txn.state.run
    message = DispatchWorkflowTask(
        task_queue=run.sticky_queue or txn.state.info.task_queue,
        sticky=bool(run.sticky_queue),
        scheduled_event_id=task.scheduled_event_id,
    )
    timeout = WorkflowTaskTimeout(
        kind=TimeoutKind.SCHEDULE_TO_START,
        scheduled_event_id=task.scheduled_event_id,
        attempt=task.attempt,
    )
    if task.speculative:
        wait = run.sticky_timeout if run.sticky_queue else SPECULATIVE_SCHEDULE_TO_START
        txn.memory_dispatches.append(message)
        txn.memory_timer(_START_TIMEOUT_KEY, txn.now + wait, timeout)
        return
    txn.task(message)
    if run.sticky_queue:
        txn.timer(_START_TIMEOUT_KEY, txn.now + run.sticky_timeout, timeout)


def _start_to_close(txn: Txn, attempt: int) -> int:
    """A task that keeps failing is given ever longer, so that its retries come ever more slowly: it is the timeout that
    retries a worker which does not answer."""
    timeout = txn.state.info.task_timeout
    if attempt <= _BACKOFF_AFTER_ATTEMPT:
        return timeout
    longest = txn.env.config.get(dynamic.WORKFLOW_TASK_RETRY_MAX_INTERVAL, txn.env.namespace)
    return timeout + min(longest, _FIRST_BACKOFF << min(attempt - _BACKOFF_AFTER_ATTEMPT - 1, 40))


@applies(EventType.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED)
def _scheduled(state: State, event: HistoryEvent) -> None:
    attributes = event.workflow_task_scheduled_event_attributes
    run = state.run
    timeout = attributes.start_to_close_timeout
    run.workflow_task = WorkflowTask(
        scheduled_event_id=event.event_id,
        attempt=1,
        scheduled_time=run.last_event_time,
        original_scheduled_time=run.last_event_time,
        timeout=timeout.seconds * SECOND + timeout.nanos,
    )
    if attributes.task_queue.kind == TaskQueueKind.TASK_QUEUE_KIND_STICKY:
        run.workflow_task.sticky_queue = attributes.task_queue.name
    run.workflow_task_attempt = 1
    run.had_workflow_task = True


# --- start ---


def start(txn: Txn, request_id: str, identity: str, too_many_updates: bool = False) -> WorkflowTask:
    """A worker takes the pending task."""
    run = txn.state.run
    task = run.workflow_task
    assert task is not None
    assert not task.started_event_id
    if (task.transient or task.speculative) and task.scheduled_event_id != run.next_event_id:
        # Events came since: it has something new to tell, so it is a normal one, with events.
        _write_scheduled(txn, task)
    reasons = _suggestions(txn, too_many_updates)
    if task.transient or task.speculative:
        task.started_event_id = task.scheduled_event_id + 1
        task.started_time = txn.now
        task.request_id = request_id
        task.history_size = run.history_size
        task.suggest_reasons = reasons
        if not task.speculative:
            txn.touch()
    else:
        txn.record(_started_event(txn, task.scheduled_event_id, request_id, identity, txn.now, reasons))
        started = run.workflow_task
        assert started is not None
        task = started
    task.identity = identity
    txn.cancel_timer(_START_TIMEOUT_KEY)
    _arm_start_to_close(txn, task)
    return task


def _arm_start_to_close(txn: Txn, task: WorkflowTask) -> None:
    timeout = WorkflowTaskTimeout(
        kind=TimeoutKind.START_TO_CLOSE,
        scheduled_event_id=task.scheduled_event_id,
        attempt=task.attempt,
    )
    if task.speculative:
        txn.memory_timer(_TIMEOUT_KEY, task.started_time + task.timeout, timeout)
    else:
        txn.timer(_TIMEOUT_KEY, task.started_time + task.timeout, timeout)


def _suggestions(txn: Txn, too_many_updates: bool) -> list[int]:
    run, env = txn.state.run, txn.env
    reasons: list[int] = []
    if run.history_size >= env.config.get(dynamic.SUGGEST_CONTINUE_AS_NEW_SIZE, env.namespace):
        reasons.append(SuggestContinueAsNewReason.SUGGEST_CONTINUE_AS_NEW_REASON_HISTORY_SIZE_TOO_LARGE)
    if run.next_event_id >= env.config.get(dynamic.SUGGEST_CONTINUE_AS_NEW_COUNT, env.namespace):
        reasons.append(SuggestContinueAsNewReason.SUGGEST_CONTINUE_AS_NEW_REASON_TOO_MANY_HISTORY_EVENTS)
    if too_many_updates:
        reasons.append(SuggestContinueAsNewReason.SUGGEST_CONTINUE_AS_NEW_REASON_TOO_MANY_UPDATES)
    return reasons


def _started_event(
    txn: Txn, scheduled_event_id: int, request_id: str, identity: str, time: int, reasons: Sequence[int]
) -> HistoryEvent:
    event = HistoryEvent(event_type=EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED)
    event.event_time.seconds, event.event_time.nanos = divmod(time, SECOND)
    attributes = event.workflow_task_started_event_attributes
    attributes.scheduled_event_id = scheduled_event_id
    attributes.identity = identity
    attributes.request_id = request_id
    attributes.history_size_bytes = txn.state.run.history_size
    if reasons:
        attributes.suggest_continue_as_new = True
        attributes.suggest_continue_as_new_reasons.extend(reasons)  # pyright: ignore[reportArgumentType]
    return event


@applies(EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED)
def _started(state: State, event: HistoryEvent) -> None:
    attributes = event.workflow_task_started_event_attributes
    task = state.run.workflow_task
    assert task is not None
    task.scheduled_event_id = attributes.scheduled_event_id
    task.started_event_id = event.event_id
    task.started_time = state.run.last_event_time
    task.request_id = attributes.request_id
    task.identity = attributes.identity
    task.history_size = attributes.history_size_bytes
    task.suggest_reasons = list(attributes.suggest_continue_as_new_reasons)


# --- transient and speculative tasks become events ---


def _write_scheduled(txn: Txn, task: WorkflowTask) -> None:
    """Writes the scheduled event of a task that has none, which makes it a normal one."""
    run = txn.state.run
    event = HistoryEvent(event_type=EventType.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED)
    event.event_time.CopyFrom(to_timestamp(task.scheduled_time))
    attributes = event.workflow_task_scheduled_event_attributes
    attributes.task_queue.CopyFrom(_queue(txn.state, task.sticky_queue))
    attributes.start_to_close_timeout.CopyFrom(to_duration(task.timeout))
    attributes.attempt = task.attempt
    run.workflow_task = None
    txn.record(event)
    fresh = run.workflow_task
    assert fresh is not None
    # The caller holds `task`: it stays the object of the state, with what the event has set.
    task.scheduled_event_id = fresh.scheduled_event_id
    task.attempt = run.workflow_task_attempt = 1
    task.speculative = False
    run.workflow_task = task


def _write_started(txn: Txn, task: WorkflowTask, identity: str) -> None:
    event = _started_event(
        txn, task.scheduled_event_id, task.request_id, identity, task.started_time, task.suggest_reasons
    )
    event.workflow_task_started_event_attributes.history_size_bytes = task.history_size
    run = txn.state.run
    started_time, suggestions = task.started_time, task.suggest_reasons
    task.started_event_id = 0
    txn.record(event)
    assert run.workflow_task is task
    task.started_time, task.suggest_reasons = started_time, suggestions


def materialize(txn: Txn) -> None:
    """Makes the pending speculative task a normal one, with events and durable timers."""
    task = txn.state.run.workflow_task
    assert task is not None
    assert task.speculative
    started = task.started_event_id
    task.started_event_id = 0
    _write_scheduled(txn, task)
    if started:
        task.started_event_id = started
        _write_started(txn, task, task.identity)
        _arm_start_to_close(txn, task)
    else:
        txn.task(
            DispatchWorkflowTask(
                task_queue=task.sticky_queue or txn.state.info.task_queue,
                sticky=bool(task.sticky_queue),
                scheduled_event_id=task.scheduled_event_id,
            )
        )
        if task.sticky_queue:
            txn.timer(
                _START_TIMEOUT_KEY,
                txn.now + (txn.state.run.sticky_timeout or SPECULATIVE_SCHEDULE_TO_START),
                WorkflowTaskTimeout(
                    kind=TimeoutKind.SCHEDULE_TO_START,
                    scheduled_event_id=task.scheduled_event_id,
                    attempt=task.attempt,
                ),
            )


def unwritten_events(txn_or_state: State) -> list[HistoryEvent]:
    """The scheduled and started events of a started transient or speculative task: the worker sees them, the history
    does not have them. Empty for a normal task."""
    state = txn_or_state
    task = state.run.workflow_task
    if task is None or not (task.transient or task.speculative):
        return []
    scheduled = HistoryEvent(event_type=EventType.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED, event_id=task.scheduled_event_id)
    scheduled.event_time.CopyFrom(to_timestamp(task.scheduled_time))
    attributes = scheduled.workflow_task_scheduled_event_attributes
    attributes.task_queue.CopyFrom(_queue(state, task.sticky_queue))
    attributes.start_to_close_timeout.CopyFrom(to_duration(task.timeout))
    attributes.attempt = task.attempt
    if not task.started_event_id:
        return [scheduled]
    started = HistoryEvent(event_type=EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED, event_id=task.started_event_id)
    started.event_time.CopyFrom(to_timestamp(task.started_time))
    begun = started.workflow_task_started_event_attributes
    begun.scheduled_event_id = task.scheduled_event_id
    begun.identity = task.identity
    begun.request_id = task.request_id
    begun.history_size_bytes = task.history_size
    if task.suggest_reasons:
        begun.suggest_continue_as_new = True
        begun.suggest_continue_as_new_reasons.extend(task.suggest_reasons)  # pyright: ignore[reportArgumentType]
    return [scheduled, started]


# --- end ---


def _ensure_events(txn: Txn, task: WorkflowTask, identity: str) -> None:
    """Writes the events that a transient or speculative task still lacks. A transient one keeps its attempt in them."""
    started = task.started_event_id
    attempt = task.attempt
    task.started_event_id = 0
    _write_scheduled(txn, task)
    if txn.events and attempt > 1:
        txn.events[-1].workflow_task_scheduled_event_attributes.attempt = attempt
    if started:
        task.started_event_id = started
        _write_started(txn, task, identity)


def complete(txn: Txn, task: WorkflowTask, request: RespondWorkflowTaskCompletedRequest) -> HistoryEvent:
    """The worker answered: writes WorkflowTaskCompleted. What comes after it may refer to its id."""
    state = txn.state
    if task.transient or task.speculative:
        _ensure_events(txn, task, request.identity)
    state.run.workflow_task = None
    event = txn.event(EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED)
    attributes = event.workflow_task_completed_event_attributes
    attributes.scheduled_event_id = task.scheduled_event_id
    attributes.started_event_id = task.started_event_id
    attributes.identity = request.identity
    attributes.binary_checksum = request.binary_checksum
    # Verbatim: replay depends on the flags that each completion carried.
    if request.HasField("sdk_metadata"):
        attributes.sdk_metadata.CopyFrom(request.sdk_metadata)
    if request.HasField("metering_metadata"):
        attributes.metering_metadata.CopyFrom(request.metering_metadata)
    if request.HasField("worker_version_stamp"):
        attributes.worker_version.CopyFrom(request.worker_version_stamp)
    if request.HasField("deployment"):
        attributes.deployment.CopyFrom(request.deployment)
        attributes.worker_deployment_name = request.deployment.series_name
    if request.HasField("deployment_options"):
        options = request.deployment_options
        attributes.worker_deployment_name = options.deployment_name
        attributes.deployment_version.deployment_name = options.deployment_name
        attributes.deployment_version.build_id = options.build_id
    attributes.versioning_behavior = request.versioning_behavior
    txn.record(event)
    txn.cancel_timer(_TIMEOUT_KEY)
    return event


@applies(EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED)
def _completed(state: State, event: HistoryEvent) -> None:
    attributes = event.workflow_task_completed_event_attributes
    run = state.run
    state.close_attempted = False
    run.workflow_task = None
    run.workflow_task_attempt = 1
    run.last_started_event_id = attributes.started_event_id
    run.binary_checksum = attributes.binary_checksum or attributes.worker_version.build_id


def discard_speculative(txn: Txn) -> None:
    """All updates of the started speculative task were rejected: it never was."""
    run = txn.state.run
    assert run.workflow_task is not None
    assert run.workflow_task.speculative
    run.workflow_task = None
    txn.cancel_timer(_TIMEOUT_KEY)
    txn.cancel_timer(_START_TIMEOUT_KEY)


def fail(
    txn: Txn,
    cause: Cause.ValueType,
    failure: Failure | None,
    identity: str,
    *,
    binary_checksum: str = "",
    worker_version: WorkerVersionStamp | None = None,
    base_run_id: str = "",
    new_run_id: str = "",
    fork_event_version: int = 0,
) -> HistoryEvent | None:
    """The worker failed the started task (or the server does it for a bad answer). None when it is transient: it left
    no event."""
    run = txn.state.run
    task = run.workflow_task
    assert task is not None
    txn.cancel_timer(_TIMEOUT_KEY)
    if task.speculative:
        _ensure_events(txn, task, identity)
    if task.transient:
        _ended_unsuccessfully(txn.state, counts=True)
        txn.state.close_attempted = cause == Cause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND
        txn.touch()
        return None
    event = txn.event(EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED)
    attributes = event.workflow_task_failed_event_attributes
    attributes.scheduled_event_id = task.scheduled_event_id
    attributes.started_event_id = task.started_event_id
    attributes.cause = cause
    if failure is not None:
        attributes.failure.CopyFrom(failure)
    attributes.identity = identity
    attributes.base_run_id = base_run_id
    attributes.new_run_id = new_run_id
    attributes.fork_event_version = fork_event_version
    attributes.binary_checksum = binary_checksum
    if worker_version is not None:
        attributes.worker_version.CopyFrom(worker_version)
    txn.record(event)
    txn.state.close_attempted = cause == Cause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND
    return event


def time_out(txn: Txn, kind: TimeoutKind) -> HistoryEvent | None:
    """The pending task was not started (SCHEDULE_TO_START) or not answered (START_TO_CLOSE) in time."""
    run = txn.state.run
    task = run.workflow_task
    assert task is not None
    if task.speculative:
        _ensure_events(txn, task, task.identity)
    if task.transient:
        _ended_unsuccessfully(txn.state, counts=kind != TimeoutKind.SCHEDULE_TO_START)
        txn.touch()
        return None
    event = txn.event(EventType.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT)
    attributes = event.workflow_task_timed_out_event_attributes
    attributes.scheduled_event_id = task.scheduled_event_id
    attributes.started_event_id = task.started_event_id
    attributes.timeout_type = TimeoutType.ValueType(kind)
    return txn.record(event)


@applies(EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED)
def _failed(state: State, event: HistoryEvent) -> None:
    _ended_unsuccessfully(state, counts=True)
    cause = event.workflow_task_failed_event_attributes.cause
    if cause == Cause.WORKFLOW_TASK_FAILED_CAUSE_RESET_WORKFLOW:
        state.run.workflow_task_attempt = 1


@applies(EventType.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT)
def _timed_out(state: State, event: HistoryEvent) -> None:
    kind = event.workflow_task_timed_out_event_attributes.timeout_type
    _ended_unsuccessfully(state, counts=kind != TimeoutType.TIMEOUT_TYPE_SCHEDULE_TO_START)


def _ended_unsuccessfully(state: State, *, counts: bool) -> None:
    """The first failure on a sticky queue is held against the stickiness, not against the task: it is tried again on
    the normal queue with the full history."""
    run = state.run
    task = run.workflow_task
    state.close_attempted = False
    if task is not None and task.sticky_queue:
        counts = False
    run.workflow_task = None
    run.sticky_queue = ""
    run.sticky_timeout = 0
    run.workflow_task_attempt = run.workflow_task_attempt + 1 if counts else 1


def remove_pending(txn: Txn) -> None:
    """The run is closing: a scheduled task is no more."""
    txn.state.run.workflow_task = None
    txn.cancel_timer(_TIMEOUT_KEY)
    txn.cancel_timer(_START_TIMEOUT_KEY)
