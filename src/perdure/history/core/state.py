"""The state of one run: what its events have made of it, and the few facts that have no event.

A run is stored as rows. `RunState` is the small row that every step rewrites. Everything else is a row of its own,
written only when it changed: `RunInfo` (what start laid down), and one row for each pending thing. So the cost of a
step grows neither with the history nor with what is pending.

Structs are stored as arrays: fields are only ever added at the end, with a default. Times and durations are
nanoseconds, 0 for none. Fields named `…_proto` hold serialized messages of the Temporal API.

Facts that no event holds, so that a rebuild from the events does not give them (docs/architecture.md lists them):
they are marked "no event" below.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from typing import Any, TypeVar

import msgspec
from temporalio.api.enums.v1 import WorkflowExecutionStatus
from temporalio.api.history.v1 import HistoryEvent

from perdure.persistence.api import PendingRow
from perdure.visibility.api import VisibilityRecord

FIRST_EVENT_ID = 1
RUNNING = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING
PAUSED = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_PAUSED


class WorkflowTask(msgspec.Struct, array_like=True):
    """The pending workflow task.

    Attempt 1 of the normal kind has its scheduled and started events in the history. A transient one (attempt > 1) and
    a speculative one have ids that their events would get, and no events until they are completed."""

    scheduled_event_id: int
    attempt: int = 1
    speculative: bool = False
    started_event_id: int = 0  # 0: not started
    scheduled_time: int = 0
    started_time: int = 0
    original_scheduled_time: int = 0  # of the first of a row of heartbeats; no event
    timeout: int = 0  # start to close
    request_id: str = ""
    identity: str = ""  # no event while transient or speculative
    history_size: int = 0
    suggest_reasons: list[int] = []
    sticky_queue: str = ""  # where it was dispatched to, "" for the normal queue

    @property
    def transient(self) -> bool:
        return self.attempt > 1


class RunState(msgspec.Struct, array_like=True):
    """What moves at nearly every step."""

    status: int = RUNNING
    next_event_id: int = FIRST_EVENT_ID
    last_event_time: int = 0  # for the appliers only
    workflow_task: WorkflowTask | None = None
    workflow_task_attempt: int = 1  # of the next one; no event from the third on
    last_started_event_id: int = 0  # started event of the last completed workflow task
    had_workflow_task: bool = False
    sticky_queue: str = ""  # no event
    sticky_timeout: int = 0  # no event
    branch_id: str = ""
    last_txn_id: int = 0
    history_size: int = 0
    transition_count: int = 0
    close_event_id: int = 0
    close_time: int = 0
    cancel_requested: bool = False
    signal_count: int = 0
    buffered_count: int = 0  # no event; BUFFERED rows
    buffered_sequence: int = 0  # no event
    buffered_bytes: int = 0
    update_count: int = 0  # accepted in all
    binary_checksum: str = ""
    updates_admitted: int = 0  # by an event, and not accepted
    updates_completed: int = 0


class RunInfo(msgspec.Struct, array_like=True):
    """What start laid down; changes seldom."""

    namespace_id: str = ""
    workflow_id: str = ""
    run_id: str = ""
    first_run_id: str = ""  # of the chain of continued runs
    original_run_id: str = ""  # of the run that this one was reset from
    workflow_type: str = ""
    task_queue: str = ""
    start_request_id: str = ""
    start_time: int = 0
    execution_time: int = 0  # start_time + first backoff
    execution_timeout: int = 0
    run_timeout: int = 0
    task_timeout: int = 0
    execution_expiration: int = 0
    run_expiration: int = 0
    attempt: int = 1
    retry_policy_proto: bytes = b""
    cron_schedule: str = ""
    first_backoff: int = 0
    parent_namespace_id: str = ""
    parent_namespace: str = ""
    parent_workflow_id: str = ""
    parent_run_id: str = ""
    parent_initiated_event_id: int = 0
    root_workflow_id: str = ""
    root_run_id: str = ""
    memo_proto: bytes = b""
    search_attributes_proto: bytes = b""
    priority_proto: bytes = b""
    versioning_override_proto: bytes = b""
    continued_from_run_id: str = ""
    new_run_id: str = ""  # of the run that followed this one
    completion_callbacks_proto: list[bytes] = []  # serialized temporal.api.common.v1.Callback
    reset_points_proto: bytes = b""
    history_ancestors: list[tuple[str, int]] = []  # (branch id, end event id) of the branches before this one
    user_metadata_proto: bytes = b""


class Activity(msgspec.Struct, array_like=True):
    scheduled_event_id: int
    activity_id: str
    activity_type: str
    task_queue: str
    scheduled_time: int  # of this attempt; no event from the second attempt on
    first_scheduled_time: int
    schedule_to_close: int
    schedule_to_start: int
    start_to_close: int
    heartbeat: int
    retry_policy_proto: bytes = b""
    attempt: int = 1  # no event
    stamp: int = 0  # no event; changes whenever what was dispatched before is void
    started_time: int = 0  # no event: ActivityTaskStarted is written with the closing event; 0: not started
    started_event_id: int = 0
    started_identity: str = ""
    request_id: str = ""
    heartbeat_time: int = 0  # no event
    heartbeat_details_proto: bytes = b""  # no event
    last_failure_proto: bytes = b""  # no event
    last_worker_identity: str = ""  # no event
    cancel_requested: bool = False
    cancel_request_id: int = 0  # event id
    heartbeat_timer_armed: int = 0  # no event; fire time of the armed heartbeat timer
    last_attempt_complete_time: int = 0  # no event
    paused: bool = False  # no event
    priority_proto: bytes = b""
    workflow_task_completed_event_id: int = 0
    build_id_proto: bytes = b""  # serialized temporal.api.common.v1.WorkerVersionStamp of the start; no event
    last_started_time: int = 0  # no event


class Timer(msgspec.Struct, array_like=True):
    timer_id: str
    started_event_id: int
    fire_time: int


class Child(msgspec.Struct, array_like=True):
    initiated_event_id: int
    namespace: str
    namespace_id: str
    workflow_id: str
    workflow_type: str
    parent_close_policy: int
    create_request_id: str
    started_event_id: int = 0  # 0: not known to have started, or ChildWorkflowExecutionStarted waits in the buffer
    run_id: str = ""  # of its first run, "" as long as it is not known to have started


class ExternalCancel(msgspec.Struct, array_like=True):
    initiated_event_id: int
    request_id: str


class ExternalSignal(msgspec.Struct, array_like=True):
    initiated_event_id: int
    request_id: str


class Update(msgspec.Struct, array_like=True):
    """An update that was accepted, or completed. Those that are only admitted live in memory (no event)."""

    update_id: str
    accepted_event_id: int = 0
    completed_event_id: int = 0
    request_id: str = ""
    admitted_event_id: int = 0  # 0: admitted in memory


class RequestIdRecord(msgspec.Struct, array_like=True):
    """A request id that started or was attached to this run: what event it made, for deduplication."""

    event_type: int
    event_id: int = 0  # 0: buffered


class Kind(IntEnum):
    """Of a pending row."""

    INFO = 0
    ACTIVITY = 1
    TIMER = 2
    CHILD = 3
    EXTERNAL_CANCEL = 4
    EXTERNAL_SIGNAL = 5
    UPDATE = 6
    SIGNAL_REQUEST = 7  # the request id of a signal
    REQUEST_ID = 8
    BUFFERED = 9  # a serialized HistoryEvent without id; no event


_encode = msgspec.msgpack.Encoder().encode
_INT_KEYS = frozenset((Kind.ACTIVITY, Kind.CHILD, Kind.EXTERNAL_CANCEL, Kind.EXTERNAL_SIGNAL, Kind.BUFFERED))
_TYPES: dict[int, Any] = {
    Kind.INFO: RunInfo,
    Kind.ACTIVITY: Activity,
    Kind.TIMER: Timer,
    Kind.CHILD: Child,
    Kind.EXTERNAL_CANCEL: ExternalCancel,
    Kind.EXTERNAL_SIGNAL: ExternalSignal,
    Kind.UPDATE: Update,
    Kind.SIGNAL_REQUEST: bool,
    Kind.REQUEST_ID: RequestIdRecord,
    Kind.BUFFERED: bytes,
}
_decoders: dict[int, Callable[[bytes], Any]] = {
    kind: msgspec.msgpack.Decoder(type_).decode for kind, type_ in _TYPES.items()
}
_decode_run = msgspec.msgpack.Decoder(RunState).decode

K = TypeVar("K", int, str)

_LARGE_ROW = 1024  # bytes


class State:
    """Mutable state of a run. Change a row through `put`/`remove` (after changing a struct in place, `put` it again),
    so that the next commit writes it. `run` is written by every commit."""

    __slots__ = (
        "_by_kind",
        "activities",
        "activity_ids",
        "buffered",
        "changed",
        "children",
        "close_attempted",
        "external_cancels",
        "external_signals",
        "info",
        "large_rows",
        "live_timers",
        "request_ids",
        "run",
        "scheduled_events",
        "signal_requests",
        "timers",
        "updates",
        "version",
    )

    def __init__(self, info: RunInfo, run: RunState) -> None:
        self.info = info
        self.run = run
        self.version = 0  # of the stored record; 0: not stored yet
        self.activities: dict[int, Activity] = {}  # by scheduled event id
        self.activity_ids: dict[str, int] = {}  # activity id -> scheduled event id; derived
        self.scheduled_events: dict[int, HistoryEvent] = {}  # in memory only, of activities: saves reading them back
        self.timers: dict[str, Timer] = {}  # by timer id
        self.children: dict[int, Child] = {}  # by initiated event id
        self.external_cancels: dict[int, ExternalCancel] = {}
        self.external_signals: dict[int, ExternalSignal] = {}
        self.updates: dict[str, Update] = {}
        self.signal_requests: dict[str, bool] = {}
        self.request_ids: dict[str, RequestIdRecord] = {}
        self.buffered: dict[int, bytes] = {}  # in order
        self.changed: dict[tuple[int, int | str], bool] = {}  # True: written, False: removed
        self.large_rows: dict[tuple[int, int | str], int] = {}  # in memory only: their sizes, see `large_bytes`
        self.close_attempted = False  # in memory only: the last workflow task failed to close the run for what came in
        self.live_timers: dict[tuple[int | str, ...], Any] = {}  # in memory only: see Txn.timer
        self._by_kind: dict[int, dict[Any, Any]] = {
            Kind.ACTIVITY: self.activities,
            Kind.TIMER: self.timers,
            Kind.CHILD: self.children,
            Kind.EXTERNAL_CANCEL: self.external_cancels,
            Kind.EXTERNAL_SIGNAL: self.external_signals,
            Kind.UPDATE: self.updates,
            Kind.SIGNAL_REQUEST: self.signal_requests,
            Kind.REQUEST_ID: self.request_ids,
            Kind.BUFFERED: self.buffered,
        }

    @property
    def open(self) -> bool:
        return self.run.status in (RUNNING, PAUSED)

    @property
    def closing(self) -> bool:
        """It tried to close, but something had come in; it is trying once more. Were it told still more, it might never
        come to an end."""
        task = self.run.workflow_task
        return self.close_attempted and task is not None and task.started_event_id != 0

    def put(self, kind: Kind, key: int | str, value: object) -> None:
        self._by_kind[kind][key] = value
        self.changed[(kind, key)] = True

    def remove(self, kind: Kind, key: int | str) -> None:
        """Removing what is not there does nothing."""
        if self._by_kind[kind].pop(key, None) is not None:
            self.changed[(kind, key)] = False

    def put_info(self) -> None:
        """After a change of `info`."""
        self.changed[(Kind.INFO, "")] = True

    def rows(self) -> tuple[bytes, list[PendingRow], list[tuple[int, str]]]:
        """The run's own row, the pending rows to write and those to remove, since the last `saved`."""
        put: list[PendingRow] = []
        removed: list[tuple[int, str]] = []
        for (kind, key), written in self.changed.items():
            if not written:
                removed.append((kind, str(key)))
                if self.large_rows:
                    self.large_rows.pop((kind, key), None)
                continue
            blob = _encode(self.info if kind == Kind.INFO else self._by_kind[kind][key])
            put.append(PendingRow(kind, str(key), blob))
            if len(blob) > _LARGE_ROW:
                self.large_rows[(kind, key)] = len(blob)
            elif self.large_rows:
                self.large_rows.pop((kind, key), None)
        run = self.run
        task = run.workflow_task
        if task is not None and task.speculative:
            # It lives in memory only: what it is for (updates not yet accepted) is not durable either.
            run.workflow_task = None
            row = _encode(run)
            run.workflow_task = task
        else:
            row = _encode(run)
        return row, put, removed

    def large_bytes(self) -> int:
        """About how large the stored state is: small rows, of which there is a limited number, do not count."""
        return sum(self.large_rows.values())

    def saved(self) -> None:
        """The rows are in the store now."""
        self.changed.clear()
        self.version += 1


