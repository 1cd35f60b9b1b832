"""Search attributes: which names there are, of what type, who may set them, and how a payload becomes a value.

Types are numbers of `temporalio.api.enums.v1.IndexedValueType`. A value is str (Keyword, Text), int (Int; Datetime as
nanoseconds since 1970), float (Double), bool (Bool) or list[str] (KeywordList); None stands for unset.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Final

import msgspec
from google.protobuf.message import DecodeError
from temporalio.api.common.v1 import Payload, SearchAttributes
from temporalio.api.enums.v1 import WorkflowExecutionStatus

from perdure.clock import SECOND
from perdure.config.dynamic import SA_KEYS_LIMIT, SA_TOTAL_SIZE_LIMIT, SA_VALUE_SIZE_LIMIT
from perdure.errors import ServiceError, invalid_argument

TEXT: Final = 1
KEYWORD: Final = 2
INT: Final = 3
DOUBLE: Final = 4
BOOL: Final = 5
DATETIME: Final = 6
KEYWORD_LIST: Final = 7

TYPE_NAMES: Final[dict[int, str]] = {
    TEXT: "Text",
    KEYWORD: "Keyword",
    INT: "Int",
    DOUBLE: "Double",
    BOOL: "Bool",
    DATETIME: "Datetime",
    KEYWORD_LIST: "KeywordList",
}
_TYPES_BY_NAME: Final = {
    **{name.encode(): number for number, name in TYPE_NAMES.items()},
    **{
        f"INDEXED_VALUE_TYPE_{re.sub('(?<!^)(?=[A-Z])', '_', name).upper()}".encode(): number
        for number, name in TYPE_NAMES.items()
    },
}

Value = str | int | float | bool | list[str]

SYSTEM: Final[dict[str, int]] = {
    "WorkflowId": KEYWORD,
    "RunId": KEYWORD,
    "WorkflowType": KEYWORD,
    "StartTime": DATETIME,
    "ExecutionTime": DATETIME,
    "CloseTime": DATETIME,
    "ExecutionStatus": KEYWORD,
    "TaskQueue": KEYWORD,
    "HistoryLength": INT,
    "ExecutionDuration": INT,
    "StateTransitionCount": INT,
    "HistorySizeBytes": INT,
    "ParentWorkflowId": KEYWORD,
    "ParentRunId": KEYWORD,
    "RootWorkflowId": KEYWORD,
    "RootRunId": KEYWORD,
}
"""Fields of the execution itself: nobody sets them."""

SETTABLE: Final[dict[str, int]] = {
    "TemporalChangeVersion": KEYWORD_LIST,
    "BinaryChecksums": KEYWORD_LIST,
    "BuildIds": KEYWORD_LIST,
    "BatcherNamespace": KEYWORD,
    "BatcherUser": KEYWORD,
    "TemporalScheduledStartTime": DATETIME,
    "TemporalScheduledById": KEYWORD,
    "TemporalSchedulePaused": BOOL,
    "TemporalNamespaceDivision": KEYWORD,
    "TemporalPauseInfo": KEYWORD_LIST,
    "TemporalReportedProblems": KEYWORD_LIST,
}
"""Of those that every namespace has, the ones that clients and workflows may set: SDKs and system workflows do."""

PREDEFINED: Final[dict[str, int]] = {
    **SETTABLE,
    "TemporalWorkerDeploymentVersion": KEYWORD,
    "TemporalWorkflowVersioningBehavior": KEYWORD,
    "TemporalWorkerDeployment": KEYWORD,
    "TemporalUsedWorkerDeploymentVersions": KEYWORD_LIST,
    "TemporalExternalPayloadCount": INT,
    "TemporalExternalPayloadSizeBytes": INT,
}
"""Stored along with a namespace's own search attributes."""

NAMESPACE_DIVISION: Final = "TemporalNamespaceDivision"

_INTERNAL_NAMES: Final = frozenset(("NamespaceId", "MemoEncoding", "Memo", "VisibilityTaskKey"))
_MIN_INT, _MAX_INT = -(1 << 63), (1 << 63) - 1
_RFC3339: Final = re.compile(r"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:[.,](\d+))?(Z|[+-]\d\d:\d\d)", re.ASCII)
_ONE_SECOND: Final = timedelta(seconds=1)
_WORD: Final = re.compile(r"[^\W_]+")


