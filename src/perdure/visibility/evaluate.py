"""A list filter computed over a record, in plain Python: what a backend's SQL must agree with."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable
from typing import Any, Final

from perdure.visibility import attributes
from perdure.visibility.api import VisibilityRecord
from perdure.visibility.attributes import TEXT
from perdure.visibility.filter import (
    And,
    Between,
    Column,
    Comparison,
    Expr,
    Filter,
    Has,
    In,
    IsNull,
    Not,
    Or,
    StartsWith,
)

_COMPARE: Final[dict[str, Callable[[Any, Any], bool]]] = {
    "=": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}

# What an open run does not have yet is not set, whatever the record says.
_FIELDS: Final[dict[str, Callable[[VisibilityRecord], attributes.Value | None]]] = {
    "WorkflowId": lambda r: r.workflow_id,
    "RunId": lambda r: r.run_id,
    "WorkflowType": lambda r: r.workflow_type,
    "StartTime": lambda r: r.start_time,
    "ExecutionTime": lambda r: r.execution_time or r.start_time,
    "CloseTime": lambda r: r.close_time or None,
    "ExecutionStatus": lambda r: r.status,
    "TaskQueue": lambda r: r.task_queue,
    "HistoryLength": lambda r: r.history_length if r.close_time else None,
    "ExecutionDuration": lambda r: r.close_time - (r.execution_time or r.start_time) if r.close_time else None,
    "StateTransitionCount": lambda r: r.state_transition_count if r.close_time else None,
    "HistorySizeBytes": lambda r: r.history_size_bytes if r.close_time else None,
    "ParentWorkflowId": lambda r: r.parent_workflow_id or None,
    "ParentRunId": lambda r: r.parent_run_id or None,
    "RootWorkflowId": lambda r: r.root_workflow_id,
    "RootRunId": lambda r: r.root_run_id,
}


def evaluate(filter: Filter, record: VisibilityRecord) -> bool:
    """Whether the record is in the filter's result."""
    stored = attributes.decode_stored(record.search_attributes)

    def value_of(column: Column) -> attributes.Value | None:
        field = _FIELDS.get(column.field)
        if field is not None:
            return field(record)
        kind, value = stored.get(column.field, (0, None))
        return value if kind == column.type else None

    return _conjunction(_truth(part, value_of) for part in filter.conditions) is True


def _conjunction(truths: Iterable[bool | None]) -> bool | None:
    result: bool | None = True
    for truth in truths:
        if truth is False:
            return False
        if truth is None:
            result = None
    return result


def _negation(truth: bool | None) -> bool | None:
    return None if truth is None else not truth


def _truth(expr: Expr, value_of: Callable[[Column], attributes.Value | None]) -> bool | None:
    """True, False, or None when a value that it needs is not set."""
    if isinstance(expr, And):
        return _conjunction(_truth(part, value_of) for part in expr.parts)
    if isinstance(expr, Or):
        return _negation(_conjunction(_negation(_truth(part, value_of)) for part in expr.parts))
    if isinstance(expr, Not):
        return _negation(_truth(expr.part, value_of))
    value: Any = value_of(expr.column)
    if isinstance(expr, IsNull):
        return value is None
    if isinstance(expr, Has):
        if value is None:
            return False
        elements = attributes.tokenize(value) if expr.column.type == TEXT else value
        return any(wanted in elements for wanted in expr.values)
    if value is None:
        return None
    if isinstance(expr, Comparison):
        return _COMPARE[expr.op](value, expr.value)
    if isinstance(expr, In):
        return value in expr.values
    if isinstance(expr, Between):
        return expr.low <= value <= expr.high  # pyright: ignore[reportOperatorIssue]
    assert isinstance(expr, StartsWith)
    return value.startswith(expr.prefix)
