"""Dynamic configuration: settings under Temporal's own keys, constrained by namespace, task queue or shard.

A setting is a `Key`; a value set from outside wins over the key's default, the most constrained one first. Keys are
compared without regard to case. Durations are nanoseconds here; outside they are written as "1m30s", or in seconds.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar, cast

from perdure.clock import DAY, HOUR, MILLISECOND, MINUTE, SECOND

T = TypeVar("T")

_UNITS = {"ns": 1, "us": 1_000, "µs": 1_000, "ms": MILLISECOND, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY}
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ns|us|µs|ms|s|m|h|d)")


class ConfigError(ValueError):
    """One clear line on what is wrong with a setting."""


def parse_duration(text: str) -> int:
    """Nanoseconds of "10s", "1m30s", "250ms", "1.5h", "0"."""
    if text == "0":
        return 0
    total = 0
    end = 0
    for match in _DURATION.finditer(text):
        if match.start() != end:
            break
        total += round(float(match[1]) * _UNITS[match[2]])
        end = match.end()
    if not text or end != len(text):
        raise ConfigError(f"not a duration: {text!r} (write it as 10s or 1m30s)")
    return total


def _bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    raise ConfigError(f"not a bool: {value!r}")


def _int(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, float) and value.is_integer():
        return int(value)
    raise ConfigError(f"not a whole number: {value!r}")


def _float(value: Any) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ConfigError(f"not a number: {value!r}")


def _str(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise ConfigError(f"not a string: {value!r}")


def _duration(value: Any) -> int:
    """A bare number is seconds, as it is to Temporal."""
    if isinstance(value, str):
        return int(value) * SECOND if value.isascii() and value.isdigit() else parse_duration(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < 2**31:
        return round(value * SECOND)
    raise ConfigError(f"not a duration: {value!r} (write it as 10s or 1m30s)")


class RetryDefaults(NamedTuple):
    """What a retry policy gets where it says nothing. initial_interval: nanoseconds. maximum_factor: of the longest
    interval to the first. maximum_attempts: 0 for no limit."""

    initial_interval: int = SECOND
    maximum_factor: float = 100.0
    backoff_coefficient: float = 2.0
    maximum_attempts: int = 0


def _retry_defaults(value: Any) -> RetryDefaults:
    if not isinstance(value, dict):
        raise ConfigError(f"not a map: {value!r}")
    fields: dict[str, Any] = {str(k).lower(): v for k, v in cast("dict[Any, Any]", value).items()}
    defaults = RetryDefaults()
    if (initial := fields.get("initialintervalinseconds")) is not None:
        nanoseconds = parse_duration(initial) if isinstance(initial, str) else round(_float(initial) * SECOND)
        defaults = defaults._replace(initial_interval=nanoseconds)
    if (factor := fields.get("maximumintervalcoefficient")) is not None:
        defaults = defaults._replace(maximum_factor=_float(factor))
    if (coefficient := fields.get("backoffcoefficient")) is not None:
        defaults = defaults._replace(backoff_coefficient=_float(coefficient))
    if (attempts := fields.get("maximumattempts")) is not None:
        defaults = defaults._replace(maximum_attempts=_int(attempts))
    return defaults


@dataclass(frozen=True, slots=True, eq=False)
class Key(Generic[T]):
    """One setting. name: Temporal's key. parse: from a JSON or YAML value; raises ConfigError."""

    name: str
    default: T
    parse: Callable[[Any], T]


REGISTRY: dict[str, Key[Any]] = {}


def _register(key: Key[T]) -> Key[T]:
    REGISTRY[key.name.lower()] = key
    return key


def bool_key(name: str, default: bool) -> Key[bool]:
    return _register(Key(name, default, _bool))


def int_key(name: str, default: int) -> Key[int]:
    return _register(Key(name, default, _int))


def float_key(name: str, default: float) -> Key[float]:
    return _register(Key(name, default, _float))


def str_key(name: str, default: str) -> Key[str]:
    return _register(Key(name, default, _str))


def duration_key(name: str, default: int) -> Key[int]:
    return _register(Key(name, default, _duration))


@dataclass(frozen=True, slots=True)
class Constraints:
    """Where a value holds; None: everywhere."""

    namespace: str | None = None
    task_queue: str | None = None
    shard_id: int | None = None

    def rank(self) -> int:
        return 4 * (self.task_queue is not None) + 2 * (self.namespace is not None) + (self.shard_id is not None)


