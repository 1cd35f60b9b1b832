"""Visibility in SQLite, in the process's one database: its writes join the group commit of everything else."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any, Final

from perdure import tokens
from perdure.persistence.sqlite.database import Database
from perdure.visibility import attributes, sql
from perdure.visibility.api import CountGroup, CountResult, Page, VisibilityRecord
from perdure.visibility.attributes import NAMESPACE_DIVISION
from perdure.visibility.filter import (
    DIVISION_COLUMN,
    Between,
    Column,
    Comparison,
    Expr,
    Has,
    In,
    IsNull,
    Not,
    StartsWith,
    invalid_query,
    parse,
)
from perdure.visibility.rows import FIELDS, GROUPED_BY, PageToken, decode_token, indexed, record_of
from perdure.visibility.sql import OPEN, QmarkParameters
from perdure.visibility.sqlite_schema import SCRIPTS

_FEW: Final = 5000
"""Up to as many runs are sorted rather than read in their order: it takes some 10 ms."""

_FIND: Final = """
SELECT id, version, status, close_key, search_attributes,
    workflow_id, workflow_type, start_time, parent_workflow_id, division
FROM visibility WHERE namespace = ? AND run_id = ?
"""
_INSERT: Final = """
INSERT INTO visibility (
    namespace, run_id, workflow_id, workflow_type, start_time, parent_workflow_id, division, status, close_key,
    version, task_queue, execution_time, history_length, history_size_bytes, state_transition_count, parent_run_id,
    root_workflow_id, root_run_id, memo, search_attributes
) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
# SQLite rewrites each index that has one of the columns that are set: those which rarely change are left out.
_UPDATE_REST: Final = """
    version = ?, task_queue = ?, execution_time = ?, history_length = ?, history_size_bytes = ?,
    state_transition_count = ?, parent_run_id = ?, root_workflow_id = ?, root_run_id = ?, memo = ?,
    search_attributes = ?
WHERE id = ?
"""
_UPDATE: Final = f"UPDATE visibility SET {_UPDATE_REST}"
_UPDATE_WITH_ORDER: Final = f"UPDATE visibility SET status = ?, close_key = ?, {_UPDATE_REST}"
_INSERT_ATTRIBUTE: Final = "INSERT INTO visibility_attributes VALUES (?, ?, ?, ?, ?, ?, ?)"
_DELETE_ATTRIBUTES: Final = "DELETE FROM visibility_attributes WHERE run = ?"


