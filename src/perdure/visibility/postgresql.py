"""Visibility in PostgreSQL, in the store's database: `PostgresVisibility(store.database)`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final

import asyncpg

from perdure import tokens
from perdure.persistence.api import StoreError
from perdure.persistence.groups import Groups, Item
from perdure.persistence.postgresql.database import Database, one_line, placeholders
from perdure.visibility import attributes, sql
from perdure.visibility.api import CountGroup, CountResult, Page, VisibilityRecord
from perdure.visibility.attributes import BOOL, DATETIME, DOUBLE, INT, NAMESPACE_DIVISION
from perdure.visibility.filter import (
    And,
    Between,
    Comparison,
    Expr,
    Has,
    In,
    IsNull,
    Not,
    Or,
    Scalar,
    invalid_query,
    parse,
)
from perdure.visibility.postgresql_schema import PREFIX, UPSERT_PARAMETERS
from perdure.visibility.rows import FIELDS, GROUPED_BY, PageToken, decode_token, indexed, record_of
from perdure.visibility.sql import OPEN
from perdure.visibility.typed import typed

_PARAMETERS: Final = len(re.findall(r"\w_\w+", UPSERT_PARAMETERS))
_UPSERT: Final = f"SELECT upsert_visibility({placeholders(1, _PARAMETERS)})"
# In a deletion that is newer than the record, its attributes go after its row is locked.
_DELETE: Final = """
WITH gone AS (DELETE FROM visibility WHERE namespace = $1 AND run_id = $2 AND version <= $3 RETURNING id)
DELETE FROM visibility_attributes USING gone WHERE run = gone.id
"""
_NUMBER: Final = """
WITH made AS (
    INSERT INTO visibility_namespaces (namespace_id) VALUES ($1) ON CONFLICT DO NOTHING RETURNING number
)
SELECT number FROM made UNION ALL SELECT number FROM visibility_namespaces WHERE namespace_id = $1
"""
_NO_NAMESPACE: Final = -1

_FEW: Final = 8
"""Up to as many conditions, PostgreSQL may make joins of them."""


class _Parameters:
    """`$1`, `$2`, … with their types, since PostgreSQL would guess others."""

    __slots__ = ("exists_end", "values")

    def __init__(self, many: bool) -> None:
        self.values: list[Any] = []
        # PostgreSQL makes joins of EXISTS, and looks for the best order of them: many of them would take it minutes.
        # It leaves those alone that have an OFFSET.
        self.exists_end = " OFFSET 0" if many else ""

    def add(self, value: Scalar) -> str:
        if isinstance(value, bool):
            value = int(value)
        self.values.append(value)
        kind = "text" if isinstance(value, str) else "bigint" if isinstance(value, int) else "double precision"
        return f"${len(self.values)}::{kind}"

    def value_column(self, kind: int) -> str:
        if kind in (INT, DATETIME, BOOL):
            return "integer_value"
        return "double_value" if kind == DOUBLE else "text_value"


class PostgresVisibility:
    """A `perdure.visibility.api.VisibilityStore`. A store that carries it (`store.carry_visibility`) writes records
    with its commits."""

    function: str = "commit_group_with_visibility"
    parameters: int = _PARAMETERS

    def __init__(self, database: Database) -> None:
        self._database = database
        self._namespaces: dict[str, int] = {}
        self._upserts: Groups[VisibilityRecord] = Groups(self._send)
        database.before_closing(self._upserts.drain)

    async def upsert(self, record: VisibilityRecord) -> None:
        self._database.check_open()
        await self._upserts.submit(record, ((record.namespace_id, record.run_id),), len(record.memo))

    async def _send(self, items: list[Item[VisibilityRecord]]) -> None:
        try:
            await self._database.write_group(_UPSERT, await self.arguments([item.write for item in items]))
        except asyncpg.PostgresError as e:  # one of them cannot be written
            if len(items) == 1:
                items[0].fail(StoreError(one_line(e)))
                return
            await self._send(items[: len(items) // 2])
            await self._send(items[len(items) // 2 :])
        except StoreError as e:
            for item in items:
                item.fail(e)
        else:
            for item in items:
                item.succeed()

    async def arguments(self, records: Sequence[VisibilityRecord]) -> Sequence[Sequence[object]]:
        """Of the function `upsert_visibility`. Numbers the namespaces of the records first."""
        for record in records:
            if record.namespace_id not in self._namespaces:
                rows = await self._database.write_group(_NUMBER, (record.namespace_id,))
                while not rows:  # another process was making it, and has by now
                    rows = await self._database.write_group(_NUMBER, (record.namespace_id,))
                self._namespaces[record.namespace_id] = rows[0][0]
        if len(records) > 1:
            last = {(record.namespace_id, record.run_id): record for record in records}
            records = list(last.values())
        written: list[tuple[object, ...]] = []
        values: list[tuple[object, ...]] = []
        for r in records:
            namespace = self._namespaces[r.namespace_id]
            found = attributes.decode_stored(r.search_attributes) if r.search_attributes else {}
            closed = r.close_time != 0
            written.append(
                (
                    namespace,
                    r.run_id,
                    r.version,
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
                    found[NAMESPACE_DIVISION][1] if NAMESPACE_DIVISION in found else None,
                    r.memo,
                    r.search_attributes,
                )
            )
            for name, (kind, value) in found.items():
                if name == NAMESPACE_DIVISION:
                    continue
                key = sql.attribute_key(kind, name)
                for item in indexed(kind, value):
                    text = integer = double = None
                    if isinstance(item, str):
                        text = item
                    elif kind == DOUBLE:
                        double = float(item)
                    else:
                        integer = int(item)
                    values.append((namespace, r.run_id, key, text, integer, double))
        return [*zip(*written, strict=True), *(zip(*values, strict=True) if values else ((),) * 6)]

    async def _namespace(self, namespace_id: str) -> int:
        """_NO_NAMESPACE when nothing was ever written to this one."""
        found = self._namespaces.get(namespace_id)
        if found is None:
            rows = await self._database.read(
                "SELECT number FROM visibility_namespaces WHERE namespace_id = $1", namespace_id
            )
            if not rows:
                return _NO_NAMESPACE
            found = self._namespaces[namespace_id] = rows[0][0]
        return found

    async def delete(self, namespace_id: str, run_id: str, version: int) -> None:
        """Does nothing to a record of a greater version."""
        key = (namespace_id, run_id)
        await self._upserts.settle(lambda record: (record.namespace_id, record.run_id) == key)
        await self._database.write(_DELETE, await self._namespace(namespace_id), run_id, version)

    async def list(self, namespace_id: str, query: str, custom: dict[str, int], page_size: int, token: bytes) -> Page:
        filter = parse(query, custom)
        if filter.group_by is not None:
            raise invalid_query("operation is not supported: 'GROUP BY' clause in a list, only in a count")
        after = decode_token(token) if token else None
        plan = _Plan(await self._namespace(namespace_id), filter.conditions)
        if after is not None:
            plan.start_after(after)
        rows = await self._database.read_by_filter(
            f"SELECT {FIELDS} FROM {plan.tables} WHERE {plan.where} ORDER BY {plan.order} LIMIT {page_size + 1}",
            *plan.parameters.values,
        )
        if len(rows) <= page_size:
            return Page([record_of(namespace_id, row) for row in rows], b"")
        del rows[page_size:]
        last = PageToken(close_key=rows[-1][8], start_time=rows[-1][6], run_id=rows[-1][1])
        return Page([record_of(namespace_id, row) for row in rows], tokens.encode(last))

    async def count(self, namespace_id: str, query: str, custom: dict[str, int]) -> CountResult:
        """Groups have one value each: the status's name, or the division (None: none)."""
        filter = parse(query, custom)
        group_by = filter.group_by
        plan = _Plan(await self._namespace(namespace_id), filter.conditions)
        source = f"FROM {plan.tables} WHERE {plan.where}"
        if group_by is None:
            statement = f"SELECT NULL, count(*) {source}"
        else:
            key = GROUPED_BY[group_by.field]
            statement = f"SELECT {key}, count(*) {source} GROUP BY {key} ORDER BY {key} NULLS FIRST"
        rows = await self._database.read_by_filter(statement, *plan.parameters.values)
        result = CountResult(sum(count for _, count in rows))
        if group_by is not None:
            names = attributes.STATUS_NAMES if group_by.field == "ExecutionStatus" else {}
            result.groups = [CountGroup([names.get(key, key)], count) for key, count in rows]
        return result

    async def get(self, namespace_id: str, run_id: str) -> VisibilityRecord | None:
        rows = await self._database.read(
            f"SELECT {FIELDS} FROM visibility v WHERE v.namespace = $1 AND v.run_id = $2",
            await self._namespace(namespace_id),
            run_id,
        )
        return record_of(namespace_id, rows[0]) if rows else None