class DynamicConfig:
    """The values in force: those of `set` (a command line), and for other keys those of `replace` (a file). Reading is
    a dictionary look-up when nothing is set."""

    __slots__ = ("_fixed", "_values")

    def __init__(self) -> None:
        self._fixed: _Entries = {}
        self._values: _Entries = {}

    def set(self, name: str, value: Any, constraints: Constraints = Constraints()) -> None:
        """Wins over all that `replace` says about the key. value: as from JSON or YAML. An unknown key is kept (other
        servers know more keys) but does nothing. Raises ConfigError when a known key cannot take the value."""
        _put(self._fixed, name, value, constraints)
        self._values[name.lower()] = self._fixed[name.lower()]

    def replace(self, values: Mapping[str, Sequence[tuple[Constraints, Any]]]) -> None:
        """All that is not `set`, at once; raises ConfigError and changes nothing when a value is wrong."""
        fresh: _Entries = {}
        for name, entries in values.items():
            for constraints, value in entries:
                _put(fresh, name, value, constraints)
        self._values = {**fresh, **self._fixed}

    def get(self, key: Key[T], namespace: str = "", task_queue: str = "", shard_id: int = 0) -> T:
        entries = self._values.get(key.name.lower()) if self._values else None
        if entries:
            for c, value in entries:
                if (
                    (c.namespace is None or c.namespace == namespace)
                    and (c.task_queue is None or c.task_queue == task_queue)
                    and (c.shard_id is None or c.shard_id == shard_id)
                ):
                    return value
        return key.default


_Entries = dict[str, list[tuple[Constraints, Any]]]


def _put(entries: _Entries, name: str, value: Any, constraints: Constraints) -> None:
    key = REGISTRY.get(name.lower())
    if key is not None:
        try:
            value = key.parse(value)
        except ConfigError as e:
            raise ConfigError(f"{key.name}: {e}") from None
    others = [entry for entry in entries.get(name.lower(), []) if entry[0] != constraints]
    # The most constrained first: the first that fits is taken.
    entries[name.lower()] = sorted([*others, (constraints, value)], key=lambda entry: -entry[0].rank())


def parse_assignment(text: str) -> tuple[str, Any]:
    """`KEY=JSON_VALUE`, as on a command line. Raises ConfigError."""
    name, sep, value = text.partition("=")
    if not sep or not name:
        raise ConfigError(f"not KEY=JSON_VALUE: {text!r}")
    try:
        return name, json.loads(value)
    except ValueError:
        raise ConfigError(f"{name}: not a JSON value: {value!r} (quote strings: {name}='\"…\"')") from None


# --- limits: Temporal's defaults -------------------------------------------------------------------------------------
KIB, MIB = 1024, 1024 * 1024

MAX_ID_LENGTH = int_key("limit.maxIDLength", 1000)
BLOB_SIZE_ERROR = int_key("limit.blobSize.error", 2 * MIB)
BLOB_SIZE_WARN = int_key("limit.blobSize.warn", 512 * KIB)
MEMO_SIZE_ERROR = int_key("limit.memoSize.error", 2 * MIB)
MEMO_SIZE_WARN = int_key("limit.memoSize.warn", 2 * KIB)
HISTORY_SIZE_ERROR = int_key("limit.historySize.error", 50 * MIB)
HISTORY_SIZE_WARN = int_key("limit.historySize.warn", 10 * MIB)
HISTORY_COUNT_ERROR = int_key("limit.historyCount.error", 50 * KIB)
HISTORY_COUNT_WARN = int_key("limit.historyCount.warn", 10 * KIB)
SUGGEST_CONTINUE_AS_NEW_SIZE = int_key("limit.historySize.suggestContinueAsNew", 4 * MIB)
SUGGEST_CONTINUE_AS_NEW_COUNT = int_key("limit.historyCount.suggestContinueAsNew", 4 * KIB)
STATE_SIZE_ERROR = int_key("limit.mutableStateSize.error", 8 * MIB)
PENDING_ACTIVITIES_ERROR = int_key("limit.numPendingActivities.error", 2000)
ACTIVITY_FAILURE_SIZE = int_key("limit.mutableStateActivityFailureSize.error", 4 * KIB)
PENDING_SIGNALS_ERROR = int_key("limit.numPendingSignals.error", 2000)
PENDING_CANCELS_ERROR = int_key("limit.numPendingCancelRequests.error", 2000)
PENDING_CHILDREN_ERROR = int_key("limit.numPendingChildExecutions.error", 2000)
MAX_SIGNALS_PER_EXECUTION = int_key("history.maximumSignalsPerExecution", 10_000)
MAX_BUFFERED_EVENTS = int_key("history.maximumBufferedEventsBatch", 100)
MAX_BUFFERED_BYTES = int_key("history.maximumBufferedEventsSizeInBytes", 2 * MIB)
MAX_IN_FLIGHT_UPDATES = int_key("history.maxInFlightUpdates", 10)
MAX_IN_FLIGHT_UPDATE_PAYLOADS = int_key("history.maxInFlightUpdatePayloads", 20 * MIB)
MAX_TOTAL_UPDATES = int_key("history.maxTotalUpdates", 2000)
UPDATES_SUGGEST_CONTINUE_AS_NEW = float_key("history.maxTotalUpdates.suggestContinueAsNewThreshold", 0.9)
DISCARD_SPECULATIVE_MAX_EVENTS = int_key("history.discardSpeculativeWorkflowTaskMaximumEventsCount", 10)
SA_KEYS_LIMIT = int_key("frontend.searchAttributesNumberOfKeysLimit", 100)
SA_VALUE_SIZE_LIMIT = int_key("frontend.searchAttributesSizeOfValueLimit", 2 * KIB)
SA_TOTAL_SIZE_LIMIT = int_key("frontend.searchAttributesTotalSizeLimit", 40 * KIB)
USER_METADATA_SUMMARY_SIZE = int_key("limit.userMetadataSummarySize", 400)
USER_METADATA_DETAILS_SIZE = int_key("limit.userMetadataDetailsSize", 20_000)

