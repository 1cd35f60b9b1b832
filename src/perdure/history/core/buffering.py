"""Events that wait while a workflow task is started."""

from __future__ import annotations

from collections.abc import Callable

from temporalio.api.enums.v1 import EventType as E
from temporalio.api.history.v1 import HistoryEvent

from perdure.history.core.apply import apply
from perdure.history.core.state import Kind, State

# What a workflow task itself makes, and what opens or closes a run. Everything else comes from outside.
NEVER_BUFFERED = frozenset(
    (
        E.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED,
        E.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED,
        E.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED,
        E.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT,
        E.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED,
        E.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW,
        E.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED,
        E.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED,
        E.EVENT_TYPE_WORKFLOW_TASK_STARTED,
        E.EVENT_TYPE_WORKFLOW_TASK_COMPLETED,
        E.EVENT_TYPE_WORKFLOW_TASK_FAILED,
        E.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT,
        E.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED,
        E.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED,
        E.EVENT_TYPE_TIMER_STARTED,
        E.EVENT_TYPE_TIMER_CANCELED,
        E.EVENT_TYPE_MARKER_RECORDED,
        E.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED,
        E.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED,
        E.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED,
        E.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES,
        E.EVENT_TYPE_WORKFLOW_PROPERTIES_MODIFIED,
        E.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED,
        E.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED,
        E.EVENT_TYPE_NEXUS_OPERATION_SCHEDULED,
        E.EVENT_TYPE_NEXUS_OPERATION_CANCEL_REQUESTED,
    )
)

# These close something: they go last, so that what opened it comes first in every order of arrival.
_LAST = frozenset(
    (
        E.EVENT_TYPE_ACTIVITY_TASK_COMPLETED,
        E.EVENT_TYPE_ACTIVITY_TASK_FAILED,
        E.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT,
        E.EVENT_TYPE_ACTIVITY_TASK_CANCELED,
        E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED,
        E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_FAILED,
        E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TIMED_OUT,
        E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_CANCELED,
        E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TERMINATED,
        E.EVENT_TYPE_NEXUS_OPERATION_COMPLETED,
        E.EVENT_TYPE_NEXUS_OPERATION_FAILED,
        E.EVENT_TYPE_NEXUS_OPERATION_CANCELED,
        E.EVENT_TYPE_NEXUS_OPERATION_TIMED_OUT,
    )
)

# What opens and what closes the same thing: (attributes, field that names the thing). A closing event names the event
# that opened it, which may have waited in the same buffer.
_ACTIVITY, _CHILD = "scheduled_event_id", "initiated_event_id"
_OPENS = {
    E.EVENT_TYPE_ACTIVITY_TASK_STARTED: ("activity_task_started_event_attributes", _ACTIVITY),
    E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED: ("child_workflow_execution_started_event_attributes", _CHILD),
}
_CLOSES = {
    E.EVENT_TYPE_ACTIVITY_TASK_COMPLETED: ("activity_task_completed_event_attributes", _ACTIVITY),
    E.EVENT_TYPE_ACTIVITY_TASK_FAILED: ("activity_task_failed_event_attributes", _ACTIVITY),
    E.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT: ("activity_task_timed_out_event_attributes", _ACTIVITY),
    E.EVENT_TYPE_ACTIVITY_TASK_CANCELED: ("activity_task_canceled_event_attributes", _ACTIVITY),
    E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED: ("child_workflow_execution_completed_event_attributes", _CHILD),
    E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_FAILED: ("child_workflow_execution_failed_event_attributes", _CHILD),
    E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TIMED_OUT: ("child_workflow_execution_timed_out_event_attributes", _CHILD),
    E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_CANCELED: ("child_workflow_execution_canceled_event_attributes", _CHILD),
    E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TERMINATED: ("child_workflow_execution_terminated_event_attributes", _CHILD),
}

Assigned = Callable[[State, HistoryEvent], None]
_assigned: dict[int, Assigned] = {}


def on_assigned(*event_types: E.ValueType) -> Callable[[Assigned], Assigned]:
    """Registers the function to be told when a buffered event of these types has got its id."""

    def register(function: Assigned) -> Assigned:
        for event_type in event_types:
            assert event_type not in _assigned, E.Name(event_type)
            _assigned[event_type] = function
        return function

    return register


def add(state: State, event: HistoryEvent) -> None:
    blob = event.SerializeToString()
    run = state.run
    run.buffered_sequence += 1
    run.buffered_count += 1
    run.buffered_bytes += len(blob)
    state.put(Kind.BUFFERED, run.buffered_sequence, blob)


def hold(state: State, event: HistoryEvent) -> None:
    """Applies an event of the server that belongs behind those that the step is still to make."""
    apply(state, event)
    add(state, event)


def take(state: State) -> list[HistoryEvent]:
    """All of the buffer, in the order in which the events enter the history; the buffer is empty then."""
    events = [HistoryEvent.FromString(blob) for blob in state.buffered.values()]
    for key in list(state.buffered):
        state.remove(Kind.BUFFERED, key)
    run = state.run
    run.buffered_count = run.buffered_bytes = 0
    return [e for e in events if e.event_type not in _LAST] + [e for e in events if e.event_type in _LAST]


def find(state: State, wanted: Callable[[HistoryEvent], bool]) -> tuple[int, HistoryEvent] | None:
    """The first event in the buffer that is wanted, with its key."""
    for key, blob in state.buffered.items():
        event = HistoryEvent.FromString(blob)
        if wanted(event):
            return key, event
    return None


def take_out(state: State, event_type: E.ValueType, wanted: Callable[[HistoryEvent], bool]) -> HistoryEvent | None:
    """Removes the first event of this type that is wanted: it never was."""
    found = find(state, lambda e: e.event_type == event_type and wanted(e))
    if found is None:
        return None
    key, event = found
    run = state.run
    run.buffered_count -= 1
    run.buffered_bytes -= len(state.buffered[key])
    state.remove(Kind.BUFFERED, key)
    return event


def assigned(state: State, event: HistoryEvent, opened: dict[int, int]) -> None:
    """The event has its id. opened: of this flush, what was opened -> id of the event that opened it."""
    opens = _OPENS.get(event.event_type)
    if opens is not None:
        opened[getattr(getattr(event, opens[0]), opens[1])] = event.event_id
    closes = _CLOSES.get(event.event_type)
    if closes is not None:
        attributes = getattr(event, closes[0])
        if attributes.started_event_id == 0:
            attributes.started_event_id = opened.get(getattr(attributes, closes[1]), 0)
    function = _assigned.get(event.event_type)
    if function is not None:
        function(state, event)
