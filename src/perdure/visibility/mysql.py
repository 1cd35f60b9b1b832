"""Visibility in MySQL and MariaDB, in the store's database: its writes join the groups of everything else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Any, Final

from perdure import tokens
from perdure.persistence.keys import run_key
from perdure.persistence.mysql.database import Asks, Batch, Database, Delete, Found, Insert, Lookup
from perdure.persistence.mysql.sql import Value, bind, quote
from perdure.visibility import attributes, sql
from perdure.visibility.api import CountGroup, CountResult, Page, VisibilityRecord
from perdure.visibility.attributes import NAMESPACE_DIVISION
from perdure.visibility.filter import (
    DIVISION_COLUMN,
    Column,
    Comparison,
    Expr,
    Has,
    In,
    IsNull,
    Not,
    Scalar,
    StartsWith,
    invalid_query,
    parse,
)
from perdure.visibility.mysql_values import as_text, comparable
from perdure.visibility.rows import FIELDS, GROUPED_BY, PageToken, decode_token, indexed, record_of
from perdure.visibility.sql import OPEN

_LONGEST_NAME: Final = 1000
_LONGEST_DIVISION: Final = 4096

_VISIBILITY: Final = Lookup(9, "visibility", "id", "version, search_attributes <> ''")

_COLUMNS: Final = (
    "version", "namespace", "hidden", "run_id", "workflow_id", "workflow_type", "task_queue", "status", "start_time",
    "execution_time", "close_key", "history_length", "history_size_bytes", "state_transition_count",
    "parent_workflow_id", "parent_run_id", "root_workflow_id", "root_run_id", "division", "memo", "search_attributes",
)  # fmt: skip
_OLD_ATTRIBUTES: Final = Delete(20, "visibility_attributes")
_GONE: Final = Delete(21, "visibility")
_RECORD: Final = Insert(22, "visibility", ", ".join(("id", *_COLUMNS)), _COLUMNS)
_ATTRIBUTE: Final = Insert(
    23, "visibility_attributes", "run, name, item, value, namespace, close_key, start_time, run_id"
)

# Where `rows.FIELDS` has text.
_TEXT_FIELDS: Final = frozenset((0, 1, 3, 4, 14, 15, 16, 17))


class MysqlVisibility:
    """A `perdure.visibility.api.VisibilityStore` over a store's database, whose tables `open_store` has made. Also what
    `MysqlStore.carry_visibility` takes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def prepare(self, record: VisibilityRecord) -> _Upsert:
        return _Upsert(record)

    # --- writes ------------------------------------------------------------------------------------------------------

    async def upsert(self, record: VisibilityRecord) -> None:
        write = _Upsert(record)
        await self._database.submit(write, (write.key,), write.size)

    async def delete(self, namespace_id: str, run_id: str, version: int) -> None:
        """Does nothing to a record of a greater version."""
        key = run_key(namespace_id, "", run_id)
        await self._database.submit(_Delete(key, version), (key,), 0)

    # --- reads -------------------------------------------------------------------------------------------------------

    async def list(self, namespace_id: str, query: str, custom: dict[str, int], page_size: int, token: bytes) -> Page:
        filter = parse(query, custom)
        if filter.group_by is not None:
            raise invalid_query("operation is not supported: 'GROUP BY' clause in a list, only in a count")
        plan = _Plan(namespace_id, filter.conditions, None)
        if token:
            plan.start_after(decode_token(token))
        (rows,) = await self._database.read_by_filter(
            plan.statement(f"SELECT {FIELDS}", f"ORDER BY {plan.order} LIMIT {page_size + 1}")
        )
        records = [_record(namespace_id, row) for row in rows[:page_size]]
        if len(rows) <= page_size:
            return Page(records, b"")
        last = PageToken(close_key=rows[page_size - 1][8], start_time=records[-1].start_time, run_id=records[-1].run_id)
        return Page(records, tokens.encode(last))

    async def count(self, namespace_id: str, query: str, custom: dict[str, int]) -> CountResult:
        """Groups have one value each: the status's name, or the division (None: none)."""
        filter = parse(query, custom)
        group_by = filter.group_by
        plan = _Plan(namespace_id, filter.conditions, group_by)
        if group_by is None:
            (rows,) = await self._database.read_by_filter(plan.statement("SELECT COUNT(*)", ""))
            return CountResult(rows[0][0])
        key = GROUPED_BY[group_by.field]
        (rows,) = await self._database.read_by_filter(
            plan.statement(f"SELECT {key}, COUNT(*)", f"GROUP BY {key} ORDER BY {key}")
        )
        result = CountResult(sum(count for _, count in rows))
        by_status = group_by.field == "ExecutionStatus"
        for value, count in rows:
            name = attributes.STATUS_NAMES.get(value, value) if by_status else _text(value)
            result.groups.append(CountGroup([name], count))
        return result

    async def get(self, namespace_id: str, run_id: str) -> VisibilityRecord | None:
        statement = f"SELECT {FIELDS} FROM visibility v WHERE v.id = ?"
        (rows,) = await self._database.read(bind(statement, run_key(namespace_id, "", run_id)))
        return _record(namespace_id, rows[0]) if rows else None


