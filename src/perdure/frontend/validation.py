"""Checks of what comes over the wire, with Temporal's limits and words. Each raises ServiceError INVALID_ARGUMENT;
some also fill in defaults, in place.

Lengths of identifiers are in bytes. U+0000 is refused in every identifier: not all databases can hold it.
"""

from __future__ import annotations

import logging
import math
import re
import uuid
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Protocol

from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp
from temporalio.api.common.v1 import Callback, Link, Payloads, Priority, RetryPolicy, WorkflowExecution
from temporalio.api.enums.v1 import EventType, TaskQueueKind, TimeoutType
from temporalio.api.sdk.v1 import UserMetadata
from temporalio.api.taskqueue.v1 import TaskQueue

from perdure.clock import DAY, SECOND, from_duration
from perdure.config.dynamic import (
    BLOB_SIZE_ERROR,
    BLOB_SIZE_WARN,
    LINK_MAX_SIZE,
    MAX_ID_LENGTH,
    MAX_LINKS_PER_REQUEST,
    MEMO_SIZE_ERROR,
    MEMO_SIZE_WARN,
    USER_METADATA_DETAILS_SIZE,
    USER_METADATA_SUMMARY_SIZE,
    DynamicConfig,
)
from perdure.errors import ServiceError, invalid_argument, unimplemented

logger = logging.getLogger("perdure.frontend")

MAX_DURATION = 100 * 365 * DAY
RESERVED_TASK_QUEUE_PREFIX = "/_sys/"
SYSTEM_TASK_QUEUE = "temporal-sys-per-ns-tq"
MAX_FAIRNESS_KEY = 64

_KIND_UNSPECIFIED = TaskQueueKind.TASK_QUEUE_KIND_UNSPECIFIED
_NORMAL = TaskQueueKind.TASK_QUEUE_KIND_NORMAL
_STICKY = TaskQueueKind.TASK_QUEUE_KIND_STICKY

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}").fullmatch


class EnumType(Protocol):
    """One of the API's generated enums."""

    DESCRIPTOR: EnumDescriptor


def longer_than(value: str, limit: int) -> bool:
    """In bytes of UTF-8."""
    return len(value) > limit or (not value.isascii() and len(value.encode()) > limit)


def check_id(value: str, limit: int, what: str) -> None:
    """Of an identifier that may be empty."""
    if longer_than(value, limit):
        raise invalid_argument(f"{what} length exceeds limit.")
    if "\0" in value:
        raise invalid_argument(f"{what} must not contain the character U+0000.")


def require_id(value: str, limit: int, what: str) -> None:
    if not value:
        raise invalid_argument(f"{what} is not set on request.")
    check_id(value, limit, what)


def check_run_id(run_id: str) -> None:
    if run_id and not _UUID(run_id):
        raise invalid_argument("Invalid RunId.")


def check_execution(execution: WorkflowExecution, present: bool, config: DynamicConfig) -> None:
    """present: whether the request has the field at all."""
    if not present:
        raise invalid_argument("Execution is not set on request.")
    require_id(execution.workflow_id, config.get(MAX_ID_LENGTH), "WorkflowId")
    if execution.run_id:
        check_run_id(execution.run_id)


def request_id(value: str, config: DynamicConfig) -> str:
    """The request id, a new one if there is none."""
    if not value:
        return str(uuid.uuid4())
    check_id(value, config.get(MAX_ID_LENGTH), "RequestId")
    return value


def check_enum(value: int, kind: EnumType, what: str) -> None:
    """Protobuf accepts every number for an enum."""
    if value and value not in _numbers(kind):
        raise invalid_argument(f"Unknown {what}: {value}.")


def check_token_ids(*ids: str) -> None:
    """Of a token that a client gave back, perhaps not as it got it."""
    for value in ids:
        if "\0" in value:
            raise invalid_argument("Invalid task token.")


@cache
def _numbers(kind: EnumType) -> frozenset[int]:
    return frozenset(kind.DESCRIPTOR.values_by_number)


# --- durations and times ---------------------------------------------------------------------------------------------


def check_duration(duration: Duration, what: str) -> None:
    """Unset counts as 0. One above a hundred years is cut to that, in place."""
    seconds, nanos = duration.seconds, duration.nanos
    if seconds >= 0 and 0 <= nanos < SECOND:
        if seconds * SECOND > MAX_DURATION:
            duration.seconds = MAX_DURATION // SECOND
            duration.nanos = 0
        return
    if abs(nanos) >= SECOND:
        cause = "nanoseconds out of range"
    elif seconds > 0 or nanos > 0:
        cause = "seconds and nanoseconds have different signs"
    else:
        cause = "negative duration"
    raise invalid_argument(f"{what} cause: {cause}")