class SqliteVisibility:
    """A `perdure.visibility.api.VisibilityStore`. Call `open` before anything else."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._namespaces: dict[str, int] = {}

    async def open(self) -> None:
        """Creates or migrates the tables. Raises SchemaMismatch."""
        await self._database.migrate("visibility", SCRIPTS)

    async def upsert(self, record: VisibilityRecord) -> None:
        values = attributes.decode_stored(record.search_attributes) if record.search_attributes else {}
        namespace = self._namespaces.get(record.namespace_id)
        if namespace is None:
            namespace = await self._number_namespace(record.namespace_id)
        await self._database.write(lambda connection: _upsert(connection, namespace, record, values))

    def write_along(self, connection: sqlite3.Connection, record: VisibilityRecord) -> None:
        """`upsert` within a transaction of somebody else in the same database (see SqliteStore.carry_visibility)."""
        values = attributes.decode_stored(record.search_attributes) if record.search_attributes else {}
        namespace = self._namespaces.get(record.namespace_id)
        if namespace is None:  # looked up by this transaction, which may have written it; a read will remember it
            namespace = _number(connection, record.namespace_id)
        _upsert(connection, namespace, record, values)

    async def _number_namespace(self, namespace_id: str) -> int:
        """In a write of its own: remembered only when it is durable."""

        found = await self._database.write(lambda connection: _number(connection, namespace_id))
        self._namespaces[namespace_id] = found
        return found

    def _namespace(self, namespace_id: str) -> int:
        """-1, which no namespace has, when nothing was ever written to this one."""
        found = self._namespaces.get(namespace_id)
        if found is None:
            found = self._database.read_now(lambda connection: _find_namespace(connection, namespace_id))
            if found is None:
                return -1
            self._namespaces[namespace_id] = found
        return found

    async def delete(self, namespace_id: str, run_id: str, version: int) -> None:
        """Does nothing to a record of a greater version."""

        namespace = self._namespace(namespace_id)

        def delete(connection: sqlite3.Connection) -> None:
            row = connection.execute(_FIND, (namespace, run_id)).fetchone()
            if row is not None and row[1] <= version:
                _delete(connection, row[0])

        await self._database.write(delete)

    async def list(self, namespace_id: str, query: str, custom: dict[str, int], page_size: int, token: bytes) -> Page:
        filter = parse(query, custom)
        if filter.group_by is not None:
            raise invalid_query("operation is not supported: 'GROUP BY' clause in a list, only in a count")
        after = decode_token(token) if token else None
        namespace = self._namespace(namespace_id)

        def select(connection: sqlite3.Connection) -> list[Any]:
            plan = _Plan(connection, namespace, filter.conditions, None)
            if after is not None:
                plan.start_after(after)
            return connection.execute(
                f"SELECT {FIELDS} FROM {plan.tables} WHERE {plan.where} ORDER BY {plan.order} LIMIT ?",
                (*plan.parameters.values, page_size + 1),
            ).fetchall()

        rows = await self._database.read(select)
        if len(rows) <= page_size:
            return Page([record_of(namespace_id, row) for row in rows], b"")
        del rows[page_size:]
        last = PageToken(close_key=rows[-1][8], start_time=rows[-1][6], run_id=rows[-1][1])
        return Page([record_of(namespace_id, row) for row in rows], tokens.encode(last))

    async def count(self, namespace_id: str, query: str, custom: dict[str, int]) -> CountResult:
        """Groups have one value each: the status's name, or the division (None: none)."""
        filter = parse(query, custom)
        group_by = filter.group_by
        namespace = self._namespace(namespace_id)

        def select(connection: sqlite3.Connection) -> list[Any]:
            plan = _Plan(connection, namespace, filter.conditions, group_by)
            source = f"FROM {plan.tables} WHERE {plan.where}"
            if group_by is None:
                statement = f"SELECT NULL, count(*) {source}"
            else:
                key = GROUPED_BY[group_by.field]
                statement = f"SELECT {key}, count(*) {source} GROUP BY {key} ORDER BY {key}"
            return connection.execute(statement, plan.parameters.values).fetchall()

        rows = await self._database.read(select)
        result = CountResult(sum(count for _, count in rows))
        if group_by is not None:
            names = attributes.STATUS_NAMES if group_by.field == "ExecutionStatus" else {}
            result.groups = [CountGroup([names.get(key, key)], count) for key, count in rows]
        return result

    async def get(self, namespace_id: str, run_id: str) -> VisibilityRecord | None:
        statement = f"SELECT {FIELDS} FROM visibility v WHERE v.namespace = ? AND v.run_id = ?"
        key = (self._namespace(namespace_id), run_id)
        row = self._database.read_now(lambda connection: connection.execute(statement, key).fetchone())
        return None if row is None else record_of(namespace_id, row)


def _find_namespace(connection: sqlite3.Connection, namespace_id: str) -> int | None:
    statement = "SELECT number FROM visibility_namespaces WHERE namespace_id = ?"
    row = connection.execute(statement, (namespace_id,)).fetchone()
    return None if row is None else int(row[0])


def _number(connection: sqlite3.Connection, namespace_id: str) -> int:
    found = _find_namespace(connection, namespace_id)
    if found is not None:
        return found
    statement = "INSERT INTO visibility_namespaces (namespace_id) VALUES (?) RETURNING number"
    return int(connection.execute(statement, (namespace_id,)).fetchone()[0])


