"""List filters as SQL conditions. Every value that a user gave is a bound parameter; names of columns come from a table
here, and names of search attributes are bound too.

The tables: `visibility` (alias v), a row a run, and `visibility_attributes` (alias a), a row for each value of a
search attribute: one for a scalar, one for each element of a KeywordList, one for each word of a Text and one more,
"", that says it is set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Protocol

from perdure.visibility.attributes import KEYWORD_LIST, NAMESPACE_DIVISION, TEXT
from perdure.visibility.filter import (
    And,
    Between,
    Column,
    Comparison,
    Expr,
    Has,
    In,
    IsNull,
    Not,
    Or,
    Scalar,
    StartsWith,
)

OPEN: Final = (1 << 63) - 1
"""The close_key of a run that is not closed: it comes before all others."""

COLUMNS: Final[dict[str, str]] = {
    "WorkflowId": "v.workflow_id",
    "RunId": "v.run_id",
    "WorkflowType": "v.workflow_type",
    "StartTime": "v.start_time",
    "ExecutionTime": "v.execution_time",
    "CloseTime": f"nullif(v.close_key, {OPEN})",
    "ExecutionStatus": "v.status",
    "TaskQueue": "v.task_queue",
    "HistoryLength": "v.history_length",
    "ExecutionDuration": f"(nullif(v.close_key, {OPEN}) - v.execution_time)",
    "StateTransitionCount": "v.state_transition_count",
    "HistorySizeBytes": "v.history_size_bytes",
    "ParentWorkflowId": "v.parent_workflow_id",
    "ParentRunId": "v.parent_run_id",
    "RootWorkflowId": "v.root_workflow_id",
    "RootRunId": "v.root_run_id",
    NAMESPACE_DIVISION: "v.division",
}

_EXISTS: Final = "EXISTS (SELECT 1 FROM visibility_attributes a WHERE a.run = v.id AND a.name = {name}{value}{end})"
_VALUE: Final = "(SELECT a.{column} FROM visibility_attributes a WHERE a.run = v.id AND a.name = {name})"


class Parameters(Protocol):
    """How a database takes bound values. SQLite and MySQL put a mark, PostgreSQL a number.

    It may have `exists_end`, which is then written at the end of each EXISTS."""

    def add(self, value: Scalar) -> str:
        """Keeps the value; answers the placeholder to write in its place."""
        ...

    def value_column(self, kind: int) -> str:
        """The column of `visibility_attributes` that holds values of a type."""
        ...


class QmarkParameters:
    """`?`, in the order of the text."""

    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: list[Scalar] = []

    def add(self, value: Scalar) -> str:
        self.values.append(value)
        return "?"

    def value_column(self, kind: int) -> str:
        return "value"


def attribute_key(kind: int, name: str) -> str:
    """What `visibility_attributes.name` holds: the type too, so that an attribute that was removed and added again
    with another type does not meet its old values."""
    return f"{kind}{name}"


def is_attribute(column: Column) -> bool:
    """Whether its values are in `visibility_attributes`."""
    return column.field not in COLUMNS


def render_all(conditions: Sequence[Expr], parameters: Parameters) -> str:
    """All of them, joined by AND, as one expression in parentheses."""
    return _joined(conditions, "AND", parameters)


def render(expr: Expr, parameters: Parameters) -> str:
    """An expression that can stand as an operand of AND, OR and NOT."""
    if isinstance(expr, And):
        return _joined(expr.parts, "AND", parameters)
    if isinstance(expr, Or):
        return _joined(expr.parts, "OR", parameters)
    if isinstance(expr, Not):
        return f"(NOT {render(expr.part, parameters)})"
    column = expr.column
    if isinstance(expr, IsNull):
        if is_attribute(column):
            return f"(NOT {_exists(column, parameters)})"
        return f"({COLUMNS[column.field]} IS NULL)"
    if isinstance(expr, Has):
        return _exists(column, parameters, expr.values)
    operand = _operand(column, parameters)
    if isinstance(expr, Comparison):
        operator = "<>" if expr.op == "!=" else expr.op
        return f"({operand} {operator} {parameters.add(expr.value)})"
    if isinstance(expr, In):
        return f"({operand} IN ({_list(expr.values, parameters)}))"
    if isinstance(expr, Between):
        low = parameters.add(expr.low)
        return f"({operand} BETWEEN {low} AND {parameters.add(expr.high)})"
    return _starts_with(expr, operand, parameters)


def _starts_with(expr: StartsWith, operand: str, parameters: Parameters) -> str:
    """As a range, which an index serves and which needs no escapes, as a pattern would."""
    condition = f"({operand} >= {parameters.add(expr.prefix)}"
    end = after_prefix(expr.prefix)
    if end is None:
        return f"{condition})"
    operand = _operand(expr.column, parameters)
    return f"{condition} AND {operand} < {parameters.add(end)})"


def after_prefix(prefix: str) -> str | None:
    """The least string, by code points, that is greater than all that start with the prefix; None: there is none."""
    for i in range(len(prefix) - 1, -1, -1):
        code = ord(prefix[i])
        if code < 0x10FFFF:
            # Surrogates are no characters: what follows U+D7FF is U+E000.
            return prefix[:i] + chr(0xE000 if code == 0xD7FF else code + 1)
    return None


def _operand(column: Column, parameters: Parameters) -> str:
    name = COLUMNS.get(column.field)
    if name is not None:
        return name
    key = parameters.add(attribute_key(column.type, column.field))
    return _VALUE.format(column=parameters.value_column(column.type), name=key)


def _exists(column: Column, parameters: Parameters, values: Sequence[str] = ()) -> str:
    name = parameters.add(attribute_key(column.type, column.field))
    value = f" AND a.{parameters.value_column(column.type)} IN ({_list(values, parameters)})" if values else ""
    return _EXISTS.format(name=name, value=value, end=getattr(parameters, "exists_end", ""))


def _list(values: Sequence[Scalar], parameters: Parameters) -> str:
    return ", ".join([parameters.add(value) for value in values])


def _joined(parts: Sequence[Expr], operator: str, parameters: Parameters) -> str:
    """Balanced rather than in a row: databases limit the depth of an expression, and a OR b OR c … is as deep as it is
    long."""
    if len(parts) == 1:
        return render(parts[0], parameters)
    middle = len(parts) // 2
    left = _joined(parts[:middle], operator, parameters)
    return f"({left} {operator} {_joined(parts[middle:], operator, parameters)})"


def driving_condition(conditions: Sequence[Expr]) -> int | None:
    """Which of the conditions, if any, is one value of a search attribute: the index of values then leads to the runs,
    in the order of a list."""
    for i, condition in enumerate(conditions):
        if isinstance(condition, Comparison):
            if condition.op == "=" and is_attribute(condition.column):
                return i
        elif (
            isinstance(condition, Has) and len(condition.values) == 1 and condition.column.type in (KEYWORD_LIST, TEXT)
        ):
            return i
    return None
