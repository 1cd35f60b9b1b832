"""Filters for databases whose columns have types: the same filter, so that each value has the type of its column.

`Num < 1.5` over a column of integers becomes `Num < 2`, `Dbl = 9007199254740993` is never true, since no double is that
integer, and so on: what a comparison in plain Python says, exactly, and no value is converted by the database. Texts
there hold no U+0000, so a value with one is compared by what comes before it.
"""

from __future__ import annotations

import math
from typing import Final

from perdure.visibility.attributes import BOOL, DATETIME, DOUBLE, INT
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

_MIN: Final = -(1 << 63)
_MAX: Final = (1 << 63) - 1
_BEYOND: Final = 1 << 80  # stands for an infinity


def is_integer(column: Column) -> bool:
    return column.type in (INT, DATETIME, BOOL) or column.field == "ExecutionStatus"


def typed(expr: Expr) -> Expr:
    """Comparisons with values of the column's type only: int (also for Bool and ExecutionStatus) within 64 bits, float,
    or str without U+0000."""
    if isinstance(expr, And):
        return And(tuple(map(typed, expr.parts)))
    if isinstance(expr, Or):
        return Or(tuple(map(typed, expr.parts)))
    if isinstance(expr, Not):
        return Not(typed(expr.part))
    if isinstance(expr, IsNull):
        return expr
    column = expr.column
    if isinstance(expr, Has):
        values = tuple(value for value in expr.values if "\0" not in value)
        if not values and expr.values:
            return And((Not(IsNull(column)), IsNull(column)))  # never, also where nothing is set
        return Has(column, values)
    if isinstance(expr, Between):
        return And((_comparison(column, ">=", expr.low), _comparison(column, "<=", expr.high)))
    if isinstance(expr, StartsWith):
        return _never(column) if "\0" in expr.prefix else expr
    if isinstance(expr, In):
        found = [_comparison(column, "=", value) for value in expr.values]
        values = tuple(c.value for c in found if c.op == "=")
        return In(column, values) if values else _never(column)
    return _comparison(column, expr.op, expr.value)


def _least(column: Column) -> Scalar:
    if is_integer(column):
        return _MIN
    return -math.inf if column.type == DOUBLE else ""


def _never(column: Column) -> Comparison:
    """False where the column is set."""
    return Comparison(column, "<", _least(column))


def _always(column: Column) -> Comparison:
    """True where the column is set."""
    return Comparison(column, ">=", _least(column))


def _comparison(column: Column, op: str, value: Scalar) -> Comparison:
    if isinstance(value, str):
        return _text(column, op, value)
    if is_integer(column):
        return _integer(column, op, value)
    return _double(column, op, value)


def _text(column: Column, op: str, value: str) -> Comparison:
    end = value.find("\0")
    if end < 0:
        return Comparison(column, op, value)
    # A text without U+0000 is less than this one just when it is not greater than its beginning.
    match op:
        case "=":
            return _never(column)
        case "!=":
            return _always(column)
        case "<" | "<=":
            return Comparison(column, "<=", value[:end])
        case _:
            return Comparison(column, ">", value[:end])


def _integer(column: Column, op: str, value: int | float) -> Comparison:
    if isinstance(value, float) and math.isinf(value):
        value = _BEYOND if value > 0 else -_BEYOND
    low, high = math.floor(value), math.ceil(value)
    match op:
        case "=" | "!=":
            if low == high and _MIN <= low <= _MAX:
                return Comparison(column, op, low)
            return _never(column) if op == "=" else _always(column)
        case "<" | ">=":
            bound = high
        case _:
            bound = low
    if _MIN <= bound <= _MAX:
        return Comparison(column, op, bound)
    above = bound > _MAX
    return _always(column) if above == (op in ("<", "<=")) else _never(column)


def _double(column: Column, op: str, value: int | float) -> Comparison:
    try:
        near = float(value)
    except OverflowError:
        near = math.inf if value > 0 else -math.inf
    if near == value:
        return Comparison(column, op, near)
    # No double lies between the integer and the one that is nearest to it.
    match op:
        case "=":
            return _never(column)
        case "!=":
            return _always(column)
        case "<" | "<=":
            return Comparison(column, "<" if near > value else "<=", near)
        case _:
            return Comparison(column, ">=" if near > value else ">", near)