def _size(expr: Expr) -> int:
    if isinstance(expr, And | Or):
        return sum(map(_size, expr.parts))
    return _size(expr.part) if isinstance(expr, Not) else 1


class _Plan:
    """FROM, WHERE and ORDER BY of a filter, said so that an index can be seen to serve them. Which of them does, the
    database decides by its statistics.

    tables, where, order: SQL. parameters: for WHERE."""

    def __init__(self, namespace: int, conditions: Sequence[Expr]) -> None:
        conditions = [typed(condition) for condition in conditions]
        self.parameters = _Parameters(many=sum(map(_size, conditions)) > _FEW)
        add = self.parameters.add
        driving = sql.driving_condition(conditions)
        if driving is not None:
            condition = conditions[driving]
            assert isinstance(condition, Comparison | Has)
            value = condition.value if isinstance(condition, Comparison) else condition.values[0]
            column = condition.column
            name = add(sql.attribute_key(column.type, column.field))
            wanted = add(value)
            self._leader = "d"
            self.tables = "visibility_attributes d JOIN visibility v ON v.id = d.run"
            self.where = (
                f"d.namespace = {add(namespace)} AND d.name = {name}"
                f" AND left(d.name, {PREFIX}) = left({name}, {PREFIX})"
                f" AND d.{self.parameters.value_column(column.type)} = {wanted}"
            )
            if isinstance(value, str):
                self.where += f" AND left(d.text_value, {PREFIX}) = left({wanted}, {PREFIX})"
            conditions = [*conditions[:driving], *conditions[driving + 1 :]]
        else:
            self._leader = "v"
            self.tables = "visibility v"
            self.where = f"v.namespace = {add(namespace)}"
        if conditions:
            self.where += f" AND {sql.render_all(conditions, self.parameters)}"
        for condition in conditions:
            self._bound_order(condition)
            self._find_division(condition)
        self.order = f"{self._leader}.close_key DESC, {self._leader}.start_time DESC, {self._leader}.run_id"

    def start_after(self, token: PageToken) -> None:
        leader, add = self._leader, self.parameters.add
        self.where += (
            f" AND ({leader}.close_key, {leader}.start_time) <= ({add(token.close_key)}, {add(token.start_time)})"
            f" AND NOT ({leader}.close_key = {add(token.close_key)} AND {leader}.start_time = {add(token.start_time)}"
            f" AND {leader}.run_id <= {add(token.run_id)})"
        )

    def _find_division(self, condition: Expr) -> None:
        if isinstance(condition, Comparison) and condition.op == "=" and condition.column.field == NAMESPACE_DIVISION:
            value = self.parameters.add(condition.value)
            self.where += f" AND left(v.division, {PREFIX}) = left({value}, {PREFIX})"

    def _bound_order(self, condition: Expr) -> None:
        """Says what a condition on the close time means for the order, so that the index starts and ends there."""
        add = self.parameters.add
        key = f"{self._leader}.close_key"
        if isinstance(condition, And):
            for part in condition.parts:
                self._bound_order(part)
        elif isinstance(condition, Not) and isinstance(condition.part, IsNull):
            if condition.part.column.field == "CloseTime":
                self.where += f" AND {key} < {add(OPEN)}"
        elif isinstance(condition, IsNull | Comparison | Between | In) and condition.column.field == "CloseTime":
            if isinstance(condition, IsNull):
                self.where += f" AND {key} = {add(OPEN)}"
            elif isinstance(condition, Comparison) and condition.op != "!=":
                self.where += f" AND {key} {condition.op} {add(condition.value)}"