# --- writing ---------------------------------------------------------------------------------------------------------


def _upsert(
    connection: sqlite3.Connection,
    namespace: int,
    r: VisibilityRecord,
    values: dict[str, tuple[int, attributes.Value]],
) -> None:
    closed = r.close_time != 0
    close_key = r.close_time if closed else OPEN
    division = values[NAMESPACE_DIVISION][1] if NAMESPACE_DIVISION in values else None
    fixed = (r.workflow_id, r.workflow_type, r.start_time, r.parent_workflow_id or None, division)
    rest = (
        r.version,
        r.task_queue,
        r.execution_time or r.start_time,
        r.history_length if closed else None,
        r.history_size_bytes if closed else None,
        r.state_transition_count if closed else None,
        r.parent_run_id or None,
        r.root_workflow_id,
        r.root_run_id,
        r.memo,
        r.search_attributes,
    )
    found = connection.execute(_FIND, (namespace, r.run_id)).fetchone()
    if found is not None:
        row, version, old_status, old_close_key, old_attributes, *old_fixed = found
        if version > r.version:
            return
        if tuple(old_fixed) == fixed:
            if old_status == r.status and old_close_key == close_key:
                connection.execute(_UPDATE, (*rest, row))
            else:
                connection.execute(_UPDATE_WITH_ORDER, (r.status, close_key, *rest, row))
            if old_attributes != r.search_attributes or (old_attributes and old_close_key != close_key):
                if old_attributes:
                    connection.execute(_DELETE_ATTRIBUTES, (row,))
                _insert_attributes(connection, row, (namespace, close_key, r.start_time, r.run_id), values)
            return
        _delete(connection, row)
    row = connection.execute(_INSERT, (namespace, r.run_id, *fixed, r.status, close_key, *rest)).lastrowid
    if values:
        _insert_attributes(connection, row, (namespace, close_key, r.start_time, r.run_id), values)


def _insert_attributes(
    connection: sqlite3.Connection,
    row: int | None,
    copies: tuple[Any, ...],
    values: dict[str, tuple[int, attributes.Value]],
) -> None:
    for name, (kind, value) in values.items():
        if name == NAMESPACE_DIVISION:
            continue
        key = sql.attribute_key(kind, name)
        for item in indexed(kind, value):
            connection.execute(_INSERT_ATTRIBUTE, (row, key, item, *copies))


def _delete(connection: sqlite3.Connection, row: int) -> None:
    connection.execute(_DELETE_ATTRIBUTES, (row,))
    connection.execute("DELETE FROM visibility WHERE id = ?", (row,))


# --- reading ---------------------------------------------------------------------------------------------------------


# Which index leads to few runs when a filter asks for certain values of a field.
_NARROW: Final = {
    "RunId": "visibility_by_run",
    "WorkflowId": "visibility_by_workflow",
    "ParentWorkflowId": "visibility_by_parent",
    "StartTime": "visibility_by_start",
}


