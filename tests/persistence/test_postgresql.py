"""What is PostgreSQL's own: who may write is decided there, a lost answer is not a lost write, and nothing that was
acknowledged is lost when the server crashes."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import asyncpg
import pytest
from tests import databases

from perdure.persistence import keys
from perdure.persistence.api import (
    BacklogTask,
    Commit,
    ConditionFailed,
    CurrentConflict,
    CurrentRun,
    CurrentWrite,
    HistoryNode,
    RunWrite,
    SchemaMismatch,
    ShardFenced,
    StoreError,
    TaskCategory,
    TaskQueueKey,
    TaskRow,
    Unavailable,
)
from perdure.persistence.postgresql import PostgresStore, database, open_store, schema
from perdure.persistence.postgresql.database import Target
from perdure.visibility.api import VisibilityRecord
from perdure.visibility.postgresql import PostgresVisibility

NS = "6c2c7f0e-9f1a-4d5e-8a51-1d8f0d8f6a01"
MiB = 1 << 20
T = TypeVar("T")


@pytest.fixture
def url() -> str:
    return databases.postgresql().url()


@pytest.fixture
async def store(url: str) -> AsyncIterator[PostgresStore]:
    store = await open_store(url)
    yield store
    await store.close()


@pytest.fixture
async def other(store: PostgresStore, url: str) -> AsyncIterator[PostgresStore]:
    """Another process with the same database."""
    store = await open_store(url)
    yield store
    await store.close()


@asynccontextmanager
async def raw(url: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await Target(url).connect({})
    yield connection
    await connection.close()


def step(i: int, version: int = 0, *, range_id: int = 1, shard_id: int = 1, run: str | None = None) -> Commit:
    """The write of one step: a run, a history node, a task."""
    run = run or f"run-{i}"
    node = HistoryNode(run, version + 1, version + 1, version, 1, b"%d" % version)
    write = RunWrite(NS, f"wf-{run}", run, version, b"%d" % version, nodes=[node])
    return Commit(shard_id, range_id, [write], tasks=[TaskRow(TaskCategory.TRANSFER, 0, i, b"")])


def record(run_id: str, version: int = 1, **fields: Any) -> VisibilityRecord:
    return VisibilityRecord(
        **{
            "namespace_id": NS,
            "workflow_id": "wf",
            "run_id": run_id,
            "version": version,
            "workflow_type": "type",
            "task_queue": "queue",
            "status": 1,
            "start_time": 1,
            "execution_time": 1,
            **fields,
        }
    )


async def task_ids(store: PostgresStore, shard_id: int = 1) -> list[int]:
    rows = await store.read_tasks(shard_id, TaskCategory.TRANSFER, (0, -1), (0, 2**62), 100_000)
    return [row.task_id for row in rows]


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(30):
        while not await condition():  # noqa: ASYNC110 (of another process)
            await asyncio.sleep(0.01)


async def waiting_for_locks(url: str) -> int:
    async with raw(url) as connection:
        return await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted")


# --- who has the shard -----------------------------------------------------------------------------------------------


async def test_acquiring_waits_for_a_commit_that_is_under_way(
    store: PostgresStore, other: PostgresStore, url: str
) -> None:
    await store.acquire_shard(1, "first")
    async with raw(url) as slow:
        transaction = slow.transaction()
        await transaction.start()
        call, arguments = _call(step(1))
        assert await slow.fetch(call, *arguments) == []
        acquiring = asyncio.create_task(other.acquire_shard(1, "second"))
        await until(lambda: _is_waiting(url))
        assert not acquiring.done()
        await transaction.commit()
        assert (await acquiring).range_id == 2
    assert (await other.load_run(1, NS, "wf-run-1", "run-1")).version == 1


async def test_a_commit_that_waited_for_the_shard_to_be_taken_is_fenced(store: PostgresStore, url: str) -> None:
    await store.acquire_shard(1, "first")
    async with raw(url) as thief:
        transaction = thief.transaction()
        await transaction.start()
        await thief.fetch("SELECT * FROM acquire_shard(1, 'second', 1)")
        committing = asyncio.create_task(store.commit(step(1)))
        deleting = asyncio.create_task(store.delete_run(1, 1, NS, "wf", "run", []))
        updating = asyncio.create_task(store.update_shard(1, 1, b"stale"))
        elsewhere = asyncio.create_task(store.acquire_shard(2, "first"))
        await elsewhere
        await store.commit(step(1, shard_id=2))  # is not held up for long by the first
        assert not committing.done()
        await transaction.commit()
        for stale in (committing, deleting, updating):
            with pytest.raises(ShardFenced, match="shard 1 is at range id 2, not 1"):
                await stale
    assert await task_ids(store) == []


async def test_a_row_lock_alone_fences_too(store: PostgresStore, url: str) -> None:
    """Whoever changes the range id by other means is waited for, and seen."""
    await store.acquire_shard(1, "first")
    async with raw(url) as thief:
        transaction = thief.transaction()
        await transaction.start()
        await thief.execute("UPDATE shard SET range_id = 7 WHERE shard_id = 1")
        committing = asyncio.create_task(store.commit(step(1)))
        await until(lambda: _is_waiting(url))
        await transaction.commit()
        with pytest.raises(ShardFenced, match="at range id 7"):
            await committing


async def test_a_busy_owner_loses_its_shard_at_once_and_for_good(store: PostgresStore, other: PostgresStore) -> None:
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


async def test_who_lost_the_shard_deletes_no_tasks(store: PostgresStore, other: PostgresStore) -> None:
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


async def test_a_long_range_of_tasks_is_deleted(store: PostgresStore) -> None:
    await store.acquire_shard(1, "host")
    for at in range(0, 5000, 1000):
        rows = [TaskRow(TaskCategory.TRANSFER, 0, i, b"") for i in range(at + 1, at + 1001)]
        await store.commit(Commit(1, 1, tasks=rows))
    await store.delete_tasks(1, TaskCategory.TRANSFER, (0, 4990))
    assert await task_ids(store) == list(range(4991, 5001))


# --- groups ----------------------------------------------------------------------------------------------------------


async def test_one_that_cannot_be_written_leaves_its_group_alone(store: PostgresStore) -> None:
    await store.acquire_shard(1, "host")
    await store.commit(step(1000))
    await store.commit(
        Commit(1, 1, currents=[CurrentWrite(NS, "taken", "", CurrentRun("taken", 1, b"summary"))]),
    )

    def commit(i: int) -> Commit:
        commit = step(i)
        if i == 2:
            commit.tasks = [TaskRow(TaskCategory.TRANSFER, 0, 1000, b"exists")]
        if i == 5:
            commit.currents = [CurrentWrite(NS, "taken", "", CurrentRun("new", 1, b""))]
        if i == 11:
            commit.runs[0].state = "no bytes"  # type: ignore[assignment]
        if i == 13:
            commit.runs[0].run_id = "run\0"
        return commit

    outcomes = await asyncio.gather(*(store.commit(commit(i)) for i in range(20)), return_exceptions=True)
    expected = {2: ConditionFailed, 5: CurrentConflict, 11: ConditionFailed, 13: ConditionFailed}
    assert [type(outcome) for outcome in outcomes] == [expected.get(i, type(None)) for i in range(20)]
    conflict = outcomes[5]
    assert isinstance(conflict, CurrentConflict)
    assert conflict.found == CurrentRun("taken", 1, b"summary")
    assert await task_ids(store) == [*(i for i in range(20) if i not in expected), 1000]


async def test_visibility_is_written_with_the_commit_or_not_at_all(store: PostgresStore) -> None:
    visibility = PostgresVisibility(store.database)
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


async def test_a_commit_whose_connection_is_cut_is_unavailable_and_not_written_twice(
    store: PostgresStore, url: str
) -> None:
    await store.acquire_shard(1, "host")
    async with raw(url) as holder:
        transaction = holder.transaction()
        await transaction.start()
        await holder.execute("UPDATE shard SET owner = 'x' WHERE shard_id = 1")
        committing = asyncio.create_task(store.commit(step(1)))
        await until(lambda: _is_waiting(url))
        await holder.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE wait_event_type = 'Lock' AND application_name = 'perdure'"
        )
        with pytest.raises(Unavailable, match="unknown"):
            await committing
        await transaction.rollback()
    assert (await store.acquire_shard(1, "host")).range_id == 2
    assert await task_ids(store) == []
    await store.commit(step(1, range_id=2))
    assert await task_ids(store) == [1]


async def test_connections_that_were_cut_while_idle_are_replaced(store: PostgresStore, url: str) -> None:
    await store.acquire_shard(1, "host")
    for i in range(1, 6):
        await asyncio.gather(store.commit(step(i)), *(task_ids(store) for _ in range(6)))
        async with raw(url) as connection:
            await connection.fetch(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND application_name = 'perdure'"
            )
            await until(lambda: _are_gone(connection))
        assert await task_ids(store) == list(range(1, i + 1))


async def test_a_read_only_server_is_waited_for_and_then_unavailable(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(database, "RETRY_FOR", 0.3)
    async with raw(url) as connection:
        await connection.execute("CREATE DATABASE standby")
        read_only = url.replace("/postgres?", "/standby?")
        store = await open_store(read_only)
        await store.acquire_shard(1, "host")
        await connection.execute("ALTER DATABASE standby SET default_transaction_read_only = on")
        await connection.fetch("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'standby'")
        await until(lambda: _are_gone(connection, "standby"))
        with pytest.raises(Unavailable, match="read-only"):
            await store.commit(step(1))
        assert await task_ids(store) == []
        with pytest.raises(Unavailable, match="read-only"):
            await store.put_document("kind", "key", 0, b"")
        monkeypatch.setattr(database, "RETRY_FOR", 10)
        committing = asyncio.create_task(store.commit(step(1)))
        await asyncio.sleep(0.1)
        await connection.execute("ALTER DATABASE standby SET default_transaction_read_only = off")
        await committing
        assert await task_ids(store) == [1]
        await store.close()
        await connection.execute("DROP DATABASE standby WITH (FORCE)")


@pytest.fixture
def server() -> Iterator[databases.PostgresServer]:
    """One of its own: it is going to crash."""
    server = databases.postgresql.__wrapped__()
    yield server
    server.remove()


async def test_a_crash_of_the_server_loses_nothing_and_doubles_nothing(server: databases.PostgresServer) -> None:
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
        await asyncio.to_thread(server.restart, "immediate")
    await asyncio.sleep(0.5)
    stopping = True
    await asyncio.gather(*workers)
    assert unknown
    for number in range(20):
        run = f"run-{number}"
        shard_id = number % 2 + 1
        version = acknowledged[run]
        assert version > 3
        assert (await store.load_run(shard_id, NS, f"wf-{run}", run)).version == version
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
        if isinstance(store, PostgresStore):
            await store.close()
    assert (await schema.status(url)).current


async def test_upgrades(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (await schema.status(url)).empty
    assert await refusal(open_store(url, create=False)) == f"{url} has no tables of perdure: run `perdure db init`"
    await (await open_store(url)).close()
    now = dict(schema.modules())
    later = {**now, "store": (*now["store"], "CREATE TABLE more (id integer)", "INSERT INTO more VALUES (1)")}
    known = len(now["store"])
    monkeypatch.setattr(schema, "modules", lambda: later)
    expected = f"{url} was written by an older version (store tables: version {known}, needed: {known + 2})"
    assert await refusal(open_store(url)) == f"{expected}: run `perdure db upgrade`"
    assert (await refusal(schema.init(url))).startswith(expected)
    await asyncio.gather(*(schema.upgrade(url) for _ in range(4)))
    async with raw(url) as connection:
        assert await connection.fetchval("SELECT count(*) FROM more") == 1
    await (await open_store(url)).close()
    monkeypatch.undo()
    expected = f"{url} was written by a newer version (store tables: version {known + 2}, known: {known})"
    assert await refusal(open_store(url)) == expected
    assert await refusal(schema.upgrade(url)) == expected


async def test_an_upgrade_that_fails_changes_nothing(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await schema.init(url)
    now = dict(schema.modules())
    broken = {**now, "store": (*now["store"], "CREATE TABLE more (id integer)", "SELECT 1 / 0")}
    monkeypatch.setattr(schema, "modules", lambda: broken)
    assert "division by zero" in await refusal(schema.upgrade(url), StoreError)
    monkeypatch.undo()
    assert (await schema.status(url)).current
    async with raw(url) as connection:
        assert await connection.fetchval("SELECT to_regclass('more')") is None


async def test_databases_that_are_not_to_be_had(url: str) -> None:
    missing = url.replace("/postgres?", "/missing?")
    assert await refusal(open_store(missing)) == (f'{missing} cannot be opened: database "missing" does not exist')
    nobody = "postgresql://perdure:secret@127.0.0.1:1/postgres"
    message = await refusal(open_store(nobody), Unavailable)
    assert message.startswith("postgresql://perdure@127.0.0.1:1/postgres cannot be reached: ")
    assert "secret" not in message
    for wrong in ("postgresql://h/d?schema=a.b", "mysql://h/d", "postgresql://[h/d"):
        assert await refusal(open_store(wrong))


async def test_a_database_of_another_encoding(url: str) -> None:
    async with raw(url) as connection:
        await connection.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0")
        latin = url.replace("/postgres?", "/latin?")
        assert await refusal(open_store(latin)) == f"{latin} has the encoding LATIN1: perdure needs UTF8"
        await connection.execute("DROP DATABASE latin WITH (FORCE)")


@pytest.mark.parametrize(
    "branch",
    ["0192f3c4-aaaa-7bbb-8ccc-1234567890ab", "0192F3C4-aaaa-7bbb-8ccc-1234567890ab", "", "fifteen letters", "é"],
)
def test_the_key_of_a_branch_says_its_name(branch: str) -> None:
    assert keys.branch_id_of(keys.branch_key(branch)) == branch


# --- helpers ---------------------------------------------------------------------------------------------------------


def _call(commit: Commit) -> tuple[str, list[list[Any]]]:
    from perdure.persistence.postgresql import commits

    arguments, _ = commits.encode([commit])
    return commits._CALL, arguments


async def _is_waiting(url: str) -> bool:
    return await waiting_for_locks(url) > 0


async def _are_gone(connection: asyncpg.Connection, name: str = "postgres") -> bool:
    return not await connection.fetchval(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE pid <> pg_backend_pid() AND application_name = 'perdure' AND datname = $1",
        name,
    )