def is_reserved(name: str) -> bool:
    """True for a name that a namespace cannot take for a search attribute of its own."""
    return name in SYSTEM or name in PREDEFINED or name in _INTERNAL_NAMES or name.startswith("Temporal")


def parse_datetime(text: str) -> int:
    """Nanoseconds of an RFC 3339 time. Raises ValueError."""
    match = _RFC3339.fullmatch(text)
    if match is None:
        raise ValueError(f"not an RFC 3339 time: {text!r}")
    stamp, fraction, zone = match.groups()
    moment = datetime.fromisoformat(stamp + ("+00:00" if zone == "Z" else zone))
    seconds = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // _ONE_SECOND
    nanoseconds = int((fraction or "0")[:9].ljust(9, "0"))
    return min(max(seconds * SECOND + nanoseconds, _MIN_INT), _MAX_INT)


def format_datetime(ns: int) -> str:
    """RFC 3339, in UTC, with as many digits of the second as needed."""
    seconds, nanoseconds = divmod(ns, SECOND)
    moment = datetime(1970, 1, 1) + seconds * _ONE_SECOND
    fraction = f".{nanoseconds:09d}".rstrip("0") if nanoseconds else ""
    return f"{moment.isoformat()}{fraction}Z"


def tokenize(text: str) -> list[str]:
    """The words of a Text, by which it is found: letters and digits, without case and accents; each once, in order.
    It is done here rather than by a database's full-text search, so that each backend finds the same."""
    if not text.isascii():
        text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return list(dict.fromkeys(_WORD.findall(text.casefold())))


def metadata_type(payload: Payload) -> int:
    """The type that a payload says it has, 0 when it does not."""
    return _TYPES_BY_NAME.get(payload.metadata.get("type", b""), 0)


def _scalar(value: object, kind: int) -> Value | None:
    if value is None:
        return None
    if kind in (KEYWORD, TEXT):
        if isinstance(value, str):
            return value
    elif kind == BOOL:
        if isinstance(value, bool):
            return value
    elif kind == INT:
        if isinstance(value, int) and not isinstance(value, bool) and _MIN_INT <= value <= _MAX_INT:
            return value
    elif kind == DOUBLE:
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                return float(value)
            except OverflowError:
                raise ValueError("too large") from None
    elif kind == DATETIME and isinstance(value, str):
        return parse_datetime(value)
    raise ValueError(f"not a {TYPE_NAMES.get(kind, kind)}: {value!r}")