class _Plan:
    """FROM, WHERE and ORDER BY of a filter. SQLite does not know how many runs a condition leaves, so we choose the
    index: one that leaves few, found out by counting them up to a limit; else one that has the runs in order, of
    a value of a search attribute, a type, a status or the whole namespace.

    tables, where, order: SQL. parameters: in the order of the text, for WHERE."""

    def __init__(
        self, connection: sqlite3.Connection, namespace: int, conditions: Sequence[Expr], group_by: Column | None
    ) -> None:
        self._connection = connection
        self._namespace = namespace
        self._conditions = conditions
        self.parameters = QmarkParameters()
        self._leader = "v"
        add = self.parameters.add
        index = self._narrow_index()
        driving = sql.driving_condition(conditions) if index is None else None
        if driving is not None:
            condition = conditions[driving]
            assert isinstance(condition, Comparison | Has)
            value = condition.value if isinstance(condition, Comparison) else condition.values[0]
            key = sql.attribute_key(condition.column.type, condition.column.field)
            self._leader = "d"
            self.tables = (
                "visibility_attributes d INDEXED BY visibility_by_attribute CROSS JOIN visibility v ON v.id = d.run"
            )
            self.where = f"d.namespace = {add(namespace)} AND d.name = {add(key)} AND d.value = {add(value)}"
            conditions = [*conditions[:driving], *conditions[driving + 1 :]]
        else:
            self.tables = f"visibility v INDEXED BY {index or self._ordered_index(group_by)}"
            self.where = f"v.namespace = {add(namespace)}"
        if conditions:
            self.where += f" AND {sql.render_all(conditions, self.parameters)}"
        for condition in conditions:
            self._bound_order(condition)
        self.order = f"{self._leader}.close_key DESC, {self._leader}.start_time DESC, {self._leader}.run_id"

    def start_after(self, token: PageToken) -> None:
        leader, add = self._leader, self.parameters.add
        self.where += (
            f" AND ({leader}.close_key, {leader}.start_time) <= ({add(token.close_key)}, {add(token.start_time)})"
            f" AND NOT ({leader}.close_key = {add(token.close_key)} AND {leader}.start_time = {add(token.start_time)}"
            f" AND {leader}.run_id <= {add(token.run_id)})"
        )

    def _bound_order(self, condition: Expr) -> None:
        """Says what a condition on the close time means for the order, so that the index starts and ends there."""
        add = self.parameters.add
        key = f"{self._leader}.close_key"
        if isinstance(condition, Not) and isinstance(condition.part, IsNull):
            if condition.part.column.field == "CloseTime":
                self.where += f" AND {key} < {add(OPEN)}"
        elif isinstance(condition, IsNull | Comparison | Between) and condition.column.field == "CloseTime":
            if isinstance(condition, IsNull):
                self.where += f" AND {key} = {add(OPEN)}"
            elif isinstance(condition, Between):
                self.where += f" AND {key} BETWEEN {add(condition.low)} AND {add(condition.high)}"
            elif condition.op != "!=":
                self.where += f" AND {key} {condition.op} {add(condition.value)}"

    def _narrow_index(self) -> str | None:
        asked: dict[str, list[Expr]] = {}
        for condition in self._conditions:
            if isinstance(condition, Comparison | In | Between | StartsWith) and condition.column.field in _NARROW:
                if isinstance(condition, Comparison) and condition.op == "!=":
                    continue
                asked.setdefault(condition.column.field, []).append(condition)
        for field, index in _NARROW.items():
            conditions = asked.get(field)
            if conditions and (self._is_id(field, conditions) or self._leaves_few(index, conditions)):
                return index
        return None

    @staticmethod
    def _is_id(field: str, conditions: list[Expr]) -> bool:
        return field != "StartTime" and any(isinstance(c, Comparison) and c.op == "=" for c in conditions)

    def _leaves_few(self, index: str, conditions: list[Expr]) -> bool:
        if index == "visibility_by_start":
            conditions = [*(c for c in self._conditions if c == IsNull(DIVISION_COLUMN)), *conditions]
        parameters = QmarkParameters()
        namespace = parameters.add(self._namespace)
        where = f"v.namespace = {namespace} AND {sql.render_all(conditions, parameters)}"
        found = self._connection.execute(
            f"SELECT count(*) FROM (SELECT 1 FROM visibility v INDEXED BY {index} WHERE {where} LIMIT {_FEW + 1})",
            parameters.values,
        ).fetchone()
        return int(found[0]) <= _FEW

    def _ordered_index(self, group_by: Column | None) -> str:
        equal = {c.column.field for c in self._conditions if isinstance(c, Comparison) and c.op == "="}
        if "WorkflowType" in equal:
            return "visibility_by_type"
        if "ExecutionStatus" in equal or (group_by is not None and group_by.field == "ExecutionStatus"):
            return "visibility_by_status"
        return "visibility_in_order"
