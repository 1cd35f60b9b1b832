"""Commits as the arrays that the function `commit_group` (in `schema`) takes, and what its answer means."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final, Protocol

import asyncpg

from perdure.persistence.api import (
    Commit,
    ConditionFailed,
    CurrentConflict,
    CurrentRun,
    PendingRow,
    ShardFenced,
    StoreError,
)
from perdure.persistence.groups import Item
from perdure.persistence.keys import branch_key, run_key, workflow_key
from perdure.persistence.postgresql.database import Database, one_line, placeholders
from perdure.visibility.api import VisibilityRecord

PARAMETERS: Final = 44
_CALL: Final = f"SELECT * FROM commit_group({placeholders(1, PARAMETERS)})"


class Carried(Protocol):
    """Visibility in the same database, as commits see it: `function` is like `commit_group`, and takes after its
    arguments those that `arguments` makes of records."""

    function: str
    parameters: int

    async def arguments(self, records: Sequence[VisibilityRecord]) -> Sequence[Sequence[object]]: ...


def size_of(commit: Commit) -> int:
    size = 0
    for run in commit.runs:
        size += len(run.state)
        for node in run.nodes:
            size += len(node.blob)
        for row in run.put:
            size += len(row.blob)
    return size


def encode(commits: Sequence[Commit]) -> tuple[list[list[Any]], list[int]]:
    """The arguments, and for each current run that is checked, the place of its commit."""
    arguments: list[list[Any]] = [[] for _ in range(PARAMETERS)]
    appends: list[Callable[[Any], None]] = [column.append for column in arguments]
    (
        _, _,
        k_shard, k_key, k_run, k_status,
        w_shard, w_key, w_namespace, w_workflow, w_run, w_status, w_blob,
        n_shard, n_key, n_namespace, n_workflow, n_run, n_state,
        u_shard, u_key, u_version, u_state,
        d_shard, d_run, d_kind, d_key,
        p_shard, p_run, p_kind, p_key, p_blob,
        h_shard, h_branch, h_node, h_txn, h_prev, h_events, h_blob,
        t_shard, t_category, t_time, t_id, t_blob,
    ) = appends  # fmt: skip
    ranges: dict[tuple[int, int], None] = {}
    checked: list[int] = []
    for place, commit in enumerate(commits):
        shard = commit.shard_id
        ranges[shard, commit.range_id] = None
        for run in commit.runs:
            key = run_key(run.namespace_id, run.workflow_id, run.run_id)
            if run.expected_version:
                u_shard(shard)
                u_key(key)
                u_version(run.expected_version)
                u_state(run.state)
            else:
                n_shard(shard)
                n_key(key)
                n_namespace(run.namespace_id)
                n_workflow(run.workflow_id)
                n_run(run.run_id)
                n_state(run.state)
            for kind, name in run.remove:
                d_shard(shard)
                d_run(key)
                d_kind(kind)
                d_key(name)
            put = run.put
            if len(put) > 1:
                put = _last_of_each(put)
            for kind, name, blob in put:
                p_shard(shard)
                p_run(key)
                p_kind(kind)
                p_key(name)
                p_blob(blob)
            branch_id = ""
            branch = b""
            for node in run.nodes:
                if node.branch_id != branch_id or not branch:
                    branch_id = node.branch_id
                    branch = branch_key(branch_id)
                h_shard(shard)
                h_branch(branch)
                h_node(node.node_id)
                h_txn(node.txn_id)
                h_prev(node.prev_txn_id)
                h_events(node.events)
                h_blob(node.blob)
        if commit.currents:
            last: dict[bytes, Any] = {}
            for current in commit.currents:
                key = workflow_key(current.namespace_id, current.workflow_id)
                last[key] = current
                checked.append(place)
                k_shard(shard)
                k_key(key)
                k_run(current.expected_run_id)
                k_status(current.expected_status)
            for key, current in last.items():
                w_shard(shard)
                w_key(key)
                w_namespace(current.namespace_id)
                w_workflow(current.workflow_id)
                w_run(current.run.run_id)
                w_status(current.run.status)
                w_blob(current.run.blob)
        for category, fire_time, task_id, blob in commit.tasks:
            t_shard(shard)
            t_category(category)
            t_time(fire_time)
            t_id(task_id)
            t_blob(blob)
    for shard, range_id in sorted(ranges):
        arguments[0].append(shard)
        arguments[1].append(range_id)
    return arguments, checked


def _last_of_each(rows: Sequence[PendingRow]) -> Sequence[PendingRow]:
    last = {(row.kind, row.key): row for row in rows}
    return rows if len(last) == len(rows) else list(last.values())


async def send(database: Database, carried: Carried | None, items: list[Item[Commit]]) -> None:
    """Writes the commits of the items in one transaction, without those whose condition failed."""
    while items:
        arguments, checked = encode([item.write for item in items])
        try:
            records = [record for item in items for record in item.write.visibility] if carried else ()
            if carried and records:
                call = f"SELECT * FROM {carried.function}({placeholders(1, PARAMETERS + carried.parameters)})"
                failures = await database.write_group(call, [*arguments, *await carried.arguments(records)])
            else:
                failures = await database.write_group(_CALL, arguments)
        except asyncpg.PostgresError as e:
            # A run at another version, or a row that exists: this should not happen, so it is found by halving.
            if len(items) == 1:
                items[0].fail(ConditionFailed(one_line(e)))
                return
            middle = len(items) // 2
            await send(database, carried, items[:middle])
            items = items[middle:]
            continue
        except StoreError as e:
            for item in items:
                item.fail(e)
            return
        if not failures:
            for item in items:
                item.succeed()
            return
        items = _without(items, arguments, checked, failures)


def _without(
    items: list[Item[Commit]], arguments: list[list[Any]], checked: list[int], failures: list[Any]
) -> list[Item[Commit]]:
    """Lets those fail that the answer names; the others."""
    errors: dict[int, StoreError] = {}
    for reason, place, range_id, run_id, status, blob in failures:
        at = place - 1
        if reason == 1:
            fenced = (arguments[0][at], arguments[1][at])
            error = ShardFenced(f"shard {fenced[0]} is at range id {range_id}, not {fenced[1]}")
            for i, item in enumerate(items):
                if (item.write.shard_id, item.write.range_id) == fenced:
                    errors[i] = error
        elif checked[at] not in errors:
            errors[checked[at]] = CurrentConflict(None if run_id is None else CurrentRun(run_id, status, blob))
    for i, error in errors.items():
        items[i].fail(error)
    return [item for i, item in enumerate(items) if i not in errors]
