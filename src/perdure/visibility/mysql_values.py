"""Values of search attributes as text whose order, byte by byte, is that of the values: one column holds all types."""

from __future__ import annotations

import struct
from typing import Final

from perdure.visibility.attributes import BOOL, DATETIME, DOUBLE, INT
from perdure.visibility.filter import And, Between, Comparison, Expr, In, Not, Or, Scalar
from perdure.visibility.sql import is_attribute
from perdure.visibility.typed import typed

_SIGN: Final = 1 << 63
_ALL: Final = (1 << 64) - 1


def as_text(kind: int, value: Scalar) -> str:
    """Of one type, the lesser text is the lesser value."""
    if kind in (INT, DATETIME, BOOL):
        return f"{int(value) + _SIGN:016x}"
    if kind == DOUBLE:
        bits: int = struct.unpack(">Q", struct.pack(">d", float(value) + 0.0))[0]  # -0.0 is 0.0
        return f"{bits ^ (_SIGN if bits < _SIGN else _ALL):016x}"
    assert isinstance(value, str)
    return value


def comparable(expr: Expr) -> Expr:
    """The same filter, with values of the types of their columns, and those of search attributes as text."""
    return _as_texts(typed(expr))


def _as_texts(expr: Expr) -> Expr:
    if isinstance(expr, And):
        return And(tuple(map(_as_texts, expr.parts)))
    if isinstance(expr, Or):
        return Or(tuple(map(_as_texts, expr.parts)))
    if isinstance(expr, Not):
        return Not(_as_texts(expr.part))
    if not is_attribute(expr.column):
        return expr
    column, kind = expr.column, expr.column.type
    if isinstance(expr, Comparison):
        return Comparison(column, expr.op, as_text(kind, expr.value))
    if isinstance(expr, In):
        return In(column, tuple(as_text(kind, value) for value in expr.values))
    if isinstance(expr, Between):
        return Between(column, as_text(kind, expr.low), as_text(kind, expr.high))
    return expr
