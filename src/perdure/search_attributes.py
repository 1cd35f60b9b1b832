"""Search attributes: which there are by nature, and whether values fit their types.

Custom ones belong to a namespace (`Namespace.search_attributes`). A value is a JSON payload; its metadata "type" names
the type, as "Keyword". An absent value (null, an empty list, or an empty payload) removes the attribute.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from temporalio.api.common.v1 import Payload, SearchAttributes
from temporalio.api.enums.v1 import IndexedValueType

from perdure.config.dynamic import SA_KEYS_LIMIT, SA_TOTAL_SIZE_LIMIT, SA_VALUE_SIZE_LIMIT, DynamicConfig
from perdure.errors import invalid_argument

BOOL = IndexedValueType.INDEXED_VALUE_TYPE_BOOL
DATETIME = IndexedValueType.INDEXED_VALUE_TYPE_DATETIME
DOUBLE = IndexedValueType.INDEXED_VALUE_TYPE_DOUBLE
INT = IndexedValueType.INDEXED_VALUE_TYPE_INT
KEYWORD = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
KEYWORD_LIST = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD_LIST
TEXT = IndexedValueType.INDEXED_VALUE_TYPE_TEXT

# Kept by the server as properties of the run itself; a workflow cannot set them.
SYSTEM: dict[str, IndexedValueType.ValueType] = {
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

# Exist in every namespace, stored beside the custom ones; a workflow may set them.
PREDEFINED: dict[str, IndexedValueType.ValueType] = {
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

# As PREDEFINED, but set by the server only.
INTERNAL: dict[str, IndexedValueType.ValueType] = {
    "TemporalWorkerDeploymentVersion": KEYWORD,
    "TemporalWorkflowVersioningBehavior": KEYWORD,
    "TemporalWorkerDeployment": KEYWORD,
    "TemporalUsedWorkerDeploymentVersions": KEYWORD_LIST,
    "TemporalExternalPayloadCount": INT,
    "TemporalExternalPayloadSizeBytes": INT,
}

RESERVED_PREFIX = "Temporal"
_RESERVED = {"NamespaceId", "MemoEncoding", "Memo", "VisibilityTaskKey"}

# By type: its name in payload metadata and messages.
TYPE_NAMES: dict[int, str] = {
    TEXT: "Text",
    KEYWORD: "Keyword",
    INT: "Int",
    DOUBLE: "Double",
    BOOL: "Bool",
    DATETIME: "Datetime",
    KEYWORD_LIST: "KeywordList",
}
_TYPE_METADATA = {kind: name.encode() for kind, name in TYPE_NAMES.items()}

_RFC3339 = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")


def is_reserved(name: str) -> bool:
    """Whether a custom search attribute must not have this name."""
    return (
        name in SYSTEM
        or name in PREDEFINED
        or name in INTERNAL
        or name in _RESERVED
        or name.startswith(RESERVED_PREFIX)
    )


def validate(attributes: SearchAttributes, custom: Mapping[str, int], namespace: str, config: DynamicConfig) -> None:
    """Checks what a user or a workflow sets, and writes each value's type into its metadata. custom: of the namespace.
    Raises ServiceError INVALID_ARGUMENT."""
    fields = attributes.indexed_fields
    if not fields:
        return
    if len(fields) > (limit := config.get(SA_KEYS_LIMIT, namespace)):
        raise invalid_argument(f"number of search attributes {len(fields)} exceeds limit {limit}")
    value_limit = config.get(SA_VALUE_SIZE_LIMIT, namespace)
    for name, payload in fields.items():
        if name in SYSTEM or name in INTERNAL:
            raise invalid_argument(f"{name} attribute can't be set in SearchAttributes")
        kind = PREDEFINED.get(name) or custom.get(name)
        if kind is None:
            raise invalid_argument(f"search attribute {name} is not defined")
        try:
            decode(payload, kind)
        except ValueError:
            shown = payload.data[:200].decode(errors="replace")
            raise invalid_argument(
                f"invalid value for search attribute {name} of type {TYPE_NAMES[kind]}: {shown}"
            ) from None
        if (size := len(payload.data)) > value_limit:
            raise invalid_argument(f"search attribute {name} value size {size} exceeds size limit {value_limit}")
        payload.metadata["type"] = _TYPE_METADATA[kind]
    if (size := attributes.ByteSize()) > (limit := config.get(SA_TOTAL_SIZE_LIMIT, namespace)):
        raise invalid_argument(f"total size of search attributes {size} exceeds size limit {limit}")


def decode(payload: Payload, kind: int) -> Any:
    """The value of a payload as a bool, int, float, str, aware datetime or list of str; None if it is absent.
    A list of one value counts as that value. Raises ValueError when it does not fit the type."""
    encoding = payload.metadata.get("encoding", b"")
    if encoding == b"binary/null" or not payload.data:
        return None
    if encoding not in (b"json/plain", b""):
        raise ValueError("search attributes are JSON")
    value: Any = json.loads(payload.data, parse_constant=_refuse_constant)
    if kind == KEYWORD_LIST:
        items: list[Any] = value if isinstance(value, list) else [value]
        return [_str(item) for item in items] if value is not None and items else None
    if isinstance(value, list):
        if len(value) > 1:
            raise ValueError("a list of values is not allowed")
        value = value[0] if value else None
    return None if value is None else _CONVERT[kind](value)


def _refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def _str(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("not a string")
    if "\0" in value:
        raise ValueError("U+0000")
    value.encode()  # a lone surrogate is no text
    return value


def _int(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not -(2**63) <= value < 2**63:
        raise ValueError("not a whole number")
    return value


def _float(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("not a number")
    try:
        return float(value)
    except OverflowError:
        raise ValueError("too large") from None


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("not a bool")
    return value


def _datetime(value: Any) -> datetime:
    if not isinstance(value, str) or not _RFC3339.fullmatch(value):
        raise ValueError("not a time as RFC 3339 writes it")
    return datetime.fromisoformat(value)


_CONVERT: dict[int, Callable[[Any], Any]] = {
    BOOL: _bool,
    DATETIME: _datetime,
    DOUBLE: _float,
    INT: _int,
    KEYWORD: _str,
    TEXT: _str,
}
