"""What is MySQL's own: who may write is decided there, a lost answer is not a lost write, and nothing that was
acknowledged is lost when the server crashes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests import databases

from perdure.persistence.api import (
    BacklogTask,
    Commit,
    ConditionFailed,
    CurrentConflict,
    CurrentRun,
    CurrentWrite,
    HistoryNode,
    PendingRow,
    RunWrite,
    SchemaMismatch,
    ShardFenced,
    StoreError,
    TaskCategory,
    TaskQueueKey,
    TaskRow,
    Unavailable,
)
from perdure.persistence.mysql import MysqlStore, connections, database, open_store, schema
from perdure.persistence.mysql.connections import Connection, Target
from perdure.persistence.mysql.database import Refused
from perdure.persistence.mysql.sql import bind, quote
from perdure.visibility.api import VisibilityRecord
from perdure.visibility.mysql import MysqlVisibility

NS = "6c2c7f0e-9f1a-4d5e-8a51-1d8f0d8f6a01"
MiB = 1 << 20
T = TypeVar("T")


@pytest.fixture
def url() -> str:
    return databases.mysql().url()


@pytest.fixture
async def store(url: str) -> AsyncIterator[MysqlStore]:
    store = await open_store(url)
    yield store
    await store.close()


@pytest.fixture
async def other(store: MysqlStore, url: str) -> AsyncIterator[MysqlStore]:
    """Another process with the same database."""
    store = await open_store(url)
    yield store
    await store.close()


@asynccontextmanager
async def raw(url: str) -> AsyncIterator[Connection]:
    connection = await Target(url).connect(60)
    yield connection
    await connection.close()


def step(i: int, version: int = 0, *, range_id: int = 1, shard_id: int = 1, run: str | None = None) -> Commit:
    """The write of one step: a run, a pending row, a history node, a task."""
    run = run or f"run-{i}"
    node = HistoryNode(run, version + 1, version + 1, version, 1, b"%d" % version)
    put = [PendingRow(1, str(version), b"%d" % version)]
    write = RunWrite(NS, f"wf-{run}", run, version, b"%d" % version, put, [(1, str(version - 1))], [node])
    return Commit(shard_id, range_id, [write], tasks=[TaskRow(TaskCategory.TRANSFER, 0, i, b"")])


def record(run_id: str, version: int = 1, **fields: Any) -> VisibilityRecord:
    values = {
        "namespace_id": NS,
        "workflow_id": "wf",
        "run_id": run_id,
        "version": version,
        "workflow_type": "type",
        "task_queue": "queue",
        "status": 1,
        "start_time": 1,
        "execution_time": 1,
    }
    return VisibilityRecord(**{**values, **fields})


async def task_ids(store: MysqlStore, shard_id: int = 1) -> list[int]:
    rows = await store.read_tasks(shard_id, TaskCategory.TRANSFER, (0, -1), (0, 2**62), 100_000)
    return [row.task_id for row in rows]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110 (of another process)
            await asyncio.sleep(0.01)


async def waiting_for_a_lock(url: str) -> bool:
    await asyncio.sleep(0.11)  # the server tells the same to whoever asks again within 100 ms
    async with raw(url) as connection:
        (rows,) = await connection.run(
            b"SELECT COUNT(*) FROM information_schema.innodb_trx WHERE trx_state = 'LOCK WAIT'"
        )
        return rows[0][0] > 0


async def kill_connections(url: str, but: Connection | None = None) -> None:
    async with raw(url) as connection:
        mine = [(await c.run(b"SELECT CONNECTION_ID()"))[0][0][0] for c in (connection, but) if c is not None]
        (rows,) = await connection.run(bind("SELECT id FROM information_schema.processlist WHERE db = ?", name_of(url)))
        for (number,) in rows:
            if number not in mine:
                try:
                    await connection.run(b"KILL %d" % number)
                except connections.Failure:
                    pass  # it was gone already


def name_of(url: str) -> str:
    return url.rpartition("/")[2]


# --- literals --------------------------------------------------------------------------------------------------------


def test_any_bytes_come_back_as_they_were_sent() -> None:
    url = databases.mysql().url()

    @settings(max_examples=40, deadline=None)
    @given(
        st.lists(st.one_of(st.binary(max_size=50), st.text(max_size=20), st.integers(-(2**63), 2**63 - 1)), min_size=1)
    )
    def check(values: list[bytes | str | int]) -> None:
        async def run() -> None:
            async with raw(url) as connection:
                (rows,) = await connection.run(b"SELECT " + b",".join(map(quote, values)))
                assert list(rows[0]) == [value.encode() if isinstance(value, str) else value for value in values]

        asyncio.run(run())

    check()


async def test_large_commits_go_in_several_packets(store: MysqlStore) -> None:
    await store.acquire_shard(1, "host")
    blob = b"'\\" * MiB  # each byte takes two
    nodes = [HistoryNode("branch", i, i, 0, 1, blob) for i in range(1, 8)]
    await store.commit(Commit(1, 1, [RunWrite(NS, "wf", "run", 0, blob, nodes=nodes)]))
    assert await store.read_history(1, "branch", 1, 100, 100 * MiB) == nodes
    with pytest.raises(Refused, match="max_allowed_packet"):
        await store.commit(Commit(1, 1, [RunWrite(NS, "wf", "run", 1, blob * 8)]))
    assert (await store.load_run(1, NS, "wf", "run")).version == 1


# --- who has the shard -----------------------------------------------------------------------------------------------


async def test_acquiring_waits_for_a_commit_that_is_under_way(store: MysqlStore, other: MysqlStore, url: str) -> None:
    await store.acquire_shard(1, "first")
    async with raw(url) as slow:
        await slow.run(b"BEGIN; SELECT range_id FROM shard WHERE shard_id = 1 LOCK IN SHARE MODE")
        await slow.run(b"INSERT INTO task VALUES (1, 1, 0, 5, '')")
        acquiring = asyncio.create_task(other.acquire_shard(1, "second"))
        await until(lambda: waiting_for_a_lock(url))
        assert not acquiring.done()
        await slow.run(b"COMMIT")
        assert (await acquiring).range_id == 2
    assert await task_ids(other) == [5]


async def test_a_commit_that_waited_for_the_shard_to_be_taken_is_fenced(store: MysqlStore, url: str) -> None:
    await store.acquire_shard(1, "first")
    await store.acquire_shard(2, "first")
    async with raw(url) as thief:
        await thief.run(b"BEGIN; UPDATE shard SET range_id = 2 WHERE shard_id = 1")
        committing = asyncio.create_task(store.commit(step(1)))
        await until(lambda: waiting_for_a_lock(url))
        deleting = asyncio.create_task(store.delete_run(1, 1, NS, "wf", "run", []))
        updating = asyncio.create_task(store.update_shard(1, 1, b"stale"))
        await store.commit(step(1, shard_id=2))  # is not held up by the first
        assert not committing.done()
        await thief.run(b"COMMIT")
        for stale in (committing, deleting, updating):
            with pytest.raises(ShardFenced, match="shard 1 is at range id 2, not 1"):
                await stale
    assert await task_ids(store) == []
    assert await task_ids(store, 2) == [1]


async def test_a_busy_owner_loses_its_shard_at_once_and_for_good(store: MysqlStore, other: MysqlStore) -> None:
    await store.acquire_shard(1, "busy")
    written: list[int] = []
    fenced = 0
    numbers = iter(range(1, 1_000_000))

    async def work() -> None:
        nonlocal fenced
        try:
            while True:
                i = next(numbers)
                await store.commit(step(i))
                written.append(i)
        except ShardFenced:
            fenced += 1

    workers = [asyncio.create_task(work()) for _ in range(60)]
    async with asyncio.timeout(30):
        while len(written) < 300:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        async with asyncio.timeout(5):
            assert (await other.acquire_shard(1, "thief")).range_id == 2
        seen = await task_ids(other)  # nothing comes after this
        await asyncio.gather(*workers)
    assert fenced == 60
    assert await task_ids(other) == seen
    assert sorted(written) == seen


async def test_who_was_stopped_within_a_transaction_holds_nobody_up_for_long(store: MysqlStore, url: str) -> None:
    """It takes a few seconds until the server ends its connection."""
    await store.acquire_shard(1, "first")
    stopped = await Target(url).connect(database.WRITER_IDLE)
    await stopped.run(b"BEGIN; SELECT range_id FROM shard WHERE shard_id = 1 LOCK IN SHARE MODE")
    async with asyncio.timeout(database.WRITER_IDLE + 4):
        assert (await store.acquire_shard(1, "second")).range_id == 2
    stopped.terminate()


async def test_who_lost_the_shard_deletes_no_tasks(store: MysqlStore, other: MysqlStore) -> None:
    await store.acquire_shard(1, "first")
    await other.acquire_shard(1, "second")
    await other.commit(step(1, range_id=2))
    await store.delete_tasks(1, TaskCategory.TRANSFER, (0, 100))
    assert await task_ids(store) == [1]
    await other.delete_tasks(1, TaskCategory.TRANSFER, (0, 100))
    assert await task_ids(store) == []

    queue = TaskQueueKey(NS, "queue", 1)
    await store.lease_task_queue(queue)
    await other.lease_task_queue(queue)
    await other.append_backlog(queue, 2, [BacklogTask(1, b"")])
    await store.delete_backlog(queue, 100)
    assert await store.count_backlog(queue, 0) == 1
    await other.delete_backlog(queue, 100)
    assert await store.count_backlog(queue, 0) == 0


async def test_a_long_range_of_tasks_is_deleted(store: MysqlStore) -> None:
    await store.acquire_shard(1, "host")
    for at in range(0, 5000, 1000):
        rows = [TaskRow(TaskCategory.TRANSFER, 0, i, b"") for i in range(at + 1, at + 1001)]
        await store.commit(Commit(1, 1, tasks=rows))
    await store.delete_tasks(1, TaskCategory.TRANSFER, (0, 4990))
    assert await task_ids(store) == list(range(4991, 5001))


# --- groups ----------------------------------------------------------------------------------------------------------


async def test_one_that_cannot_be_written_leaves_its_group_alone(store: MysqlStore) -> None:
    await store.acquire_shard(1, "host")
    await store.commit(step(1000))
    await store.commit(Commit(1, 1, currents=[CurrentWrite(NS, "taken", "", CurrentRun("taken", 1, b"summary"))]))

    def commit(i: int) -> Commit:
        commit = step(i)
        if i == 2:
            commit.tasks = [TaskRow(TaskCategory.TRANSFER, 0, 1000, b"exists")]
        if i == 5:
            commit.currents = [CurrentWrite(NS, "taken", "", CurrentRun("new", 1, b""))]
        if i == 11:
            commit.runs[0].run_id = "\ud800"  # cannot be encoded
        if i == 13:
            commit.runs[0].run_id = "x" * 2000
        return commit

    outcomes = await asyncio.gather(*(store.commit(commit(i)) for i in range(20)), return_exceptions=True)
    expected = {2: ConditionFailed, 5: CurrentConflict, 11: UnicodeEncodeError, 13: Refused}
    assert [type(outcome) for outcome in outcomes] == [expected.get(i, type(None)) for i in range(20)]
    conflict = outcomes[5]
    assert isinstance(conflict, CurrentConflict)
    assert conflict.found == CurrentRun("taken", 1, b"summary")
    assert await task_ids(store) == [*(i for i in range(20) if i not in expected), 1000]


async def test_groups_of_two_processes_that_lock_each_other_out_are_tried_again(
    store: MysqlStore, other: MysqlStore
) -> None:
    """Visibility is not fenced: the same records in another order are a deadlock."""
    writers = [MysqlVisibility(store.database), MysqlVisibility(other.database)]
    for version in range(1, 11):
        names = [f"run-{i}" for i in range(30)]
        await asyncio.gather(
            *(writers[0].upsert(record(name, version)) for name in names),
            *(writers[1].upsert(record(name, version)) for name in reversed(names)),
        )
    assert (await writers[0].count(NS, "", {})).count == 30


async def test_visibility_is_written_with_the_commit_or_not_at_all(store: MysqlStore) -> None:
    visibility = MysqlVisibility(store.database)
    store.carry_visibility(visibility)
    assert store.carries_visibility
    await store.acquire_shard(1, "host")

    def commit(i: int) -> Commit:
        commit = step(i)
        commit.visibility = [record(f"run-{i}"), record(f"run-{i}", 2, status=2, close_time=5)]
        if i % 5 == 3:
            commit.runs[0].expected_version = 7
        if i % 5 == 4:
            commit.range_id = 9
        if i % 5 == 1:
            commit.visibility = []
        return commit

    outcomes = await asyncio.gather(*(store.commit(commit(i)) for i in range(20)), return_exceptions=True)
    expected = {3: ConditionFailed, 4: ShardFenced}
    assert [type(outcome) for outcome in outcomes] == [expected.get(i % 5, type(None)) for i in range(20)]
    for i in range(20):
        found = await visibility.get(NS, f"run-{i}")
        assert (found.version if found else None) == (2 if i % 5 in (0, 2) else None)


# --- answers that get lost -------------------------------------------------------------------------------------------


async def test_a_commit_whose_connection_is_cut_before_it_was_sent_is_written_once(store: MysqlStore, url: str) -> None:
    await store.acquire_shard(1, "host")
    async with raw(url) as holder:
        await holder.run(b"BEGIN; UPDATE shard SET owner = 'x' WHERE shard_id = 1")
        committing = asyncio.create_task(store.commit(step(1)))
        await until(lambda: waiting_for_a_lock(url))
        await kill_connections(url, but=holder)
        await holder.run(b"ROLLBACK")
    await committing
    assert await task_ids(store) == [1]


async def test_a_commit_whose_answer_is_lost_is_unavailable_and_not_written_twice(store: MysqlStore, url: str) -> None:
    await store.acquire_shard(1, "host")
    async with raw(url) as holder:
        # It waits in its second packet, for this row.
        await holder.run(b"BEGIN; INSERT INTO task VALUES (1, 1, 0, 1, 'other')")
        committing = asyncio.create_task(store.commit(step(1)))
        await until(lambda: waiting_for_a_lock(url))
        await kill_connections(url, but=holder)
        with pytest.raises(Unavailable, match="unknown"):
            await committing
        await holder.run(b"ROLLBACK")
    assert (await store.acquire_shard(1, "host")).range_id == 2
    assert await task_ids(store) == []
    await store.commit(step(1, range_id=2))
    assert await task_ids(store) == [1]


async def test_connections_that_were_cut_while_idle_are_replaced(store: MysqlStore, url: str) -> None:
    await store.acquire_shard(1, "host")
    for i in range(1, 6):
        await asyncio.gather(store.commit(step(i)), *(task_ids(store) for _ in range(6)))
        await kill_connections(url)
        await store.commit(step(100 + i))
        assert len(await task_ids(store)) == 2 * i


@pytest.fixture
def server() -> Iterator[databases.MysqlServer]:
    """One of its own: it is going to crash."""
    server = databases.mysql.__wrapped__()
    yield server
    server.remove()


async def test_a_read_only_server_is_waited_for_and_then_unavailable(
    server: databases.MysqlServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An administrator writes in spite of it.
    server.run("REVOKE ALL PRIVILEGES ON *.* FROM perdure@'127.0.0.1'; GRANT ALL ON `test_%`.* TO perdure@'127.0.0.1'")
    store = await open_store(server.url())
    await store.acquire_shard(1, "host")
    server.run("SET GLOBAL read_only = 1")
    monkeypatch.setattr(database, "RETRY_FOR", 0.3)
    for write in (store.commit(step(1)), store.put_document("kind", "key", 0, b"")):
        with pytest.raises(Unavailable, match="read-only"):
            await write
    monkeypatch.setattr(database, "RETRY_FOR", 10)
    committing = asyncio.create_task(store.commit(step(1)))
    await asyncio.sleep(0.1)
    server.run("SET GLOBAL read_only = 0")
    await committing
    assert await task_ids(store) == [1]
    await store.close()


async def test_a_crash_of_the_server_loses_nothing_and_doubles_nothing(server: databases.MysqlServer) -> None:
    store = await open_store(server.url())
    owned: dict[int, int] = {}
    turns = {shard_id: asyncio.Lock() for shard_id in (1, 2)}

    async def own(shard_id: int, lost: int) -> None:
        """As an owner does that does not know what became of a write: what is still under way is fenced off first."""
        async with turns[shard_id]:
            if owned.get(shard_id, 0) == lost:
                owned[shard_id] = (await patiently(lambda: store.acquire_shard(shard_id, "host"))).range_id

    async def patiently(call: Callable[[], Awaitable[T]]) -> T:
        while True:
            try:
                return await call()
            except Unavailable:
                await asyncio.sleep(0.02)

    for shard_id in turns:
        await own(shard_id, 0)
    stopping = False
    unknown = 0
    acknowledged: dict[str, int] = {}

    async def work(number: int) -> None:
        nonlocal unknown
        shard_id = number % 2 + 1
        run = f"run-{number}"
        version = 0
        while not stopping:
            range_id = owned[shard_id]
            commit = step(number * 1_000_000 + version + 1, version, range_id=range_id, shard_id=shard_id, run=run)
            try:
                await store.commit(commit)
                version += 1
            except ShardFenced:
                pass  # another worker took it anew
            except Unavailable:
                unknown += 1
                await own(shard_id, range_id)
                try:
                    found = (await patiently(lambda: store.load_run(shard_id, NS, f"wf-{run}", run))).version
                except StoreError:
                    found = 0
                assert found in (version, version + 1)
                version = found
            acknowledged[run] = version

    workers = [asyncio.create_task(work(number)) for number in range(20)]
    for _ in range(3):
        await asyncio.sleep(0.3 + random.random() * 0.2)
        await asyncio.to_thread(server.kill)
        await asyncio.to_thread(server.start)
    await asyncio.sleep(0.5)
    stopping = True
    await asyncio.gather(*workers)
    assert unknown
    for number in range(20):
        run = f"run-{number}"
        shard_id = number % 2 + 1
        version = acknowledged[run]
        assert version > 3
        found = await store.load_run(shard_id, NS, f"wf-{run}", run)
        assert (found.version, [row.key for row in found.pending]) == (version, [str(version - 1)])
        nodes = await store.read_history(shard_id, run, 1, 2**62, 64 * MiB)
        assert [node.node_id for node in nodes] == list(range(1, version + 1))
    for shard_id in turns:
        mine = [number for number in range(20) if number % 2 + 1 == shard_id]
        expected = [n * 1_000_000 + v + 1 for n in mine for v in range(acknowledged[f"run-{n}"])]
        assert await task_ids(store, shard_id) == expected
    await store.close()


# --- the schema ------------------------------------------------------------------------------------------------------


async def refusal(opening: Awaitable[object], error: type[StoreError] = SchemaMismatch) -> str:
    with pytest.raises(error) as refused:
        await opening
    message = str(refused.value)
    assert "\n" not in message
    return message


async def test_several_that_start_at_once_make_the_tables_once(url: str) -> None:
    stores = await asyncio.gather(*(open_store(url) for _ in range(6)), *(schema.init(url) for _ in range(3)))
    for store in stores:
        if isinstance(store, MysqlStore):
            await store.close()
    assert (await schema.status(url)).current


async def test_upgrades(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await schema.status(url)).empty
    assert await refusal(open_store(url, create=False)) == f"{url} has no tables of perdure: run `perdure db init`"
    await (await open_store(url)).close()
    now = dict(schema.modules())
    more = "CREATE TABLE IF NOT EXISTS more (id INT NOT NULL PRIMARY KEY)"
    later = {**now, "store": (*now["store"], (more, "INSERT IGNORE INTO more VALUES (1)"), ("DELETE FROM pending",))}
    known = len(now["store"])
    monkeypatch.setattr(schema, "modules", lambda: later)
    expected = f"{url} was written by an older version (store tables: version {known}, needed: {known + 2})"
    assert await refusal(open_store(url)) == f"{expected}: run `perdure db upgrade`"
    assert (await refusal(schema.init(url))).startswith(expected)
    await asyncio.gather(*(schema.upgrade(url) for _ in range(4)))
    await (await open_store(url)).close()
    monkeypatch.undo()
    expected = f"{url} was written by a newer version (store tables: version {known + 2}, known: {known})"
    assert await refusal(open_store(url)) == expected
    assert await refusal(schema.upgrade(url)) == expected


async def test_an_upgrade_that_was_cut_off_goes_on(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await schema.init(url)
    now = dict(schema.modules())
    more = "CREATE TABLE IF NOT EXISTS more (id INT NOT NULL PRIMARY KEY)"
    monkeypatch.setattr(schema, "modules", lambda: {**now, "store": (*now["store"], (more, "SELECT broken"))})
    assert "broken" in await refusal(schema.upgrade(url), StoreError)
    assert not (await schema.status(url)).current
    monkeypatch.setattr(schema, "modules", lambda: {**now, "store": (*now["store"], (more, "SELECT 1"))})
    assert (await schema.upgrade(url)).current


async def test_init_creates_the_database(url: str) -> None:
    missing = f"{url}_new"
    assert "Unknown database" in await refusal(open_store(missing))
    assert (await schema.init(missing)).current
    await (await open_store(missing, create=False)).close()
    databases.mysql().run(f"DROP DATABASE {name_of(missing)}")


async def test_databases_that_are_not_to_be_had(url: str) -> None:
    wrong_password = url.replace("perdure@", "perdure:secret@")
    message = await refusal(open_store(wrong_password))
    assert "Access denied" in message
    assert "secret" not in message
    nobody = "mysql://perdure:secret@127.0.0.1:1/database"
    message = await refusal(open_store(nobody), Unavailable)
    assert message.startswith("mysql://perdure@127.0.0.1:1/database cannot be reached: ")
    for wrong in (
        "mysql://h",
        "mysql://h/",
        "mysql://h/d?x=1",
        "mysql://h/d?ssl=maybe",
        "postgresql://h/d",
        "mysql://[h/d",
    ):
        assert await refusal(open_store(wrong))
    assert await refusal(open_store("mysql://h/d?ssl_ca=/missing.pem"))


async def test_a_server_with_small_packets_is_refused(server: databases.MysqlServer) -> None:
    url = server.url()
    server.run("SET GLOBAL max_allowed_packet = 1048576")
    assert await refusal(open_store(url)) == f"{url}: max_allowed_packet is 1048576: perdure needs 8388608 or more"