def load(version: int, row: bytes, pending: list[PendingRow]) -> State:
    """From what the store returned. Raises msgspec.ValidationError when the rows are not ours."""
    state = State(RunInfo(), _decode_run(row))
    state.version = version
    for kind, key, blob in pending:
        value = _decoders[kind](blob)
        if kind == Kind.INFO:
            state.info = value
        else:
            key = int(key) if kind in _INT_KEYS else key
            state._by_kind[kind][key] = value  # pyright: ignore[reportPrivateUsage]
        if len(blob) > _LARGE_ROW:
            state.large_rows[(kind, key)] = len(blob)
    if len(state.buffered) > 1:
        ordered = sorted(state.buffered.items())
        state.buffered.clear()
        state.buffered.update(ordered)
    for activity in state.activities.values():
        state.activity_ids[activity.activity_id] = activity.scheduled_event_id
    return state


def buffered_events(state: State) -> list[HistoryEvent]:
    return [HistoryEvent.FromString(blob) for blob in state.buffered.values()]


def visibility_record(state: State) -> VisibilityRecord:
    """What visibility shows of the run as it is now."""
    info, run = state.info, state.run
    closed = not state.open
    return VisibilityRecord(
        namespace_id=info.namespace_id,
        workflow_id=info.workflow_id,
        run_id=info.run_id,
        version=run.transition_count,
        workflow_type=info.workflow_type,
        task_queue=info.task_queue,
        status=run.status,
        start_time=info.start_time,
        execution_time=info.execution_time,
        close_time=run.close_time,
        history_length=run.next_event_id - 1 if closed else 0,
        history_size_bytes=run.history_size if closed else 0,
        state_transition_count=run.transition_count if closed else 0,
        memo=info.memo_proto,
        search_attributes=info.search_attributes_proto,
        parent_workflow_id=info.parent_workflow_id,
        parent_run_id=info.parent_run_id,
        root_workflow_id=info.root_workflow_id or info.workflow_id,
        root_run_id=info.root_run_id or info.run_id,
    )
