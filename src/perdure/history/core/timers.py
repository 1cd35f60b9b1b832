"""User timers: started and canceled by commands, fired by time.

A timer that has fired while a workflow task is started waits, as TimerFired, in the buffer: the worker does not know of
it, and may still cancel the timer in its answer. Then the firing never was.
"""

from __future__ import annotations

from temporalio.api.command.v1 import Command
from temporalio.api.enums.v1 import CommandType, EventType
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause
from temporalio.api.history.v1 import HistoryEvent

from perdure.clock import from_duration
from perdure.config import dynamic
from perdure.history.core import attributes, buffering, workflow_tasks
from perdure.history.core.apply import applies
from perdure.history.core.completion import Completion, command
from perdure.history.core.state import Kind, State, Timer
from perdure.history.core.tasks import UserTimer
from perdure.history.core.txn import TimerKey, Txn

_FIRED_TOGETHER = 64


def _key(timer_id: str) -> TimerKey:
    return ("timer", timer_id)


# --- commands ---


@command(CommandType.COMMAND_TYPE_START_TIMER)
def _start(completion: Completion, source: Command) -> None:
    txn = completion.txn
    a = source.start_timer_command_attributes
    cause = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_START_TIMER_ATTRIBUTES
    _check_id(txn, cause, a.timer_id, "StartTimerCommand")
    wrong = attributes.invalid_duration(a.start_to_fire_timeout)
    if wrong:
        raise attributes.bad(
            cause, f"An invalid StartToFireTimeout is set on StartTimerCommand: {wrong}. TimerId={a.timer_id}"
        )
    if a.timer_id in txn.state.timers:
        raise attributes.bad(
            Cause.WORKFLOW_TASK_FAILED_CAUSE_START_TIMER_DUPLICATE_ID,
            f"invalid history builder state for action: add-timer-started-event, TimerID: {a.timer_id}",
        )
    event = txn.event(EventType.EVENT_TYPE_TIMER_STARTED)
    started = event.timer_started_event_attributes
    started.timer_id = a.timer_id
    started.start_to_fire_timeout.CopyFrom(a.start_to_fire_timeout)
    started.workflow_task_completed_event_id = completion.completed_event_id
    completion.add(event, source)
    timer = txn.state.timers[a.timer_id]
    txn.timer(
        _key(timer.timer_id), timer.fire_time, UserTimer(timer_id=timer.timer_id, started_event_id=event.event_id)
    )


@command(CommandType.COMMAND_TYPE_CANCEL_TIMER)
def _cancel(completion: Completion, source: Command) -> None:
    txn = completion.txn
    timer_id = source.cancel_timer_command_attributes.timer_id
    cause = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_CANCEL_TIMER_ATTRIBUTES
    _check_id(txn, cause, timer_id, "CancelTimerCommand")
    timer = txn.state.timers.get(timer_id)
    if timer is not None:
        started_event_id = timer.started_event_id
        txn.cancel_timer(_key(timer_id))
    else:
        fired = buffering.take_out(
            txn.state,
            EventType.EVENT_TYPE_TIMER_FIRED,
            lambda e: e.timer_fired_event_attributes.timer_id == timer_id,
        )
        if fired is None:
            raise attributes.bad(
                cause, f"invalid history builder state for action: add-timer-canceled-event, TimerID: {timer_id}"
            )
        started_event_id = fired.timer_fired_event_attributes.started_event_id
        # What came in meanwhile may be nothing now: then nothing stands in the way of closing the run.
        completion.had_buffered = completion.had_buffered and txn.state.run.buffered_count > 0
    event = txn.event(EventType.EVENT_TYPE_TIMER_CANCELED)
    canceled = event.timer_canceled_event_attributes
    canceled.timer_id = timer_id
    canceled.started_event_id = started_event_id
    canceled.workflow_task_completed_event_id = completion.completed_event_id
    canceled.identity = completion.request.identity
    completion.add(event, source)


def _check_id(txn: Txn, cause: Cause.ValueType, timer_id: str, where: str) -> None:
    if not timer_id:
        raise attributes.bad(cause, f"TimerId is not set on {where}.")
    limit = txn.env.config.get(dynamic.MAX_ID_LENGTH)
    wrong = attributes.invalid_id(timer_id, limit)
    if wrong:
        raise attributes.bad(cause, f"TimerId on {where} {wrong} TimerId={timer_id[:100]}")


# --- time ---


def fire(txn: Txn, timer_id: str, started_event_id: int) -> bool:
    """The time of a timer has come. False when there is no such timer any more: it was canceled, or has fired.

    Others of the run that are due as well fire with it, so that one workflow task tells of all of them."""
    state = txn.state
    timer = state.timers.get(timer_id)
    if not state.open or timer is None or timer.started_event_id != started_event_id:
        return False
    due = [timer]
    if 1 < len(state.timers) <= _FIRED_TOGETHER:
        due.extend(t for t in state.timers.values() if t.fire_time <= txn.now and t is not timer)
        due.sort(key=lambda t: (t.fire_time, t.started_event_id))
    for one in due:
        event = txn.event(EventType.EVENT_TYPE_TIMER_FIRED)
        event.timer_fired_event_attributes.timer_id = one.timer_id
        event.timer_fired_event_attributes.started_event_id = one.started_event_id
        txn.record(event)
        txn.cancel_timer(_key(one.timer_id))
    workflow_tasks.ensure_scheduled(txn)
    return True


# --- events ---


@applies(EventType.EVENT_TYPE_TIMER_STARTED)
def _started(state: State, event: HistoryEvent) -> None:
    a = event.timer_started_event_attributes
    fire_time = state.run.last_event_time + from_duration(a.start_to_fire_timeout)
    state.put(Kind.TIMER, a.timer_id, Timer(a.timer_id, event.event_id, fire_time))


@applies(EventType.EVENT_TYPE_TIMER_FIRED)
def _fired(state: State, event: HistoryEvent) -> None:
    a = event.timer_fired_event_attributes
    _over(state, a.timer_id, a.started_event_id)


@applies(EventType.EVENT_TYPE_TIMER_CANCELED)
def _canceled(state: State, event: HistoryEvent) -> None:
    a = event.timer_canceled_event_attributes
    _over(state, a.timer_id, a.started_event_id)


def _over(state: State, timer_id: str, started_event_id: int) -> None:
    """While it waited in the buffer, an answer may have started another timer under the same id."""
    timer = state.timers.get(timer_id)
    if timer is not None and timer.started_event_id == started_event_id:
        state.remove(Kind.TIMER, timer_id)
