"""What every store does: `perdure.persistence.api`, method by method. Nothing here knows which backend it runs on."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence

import pytest

from perdure.persistence.api import (
    BacklogTask,
    Commit,
    ConditionFailed,
    CurrentConflict,
    CurrentRun,
    CurrentWrite,
    Document,
    HistoryNode,
    NotFound,
    PendingRow,
    QueueMessage,
    RunWrite,
    ShardFenced,
    ShardRecord,
    Store,
    TaskCategory,
    TaskQueueKey,
    TaskQueueRecord,
    TaskRow,
    Unavailable,
)

from .conftest import Backend

NS = "6c2c7f0e-9f1a-4d5e-8a51-1d8f0d8f6a01"
MiB = 1 << 20

# Pairwise different as bytes, though not to a database that compares text as people do.
NAMES = [
    "name",
    "Name",
    "NAME",
    "name ",
    " name",
    "name\t",
    "caf\u00e9",
    "cafe\u0301",
    "cafe",
    "stra\u00dfe",
    "strasse",
    "\uff4eame",
    "na\u200bme",
    "50%",
    "50_",
    "a/b",
    "a'b\"c\\d",
    "\U0001f600",
    "\x01",
    "x" * 1000,
    "x" * 999 + "y",
    "\u00e9" * 500,
]


def run_write(
    run_id: str = "run",
    version: int = 0,
    state: bytes = b"state",
    *,
    workflow_id: str = "wf",
    namespace_id: str = NS,
    put: Sequence[PendingRow] = (),
    remove: Sequence[tuple[int, str]] = (),
    nodes: Sequence[HistoryNode] = (),
) -> RunWrite:
    return RunWrite(namespace_id, workflow_id, run_id, version, state, put, remove, nodes)


def current_write(
    expected: str, run_id: str, *, workflow_id: str = "wf", status: int = 1, expected_status: int | None = None
) -> CurrentWrite:
    return CurrentWrite(NS, workflow_id, expected, CurrentRun(run_id, status, b"summary"), expected_status)


def node(node_id: int, events: int = 1, blob: bytes | None = None, *, branch: str = "branch", txn: int = 0):
    return HistoryNode(branch, node_id, txn or node_id, 0, events, b"%d" % node_id if blob is None else blob)


async def shard(store: Store, shard_id: int = 1) -> int:
    return (await store.acquire_shard(shard_id, "host")).range_id


async def put_run(store: Store, write: RunWrite, *, shard_id: int = 1, range_id: int = 1) -> None:
    await store.commit(Commit(shard_id, range_id, [write]))


async def put_tasks(store: Store, tasks: Sequence[TaskRow], *, shard_id: int = 1, range_id: int = 1) -> None:
    await store.commit(Commit(shard_id, range_id, tasks=tasks))


async def tasks_of(store: Store, category: TaskCategory, shard_id: int = 1, limit: int = 1000) -> list[tuple[int, int]]:
    rows = await store.read_tasks(shard_id, category, (-1, -1), (2**62, 2**62), limit)
    assert all(row.category == category for row in rows)
    return [(row.fire_time, row.task_id) for row in rows]


# --- shards ----------------------------------------------------------------------------------------------------------


async def test_acquiring_a_shard_counts_its_range_id_up(store: Store) -> None:
    first = await store.acquire_shard(7, "one")
    assert (first.shard_id, first.range_id, first.owner, first.blob) == (7, 1, "one", b"")
    await store.update_shard(7, 1, b"levels")
    second = await store.acquire_shard(7, "two")
    assert (second.shard_id, second.range_id, second.owner, second.blob) == (7, 2, "two", b"levels")
    assert (await store.acquire_shard(8, "one")).range_id == 1


async def test_a_shard_is_acquired_above_a_range_id(store: Store) -> None:
    assert (await store.acquire_shard(1, "copy", 40)).range_id == 40
    assert (await store.acquire_shard(1, "copy", 40)).range_id == 41
    assert (await store.acquire_shard(1, "copy", 100)).range_id == 100
    assert (await store.acquire_shard(1, "host")).range_id == 101
    with pytest.raises(ShardFenced):
        await store.update_shard(1, 100, b"stale")


async def test_shards_are_listed(store: Store) -> None:
    assert await store.list_shards() == []
    for shard_id in (3, 1, 20):
        await store.acquire_shard(shard_id, f"host {shard_id}")
    await store.update_shard(3, 1, b"levels")
    await store.acquire_shard(20, "other")
    assert await store.list_shards() == [
        ShardRecord(1, 1, "host 1", b""),
        ShardRecord(3, 1, "host 3", b"levels"),
        ShardRecord(20, 2, "other", b""),
    ]


async def test_a_stale_owner_cannot_update_its_shard(store: Store) -> None:
    await shard(store)
    await shard(store)
    for range_id in (1, 3):
        with pytest.raises(ShardFenced):
            await store.update_shard(1, range_id, b"stale")
    with pytest.raises(ShardFenced):
        await store.update_shard(2, 1, b"never acquired")
    assert (await store.acquire_shard(1, "host")).blob == b""


async def test_a_stale_owner_commits_nothing(store: Store) -> None:
    await shard(store)
    await put_run(store, run_write(nodes=[node(1)]))
    await shard(store)
    commit = Commit(
        1,
        1,
        [run_write(version=1, state=b"stale", put=[PendingRow(1, "5", b"")], nodes=[node(2)]), run_write("other")],
        [current_write("", "run")],
        [TaskRow(TaskCategory.TRANSFER, 0, 1, b"")],
    )
    with pytest.raises(ShardFenced):
        await store.commit(commit)
    record = await store.load_run(1, NS, "wf", "run")
    assert (record.version, record.state, record.pending) == (1, b"state", [])
    assert [n.node_id for n in await store.read_history(1, "branch", 1, 100, MiB)] == [1]
    assert await tasks_of(store, TaskCategory.TRANSFER) == []
    with pytest.raises(NotFound):
        await store.load_current(1, NS, "wf")
    with pytest.raises(NotFound):
        await store.load_run(1, NS, "wf", "other")
    with pytest.raises(ShardFenced):
        await store.delete_run(1, 1, NS, "wf", "run", ["branch"])
    await store.load_run(1, NS, "wf", "run")


async def test_losing_the_shard_between_two_waiting_commits_fences_the_second(store: Store) -> None:
    await shard(store)
    before, record, after = await asyncio.gather(
        put_run(store, run_write("before")),
        store.acquire_shard(1, "thief"),
        put_run(store, run_write("after")),
        return_exceptions=True,
    )
    assert record.range_id == 2  # type: ignore[union-attr]
    assert before is None
    assert isinstance(after, ShardFenced)


# --- runs ------------------------------------------------------------------------------------------------------------


async def test_a_run_is_created_once_and_then_written_by_version(store: Store) -> None:
    await shard(store)
    await put_run(store, run_write(state=b"one"))
    with pytest.raises(ConditionFailed):
        await put_run(store, run_write(state=b"again"))
    await put_run(store, run_write(version=1, state=b"two"))
    for stale in (1, 3):
        with pytest.raises(ConditionFailed):
            await put_run(store, run_write(version=stale, state=b"lost"))
    with pytest.raises(ConditionFailed):
        await put_run(store, run_write("missing", version=1))
    record = await store.load_run(1, NS, "wf", "run")
    assert (record.version, record.state) == (2, b"two")


@pytest.mark.parametrize("where", [(2, NS, "wf", "run"), (1, "", "wf", "run"), (1, NS, "w", "run"), (1, NS, "wf", "r")])
async def test_a_run_is_found_by_its_whole_name(store: Store, where: tuple[int, str, str, str]) -> None:
    await shard(store)
    await put_run(store, run_write())
    with pytest.raises(NotFound):
        await store.load_run(*where)


async def test_pending_rows_are_put_replaced_and_removed_singly(store: Store) -> None:
    await shard(store)
    rows = [PendingRow(1, "5", b"a"), PendingRow(1, "10", b"b"), PendingRow(2, "5", b"c"), PendingRow(3, "", b"")]
    await put_run(store, run_write(put=rows))
    await put_run(store, run_write("other", put=[PendingRow(1, "5", b"of another run")]))
    assert sorted((await store.load_run(1, NS, "wf", "run")).pending) == sorted(rows)
    await put_run(store, run_write(version=1, put=[PendingRow(1, "5", b"A")], remove=[(2, "5"), (2, "missing")]))
    assert sorted((await store.load_run(1, NS, "wf", "run")).pending) == sorted(
        [PendingRow(1, "5", b"A"), PendingRow(1, "10", b"b"), PendingRow(3, "", b"")]
    )
    assert (await store.load_run(1, NS, "wf", "other")).pending == [PendingRow(1, "5", b"of another run")]


async def test_many_pending_rows(store: Store) -> None:
    await shard(store)
    rows = [PendingRow(kind, str(key), os.urandom(50)) for kind in (1, 2, 3) for key in range(700)]
    await put_run(store, run_write(put=rows))
    assert sorted((await store.load_run(1, NS, "wf", "run")).pending) == sorted(rows)
    await put_run(store, run_write(version=1, remove=[(kind, key) for kind, key, _ in rows[1:]]))
    assert (await store.load_run(1, NS, "wf", "run")).pending == rows[:1]


async def test_two_runs_of_one_commit_are_written_both_or_neither(store: Store) -> None:
    await shard(store)
    await put_run(store, run_write("first"))
    good = [run_write("first", 1, nodes=[node(2)]), run_write("second", nodes=[node(1, branch="b2")])]
    for bad in (
        [run_write("first", 9), good[1]],
        [good[0], run_write("first", 0)],
        [good[0], run_write("second", 1)],
    ):
        with pytest.raises(ConditionFailed):
            await store.commit(Commit(1, 1, bad, tasks=[TaskRow(TaskCategory.TRANSFER, 0, 1, b"")]))
    assert (await store.load_run(1, NS, "wf", "first")).version == 1
    with pytest.raises(NotFound):
        await store.load_run(1, NS, "wf", "second")
    assert await store.read_history(1, "branch", 1, 100, MiB) == []
    assert await tasks_of(store, TaskCategory.TRANSFER) == []
    await store.commit(Commit(1, 1, good))
    assert (await store.load_run(1, NS, "wf", "first")).version == 2
    assert (await store.load_run(1, NS, "wf", "second")).version == 1


async def test_names_are_told_apart_by_their_bytes(store: Store) -> None:
    assert len(set(NAMES)) == len(NAMES)
    await shard(store)
    for name in NAMES:
        current = CurrentWrite(name, name, "", CurrentRun(name, 1, name.encode()))
        write = RunWrite(
            name, name, name, 0, name.encode(), [PendingRow(1, name, name.encode())], (), [node(1, branch=name)]
        )
        await store.commit(Commit(1, 1, [write], [current]))
    for name in NAMES:
        await put_run(store, RunWrite(NS, "wf", "run", NAMES.index(name), b"", [PendingRow(1, name, name.encode())]))
    for name in NAMES:
        record = await store.load_run(1, name, name, name)
        assert (record.version, record.state) == (1, name.encode())
        assert record.pending == [PendingRow(1, name, name.encode())]
        assert await store.load_current(1, name, name) == CurrentRun(name, 1, name.encode())
        assert [n.branch_id for n in await store.read_history(1, name, 1, 2, MiB)] == [name]
    assert len((await store.load_run(1, NS, "wf", "run")).pending) == len(NAMES)
    await store.delete_run(1, 1, "Name", "Name", "Name", ["Name"])
    await store.load_run(1, "name", "name", "name")
    await store.load_current(1, "NAME", "NAME")
    assert await store.read_history(1, "name ", 1, 2, MiB) != []


async def test_every_run_of_a_shard_is_listed_in_pages(store: Store) -> None:
    await shard(store)
    await shard(store, 2)
    names = {(NS, f"wf-{i % 3}", f"run-{i}") for i in range(9)} | {(name, name, name) for name in NAMES}
    for namespace_id, workflow_id, run_id in names:
        await put_run(store, run_write(run_id, workflow_id=workflow_id, namespace_id=namespace_id))
    await put_run(store, run_write("elsewhere"), shard_id=2)
    listed: list[tuple[str, str, str]] = []
    token = b""
    while True:
        page, token = await store.list_runs(1, 4, token)
        assert len(page) <= 4
        listed += page
        if not token:
            break
    assert len(listed) == len(names)
    assert set(listed) == names
    assert await store.list_runs(3, 10, b"") == ([], b"")


async def test_deleting_a_run(store: Store) -> None:
    await shard(store)
    nodes = [node(1), node(1, branch="fork"), node(1, branch="kept")]
    await store.commit(
        Commit(1, 1, [run_write(put=[PendingRow(1, "5", b"a")], nodes=nodes)], [current_write("", "run")])
    )
    await put_run(store, run_write("older"))
    await store.delete_run(1, 1, NS, "wf", "older", [])
    assert (await store.load_current(1, NS, "wf")).run_id == "run"
    for _ in range(2):
        await store.delete_run(1, 1, NS, "wf", "run", ["branch", "fork", "missing"])
    for run_id in ("older", "run"):
        with pytest.raises(NotFound):
            await store.load_run(1, NS, "wf", run_id)
    with pytest.raises(NotFound):
        await store.load_current(1, NS, "wf")
    assert await store.read_history(1, "branch", 1, 100, MiB) == []
    assert await store.read_history(1, "fork", 1, 100, MiB) == []
    assert await store.read_history(1, "kept", 1, 100, MiB) == nodes[2:]
    with pytest.raises(ConditionFailed):
        await put_run(store, run_write(version=1))
    await put_run(store, run_write(nodes=[node(1, blob=b"new")]))
    assert (await store.load_run(1, NS, "wf", "run")).pending == []
    assert [n.blob for n in await store.read_history(1, "branch", 1, 100, MiB)] == [b"new"]


async def test_deleting_a_run_with_a_long_history(store: Store) -> None:
    await shard(store)
    await put_run(store, run_write(nodes=[node(i, blob=bytes(2000)) for i in range(1, 1001)]))
    await store.delete_run(1, 1, NS, "wf", "run", ["branch"])
    assert await store.read_history(1, "branch", 1, 2000, MiB) == []


# --- current runs ----------------------------------------------------------------------------------------------------


async def test_the_current_run_changes_only_from_what_was_expected(store: Store) -> None:
    await shard(store)
    with pytest.raises(NotFound):
        await store.load_current(1, NS, "wf")
    with pytest.raises(CurrentConflict) as conflict:
        await store.commit(Commit(1, 1, [run_write()], [current_write("other", "run")]))
    assert conflict.value.found is None
    await store.commit(Commit(1, 1, [run_write()], [current_write("", "run")]))
    assert await store.load_current(1, NS, "wf") == CurrentRun("run", 1, b"summary")
    for expected in ("", "other", "Run", "run "):
        with pytest.raises(CurrentConflict) as conflict:
            await store.commit(Commit(1, 1, [run_write("next")], [current_write(expected, "next")]))
        assert conflict.value.found == CurrentRun("run", 1, b"summary")
    with pytest.raises(NotFound):
        await store.load_run(1, NS, "wf", "next")
    await store.commit(Commit(1, 1, [run_write("next")], [current_write("run", "next", status=2)]))
    assert await store.load_current(1, NS, "wf") == CurrentRun("next", 2, b"summary")


async def test_the_current_run_may_be_expected_in_a_status(store: Store) -> None:
    await shard(store)
    await store.commit(Commit(1, 1, [run_write()], [current_write("", "run", status=1)]))
    with pytest.raises(CurrentConflict) as conflict:
        await store.commit(Commit(1, 1, currents=[current_write("run", "run", status=3, expected_status=2)]))
    assert conflict.value.found == CurrentRun("run", 1, b"summary")
    await store.commit(Commit(1, 1, currents=[current_write("run", "run", status=3, expected_status=1)]))
    assert (await store.load_current(1, NS, "wf")).status == 3


async def test_currents_of_one_commit_are_checked_against_what_was_before(store: Store) -> None:
    await shard(store)
    both = [current_write("", "a"), current_write("", "b")]
    await store.commit(Commit(1, 1, currents=both))
    assert (await store.load_current(1, NS, "wf")).run_id == "b"
    with pytest.raises(CurrentConflict):
        await store.commit(Commit(1, 1, currents=[current_write("b", "c"), current_write("c", "d")]))
    assert (await store.load_current(1, NS, "wf")).run_id == "b"


async def test_a_failed_run_condition_leaves_the_current_run_alone(store: Store) -> None:
    await shard(store)
    with pytest.raises(ConditionFailed):
        await store.commit(Commit(1, 1, [run_write(version=4)], [current_write("", "run")]))
    with pytest.raises(NotFound):
        await store.load_current(1, NS, "wf")


# --- groups ----------------------------------------------------------------------------------------------------------


async def test_of_many_waiting_commits_only_those_with_failed_conditions_fail(store: Store) -> None:
    await shard(store)
    await shard(store, 2)
    await shard(store, 2)
    await store.commit(
        Commit(
            1,
            1,
            [run_write("taken", workflow_id="taken")],
            [CurrentWrite(NS, "taken", "", CurrentRun("taken", 1, b""))],
        )
    )

    def commit(i: int) -> Commit:
        task = [TaskRow(TaskCategory.TRANSFER, 0, i, b"")]
        write = run_write(f"run-{i}", workflow_id=f"wf-{i}", nodes=[node(1, branch=f"branch-{i}")])
        if i % 10 == 3:
            return Commit(2, 1, [write], tasks=task)
        if i % 10 == 5:
            write.expected_version = 1
        if i % 10 == 7:
            return Commit(1, 1, [write], [current_write("", f"run-{i}", workflow_id="taken")], task)
        if i % 10 == 9:
            return Commit(1, 1, [write, run_write("taken", 5, workflow_id="taken")], tasks=task)
        return Commit(1, 1, [write], tasks=task)

    expected = {3: ShardFenced, 5: ConditionFailed, 7: CurrentConflict, 9: ConditionFailed}
    outcomes = await asyncio.gather(*(store.commit(commit(i)) for i in range(50)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [expected.get(i % 10, type(None)) for i in range(50)]
    good = [i for i in range(50) if i % 10 not in expected]
    assert [task_id for _, task_id in await tasks_of(store, TaskCategory.TRANSFER)] == good
    for i in range(50):
        assert len(await store.read_history(1, f"branch-{i}", 1, 2, MiB)) == (1 if i in good else 0)


async def test_a_history_node_that_exists_fails_its_own_commit_only(store: Store) -> None:
    await shard(store)
    await put_run(store, run_write(nodes=[node(1)]))
    writes = [run_write(f"run-{i}", nodes=[node(1, branch="branch" if i == 3 else f"branch-{i}")]) for i in range(6)]
    outcomes = await asyncio.gather(*(put_run(store, write) for write in writes), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [ConditionFailed if i == 3 else type(None) for i in range(6)]
    with pytest.raises(NotFound):
        await store.load_run(1, NS, "wf", "run-3")
    await put_run(store, run_write("run-3", nodes=[node(1, branch="branch-3")]))
    for i in range(6):
        assert await store.read_history(1, f"branch-{i}", 1, 2, MiB) == [node(1, branch=f"branch-{i}")]


async def test_waiting_writes_are_applied_in_order_of_arrival(store: Store) -> None:
    await shard(store)
    outcomes = await asyncio.gather(
        *(put_run(store, run_write(version=version, state=b"%d" % version)) for version in range(20)),
        put_run(store, run_write(version=3)),
        return_exceptions=True,
    )
    assert outcomes[:-1] == [None] * 20
    assert isinstance(outcomes[-1], ConditionFailed)
    record = await store.load_run(1, NS, "wf", "run")
    assert (record.version, record.state) == (20, b"19")


async def test_what_was_acknowledged_is_read_while_others_write(store: Store) -> None:
    await shard(store)

    async def one(i: int) -> None:
        name = f"run-{i}"
        for version in range(10):
            await put_run(
                store,
                run_write(name, version, b"%d" % version, put=[PendingRow(1, str(version), b"")]),
            )
            record = await store.load_run(1, NS, "wf", name)
            assert (record.version, record.state, len(record.pending)) == (version + 1, b"%d" % version, version + 1)
            await store.put_document("kind", name, version, b"%d" % version)
            assert (await store.list_documents("kind", name[:-1]))[0].version >= 1
            assert (await store.get_document("kind", name)).version == version + 1

    await asyncio.gather(*(one(i) for i in range(8)))


async def test_a_commit_that_has_begun_is_not_cancelled(store: Store) -> None:
    await shard(store)
    tasks = [asyncio.ensure_future(put_run(store, run_write(f"run-{i}"))) for i in range(10)]
    await asyncio.sleep(0)
    tasks[4].cancel()
    assert await asyncio.gather(*tasks, return_exceptions=True) == [None] * 10
    for i in range(10):
        assert (await store.load_run(1, NS, "wf", f"run-{i}")).version == 1
    await put_run(store, run_write("later"))


# --- histories -------------------------------------------------------------------------------------------------------

BATCHES = [node(1, 2, b"a" * 10), node(3, 1, b"b" * 10), node(4, 4, b"c" * 10), node(8, 1, b"d" * 10)]


@pytest.mark.parametrize(
    ("first", "end", "expected"),
    [
        (1, 9, [1, 3, 4, 8]),
        (1, 100, [1, 3, 4, 8]),
        (1, 8, [1, 3, 4]),
        (1, 2, [1]),
        (2, 4, [1, 3]),
        (3, 4, [3]),
        (5, 9, [4, 8]),
        (7, 8, [4]),
        (8, 9, [8]),
        (9, 100, []),
        (50, 100, []),
        (5, 5, []),
    ],
)
async def test_reading_a_range_of_events(store: Store, first: int, end: int, expected: list[int]) -> None:
    await shard(store)
    await put_run(store, run_write(nodes=[*BATCHES, node(1, 100, branch="other")]))
    forward = await store.read_history(1, "branch", first, end, MiB)
    assert forward == [batch for batch in BATCHES if batch.node_id in expected]
    assert await store.read_history(1, "branch", first, end, MiB, reverse=True) == forward[::-1]
    assert await store.read_history(2, "branch", first, end, MiB) == []
    assert await store.read_history(1, "missing", first, end, MiB) == []


@pytest.mark.parametrize(("max_bytes", "count"), [(0, 1), (1, 1), (19, 1), (20, 2), (39, 3), (40, 4)])
async def test_reading_as_much_as_fits(store: Store, max_bytes: int, count: int) -> None:
    await shard(store)
    await put_run(store, run_write(nodes=BATCHES))
    assert await store.read_history(1, "branch", 2, 9, max_bytes) == BATCHES[:count]
    assert await store.read_history(1, "branch", 2, 9, max_bytes, reverse=True) == BATCHES[::-1][:count]


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("size", [10, 3000])
async def test_reading_a_long_history(store: Store, size: int, reverse: bool) -> None:
    await shard(store)
    nodes = [node(i, 1, os.urandom(size)) for i in range(1, 1001)]
    for at in range(0, 1000, 250):
        await put_run(store, run_write(version=at // 250, nodes=nodes[at : at + 250]))
    wanted = nodes[99:899][:: -1 if reverse else 1]
    assert await store.read_history(1, "branch", 100, 900, 10 * MiB, reverse) == wanted
    assert await store.read_history(1, "branch", 100, 900, 500 * size, reverse) == wanted[:500]


async def test_a_node_written_twice_is_read_twice(store: Store) -> None:
    await shard(store)
    twice = [node(1, txn=1), node(2, txn=2), node(2, txn=5), node(3, txn=7)]
    await put_run(store, run_write(nodes=twice))
    assert await store.read_history(1, "branch", 1, 9, MiB) == twice
    assert await store.read_history(1, "branch", 2, 9, MiB, reverse=True) == twice[:0:-1]


async def test_large_blobs(store: Store) -> None:
    await shard(store)
    big = [os.urandom(2 * MiB) for _ in range(3)]
    write = run_write(state=big[0], put=[PendingRow(1, "5", big[1])], nodes=[node(1, blob=big[2]), node(2)])
    await store.commit(Commit(1, 1, [write], tasks=[TaskRow(TaskCategory.TRANSFER, 0, 1, big[0])]))
    record = await store.load_run(1, NS, "wf", "run")
    assert record.state == big[0]
    assert record.pending == [PendingRow(1, "5", big[1])]
    assert await store.read_history(1, "branch", 1, 9, 100) == [node(1, blob=big[2])]
    assert (await store.read_tasks(1, TaskCategory.TRANSFER, (0, 0), (0, 9), 9))[0].blob == big[0]
    assert (await store.put_document("kind", "key", 0, big[1])).blob == big[1]
    assert (await store.get_document("kind", "key")).blob == big[1]


# --- tasks -----------------------------------------------------------------------------------------------------------


async def test_tasks_are_read_in_order_and_in_ranges(store: Store) -> None:
    await shard(store)
    await shard(store, 2)
    timers = [TaskRow(TaskCategory.TIMER, time, task_id, b"%d" % task_id) for time, task_id in
              [(30, 1), (10, 2), (20, 9), (20, 3), (2**60, 4)]]  # fmt: skip
    await put_tasks(store, timers)
    await put_tasks(store, [TaskRow(TaskCategory.TRANSFER, 0, task_id, b"") for task_id in (12, 10, 11)])
    await put_tasks(store, [TaskRow(TaskCategory.TIMER, 15, 5, b"")], shard_id=2)
    assert await store.read_tasks(1, TaskCategory.TIMER, (0, 0), (2**61, 0), 10) == sorted(timers)
    assert await tasks_of(store, TaskCategory.TRANSFER) == [(0, 10), (0, 11), (0, 12)]
    assert await tasks_of(store, TaskCategory.VISIBILITY) == []
    assert await tasks_of(store, TaskCategory.TIMER, 2) == [(15, 5)]

    async def read(after: tuple[int, int], until: tuple[int, int], limit: int = 10) -> list[int]:
        return [row.task_id for row in await store.read_tasks(1, TaskCategory.TIMER, after, until, limit)]

    assert await read((10, 2), (20, 9)) == [3, 9]
    assert await read((10, 1), (20, 8)) == [2, 3]
    assert await read((10, 10), (20, 2)) == []
    assert await read((0, 0), (2**61, 0), 2) == [2, 3]
    assert await read((20, 3), (2**61, 0), 2) == [9, 1]
    assert await read((40, 0), (30, 0)) == []


async def test_done_tasks_are_deleted_up_to_a_position(store: Store) -> None:
    await shard(store)
    await shard(store, 2)
    for shard_id in (1, 2):
        rows = [
            TaskRow(category, time, time * 10 + i, b"") for category in (1, 2) for time in (1, 2, 3) for i in (0, 1)
        ]
        await put_tasks(store, rows, shard_id=shard_id)
    await store.delete_tasks(1, TaskCategory.TIMER, (2, 20))
    assert await tasks_of(store, TaskCategory.TIMER) == [(2, 21), (3, 30), (3, 31)]
    assert len(await tasks_of(store, TaskCategory.TRANSFER)) == 6
    assert len(await tasks_of(store, TaskCategory.TIMER, 2)) == 6
    await store.delete_tasks(1, TaskCategory.TIMER, (1, 99))  # less than before
    assert len(await tasks_of(store, TaskCategory.TIMER)) == 3
    await put_tasks(store, [TaskRow(TaskCategory.TIMER, 2, 22, b"")])
    assert await tasks_of(store, TaskCategory.TIMER) == [(2, 21), (2, 22), (3, 30), (3, 31)]
    await store.delete_tasks(1, TaskCategory.TIMER, (9, 0))
    assert await tasks_of(store, TaskCategory.TIMER) == []
    await store.delete_tasks(5, TaskCategory.TIMER, (9, 0))


async def test_a_task_that_comes_after_a_delete_stays(store: Store) -> None:
    """A timer may fire in the past: it lands behind the position up to which tasks were deleted."""
    await shard(store)
    await put_tasks(store, [TaskRow(TaskCategory.TIMER, time, time, b"") for time in range(1, 2001)])
    await store.delete_tasks(1, TaskCategory.TIMER, (1900, 1900))
    late = TaskRow(TaskCategory.TIMER, 1000, 5000, b"late")
    await put_tasks(store, [late])
    for i in range(20):
        await put_tasks(store, [TaskRow(TaskCategory.TRANSFER, 0, i, b"")])
    assert (await store.read_tasks(1, TaskCategory.TIMER, (0, 0), (2000, 2000), 10))[0] == late
    assert len(await tasks_of(store, TaskCategory.TIMER)) == 101


async def test_the_same_task_twice_fails(store: Store) -> None:
    await shard(store)
    await put_tasks(store, [TaskRow(TaskCategory.TIMER, 1, 1, b"first")])
    with pytest.raises(ConditionFailed):
        await store.commit(Commit(1, 1, [run_write()], tasks=[TaskRow(TaskCategory.TIMER, 1, 1, b"second")]))
    with pytest.raises(NotFound):
        await store.load_run(1, NS, "wf", "run")
    assert (await store.read_tasks(1, TaskCategory.TIMER, (0, 0), (9, 9), 9))[0].blob == b"first"


# --- task queues -----------------------------------------------------------------------------------------------------

KEY = TaskQueueKey(NS, "queue", 1)


async def test_leasing_a_task_queue_counts_its_range_id_up(store: Store) -> None:
    record = await store.lease_task_queue(KEY)
    assert (record.range_id, record.ack_level, record.blob) == (1, 0, b"")
    await store.update_task_queue(KEY, 1, 17, b"data")
    record = await store.lease_task_queue(KEY)
    assert (record.range_id, record.ack_level, record.blob) == (2, 17, b"data")
    for range_id in (1, 3):
        with pytest.raises(ConditionFailed):
            await store.update_task_queue(KEY, range_id, 99, b"stale")
        with pytest.raises(ConditionFailed):
            await store.append_backlog(KEY, range_id, [BacklogTask(1, b"")])
        with pytest.raises(ConditionFailed):
            await store.delete_task_queue(KEY, range_id)
    with pytest.raises(ConditionFailed):
        await store.append_backlog(TaskQueueKey(NS, "missing", 1), 1, [BacklogTask(1, b"")])
    assert (await store.lease_task_queue(KEY)).ack_level == 17
    assert await store.read_backlog(KEY, 0, 10) == []


async def test_backlog(store: Store) -> None:
    others = [TaskQueueKey(NS, "queue", 2), TaskQueueKey(NS, "Queue", 1), TaskQueueKey("", "queue", 1)]
    for key in (KEY, *others):
        await store.lease_task_queue(key)
    tasks = [BacklogTask(level, b"%d" % level) for level in range(1, 1001)]
    await store.append_backlog(KEY, 1, tasks[:600])
    await asyncio.gather(*(store.append_backlog(KEY, 1, tasks[at : at + 100]) for at in range(600, 1000, 100)))
    await store.append_backlog(others[0], 1, [BacklogTask(5, b"other")])
    assert await store.read_backlog(KEY, 0, 2000) == tasks
    assert await store.read_backlog(KEY, 990, 5) == tasks[990:995]
    assert await store.count_backlog(KEY, 0) == 1000
    assert await store.count_backlog(KEY, 990) == 10
    await store.delete_backlog(KEY, 900)
    assert await store.read_backlog(KEY, 0, 1) == tasks[900:901]
    assert await store.count_backlog(KEY, 0) == 100
    await store.append_backlog(KEY, 1, [BacklogTask(2000, b"")])
    assert await store.count_backlog(KEY, 0) == 101
    assert await store.read_backlog(others[0], 0, 10) == [BacklogTask(5, b"other")]
    for missing in (others[1], TaskQueueKey(NS, "missing", 1)):
        assert await store.read_backlog(missing, 0, 10) == []
        assert await store.count_backlog(missing, 0) == 0
        await store.delete_backlog(missing, 10)


async def test_a_spooled_task_that_comes_after_a_delete_stays(store: Store) -> None:
    await store.lease_task_queue(KEY)
    await store.append_backlog(KEY, 1, [BacklogTask(level, b"") for level in range(1, 2001, 2)])
    await store.delete_backlog(KEY, 1900)
    await store.append_backlog(KEY, 1, [BacklogTask(1000, b"late")])
    for i in range(20):
        await store.put_document("kind", str(i), 0, b"")
    assert await store.read_backlog(KEY, 0, 1) == [BacklogTask(1000, b"late")]
    assert await store.count_backlog(KEY, 0) == 51


async def test_a_level_that_exists_fails(store: Store) -> None:
    await store.lease_task_queue(KEY)
    await store.append_backlog(KEY, 1, [BacklogTask(1, b"first")])
    with pytest.raises(ConditionFailed):
        await store.append_backlog(KEY, 1, [BacklogTask(2, b""), BacklogTask(1, b"second")])
    assert await store.read_backlog(KEY, 0, 10) == [BacklogTask(1, b"first")]


async def test_a_task_queue_is_leased_above_a_range_id(store: Store) -> None:
    assert await store.lease_task_queue(KEY, 7) == TaskQueueRecord(7, 0, b"")
    assert (await store.lease_task_queue(KEY, 7)).range_id == 8
    assert (await store.lease_task_queue(KEY, 50)).range_id == 50
    with pytest.raises(ConditionFailed):
        await store.append_backlog(KEY, 8, [BacklogTask(1, b"")])


async def test_a_task_queue_is_read_without_taking_it(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.read_task_queue(KEY)
    await store.lease_task_queue(KEY)
    await store.update_task_queue(KEY, 1, 17, b"blob")
    for _ in range(2):
        assert await store.read_task_queue(KEY) == TaskQueueRecord(1, 17, b"blob")
    with pytest.raises(NotFound):
        await store.read_task_queue(KEY._replace(name="other"))


async def test_deleting_a_task_queue(store: Store) -> None:
    await store.lease_task_queue(KEY)
    await store.append_backlog(KEY, 1, [BacklogTask(1, b""), BacklogTask(2, b"")])
    await store.delete_backlog(KEY, 1)
    await store.delete_task_queue(KEY, 1)
    assert await store.read_backlog(KEY, 0, 10) == []
    with pytest.raises(ConditionFailed):
        await store.delete_task_queue(KEY, 1)
    record = await store.lease_task_queue(KEY)
    assert (record.range_id, record.ack_level) == (1, 0)
    await store.append_backlog(KEY, 1, [BacklogTask(1, b"")])
    assert await store.count_backlog(KEY, 0) == 1


async def test_task_queues_are_listed_in_pages(store: Store) -> None:
    keys = {TaskQueueKey(NS, name, type) for name in NAMES for type in (1, 2)}
    for key in keys:
        assert (await store.lease_task_queue(key)).range_id == 1
    listed: list[TaskQueueKey] = []
    token = b""
    while True:
        page, token = await store.list_task_queues(7, token)
        assert len(page) <= 7
        listed += page
        if not token:
            break
    assert len(listed) == len(keys)
    assert set(listed) == keys


# --- documents -------------------------------------------------------------------------------------------------------


async def test_documents_are_written_by_version(store: Store) -> None:
    with pytest.raises(NotFound):
        await store.get_document("namespace", "a")
    assert await store.put_document("namespace", "a", 0, b"one") == Document("a", 1, b"one")
    with pytest.raises(ConditionFailed):
        await store.put_document("namespace", "a", 0, b"again")
    with pytest.raises(ConditionFailed):
        await store.put_document("namespace", "b", 1, b"")
    assert await store.put_document("namespace", "a", 1, b"two") == Document("a", 2, b"two")
    assert await store.get_document("namespace", "a") == Document("a", 2, b"two")
    with pytest.raises(NotFound):
        await store.get_document("cluster", "a")
    with pytest.raises(ConditionFailed):
        await store.delete_document("namespace", "a", 1)
    with pytest.raises(NotFound):
        await store.delete_document("namespace", "b", 1)
    await store.delete_document("namespace", "a", 2)
    with pytest.raises(NotFound):
        await store.get_document("namespace", "a")
    assert await store.put_document("namespace", "a", 0, b"new") == Document("a", 1, b"new")


async def test_of_two_writers_of_a_document_one_wins(store: Store) -> None:
    outcomes = await asyncio.gather(
        *(store.put_document("kind", "key", 0, b"%d" % i) for i in range(10)), return_exceptions=True
    )
    winners = [outcome for outcome in outcomes if isinstance(outcome, Document)]
    assert len(winners) == 1
    assert sum(isinstance(outcome, ConditionFailed) for outcome in outcomes) == 9
    assert await store.get_document("kind", "key") == winners[0]


async def test_documents_are_listed_by_key(store: Store) -> None:
    for name in NAMES:
        await store.put_document("kind", name, 0, name.encode())
    await store.put_document("other", "name", 0, b"")
    ordered = sorted(NAMES, key=str.encode)
    assert await store.list_documents("kind") == [Document(name, 1, name.encode()) for name in ordered]
    assert [d.key for d in await store.list_documents("kind", limit=3)] == ordered[:3]
    assert [d.key for d in await store.list_documents("kind", ordered[2], 3)] == ordered[3:6]
    assert await store.list_documents("none") == []


async def test_kinds_of_documents_are_listed(store: Store) -> None:
    assert await store.list_document_kinds() == []
    for kind, key in (("b", "1"), ("a", "1"), ("b", "2"), ("B", "1"), ("gone", "1")):
        await store.put_document(kind, key, 0, b"")
    await store.delete_document("gone", "1", 1)
    assert await store.list_document_kinds() == ["B", "a", "b"]


# --- queues of messages ----------------------------------------------------------------------------------------------


async def test_a_queue_of_messages(store: Store) -> None:
    ids = [await store.enqueue("dlq", b"%d" % i) for i in range(5)]
    assert ids == sorted(set(ids))
    assert ids[0] > 0
    await store.enqueue("Dlq", b"other")
    messages = [QueueMessage(message_id, b"%d" % i) for i, message_id in enumerate(ids)]
    assert await store.read_queue("dlq", 0, 10) == messages
    assert await store.read_queue("dlq", ids[1], 2) == messages[2:4]
    assert await store.list_queues() == [("Dlq", 1), ("dlq", 5)]
    assert await store.delete_messages("dlq", ids[1]) == 2
    assert await store.delete_messages("dlq", ids[1]) == 0
    assert await store.read_queue("dlq", 0, 10) == messages[2:]
    assert await store.delete_messages("dlq", ids[-1]) == 3
    assert await store.enqueue("dlq", b"later") > ids[-1]
    assert await store.read_queue("none", 0, 10) == []
    assert await store.delete_messages("none", 10) == 0


async def test_waiting_messages_get_ids_in_order(store: Store) -> None:
    ids = await asyncio.gather(*(store.enqueue("queue", b"%d" % i) for i in range(30)))
    assert ids == sorted(set(ids))
    assert [m.blob for m in await store.read_queue("queue", 0, 100)] == [b"%d" % i for i in range(30)]


# --- the end ---------------------------------------------------------------------------------------------------------


async def test_closing_writes_what_waits_and_refuses_the_rest(backend: Backend) -> None:
    store = await backend.open()
    await shard(store)
    waiting = [asyncio.ensure_future(put_run(store, run_write(f"run-{i}"))) for i in range(10)]
    await asyncio.sleep(0)
    await store.close()
    assert await asyncio.gather(*waiting) == [None] * 10
    with pytest.raises(Unavailable):
        await put_run(store, run_write("late"))
    with pytest.raises(Unavailable):
        await store.load_run(1, NS, "wf", "run-1")
    with pytest.raises(Unavailable):
        await store.list_documents("kind")
    await store.close()
    if backend.durable:
        store = await backend.open()
        for i in range(10):
            await store.load_run(1, NS, "wf", f"run-{i}")
        await store.close()


async def test_everything_is_there_when_opened_again(backend: Backend) -> None:
    if not backend.durable:
        pytest.skip("keeps nothing")
    store = await backend.open()
    await shard(store)
    await store.commit(
        Commit(
            1,
            1,
            [run_write(put=[PendingRow(1, "5", b"a")], nodes=BATCHES)],
            [current_write("", "run")],
            [TaskRow(TaskCategory.TIMER, time, time, b"") for time in (1, 2, 3)],
        )
    )
    await store.delete_tasks(1, TaskCategory.TIMER, (2, 2))
    await store.lease_task_queue(KEY)
    await store.append_backlog(KEY, 1, [BacklogTask(1, b"x"), BacklogTask(2, b"y")])
    await store.put_document("kind", "key", 0, b"doc")
    message_id = await store.enqueue("queue", b"message")
    await store.close()

    store = await backend.open()
    record = await store.load_run(1, NS, "wf", "run")
    assert (record.version, record.state, record.pending) == (1, b"state", [PendingRow(1, "5", b"a")])
    assert await store.load_current(1, NS, "wf") == CurrentRun("run", 1, b"summary")
    assert await store.read_history(1, "branch", 1, 100, MiB) == BATCHES
    assert await tasks_of(store, TaskCategory.TIMER) == [(3, 3)]
    assert await store.read_backlog(KEY, 0, 10) == [BacklogTask(1, b"x"), BacklogTask(2, b"y")]
    assert await store.get_document("kind", "key") == Document("key", 1, b"doc")
    assert await store.read_queue("queue", 0, 10) == [QueueMessage(message_id, b"message")]
    # A new run and a new branch have nothing to do with those of before.
    await put_run(store, run_write("next", nodes=[node(1, branch="next")]))
    await put_run(store, run_write(version=1, nodes=[node(9)]))
    assert (await store.load_run(1, NS, "wf", "next")).pending == []
    assert await store.read_history(1, "next", 1, 100, MiB) == [node(1, branch="next")]
    assert await store.read_history(1, "branch", 1, 100, MiB) == [*BATCHES, node(9)]
    await store.close()
