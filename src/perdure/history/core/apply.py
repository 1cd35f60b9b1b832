"""Events to state. Each room registers how its events change the state; a live step and a rebuild from the stored
history go through the same functions, so they give the same state.

An event that is buffered is applied when it arrives, with event id 0; `assigned` functions (see `buffering`) then learn
its id when it gets one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

from perdure.clock import SECOND
from perdure.history.core.state import State

Applier = Callable[[State, HistoryEvent], None]

_appliers: dict[int, Applier] = {}


def applies(*event_types: EventType.ValueType) -> Callable[[Applier], Applier]:
    """Registers the function as what these events do to the state."""

    def register(function: Applier) -> Applier:
        for event_type in event_types:
            assert event_type not in _appliers, EventType.Name(event_type)
            _appliers[event_type] = function
        return function

    return register


def apply(state: State, event: HistoryEvent) -> None:
    time = event.event_time
    state.run.last_event_time = time.seconds * SECOND + time.nanos
    function = _appliers.get(event.event_type)
    if function is not None:
        function(state, event)


def replay(state: State, events: Iterable[HistoryEvent]) -> None:
    """Applies stored events, in order, to a state that has had those before them."""
    for event in events:
        state.run.next_event_id = event.event_id + 1
        apply(state, event)
