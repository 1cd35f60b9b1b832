"""One step of one run: the events it makes, the state they change, the tasks that follow.

A room of the core gets a `Txn`, makes events with `record` (which applies them to the state) and asks for tasks. It has
no clock, no randomness and no database: they come in the `Txn`. The engine then commits what came out, or throws the
state away.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

from perdure.clock import SECOND
from perdure.config.dynamic import DynamicConfig
from perdure.history.core import buffering
from perdure.history.core.apply import apply
from perdure.history.core.state import Kind, State
from perdure.history.core.tasks import Task

TimerKey = tuple[int | str, ...]


@dataclass(slots=True)
class Environment:
    """What the core may know of the world. namespace: the name of the run's namespace. new_id: a fresh UUID.
    namespace_id: of a namespace's name, None when there is none. search_attributes: the namespace's own ones and their
    IndexedValueType."""

    namespace: str
    config: DynamicConfig
    new_id: Callable[[], str]
    namespace_id: Callable[[str], str | None]
    retention: int = 72 * 3600 * SECOND
    search_attributes: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(slots=True)
class TimerRequest:
    """key: see `Txn.timer`. durable: has a row, and so outlives the process."""

    key: TimerKey | None
    fire_time: int
    task: Task
    durable: bool


class Txn:
    """state: of the run; changed by `record` and by the rooms. now: nanoseconds; the time of every event made here.
    new_run: the step that creates the run that follows this one, committed together with it."""

    __slots__ = (
        "_recording",
        "canceled_timers",
        "dirty",
        "env",
        "events",
        "memory_dispatches",
        "new_run",
        "now",
        "on_abort",
        "on_commit",
        "seconds",
        "state",
        "tasks",
        "timers",
    )

    def __init__(self, state: State, now: int, env: Environment) -> None:
        self.state = state
        self.now = now
        self.env = env
        self.seconds = divmod(now, SECOND)
        self.events: list[HistoryEvent] = []
        self.tasks: list[Task] = []
        self.timers: list[TimerRequest] = []
        self.canceled_timers: list[TimerKey] = []
        self.memory_dispatches: list[Task] = []  # run once after the commit, without a row
        self.new_run: Txn | None = None
        self.on_commit: list[Callable[[], object]] = []
        self.on_abort: list[Callable[[], object]] = []
        self.dirty = False  # the state was changed: commit it or throw it away
        self._recording = False

    # --- events

    def event(self, event_type: EventType.ValueType) -> HistoryEvent:
        """A new event, to be filled in and recorded."""
        event = HistoryEvent(event_type=event_type)
        event.event_time.seconds, event.event_time.nanos = self.seconds
        return event

    def record(self, event: HistoryEvent) -> HistoryEvent:
        """Gives the event its time and id and applies it to the state.

        While a workflow task is started, what comes from outside waits in the buffer without an id: the worker decides
        on the history that it was given, so nothing may come between that and its answer."""
        state = self.state
        task = state.run.workflow_task
        self.dirty = True
        if not event.HasField("event_time"):
            event.event_time.seconds, event.event_time.nanos = self.seconds
        if task is not None and not self._recording:
            if task.speculative:
                # An event makes the speculative task a real one: its ids are taken before the event gets its own.
                self._recording = True
                from perdure.history.core import workflow_tasks

                workflow_tasks.materialize(self)
                self._recording = False
            if task.started_event_id and event.event_type not in buffering.NEVER_BUFFERED:
                apply(state, event)
                buffering.add(state, event)
                return event
        return self._append(event)

    def _append(self, event: HistoryEvent) -> HistoryEvent:
        run = self.state.run
        event.event_id = run.next_event_id
        run.next_event_id += 1
        self.events.append(event)
        apply(self.state, event)
        return event

    def flush_buffer(self) -> bool:
        """Gives the buffered events their ids and puts them into the history. True when there were any."""
        state = self.state
        if not state.buffered:
            return False
        self.dirty = True
        opened: dict[int, int] = {}
        for event in buffering.take(state):
            event.event_id = state.run.next_event_id
            state.run.next_event_id += 1
            buffering.assigned(state, event, opened)
            self.events.append(event)
        return True

    # --- what follows

    def task(self, task: Task) -> None:
        """To run at once after the commit."""
        self.dirty = True
        self.tasks.append(task)

    def timer(self, key: TimerKey | None, fire_time: int, task: Task) -> None:
        """To run at fire_time. With a key, it replaces the run's timer of the same key, and `cancel_timer` makes it
        void: that only saves the work of running it in vain, since a task looks up whether it still applies."""
        self.dirty = True
        self.timers.append(TimerRequest(key, fire_time, task, True))

    def memory_timer(self, key: TimerKey, fire_time: int, task: Task) -> None:
        """Like `timer`, but gone with the process: for what is not durable itself."""
        self.timers.append(TimerRequest(key, fire_time, task, False))

    def cancel_timer(self, key: TimerKey) -> None:
        self.canceled_timers.append(key)

    def touch(self) -> None:
        """The run's own row (or a row of it) was changed without an event."""
        self.dirty = True

    def put(self, kind: Kind, key: int | str, value: object) -> None:
        """A change of a row that has no event."""
        self.dirty = True
        self.state.put(kind, key, value)


def batches(events: Sequence[HistoryEvent]) -> list[Sequence[HistoryEvent]]:
    """The events of one step, cut after each WorkflowTaskStarted: so what one workflow task is given always ends at the
    end of a stored batch."""
    started = EventType.EVENT_TYPE_WORKFLOW_TASK_STARTED
    cuts = [i + 1 for i, e in enumerate(events) if e.event_type == started]
    if not cuts or cuts == [len(events)]:
        return [events]
    bounds = [0, *cuts, len(events)]
    return [events[a:b] for a, b in itertools.pairwise(bounds) if a < b]