def check_timestamp(timestamp: Timestamp, what: str) -> int:
    """Nanoseconds; between the years 1 and 9999."""
    if not -62_135_596_800 <= timestamp.seconds < 253_402_300_800 or not 0 <= timestamp.nanos < SECOND:
        raise invalid_argument(f"Invalid {what}.")
    return timestamp.seconds * SECOND + timestamp.nanos


def retry_policy(policy: RetryPolicy) -> None:
    """Fills in defaults for what is not set. Call it only for a policy that is there: none means no retries."""
    initial, maximum = policy.initial_interval, policy.maximum_interval
    if not initial.seconds and not initial.nanos:
        initial.seconds = 1
    if not policy.backoff_coefficient:
        policy.backoff_coefficient = 2.0
    if policy.maximum_attempts != 1:
        check_duration(initial, "invalid InitialInterval set on retry policy")
        if not policy.backoff_coefficient >= 1:
            raise invalid_argument("BackoffCoefficient cannot be less than 1 on retry policy.")
        if math.isinf(policy.backoff_coefficient):
            raise invalid_argument("BackoffCoefficient must be finite on retry policy.")
        check_duration(maximum, "invalid MaximumInterval set on retry policy")
        longest = from_duration(maximum)
        if longest and longest < from_duration(initial):
            raise invalid_argument("MaximumInterval cannot be less than InitialInterval on retry policy.")
        if policy.maximum_attempts < 0:
            raise invalid_argument("MaximumAttempts cannot be negative on retry policy.")
        for kind in policy.non_retryable_error_types:
            if kind.startswith("TemporalTimeout:"):
                _check_timeout_type(kind.removeprefix("TemporalTimeout:"))
    if not maximum.seconds and not maximum.nanos:
        # Below zero only where one attempt is allowed, so that nothing was checked.
        longest = max(0, min(100 * from_duration(initial), MAX_DURATION))
        maximum.seconds, maximum.nanos = divmod(longest, SECOND)


def _check_timeout_type(name: str) -> None:
    """As "StartToClose" or "TIMEOUT_TYPE_START_TO_CLOSE"."""
    constant = name if name.isupper() else "TIMEOUT_TYPE" + re.sub(r"([A-Z])", r"_\1", name).upper()
    if constant not in TimeoutType.DESCRIPTOR.values_by_name or TimeoutType.Value(constant) == 0:
        raise invalid_argument(f"Invalid timeout type value: {name}.")


# --- task queues -----------------------------------------------------------------------------------------------------


def check_task_queue(queue: TaskQueue, present: bool, config: DynamicConfig, partition_allowed: bool = False) -> None:
    """Sets its kind to NORMAL if it has none. partition_allowed: the name may be of one partition."""
    if not present:
        raise invalid_argument("taskQueue is not set")
    kind = queue.kind
    if kind == _KIND_UNSPECIFIED:
        queue.kind = _NORMAL
    else:
        check_enum(kind, TaskQueueKind, "task queue kind")
    limit = config.get(MAX_ID_LENGTH)
    name = queue.name
    if not name:
        raise invalid_argument("missing task queue name")
    _check_task_queue_name(name, limit)
    if not partition_allowed and name.startswith(RESERVED_TASK_QUEUE_PREFIX):
        raise invalid_argument(f"task queue name cannot start with reserved prefix {RESERVED_TASK_QUEUE_PREFIX}")
    if kind == _STICKY and queue.normal_name:
        _check_task_queue_name(queue.normal_name, limit)


def check_user_task_queue(queue: TaskQueue, present: bool, config: DynamicConfig) -> None:
    """One on which users' workflows may start."""
    check_task_queue(queue, present, config)
    if queue.name == SYSTEM_TASK_QUEUE:
        raise invalid_argument(f"cannot use internal per-namespace task queue:{queue.name}")


def _check_task_queue_name(name: str, limit: int) -> None:
    if longer_than(name, limit):
        raise invalid_argument("taskQueue length exceeds limit")
    if "\0" in name:
        raise invalid_argument("taskQueue must not contain the character U+0000.")


# --- sizes -----------------------------------------------------------------------------------------------------------


def blob_too_large() -> ServiceError:
    return invalid_argument("Blob data size exceeds limit.")