def _namespace(namespace_id: str) -> bytes:
    return blake2b(namespace_id.encode(), digest_size=16).digest()


def _item(text: str) -> bytes:
    return blake2b(text.encode(), digest_size=16).digest()


# --- writing ---------------------------------------------------------------------------------------------------------


class _Upsert:
    __slots__ = ("_attributes", "_row", "_version", "key", "size")

    def __init__(self, record: VisibilityRecord) -> None:
        self.key = run_key(record.namespace_id, "", record.run_id)
        self._version = record.version
        values = attributes.decode_stored(record.search_attributes) if record.search_attributes else {}
        self._row = _row(record, self.key, values)
        self._attributes = _attribute_rows(record, self.key, values)
        self.size = len(self._row) + sum(map(len, self._attributes))

    def ask(self, asks: Asks) -> None:
        asks.setdefault(_VISIBILITY, {})[quote(self.key)] = None

    def apply(self, found: Found, batch: Batch) -> None:
        row = found[_VISIBILITY].get(self.key)
        if row is not None:
            if row[1] > self._version:
                return
            if row[2]:
                batch.setdefault(_OLD_ATTRIBUTES, []).append(b"(run=%s)" % quote(self.key))
        batch.setdefault(_RECORD, []).append(self._row)
        if self._attributes:
            batch.setdefault(_ATTRIBUTE, []).extend(self._attributes)


class _Delete:
    __slots__ = ("_key", "_version")

    def __init__(self, key: bytes, version: int) -> None:
        self._key = key
        self._version = version

    def ask(self, asks: Asks) -> None:
        asks.setdefault(_VISIBILITY, {})[quote(self._key)] = None

    def apply(self, found: Found, batch: Batch) -> None:
        row = found[_VISIBILITY].get(self._key)
        if row is not None and row[1] <= self._version:
            key = quote(self._key)
            batch.setdefault(_OLD_ATTRIBUTES, []).append(b"(run=%s)" % key)
            batch.setdefault(_GONE, []).append(b"(id=%s)" % key)


def _row(r: VisibilityRecord, key: bytes, values: Mapping[str, tuple[int, attributes.Value]]) -> bytes:
    division: Any = values.get(NAMESPACE_DIVISION, (0, None))[1]
    closed = r.close_time != 0
    row: tuple[Value, ...] = (
        key,
        r.version,
        _namespace(r.namespace_id),
        division is not None,
        r.run_id,
        r.workflow_id,
        r.workflow_type,
        r.task_queue,
        r.status,
        r.start_time,
        r.execution_time or r.start_time,
        r.close_time if closed else OPEN,
        r.history_length if closed else None,
        r.history_size_bytes if closed else None,
        r.state_transition_count if closed else None,
        r.parent_workflow_id or None,
        r.parent_run_id or None,
        r.root_workflow_id,
        r.root_run_id,
        None if division is None else division.encode()[:_LONGEST_DIVISION],
        r.memo,
        r.search_attributes,
    )
    return b"(%s)" % b",".join(map(quote, row))


def _attribute_rows(
    r: VisibilityRecord, key: bytes, values: Mapping[str, tuple[int, attributes.Value]]
) -> Sequence[bytes]:
    rows: list[bytes] = []
    start = quote(key)
    end = b",".join(map(quote, (_namespace(r.namespace_id), r.close_time or OPEN, r.start_time, r.run_id)))
    for name, (kind, value) in values.items():
        column = sql.attribute_key(kind, name)
        if name == NAMESPACE_DIVISION or len(column.encode()) > _LONGEST_NAME:
            continue
        for scalar in indexed(kind, value):
            text = as_text(kind, scalar)
            rows.append(b"(%s,%s,%s,%s,%s)" % (start, quote(column), quote(_item(text)), quote(text), end))
    return rows


# --- reading ---------------------------------------------------------------------------------------------------------


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode(errors="replace")


def _record(namespace_id: str, row: Sequence[Any]) -> VisibilityRecord:
    return record_of(
        namespace_id, [_text(field) if place in _TEXT_FIELDS else field for place, field in enumerate(row)]
    )


class _Literals:
    """Values in their place: a statement is text of the code points 0 to 255, one a byte, until it is sent."""

    def add(self, value: Scalar) -> str:
        return quote(value).decode("latin-1")

    def value_column(self, kind: int) -> str:
        return "value"


# Which index leads to few runs when a filter asks for one value of a field.
_NARROW: Final = {"WorkflowId": "by_workflow", "ParentWorkflowId": "by_parent"}


