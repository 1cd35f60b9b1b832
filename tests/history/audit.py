"""What must hold of every history, whatever happened: looked at event by event, as the steps are committed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from temporalio.api.enums.v1 import EventType as E
from temporalio.api.history.v1 import HistoryEvent

from perdure.history.core.state import State

CLOSING = frozenset(
    (
        E.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED,
        E.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED,
        E.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT,
        E.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED,
        E.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW,
        E.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED,
    )
)
_TASK_ENDS = frozenset(
    (
        E.EVENT_TYPE_WORKFLOW_TASK_COMPLETED,
        E.EVENT_TYPE_WORKFLOW_TASK_FAILED,
        E.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT,
    )
)
# What opens a thing -> name of the kind of thing.
_OPENS = {
    E.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED: "activity",
    E.EVENT_TYPE_TIMER_STARTED: "timer",
    E.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_INITIATED: "child",
    E.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED: "external cancel",
    E.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_INITIATED: "external signal",
    E.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED: "update",
}
# What ends it -> (kind, field with the id of the event that opened it, needs to have begun).
_ENDS = {
    E.EVENT_TYPE_ACTIVITY_TASK_COMPLETED: ("activity", "scheduled_event_id", True),
    E.EVENT_TYPE_ACTIVITY_TASK_FAILED: ("activity", "scheduled_event_id", True),
    E.EVENT_TYPE_ACTIVITY_TASK_TIMED_OUT: ("activity", "scheduled_event_id", False),
    E.EVENT_TYPE_ACTIVITY_TASK_CANCELED: ("activity", "scheduled_event_id", False),
    E.EVENT_TYPE_TIMER_FIRED: ("timer", "started_event_id", False),
    E.EVENT_TYPE_TIMER_CANCELED: ("timer", "started_event_id", False),
    E.EVENT_TYPE_START_CHILD_WORKFLOW_EXECUTION_FAILED: ("child", "initiated_event_id", False),
    E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_COMPLETED: ("child", "initiated_event_id", True),
    E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_FAILED: ("child", "initiated_event_id", True),
    E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_CANCELED: ("child", "initiated_event_id", True),
    E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TIMED_OUT: ("child", "initiated_event_id", True),
    E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_TERMINATED: ("child", "initiated_event_id", True),
    E.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_FAILED: ("external cancel", "initiated_event_id", False),
    E.EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_CANCEL_REQUESTED: ("external cancel", "initiated_event_id", False),
    E.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED: ("external signal", "initiated_event_id", False),
    E.EVENT_TYPE_EXTERNAL_WORKFLOW_EXECUTION_SIGNALED: ("external signal", "initiated_event_id", False),
    E.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED: ("update", "accepted_event_id", False),
}
_BEGINS = {
    E.EVENT_TYPE_ACTIVITY_TASK_STARTED: ("activity", "scheduled_event_id"),
    E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED: ("child", "initiated_event_id"),
}
# These have the field of a WorkflowTaskCompleted, and leave it empty.
_UNTIED = (
    E.EVENT_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION_FAILED,
    E.EVENT_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION_FAILED,
)
# What a worker must be told of.
_WAKING = frozenset(
    (
        *(e for e in _ENDS if e not in (E.EVENT_TYPE_TIMER_CANCELED, E.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED)),
        E.EVENT_TYPE_CHILD_WORKFLOW_EXECUTION_STARTED,
        E.EVENT_TYPE_WORKFLOW_EXECUTION_SIGNALED,
        E.EVENT_TYPE_WORKFLOW_EXECUTION_CANCEL_REQUESTED,
    )
)


class Audit:
    """Of one run's history."""

    def __init__(self) -> None:
        self.types: list[int] = [0]  # by event id
        self._open: dict[str, dict[int, str]] = {kind: {} for kind in _OPENS.values()}  # opening event id -> name
        self._begun: dict[tuple[str, int], int] = {}  # (kind, opening event id) -> id of the event that began it
        self._task: tuple[int, int] | None = None  # scheduled and started event id of the pending workflow task
        self._told = 0  # started event id of the last completed workflow task

    def add(self, events: Sequence[HistoryEvent]) -> None:
        """The events of one committed step."""
        for event in events:
            self._event(event)
        for event in events:
            if event.event_type == E.EVENT_TYPE_ACTIVITY_TASK_STARTED:
                key = ("activity", event.activity_task_started_event_attributes.scheduled_event_id)
                assert key not in self._begun, "an activity's start is written together with its end"

    def _event(self, event: HistoryEvent) -> None:
        event_id, type_ = event.event_id, event.event_type
        name = E.Name(type_)
        attributes: Any = getattr(event, event.WhichOneof("attributes") or "")
        assert event_id == len(self.types), "event ids are contiguous"
        assert (event_id == 1) == (type_ == E.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED)
        assert self.types[-1] not in CLOSING, "nothing follows the end"
        assert event.HasField("event_time")
        if self.types[-1] == E.EVENT_TYPE_WORKFLOW_TASK_STARTED:
            assert type_ in _TASK_ENDS, f"{name} came between a started workflow task and its end"
        self.types.append(type_)
        completed = getattr(attributes, "workflow_task_completed_event_id", None)
        if completed is not None and type_ not in _UNTIED:
            assert self.types[completed] == E.EVENT_TYPE_WORKFLOW_TASK_COMPLETED, name
        if type_ in CLOSING:
            assert self._task is None or not self._task[1], "a run closes without a started workflow task"
            self._task = None
        elif type_ == E.EVENT_TYPE_WORKFLOW_TASK_SCHEDULED:
            assert self._task is None
            self._task = (event_id, 0)
        elif type_ == E.EVENT_TYPE_WORKFLOW_TASK_STARTED:
            assert self._task == (attributes.scheduled_event_id, 0)
            self._task = (attributes.scheduled_event_id, event_id)
        elif type_ in _TASK_ENDS:
            assert self._task == (attributes.scheduled_event_id, attributes.started_event_id)
            if type_ != E.EVENT_TYPE_WORKFLOW_TASK_TIMED_OUT:
                assert attributes.started_event_id
            if type_ == E.EVENT_TYPE_WORKFLOW_TASK_COMPLETED:
                self._told = attributes.started_event_id
            self._task = None
        elif type_ in _OPENS:
            self._opens(event, attributes)
        elif type_ in _BEGINS:
            kind, field = _BEGINS[type_]
            opened = getattr(attributes, field)
            assert opened in self._open[kind]
            assert (kind, opened) not in self._begun
            self._begun[kind, opened] = event_id
        elif type_ in _ENDS:
            kind, field, must_have_begun = _ENDS[type_]
            opened = getattr(attributes, field)
            assert opened in self._open[kind], f"{name} of what is not pending: {opened}"
            del self._open[kind][opened]
            begun = self._begun.pop((kind, opened), 0)
            if kind in ("activity", "child") and hasattr(attributes, "started_event_id"):
                assert attributes.started_event_id == begun, name
                assert begun or not must_have_begun, name
        elif type_ == E.EVENT_TYPE_ACTIVITY_TASK_CANCEL_REQUESTED:
            assert self.types[attributes.scheduled_event_id] == E.EVENT_TYPE_ACTIVITY_TASK_SCHEDULED

    def _opens(self, event: HistoryEvent, attributes: Any) -> None:
        pending = self._open[_OPENS[event.event_type]]
        name = getattr(attributes, "protocol_instance_id", "")
        assert not name or name not in pending.values(), "pending twice"
        pending[event.event_id] = name

    def state(self, state: State) -> None:
        """The state that goes with the history."""
        run = state.run
        assert run.next_event_id == len(self.types)
        closed = self.types[-1] in CLOSING
        assert state.open != closed
        task = run.workflow_task
        assert len(state.buffered) == run.buffered_count
        assert sum(map(len, state.buffered.values())) == run.buffered_bytes
        if state.buffered:
            assert task is not None
            assert task.started_event_id, "events wait only while a workflow task is started"
        if closed:
            assert task is None
            return
        if task is None or task.transient or task.speculative:
            assert self._task is None
            if task is not None:
                assert task.started_event_id in (0, task.scheduled_event_id + 1)
        else:
            assert self._task == (task.scheduled_event_id, task.started_event_id)
        if task is None and run.had_workflow_task:
            untold = [t for t in self.types[self._told + 1 :] if t in _WAKING]
            assert not untold, f"nobody will be told of {untold}"
        if not state.buffered:  # otherwise some have ended in the buffer
            assert set(state.activities) == set(self._open["activity"])
            assert {t.started_event_id for t in state.timers.values()} == set(self._open["timer"])
            assert set(state.children) == set(self._open["child"])
            assert set(state.external_cancels) == set(self._open["external cancel"])
            assert set(state.external_signals) == set(self._open["external signal"])
            assert {u.accepted_event_id for u in state.updates.values() if not u.completed_event_id} == set(
                self._open["update"]
            )