def decode_value(payload: Payload, kind: int) -> Value | None:
    """The value that is searched for. A list given for another type than KeywordList counts with its first element;
    an empty one is unset, as null is. Raises ValueError."""
    encoding = payload.metadata.get("encoding", b"")
    if encoding == b"binary/null":
        return None
    if encoding != b"json/plain":
        raise ValueError(f"unknown encoding {encoding!r}")
    try:
        value: object = msgspec.json.decode(payload.data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as e:
        raise ValueError(str(e)) from None
    if kind == KEYWORD_LIST:
        if value is None:
            return None
        if not isinstance(value, list):
            raise ValueError(f"not a list: {value!r}")
        items = [_scalar(item, KEYWORD) or "" for item in value]
        return [item for item in items if isinstance(item, str)] or None
    if isinstance(value, list):
        items = [_scalar(item, kind) for item in value]
        return items[0] if items else None
    return _scalar(value, kind)


def encode_value(value: Value | None, kind: int) -> Payload:
    """A json/plain payload with its type, as SDKs expect to find it in SearchAttributes and in groups of a count."""
    json: object = value
    if kind == DATETIME and isinstance(value, int):
        json = format_datetime(value)
    metadata = {"encoding": b"json/plain", "type": TYPE_NAMES[kind].encode()}
    return Payload(metadata=metadata, data=msgspec.json.encode(json))


def decode_stored(search_attributes: bytes) -> dict[str, tuple[int, Value]]:
    """Type and value by name, of serialized SearchAttributes whose payloads say their type. What is unset or cannot be
    read is left out: the run is worth listing without it."""
    if not search_attributes:
        return {}
    try:
        fields = SearchAttributes.FromString(search_attributes).indexed_fields
    except DecodeError:
        return {}
    values: dict[str, tuple[int, Value]] = {}
    for name, payload in fields.items():
        kind = PREDEFINED.get(name) or metadata_type(payload)
        try:
            value = decode_value(payload, kind)
        except ValueError:
            continue
        if value is not None:
            values[name] = (kind, value)
    return values


def with_types(search_attributes: SearchAttributes, custom: Mapping[str, int]) -> SearchAttributes:
    """A copy whose payloads say their type in their metadata; unknown names are left out."""
    typed = SearchAttributes()
    for name, payload in search_attributes.indexed_fields.items():
        kind = PREDEFINED.get(name) or custom.get(name)
        if kind is not None:
            target = typed.indexed_fields[name]
            target.CopyFrom(payload)
            target.metadata["type"] = TYPE_NAMES[kind].encode()
    return typed


def _shown(payload: Payload) -> str:
    """A refused value as Temporal prints it."""
    try:
        return _go_format(msgspec.json.decode(payload.data))
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return f"value from <{payload!s}>".replace("\n", " ")


def _go_format(value: object) -> str:
    if value is None:
        return "<nil>"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list):
        return f"[{' '.join(_go_format(item) for item in value)}]"
    if isinstance(value, dict):
        return f"map[{' '.join(f'{k}:{_go_format(v)}' for k, v in sorted(value.items()))}]"
    return str(value)


def validate(
    search_attributes: SearchAttributes,
    custom: Mapping[str, int],
    namespace: str,
    keys_limit: int = SA_KEYS_LIMIT.default,
    value_size_limit: int = SA_VALUE_SIZE_LIMIT.default,
    total_size_limit: int = SA_TOTAL_SIZE_LIMIT.default,
) -> None:
    """Whether a client or a workflow may set these. custom: the namespace's own ones and their types; namespace: its
    name, for the message. Raises ServiceError INVALID_ARGUMENT."""
    fields = search_attributes.indexed_fields
    if not fields:
        return
    for name in fields:
        if name not in custom and name not in SYSTEM and name not in PREDEFINED:
            raise _undefined(name, namespace)
    if len(fields) > keys_limit:
        raise invalid_argument(f"number of search attributes {len(fields)} exceeds limit {keys_limit}")
    for name, payload in fields.items():
        kind = SETTABLE.get(name)
        if kind is None:
            if name in SYSTEM or name in PREDEFINED:
                raise invalid_argument(f"{name} attribute can't be set in SearchAttributes")
            kind = custom[name]
        if len(payload.data) > value_size_limit:
            raise invalid_argument(
                f"search attribute {name} value size {len(payload.data)} exceeds size limit {value_size_limit}"
            )
        try:
            value = decode_value(payload, kind)
            if (isinstance(value, str) and "\0" in value) or (isinstance(value, list) and "\0" in "".join(value)):
                raise ValueError("U+0000")  # not every database can hold it
        except ValueError:
            raise invalid_argument(
                f"invalid value for search attribute {name} of type {TYPE_NAMES[kind]}: {_shown(payload)}"
            ) from None
    size = search_attributes.ByteSize()
    if size > total_size_limit:
        raise invalid_argument(f"total size of search attributes {size} exceeds size limit {total_size_limit}")


def _undefined(name: str, namespace: str) -> ServiceError:
    return invalid_argument(f"Namespace {namespace} has no mapping defined for search attribute {name}")


_STATUS_PREFIX: Final = "WORKFLOW_EXECUTION_STATUS_"
STATUS_NAMES: Final[dict[int, str]] = {
    number: "".join(part.capitalize() for part in name.removeprefix(_STATUS_PREFIX).split("_"))
    for name, number in WorkflowExecutionStatus.items()
}
"""As users write them: Running, ContinuedAsNew, …"""
STATUS_NUMBERS: Final[dict[str, int]] = {
    **{name: number for number, name in STATUS_NAMES.items()},
    **dict(WorkflowExecutionStatus.items()),
}
