"""Checks of what commands carry: no frontend has seen it. Texts are Temporal's."""

from __future__ import annotations

import math

from google.protobuf.duration_pb2 import Duration
from temporalio.api.common.v1 import Priority
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause

from perdure.clock import DAY, SECOND
from perdure.history.core.completion import BadCommand

MAX_DURATION = 100 * 365 * DAY
RESERVED_TASK_QUEUE_PREFIX = "/_sys/"
_MAX_FAIRNESS_KEY = 64


def bad(cause: Cause.ValueType, why: str, *, terminate: bool = False) -> BadCommand:
    """To raise. The message is led by the cause's name, as "BadStartTimerAttributes: …"."""
    name = "".join(map(str.capitalize, Cause.Name(cause).removeprefix("WORKFLOW_TASK_FAILED_CAUSE_").split("_")))
    return BadCommand(cause, f"{name}: {why}", terminate=terminate)


def size_of(value: str) -> int:
    """In bytes of UTF-8."""
    return len(value) if value.isascii() else len(value.encode())


def invalid_id(value: str, limit: int) -> str:
    """What is wrong with an identifier, "" for nothing."""
    if size_of(value) > limit:
        return f"exceeds length limit. Length={size_of(value)} Limit={limit}"
    if "\0" in value:
        return "must not contain the character U+0000."
    return ""


def invalid_duration(duration: Duration) -> str:
    """What is wrong with a duration, "" for nothing. Unset counts as 0. One above a hundred years is cut to that, in
    place."""
    seconds, nanos = duration.seconds, duration.nanos
    if seconds >= 0 and 0 <= nanos < SECOND:
        if seconds > MAX_DURATION // SECOND:
            duration.seconds = MAX_DURATION // SECOND
            duration.nanos = 0
        return ""
    if abs(nanos) >= SECOND:
        return "nanoseconds out of range"
    if seconds > 0 or nanos > 0:
        return "duration has seconds and nanos with different signs"
    return "negative duration"


def invalid_task_queue(name: str, limit: int) -> str:
    if size_of(name) > limit:
        return "taskQueue length exceeds limit"
    if "\0" in name:
        return "taskQueue must not contain the character U+0000."
    if name.startswith(RESERVED_TASK_QUEUE_PREFIX):
        return f"task queue name cannot start with reserved prefix {RESERVED_TASK_QUEUE_PREFIX}"
    return ""


def invalid_priority(priority: Priority) -> str:
    if priority.priority_key < 0:
        return "priority key can't be negative"
    if size_of(priority.fairness_key) > _MAX_FAIRNESS_KEY:
        return "fairness key length exceeds limit"
    if "\0" in priority.fairness_key:
        return "fairness key must not contain the character U+0000."
    if not 0 <= priority.fairness_weight < math.inf:
        return "must be greater than zero"
    return ""


def merged_priority(base: bytes, override: bytes) -> bytes:
    """Serialized Priorities: what `override` does not set is taken from `base`. b"" for none."""
    if not base or not override:
        return override or base
    merged = Priority.FromString(base)
    merged.MergeFrom(Priority.FromString(override))  # only what is set (not 0 or "") is merged
    return merged.SerializeToString()