MAX_LINKS_PER_REQUEST = int_key("frontend.maxlinksPerRequest", 10)
LINK_MAX_SIZE = int_key("frontend.linkMaxSize", 4000)
BUILD_ID_SIZE = int_key("limit.workerBuildIdSize", 255)
MAX_BAD_BINARIES = int_key("frontend.maxBadBinaries", 10)

# --- behaviour -------------------------------------------------------------------------------------------------------
DEFAULT_WORKFLOW_TASK_TIMEOUT = duration_key("history.defaultWorkflowTaskTimeout", 10 * SECOND)
MAX_WORKFLOW_TASK_TIMEOUT = duration_key("history.maxWorkflowTaskTimeout", 120 * SECOND)
WORKFLOW_TASK_HEARTBEAT_TIMEOUT = duration_key("history.workflowTaskHeartbeatTimeout", 30 * MINUTE)
WORKFLOW_TASK_RETRY_MAX_INTERVAL = duration_key("history.workflowTaskRetryMaxInterval", 10 * MINUTE)
WORKFLOW_TASK_CRITICAL_ATTEMPT = int_key("history.workflowTaskCriticalAttempt", 10)
LONG_POLL_EXPIRATION = duration_key("history.longPollExpirationInterval", 20 * SECOND)
MATCHING_LONG_POLL_EXPIRATION = duration_key("matching.longPollExpirationInterval", 60 * SECOND)
ACTIVITY_RETRY_DEFAULTS = _register(Key("history.defaultActivityRetryPolicy", RetryDefaults(), _retry_defaults))
WORKFLOW_RETRY_DEFAULTS = _register(Key("history.defaultWorkflowRetryPolicy", RetryDefaults(), _retry_defaults))
ENABLE_EAGER_START = bool_key("system.enableEagerWorkflowStart", True)
ENABLE_EAGER_ACTIVITY = bool_key("system.enableActivityEagerExecution", True)
TASK_QUEUE_READ_PARTITIONS = int_key("matching.numTaskqueueReadPartitions", 4)
TASK_QUEUE_WRITE_PARTITIONS = int_key("matching.numTaskqueueWritePartitions", 4)
ENABLE_MULTI_OPERATION = bool_key("frontend.enableExecuteMultiOperation", True)
CANCEL_POLLS_ON_SHUTDOWN = bool_key("frontend.enableCancelWorkerPollsOnShutdown", True)
WORKFLOW_ID_REUSE_MIN_INTERVAL = duration_key("history.workflowIdReuseMinimalInterval", SECOND)
QUERY_BUFFER_LIMIT = int_key("history.maxBufferedQueryCount", 1)
HISTORY_PAGE_EVENTS = int_key("frontend.historyMaxPageSize", 1000)
VISIBILITY_PAGE_SIZE = int_key("frontend.visibilityMaxPageSize", 1000)
