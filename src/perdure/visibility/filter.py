"""Temporal's list filter: the condition of a WHERE clause, over search attributes.

`parse` turns the text into the small tree below, where names are resolved and values have the type of what they are
compared with. The tree is all that a backend sees: `perdure.visibility.sql` renders it with bound parameters,
`perdure.visibility.evaluate` computes it over a record.

Logic is that of SQL: a comparison with something that is not set is neither true nor false, and neither is its NOT.
Only lists (KeywordList) and Texts are compared in two values: one that is not set contains nothing.

Limits: MAX_LENGTH characters, MAX_TOKENS words and signs, MAX_DEPTH nested parentheses and NOTs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from perdure.errors import ServiceError, invalid_argument
from perdure.visibility.attributes import KEYWORD, NAMESPACE_DIVISION, PREDEFINED, SYSTEM

MAX_LENGTH: Final = 64 * 1024
MAX_TOKENS: Final = 4096
MAX_DEPTH: Final = 30

Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Column:
    """name: as the user wrote it. field: the search attribute that it stands for. type: an IndexedValueType."""

    name: str
    field: str
    type: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """op: one of = != < <= > >=. ExecutionStatus is compared by number, times and durations in nanoseconds."""

    column: Column
    op: str
    value: Scalar


@dataclass(frozen=True, slots=True)
class In:
    column: Column
    values: tuple[Scalar, ...]


@dataclass(frozen=True, slots=True)
class Between:
    """Both ends belong to it."""

    column: Column
    low: Scalar
    high: Scalar


@dataclass(frozen=True, slots=True)
class StartsWith:
    column: Column
    prefix: str


@dataclass(frozen=True, slots=True)
class Has:
    """A KeywordList has any of these elements, or a Text any of these words."""

    column: Column
    values: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class IsNull:
    column: Column


@dataclass(frozen=True, slots=True)
class Not:
    part: Expr


@dataclass(frozen=True, slots=True)
class And:
    parts: tuple[Expr, ...]


@dataclass(frozen=True, slots=True)
class Or:
    parts: tuple[Expr, ...]


Expr = Comparison | In | Between | StartsWith | Has | IsNull | Not | And | Or


@dataclass(frozen=True, slots=True)
class Filter:
    """conditions: all must hold. group_by: for counts only."""

    conditions: tuple[Expr, ...]
    group_by: Column | None = None


DIVISION_COLUMN: Final = Column(NAMESPACE_DIVISION, NAMESPACE_DIVISION, KEYWORD)
_HIDE_DIVISIONS: Final = IsNull(DIVISION_COLUMN)
_ALL: Final = Filter((_HIDE_DIVISIONS,))


def invalid_query(message: str) -> ServiceError:
    return invalid_argument(f"invalid query: {message}")


def resolve(name: str, custom: Mapping[str, int]) -> Column | None:
    """The search attribute that a name in a filter stands for: a custom one, else one that every namespace has, else
    ScheduleId, else one whose prefix `Temporal` was left out or added."""
    kind = SYSTEM.get(name) or PREDEFINED.get(name) or custom.get(name)
    if kind:
        return Column(name, name, kind)
    bare = name.removeprefix("Temporal")
    if bare == "ScheduleId":
        return Column(name, "WorkflowId", KEYWORD)
    field = bare if bare != name else f"Temporal{name}"
    kind = SYSTEM.get(field) or PREDEFINED.get(field) or custom.get(field)
    return Column(name, field, kind) if kind else None


def parse(query: str, custom: Mapping[str, int]) -> Filter:
    """custom: the namespace's own search attributes and their types. Executions in a namespace division (schedules,
    batches, …) are hidden from a filter that does not name TemporalNamespaceDivision.

    Raises ServiceError INVALID_ARGUMENT that says what is wrong where."""
    if not query or query.isspace():
        return _ALL
    if len(query) > MAX_LENGTH:
        raise invalid_query(f"the filter has {len(query)} characters, more than {MAX_LENGTH}")
    # Imported when first needed: the parser costs a tenth of a second, which the server's start need not wait for.
    from perdure.visibility.grammar import Grammar

    grammar = Grammar(query, custom)
    where, group_by = grammar.parse()
    conditions: tuple[Expr, ...] = where.parts if isinstance(where, And) else (where,) if where else ()
    if not grammar.names_division:
        conditions = (_HIDE_DIVISIONS, *conditions)
    return Filter(conditions, group_by)