def check_payloads(payloads: Payloads, namespace: str, config: DynamicConfig) -> None:
    size = payloads.ByteSize()
    if size > config.get(BLOB_SIZE_WARN, namespace):
        _warn("blob", size, namespace)
    if size > config.get(BLOB_SIZE_ERROR, namespace):
        raise blob_too_large()


def check_memo_size(size: int, namespace: str, config: DynamicConfig) -> None:
    if size > config.get(MEMO_SIZE_WARN, namespace):
        _warn("memo", size, namespace)
    if size > config.get(MEMO_SIZE_ERROR, namespace):
        raise invalid_argument("Memo size exceeds limit.")


_large: Counter[tuple[str, str]] = Counter()


def _warn(what: str, size: int, namespace: str) -> None:
    """Of the many that may come, it tells of the first, the second, the fourth and so on."""
    _large[what, namespace] += 1
    count = _large[what, namespace]
    if not count & (count - 1):
        logger.warning("%s size %d exceeds the warning limit: namespace %s, number %d", what, size, namespace, count)


def check_user_metadata(metadata: UserMetadata, namespace: str, config: DynamicConfig) -> None:
    limit = config.get(USER_METADATA_SUMMARY_SIZE, namespace)
    if (size := len(metadata.summary.data)) > limit:
        raise invalid_argument(f"UserMetadata summary size {size} exceeds limit {limit}.")
    limit = config.get(USER_METADATA_DETAILS_SIZE, namespace)
    if (size := len(metadata.details.data)) > limit:
        raise invalid_argument(f"UserMetadata details size {size} exceeds limit {limit}.")


# --- the rest --------------------------------------------------------------------------------------------------------


def check_priority(priority: Priority) -> None:
    if priority.priority_key < 0:
        raise invalid_argument("priority key can't be negative")
    if longer_than(priority.fairness_key, MAX_FAIRNESS_KEY):
        raise invalid_argument("fairness key length exceeds limit")
    if "\0" in priority.fairness_key:
        raise invalid_argument("fairness key must not contain the character U+0000.")
    if not 0 <= priority.fairness_weight < math.inf:
        raise invalid_argument("must be greater than zero")


# By variant of a link: what to call it, and its fields that must not be empty.
_LINKS: dict[str, tuple[str, tuple[tuple[str, str], ...]]] = {
    "workflow_event": (
        "workflow event link",
        (("namespace", "namespace field"), ("workflow_id", "workflow ID field"), ("run_id", "run ID field")),
    ),
    "batch_job": ("batch job link", (("job_id", "job ID"),)),
    "nexus_operation": (
        "nexus operation link",
        (("namespace", "namespace field"), ("operation_id", "operation ID field"), ("run_id", "run ID field")),
    ),
    "activity": (
        "activity link",
        (("namespace", "namespace field"), ("activity_id", "activity ID field"), ("run_id", "run ID field")),
    ),
    "workflow": (
        "workflow link",
        (("namespace", "namespace field"), ("workflow_id", "workflow ID field"), ("run_id", "run ID field")),
    ),
}


def check_links(links: Sequence[Link], namespace: str, config: DynamicConfig) -> None:
    most = config.get(MAX_LINKS_PER_REQUEST, namespace)
    if len(links) > most:
        raise invalid_argument(f"cannot attach more than {most} links per request, got {len(links)}")
    limit = config.get(LINK_MAX_SIZE, namespace)
    for link in links:
        if (size := link.ByteSize()) > limit:
            raise invalid_argument(f"link exceeds allowed size of {limit}, got {size}")
        variant = link.WhichOneof("variant")
        if variant is None or variant not in _LINKS:
            raise invalid_argument("unsupported link variant")
        what, required = _LINKS[variant]
        target = getattr(link, variant)
        for field, name in required:
            if not getattr(target, field):
                raise invalid_argument(f"{what} must not have an empty {name}")
        if variant == "workflow_event":
            ref = link.workflow_event.event_ref
            if ref.event_type == EventType.EVENT_TYPE_UNSPECIFIED and ref.event_id:
                raise invalid_argument(
                    "workflow event link ref cannot have an unspecified event type and a non-zero event ID"
                )


def refuse_callbacks(callbacks: Sequence[Callback]) -> None:
    """Completion callbacks are Nexus operations' affair, which this server does not have."""
    if callbacks:
        raise unimplemented("CompletionCallbacks")


def page_size(asked: int, most: int) -> int:
    return asked if 0 < asked <= most else most