class _Plan:
    """FROM, WHERE and ORDER BY of a filter. An index is chosen here where it surely leaves few runs, or has the runs of
    a filter in order; else the server estimates."""

    def __init__(self, namespace_id: str, conditions: Sequence[Expr], group_by: Column | None) -> None:
        literals = _Literals()
        self._add = literals.add
        conditions = [comparable(condition) for condition in conditions]
        self._leader = "v"
        namespace = quote(_namespace(namespace_id)).decode("latin-1")
        parts: list[str] = []
        equal = {c.column.field for c in conditions if isinstance(c, Comparison) and c.op == "="}
        narrow = next((index for field, index in _NARROW.items() if field in equal), None)
        if "RunId" in equal:
            self._tables = "visibility v FORCE INDEX (PRIMARY)"
            for c in conditions:
                if isinstance(c, Comparison) and c.op == "=" and c.column.field == "RunId":
                    key = quote(run_key(namespace_id, "", str(c.value))).decode("latin-1")
                    parts.append(f"v.id = {key}")
        elif narrow is not None:
            self._tables = f"visibility v FORCE INDEX ({narrow})"
        elif (driving := sql.driving_condition(conditions)) is not None:
            condition = conditions.pop(driving)
            assert isinstance(condition, Comparison | Has)
            value = condition.value if isinstance(condition, Comparison) else condition.values[0]
            name = self._add(sql.attribute_key(condition.column.type, condition.column.field))
            item = quote(_item(str(value))).decode("latin-1")
            self._leader = "d"
            self._tables = (
                "visibility_attributes d FORCE INDEX (by_attribute) STRAIGHT_JOIN visibility v ON v.id = d.run"
            )
            parts.append(f"d.namespace = {namespace} AND d.name = {name} AND d.item = {item}")
        else:
            index = self._ordered_index(conditions, equal, group_by)
            self._tables = f"visibility v FORCE INDEX ({index})" if index else "visibility v"
        parts.append(f"v.namespace = {namespace}")
        division = self._in_division(conditions)
        if division is not None:
            parts.append(f"v.hidden = {division}")
        if conditions:
            parts.append(sql.render_all(conditions, literals))
        for condition in conditions:
            self._bound_order(condition, parts)
        self._where = parts
        self.order = f"{self._leader}.close_key DESC, {self._leader}.start_time DESC, {self._leader}.run_id"

    def statement(self, select: str, end: str) -> bytes:
        return f"{select} FROM {self._tables} WHERE {' AND '.join(self._where)} {end}".encode("latin-1")

    def start_after(self, token: PageToken) -> None:
        leader = self._leader
        close_key, start_time, run_id = map(self._add, (token.close_key, token.start_time, token.run_id))
        self._where.append(
            f"{leader}.close_key <= {close_key} AND ({leader}.close_key < {close_key}"
            f" OR {leader}.start_time < {start_time}"
            f" OR ({leader}.start_time = {start_time} AND {leader}.run_id > {run_id}))"
        )

    @staticmethod
    def _in_division(conditions: Sequence[Expr]) -> int | None:
        """Whether all that is found is in a division (1) or in none (0)."""
        for condition in conditions:
            if condition == IsNull(DIVISION_COLUMN):
                return 0
            if condition == Not(IsNull(DIVISION_COLUMN)):
                return 1
            if isinstance(condition, Comparison | In | StartsWith) and condition.column.field == NAMESPACE_DIVISION:
                return 1
        return None

    def _bound_order(self, condition: Expr, parts: list[str]) -> None:
        """Says what a condition on the close time means for the order, so that the index starts and ends there."""
        key = f"{self._leader}.close_key"
        if isinstance(condition, Not) and isinstance(condition.part, IsNull):
            if condition.part.column.field == "CloseTime":
                parts.append(f"{key} < {OPEN}")
        elif isinstance(condition, IsNull):
            if condition.column.field == "CloseTime":
                parts.append(f"{key} = {OPEN}")
        elif isinstance(condition, Comparison) and condition.column.field == "CloseTime" and condition.op != "!=":
            parts.append(f"{key} {condition.op} {self._add(condition.value)}")

    @staticmethod
    def _ordered_index(conditions: Sequence[Expr], equal: set[str], group_by: Column | None) -> str | None:
        if any(isinstance(c, Comparison) and c.column.field == "StartTime" for c in _flat(conditions)):
            return None
        if "WorkflowType" in equal:
            return "by_type"
        if "ExecutionStatus" in equal or (group_by is not None and group_by.field == "ExecutionStatus"):
            return "by_status"
        return None


def _flat(conditions: Sequence[Expr]) -> Sequence[Expr]:
    """With the parts of those that became two."""
    flat: list[Expr] = []
    for condition in conditions:
        parts = getattr(condition, "parts", None)
        flat += parts if parts is not None else [condition]
    return flat
