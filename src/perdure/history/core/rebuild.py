"""The state of a run from its stored events alone, and what of a state the events do not tell."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from msgspec.structs import replace
from temporalio.api.common.v1 import Memo, SearchAttributes
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent

from perdure.history.core import buffering
from perdure.history.core.apply import apply, replay
from perdure.history.core.state import Activity, Kind, RequestIdRecord, RunInfo, RunState, State, WorkflowTask


def rebuild(
    namespace_id: str,
    run_id: str,
    events: Iterable[HistoryEvent],
    *,
    start_request_id: str = "",
    buffered: Iterable[HistoryEvent] = (),
) -> State:
    """events: the whole history, in order. buffered: those that wait without an id, in the order of their arrival.
    What no event has is as in a state that never had any of it (see `comparable`)."""
    state = State(RunInfo(), RunState(branch_id=run_id))
    state.info.namespace_id = namespace_id
    state.info.run_id = run_id
    state.info.start_request_id = start_request_id
    replay(state, events)
    if start_request_id:
        started = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED
        state.put(Kind.REQUEST_ID, start_request_id, RequestIdRecord(started, 1))
    for event in buffered:
        apply(state, event)
        buffering.add(state, event)
    return state


def comparable(state: State) -> dict[str, Any]:
    """The state without what no event holds: two states of the same events (and the same buffer, if any) have equal
    ones. docs/architecture.md has the same list of what is left out."""
    closed = not state.open
    return {
        "info": _info(state.info),
        "run": _run(state.run),
        # An activity that the closing answer canceled, and no worker had: the event was to come after the answer.
        "activities": {
            key: _activity(activity)
            for key, activity in state.activities.items()
            if not (closed and activity.cancel_requested)
        },
        "timers": state.timers,
        # A child may start after the end of its parent.
        "children": {
            key: replace(child, run_id="") if closed and not child.started_event_id else child
            for key, child in state.children.items()
        },
        "external cancels": state.external_cancels,
        "external signals": state.external_signals,
        # An update that was admitted by an event, and then rejected: the rejection has none.
        "updates": {key: update for key, update in state.updates.items() if update.accepted_event_id},
        "signal requests": state.signal_requests,
        "request ids": state.request_ids,
        "buffered": list(state.buffered.values()),
    }


def _info(info: RunInfo) -> RunInfo:
    return replace(
        info,
        # Maps of one content may be serialized in several orders.
        memo_proto=_sorted(Memo, info.memo_proto),
        search_attributes_proto=_sorted(SearchAttributes, info.search_attributes_proto),
        # Where the events are kept.
        history_ancestors=[],
    )


def _sorted(kind: type[Memo] | type[SearchAttributes], blob: bytes) -> bytes:
    return kind.FromString(blob).SerializeToString(deterministic=True) if blob else blob


def _run(run: RunState) -> RunState:
    task = run.workflow_task
    return replace(
        run,
        # A transient or speculative workflow task has no events; a failure of a transient one has none either, so only
        # the first of a row of failures is known.
        workflow_task=None if task is None or task.transient or task.speculative else _workflow_task(task),
        workflow_task_attempt=min(run.workflow_task_attempt, 2),
        # The worker that has the run in its cache.
        sticky_queue="",
        sticky_timeout=0,
        # What the store has written.
        branch_id="",
        last_txn_id=0,
        history_size=0,
        transition_count=0,
        # Numbers the buffered events as they arrive.
        buffered_sequence=0,
        # For the appliers only: of the event applied last, which may have been one that came into the buffer.
        last_event_time=0,
        # See "updates".
        updates_admitted=0,
    )


def _workflow_task(task: WorkflowTask) -> WorkflowTask:
    # A row of heartbeats counts as one task.
    return replace(task, original_scheduled_time=task.scheduled_time)


def _activity(activity: Activity) -> Activity:
    """As it was when it was scheduled: attempts leave events only when the activity ends."""
    return replace(
        activity,
        scheduled_time=activity.first_scheduled_time,
        attempt=1,
        stamp=0,
        started_time=0,
        started_event_id=0,
        started_identity="",
        request_id="",
        heartbeat_time=0,
        heartbeat_details_proto=b"",
        last_failure_proto=b"",
        last_worker_identity="",
        heartbeat_timer_armed=0,
        last_attempt_complete_time=0,
        paused=False,
        build_id_proto=b"",
        last_started_time=0,
    )
