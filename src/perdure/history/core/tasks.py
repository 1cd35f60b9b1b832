"""What follows from a step: the tasks of the outbox. A task names what it is about; whether it still applies is looked
up in the state when it runs, so running it twice or too late does nothing."""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import msgspec

from perdure.persistence.api import TaskCategory


class TimeoutKind(IntEnum):
    """As temporal.api.enums.v1.TimeoutType."""

    START_TO_CLOSE = 1
    SCHEDULE_TO_START = 2
    SCHEDULE_TO_CLOSE = 3
    HEARTBEAT = 4


class Task(msgspec.Struct, array_like=True, tag=True, kw_only=False):
    """Base. The ids are filled in as the transaction closes."""

    namespace_id: str = ""
    workflow_id: str = ""
    run_id: str = ""


# --- transfer: at once ---


class DispatchWorkflowTask(Task, tag="w"):
    task_queue: str = ""
    sticky: bool = False  # task_queue is the sticky one
    scheduled_event_id: int = 0


class DispatchActivity(Task, tag="a"):
    task_queue: str = ""
    scheduled_event_id: int = 0
    stamp: int = 0


class StartChild(Task, tag="c"):
    initiated_event_id: int = 0


class CancelExternal(Task, tag="x"):
    initiated_event_id: int = 0


class SignalExternal(Task, tag="s"):
    initiated_event_id: int = 0


class CloseExecution(Task, tag="z"):
    """Tell the parent, apply the parent-close policy to the children: of a run that has one or the other."""


class DeleteExecution(Task, tag="d"):
    """Remove the run: visibility, history, state."""


# --- timers ---


class WorkflowTaskTimeout(Task, tag="tw"):
    kind: int = TimeoutKind.START_TO_CLOSE
    scheduled_event_id: int = 0
    attempt: int = 1


class ActivityTimeout(Task, tag="ta"):
    kind: int = 0
    scheduled_event_id: int = 0
    attempt: int = 1
    stamp: int = 0


class ActivityRetry(Task, tag="tr"):
    scheduled_event_id: int = 0
    attempt: int = 1
    stamp: int = 0


class UserTimer(Task, tag="tu"):
    timer_id: str = ""
    started_event_id: int = 0


class FirstWorkflowTask(Task, tag="tf"):
    """The end of a start delay, a cron wait or a retry backoff."""


class RunTimeout(Task, tag="to"):
    """Workflow run timeout (the execution timeout is folded into it: a run's deadline is the earlier of both)."""


class DeleteAfterRetention(Task, tag="td"):
    pass


# --- visibility ---


class UpsertVisibility(Task, tag="v"):
    pass


class DeleteVisibility(Task, tag="vd"):
    version: int = 0


AnyTask = (
    DispatchWorkflowTask
    | DispatchActivity
    | StartChild
    | CancelExternal
    | SignalExternal
    | CloseExecution
    | DeleteExecution
    | WorkflowTaskTimeout
    | ActivityTimeout
    | ActivityRetry
    | UserTimer
    | FirstWorkflowTask
    | RunTimeout
    | DeleteAfterRetention
    | UpsertVisibility
    | DeleteVisibility
)
_TIMERS = (
    WorkflowTaskTimeout,
    ActivityTimeout,
    ActivityRetry,
    UserTimer,
    FirstWorkflowTask,
    RunTimeout,
    DeleteAfterRetention,
)

encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(AnyTask).decode


def decode(blob: bytes) -> Any:
    """One of AnyTask."""
    return _decode(blob)


def category_of(task: Task) -> TaskCategory:
    if isinstance(task, _TIMERS):
        return TaskCategory.TIMER
    if isinstance(task, UpsertVisibility | DeleteVisibility):
        return TaskCategory.VISIBILITY
    return TaskCategory.TRANSFER
