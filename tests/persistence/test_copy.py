"""A copy to another database holds all that was there, each thing in the shard where a server looks for it, however
often it was cut off on the way."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests import databases

from perdure.cluster.record import load_cluster
from perdure.cluster.shardmap import shard_of
from perdure.history.core import tasks
from perdure.history.core.state import Kind, RunInfo, RunState, load, visibility_record
from perdure.persistence.api import (
    BacklogTask,
    Commit,
    CurrentRun,
    CurrentWrite,
    HistoryNode,
    NotFound,
    PendingRow,
    RunWrite,
    SchemaMismatch,
    TaskCategory,
    TaskQueueKey,
    TaskQueueRecord,
    TaskRow,
    Unavailable,
)
from perdure.persistence.copy import CopyDiffers, CopyRefused, content_of, copy
from perdure.persistence.open import OpenDatabase, is_unfinished_copy, open_database_url

NS = "6c2c7f0e-9f1a-4d5e-8a51-1d8f0d8f6a01"
SHARDS = 3
MiB = 1 << 20
encode = msgspec.msgpack.encode

QUEUE = TaskQueueKey(NS, "queue", 1)


def state_of(workflow_id: str, run_id: str, ancestors: list[tuple[str, int]]) -> tuple[bytes, PendingRow]:
    info = RunInfo(namespace_id=NS, workflow_id=workflow_id, run_id=run_id, workflow_type="T", task_queue="queue")
    info.history_ancestors = ancestors
    run = RunState(branch_id=f"branch of {run_id}", transition_count=5, next_event_id=11)
    return encode(run), PendingRow(Kind.INFO, "", encode(info))


def node(branch: str, node_id: int, events: int = 2, size: int = 20) -> HistoryNode:
    return HistoryNode(branch, node_id, 1000 + node_id, 0, events, bytes([node_id % 256]) * size)


async def put(store: Any, fences: dict[int, int], workflow_id: str, run_id: str, **more: Any) -> None:
    """A run of two batches of events with a timer and tasks; current where its id says so."""
    shard_id = shard_of(NS, workflow_id, SHARDS)
    state, info = state_of(workflow_id, run_id, more.get("ancestors", []))
    timer = PendingRow(Kind.TIMER, "t", encode(["t", 5, 10**18]))
    currents = [CurrentWrite(NS, workflow_id, "", CurrentRun(run_id, 1, b"summary"))] if "current" in run_id else []
    number = next(ids)
    nodes = more.get("nodes", [node(f"branch of {run_id}", n) for n in more.get("at", (1, 3))])
    await store.commit(
        Commit(
            shard_id,
            fences[shard_id],
            [RunWrite(NS, workflow_id, run_id, 0, state, [info, timer], (), nodes)],
            currents,
            [
                TaskRow(TaskCategory.TRANSFER, 0, number, encode(["w", NS, workflow_id, run_id, "queue"])),
                TaskRow(TaskCategory.TIMER, 10**18, number, encode(["tu", NS, workflow_id, run_id, "t", 5])),
            ],
        )
    )


ids = itertools.count(1)


async def fill(database: OpenDatabase) -> None:
    store = database.store
    await load_cluster(store, SHARDS, SHARDS)
    fences = {i: (await store.acquire_shard(i, "host", 5 + i)).range_id for i in range(1, SHARDS + 1)}
    for i in range(12):
        await put(store, fences, f"wf-{i}", f"run-{i} current")
    # One that was reset: it begins on the branch of the one before, and one more of a run that is gone.
    await put(store, fences, "reset", "first")
    old = [node("branch of none", 1, 4), *[node("branch of second current", n) for n in (8, 10)]]
    ancestors = [("branch of none", 5), ("branch of first", 8)]
    await put(store, fences, "reset", "second current", ancestors=ancestors, nodes=old)
    # And one whose history takes several commits.
    await put(store, fences, "long", "long current")
    shard_id = shard_of(NS, "long", SHARDS)
    state, _ = state_of("long", "long current", [])
    for version, at in enumerate(range(5, 125, 40), 1):
        nodes = [node("branch of long current", n, 1, 40_000) for n in range(at, at + 40)]
        await store.commit(
            Commit(shard_id, fences[shard_id], [RunWrite(NS, "long", "long current", version, state, nodes=nodes)])
        )
    unreadable = TaskRow(TaskCategory.TRANSFER, 0, next(ids), b"of a version that nobody knows")
    await store.commit(Commit(2, fences[2], tasks=[unreadable]))
    lease = await store.lease_task_queue(QUEUE, 9)
    await store.append_backlog(QUEUE, lease.range_id, [BacklogTask(800_000 + i, b"%d" % i) for i in range(600)])
    await store.update_task_queue(QUEUE, lease.range_id, 800_009, b"data")
    await store.lease_task_queue(QUEUE._replace(name="empty"))
    for name in ("default", "other"):
        await store.put_document("namespace", name, 0, name.encode())
    await store.put_document("namespace", "default", 1, b"changed")
    await store.put_document("cluster", "more", 0, b"kept")
    await store.put_document("member", "host", 0, b'{"name": "host"}')  # of a server that was killed
    for i in range(5):
        await store.enqueue("dead letters", b"%d" % i)
    await store.delete_messages("dead letters", 2)


@pytest.fixture
async def source(tmp_path: Path) -> AsyncIterator[OpenDatabase]:
    database = await open_database_url(str(tmp_path / "source.db"))
    await fill(database)
    yield database
    await database.store.close()


def sqlite(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'target.db'}"


def postgresql(tmp_path: Path) -> str:
    return databases.postgresql().url()


def mysql(tmp_path: Path) -> str:
    return databases.mysql().url()


@pytest.fixture(params=[sqlite, postgresql, mysql], ids=lambda make: make.__name__)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return request.param(tmp_path)


async def check(source: OpenDatabase, target: OpenDatabase, shards: int) -> None:
    store = target.store
    here = await content_of(source.store, SHARDS)
    there = await content_of(store, shards)
    assert there.counts == here.counts
    assert there.digests == here.digests
    assert here.counts == {
        "runs": 15,
        "rows of runs": 30,
        "current runs": 14,
        # Two a run, those of the long one, and those that two runs share, once for each.
        "batches of events": 13 * 2 + 122 + 5,
        "tasks": 31,
        "documents": 3,
        "task queues": 2,
        "tasks in backlogs": 590,
        "messages": 3,
    }
    assert msgspec.json.decode((await store.get_document("cluster", "self")).blob)["shards"] == shards
    assert (await store.get_document("namespace", "default")).blob == b"changed"
    with pytest.raises(NotFound):
        await store.get_document("member", "host")
    shard_id = shard_of(NS, "reset", shards)
    assert (await store.load_current(shard_id, NS, "reset")).run_id == "second current"
    if shards > 1:
        with pytest.raises(NotFound):
            await store.load_current(shard_of(NS, "wf-1", shards) % shards + 1, NS, "wf-1")
    for branch, first, expected in (
        ("branch of none", 1, [1]),
        ("branch of first", 1, [1, 3]),
        ("branch of second current", 1, [8, 10]),
    ):
        assert [n.node_id for n in await store.read_history(shard_id, branch, first, 100, MiB)] == expected
    long = await store.load_run(shard_of(NS, "long", shards), NS, "long", "long current")
    record = visibility_record(load(long.version, long.state, long.pending))
    assert await target.visibility.get(NS, "long current") == record
    assert len((await target.visibility.list(NS, "WorkflowType = 'T'", {}, 100, b"")).records) == 15
    # Whoever takes the shards and queues over numbers on above all that was copied.
    highest = 0
    for number in range(1, shards + 1):
        for category in TaskCategory:
            rows = await store.read_tasks(number, category, (-1, -1), (2**62, 2**62), 1000)
            highest = max([highest, *(row.task_id for row in rows)])
            keys = [tasks.decode(row.blob) for row in rows if row.blob[:2] != b"of"]
            assert {shard_of(NS, task.workflow_id, shards) for task in keys} <= {number}
        assert (await store.acquire_shard(number, "host")).range_id > max(5 + SHARDS, highest >> 24)
    queue = await store.read_task_queue(QUEUE)
    assert queue == TaskQueueRecord(max(queue.range_id, 9), 800_009, b"data")


@pytest.mark.parametrize("shards", [1, 3, 16])
async def test_everything_is_copied(source: OpenDatabase, url: str, shards: int) -> None:
    target = await open_database_url(url)
    await copy(source, target, shards, listen=0)
    await check(source, target, shards)
    await target.store.close()
    again = await open_database_url(url)
    with pytest.raises(CopyRefused, match="the target is not empty"):
        await copy(source, again, shards, listen=0)
    await again.store.close()


WRITES = [
    "acquire_shard",
    "append_backlog",
    "commit",
    "delete_document",
    "enqueue",
    "lease_task_queue",
    "put_document",
    "update_task_queue",
]


class Failing:
    """A store whose database goes away after so many writes. lost: the last one was not written."""

    def __init__(self, store: Any, writes: int, lost: bool) -> None:
        self._store = store
        self._left = writes
        self._lost = lost

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._store, name)
        return self._write(method) if name in WRITES else method

    def _write(self, method: Callable[..., Any]) -> Callable[..., Any]:
        async def write(*arguments: Any) -> Any:
            self._left -= 1
            if self._left < 0 or (self._left == 0 and self._lost):
                raise Unavailable("gone")
            result = await method(*arguments)
            if self._left == 0:
                raise Unavailable("gone, with the answer")
            return result

        return write


@pytest.mark.parametrize("lost", [True, False])
@pytest.mark.parametrize("writes", [9, 25])
async def test_a_copy_that_is_cut_off_again_and_again(
    source: OpenDatabase, url: str, writes: int, lost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"_PAGE": 4, "_CHUNK_ROWS": 3, "_AT_ONCE": 2}.items():
        monkeypatch.setattr(f"perdure.persistence.copy.{name}", value)
    shards = 2
    attempts = 0
    while True:
        target = await open_database_url(url)
        try:
            # A few more each time, since each start costs some by itself.
            failing = Failing(target.store, writes + attempts, lost)
            await copy(source, OpenDatabase(failing, target.visibility), shards, listen=0)
            break
        except Unavailable:
            attempts += 1
            if not await is_unfinished_copy(target.store):
                break  # only the very last answer was lost
            with pytest.raises(SchemaMismatch, match="not complete"):
                await load_cluster(target.store, None, 4)
        finally:
            await target.store.close()
    assert attempts > 3
    target = await open_database_url(url)
    await check(source, target, shards)
    await target.store.close()


async def test_a_source_that_ran_in_between(source: OpenDatabase, tmp_path: Path) -> None:
    target = await open_database_url(sqlite(tmp_path))
    with pytest.raises(Unavailable):
        await copy(source, OpenDatabase(Failing(target.store, 12, False), target.visibility), 4, listen=0)
    with pytest.raises(CopyRefused, match="unfinished copy with 4 shards"):
        await copy(source, target, 5, listen=0)
    await source.store.acquire_shard(1, "host")
    with pytest.raises(CopyRefused, match="has run since"):
        await copy(source, target, 4, listen=0)
    await target.store.close()


async def test_a_source_that_is_started_meanwhile(source: OpenDatabase, tmp_path: Path) -> None:
    target = await open_database_url(sqlite(tmp_path))

    class Started(Failing):
        def _write(self, method: Callable[..., Any]) -> Callable[..., Any]:
            async def write(*arguments: Any) -> Any:
                if method.__name__ == "enqueue":
                    await source.store.acquire_shard(2, "host")
                return await method(*arguments)

            return write

    with pytest.raises(CopyRefused, match="started on the source"):
        await copy(source, OpenDatabase(Started(target.store, 0, False), target.visibility), 4, listen=0)
    with pytest.raises(SchemaMismatch, match="not complete"):
        await load_cluster(target.store, None, 4)
    await target.store.close()


async def test_databases_that_are_not_to_be_copied(source: OpenDatabase, tmp_path: Path) -> None:
    empty = await open_database_url(str(tmp_path / "empty.db"))
    with pytest.raises(CopyRefused, match="the source is empty"):
        await copy(empty, source, 4, listen=0)
    with pytest.raises(CopyRefused, match="the target is not empty"):
        await copy(source, source, 4, listen=0)

    async def live() -> None:
        for version in itertools.count(1):
            await source.store.put_document("member", "host", version, b'{"name": "node 1"}')
            await asyncio.sleep(0)

    running = asyncio.create_task(live())
    with pytest.raises(CopyRefused, match="the source is in use by node 1"):
        await copy(source, empty, 4, listen=0.1)
    running.cancel()
    await empty.store.close()


async def test_what_is_not_as_in_the_source_is_found(source: OpenDatabase, tmp_path: Path) -> None:
    """Here a task that something else put into the target."""
    target = await open_database_url(sqlite(tmp_path))
    strays = itertools.count(2**40)

    class Careless(Failing):
        def _write(self, method: Callable[..., Any]) -> Callable[..., Any]:
            async def write(*arguments: Any) -> Any:
                if method.__name__ == "enqueue":
                    range_id = (await target.store.list_shards())[0].range_id
                    await target.store.commit(
                        Commit(1, range_id, tasks=[TaskRow(TaskCategory.TIMER, 1, next(strays), b"stray")])
                    )
                return await method(*arguments)

            return write

    with pytest.raises(CopyDiffers, match=r"tasks: 31 in the source, 34 in the copy"):
        await copy(source, OpenDatabase(Careless(target.store, 0, False), target.visibility), 4, listen=0)
    await target.store.close()
