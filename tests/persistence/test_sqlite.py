"""What is SQLite's own: the file, its lock, its schema, and that nothing acknowledged is lost."""

# ruff: noqa: ASYNC220, ASYNC240 (nothing else runs in the loop while a test looks at its files)

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest

from perdure.persistence.api import (
    BacklogTask,
    Commit,
    ConditionFailed,
    HistoryNode,
    RunWrite,
    SchemaMismatch,
    TaskCategory,
    TaskQueueKey,
    TaskRow,
    Unavailable,
)
from perdure.persistence.sqlite import open_store, schema
from perdure.persistence.sqlite.database import open_database

MiB = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "perdure.db"


async def refusal(path: Path | str, pragmas: dict[str, str] | None = None) -> str:
    with pytest.raises(SchemaMismatch) as refused:
        await open_store(str(path), pragmas=pragmas)
    message = str(refused.value)
    assert "\n" not in message
    return message


# --- files that are not to be used -----------------------------------------------------------------------------------


async def test_a_file_that_is_not_a_database(file: Path) -> None:
    content = b"these are notes, not a database\n" * 500
    file.write_bytes(content)
    assert await refusal(file) == f"{file} is not a SQLite database"
    assert file.read_bytes() == content


async def test_a_database_of_another_program(file: Path) -> None:
    with sqlite3.connect(file) as other:
        other.execute("CREATE TABLE bookmarks (url TEXT)")
    other.close()
    content = file.read_bytes()
    assert await refusal(file) == f"{file} is a SQLite database of another program"
    assert file.read_bytes() == content


async def test_a_truncated_file(file: Path) -> None:
    await (await open_store(str(file))).close()
    os.truncate(file, file.stat().st_size // 2)
    assert await refusal(file) == f"{file} is damaged: database disk image is malformed"


async def test_a_file_with_garbage_in_it(file: Path) -> None:
    await (await open_store(str(file))).close()
    with file.open("r+b") as opened:
        opened.seek(4096)
        opened.write(b"\xa5" * (file.stat().st_size - 4096))
    assert (await refusal(file)).startswith(f"{file} is damaged: ")


async def test_a_file_of_a_newer_version(file: Path) -> None:
    await (await open_store(str(file))).close()
    with sqlite3.connect(file) as newer:
        newer.execute("UPDATE module_version SET version = 1000 WHERE module = 'store'")
    newer.close()
    assert await refusal(file) == (
        f"{file} was written by a newer version (store tables: version 1000, known: {len(schema.STORE)})"
    )
    with sqlite3.connect(file) as newer:
        newer.execute("PRAGMA user_version = 1000")
    newer.close()
    assert await refusal(file) == f"{file} was written by a newer version (format 1000, known: {schema.FORMAT})"


async def test_places_where_no_file_can_be(tmp_path: Path) -> None:
    missing = tmp_path / "missing" / "perdure.db"
    assert await refusal(missing) == f"{missing} cannot be opened: unable to open database file"
    assert (await refusal(tmp_path)).startswith(f"{tmp_path} cannot be opened: ")


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="permissions do not bind this user")
async def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        assert "cannot be opened" in await refusal(tmp_path / "perdure.db")
    finally:
        tmp_path.chmod(0o700)


async def test_a_file_that_another_process_has(file: Path) -> None:
    script = """
        import asyncio, sys
        from perdure.persistence.sqlite import open_store
        async def main():
            store = await open_store(sys.argv[1])
            await store.put_document("kind", "key", 0, b"of the first")
            print("open", flush=True)
            sys.stdin.readline()
            await store.put_document("kind", "other", 0, b"of the first")
            await store.close()
        asyncio.run(main())
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(file)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as first:
        assert first.stdin is not None
        assert first.stdout is not None
        assert first.stdout.readline() == "open\n"
        assert await refusal(file) == f"{file} is in use by another process"
        first.stdin.write("go on\n")
        first.stdin.flush()
        assert first.wait(30) == 0
    store = await open_store(str(file))
    assert len(await store.list_documents("kind")) == 2
    # Within one process too, and by any name of the file.
    link = file.with_name("link.db")
    link.symlink_to(file)
    assert "in use" in await refusal(link)
    await store.close()
    await (await open_store(str(link))).close()


# --- pragmas ---------------------------------------------------------------------------------------------------------


async def test_pragmas(file: Path) -> None:
    store = await open_store(str(file), pragmas={"synchronous": "NORMAL", "Cache_Size": "-4000"})
    for read in (store.database.read, store.database.write):
        assert await read(lambda connection: connection.execute("PRAGMA synchronous").fetchone()) == (1,)
        assert await read(lambda connection: connection.execute("PRAGMA cache_size").fetchone()) == (-4000,)
    await store.close()
    store = await open_store(str(file), pragmas={"journal_mode": "wal"})
    assert store.database.read_now(lambda connection: connection.execute("PRAGMA journal_mode").fetchone()) == ("wal",)
    assert await store.database.write(lambda c: c.execute("PRAGMA synchronous").fetchone()) == (2,)
    await store.close()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("no_such_pragma", "1"),
        ("cache_size", "1; DROP TABLE run"),
        ("cache_size=1;", "1"),
        ("journal_mode", "delete"),
        ("locking_mode", "exclusive"),
        ("query_only", "1"),
    ],
)
async def test_pragmas_that_are_refused(file: Path, name: str, value: str) -> None:
    assert name in await refusal(file, {name: value})
    with pytest.raises(SchemaMismatch):
        await open_store(None, pragmas={name: value})


# --- migrations ------------------------------------------------------------------------------------------------------

SCRIPTS = [
    "CREATE TABLE fruit (name TEXT PRIMARY KEY); INSERT INTO fruit VALUES ('apple; pear');",
    """
    ALTER TABLE fruit ADD COLUMN count INTEGER NOT NULL DEFAULT 1;
    -- A trigger has semicolons inside;
    CREATE TRIGGER again AFTER INSERT ON fruit BEGIN
        UPDATE fruit SET count = count + 1;
        UPDATE fruit SET count = count + 1;
    END;
    """,
    "INSERT INTO fruit (name) VALUES ('plum')",
]


async def test_each_script_runs_once_and_in_order(file: Path) -> None:
    for known in (1, 1, 3, 3):
        database = await open_database(str(file))
        await database.migrate("fruit", SCRIPTS[:known])
        await database.migrate("others", ["CREATE TABLE IF NOT EXISTS others (a)"])
        await database.close()
    database = await open_database(str(file))
    rows = await database.read(lambda connection: connection.execute("SELECT * FROM fruit ORDER BY name").fetchall())
    assert rows == [("apple; pear", 3), ("plum", 3)]
    with pytest.raises(SchemaMismatch) as refused:
        await database.migrate("fruit", SCRIPTS[:2])
    assert str(refused.value) == f"{file} was written by a newer version (fruit tables: version 3, known: 2)"
    await database.close()


async def test_a_migration_that_fails_changes_nothing(file: Path) -> None:
    database = await open_database(str(file))
    await database.migrate("fruit", SCRIPTS[:1])
    with pytest.raises(Unavailable):
        await database.migrate("fruit", [*SCRIPTS[:2], "INSERT INTO missing VALUES (1)"])
    await database.migrate("fruit", SCRIPTS)
    await database.close()


# --- groups ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize(
    ("failure", "seen"),
    [
        ("INSERT INTO test VALUES (2000, NULL)", sqlite3.IntegrityError),
        ("INSERT INTO missing VALUES (1)", Unavailable),
        (ConditionFailed("late"), ConditionFailed),
        (ZeroDivisionError(), ZeroDivisionError),
    ],
)
async def test_a_write_that_breaks_half_way_fails_alone(
    file: Path, in_memory: bool, failure: str | Exception, seen: type[Exception]
) -> None:
    database = await open_database(None if in_memory else str(file))
    await database.migrate("test", ["CREATE TABLE test (a INTEGER PRIMARY KEY, b TEXT NOT NULL)"])

    def insert(at: int, connection: sqlite3.Connection) -> int:
        connection.execute("INSERT INTO test VALUES (?, 'text')", (at,))
        if at == 5:
            if isinstance(failure, Exception):
                raise failure
            connection.execute(failure)
        return at

    writes = [database.write(partial(insert, at), heavy=at >= 8) for at in range(10)]
    outcomes = await asyncio.gather(*writes, return_exceptions=True)
    assert isinstance(outcomes.pop(5), seen)
    assert outcomes == [0, 1, 2, 3, 4, 6, 7, 8, 9]
    rows = await database.read(lambda connection: connection.execute("SELECT a FROM test ORDER BY a").fetchall())
    assert [row[0] for row in rows] == outcomes
    await database.close()


async def test_light_and_heavy_writes_keep_their_order(file: Path) -> None:
    database = await open_database(str(file))
    await database.migrate("test", ["CREATE TABLE test (a INTEGER PRIMARY KEY AUTOINCREMENT, b INTEGER)"])
    for _ in range(5):
        await asyncio.gather(
            *(
                database.write(
                    lambda c, i=i: c.execute("INSERT INTO test (b) VALUES (?)", (i,)).rowcount, heavy=i % 7 == 3
                )
                for i in range(30)
            )
        )
    rows = await database.read(lambda c: c.execute("SELECT b FROM test ORDER BY a").fetchall())
    assert [row[0] for row in rows] == list(range(30)) * 5
    await database.close()


async def test_the_disk_is_full(file: Path) -> None:
    """A write that does not fit fails; those in its group that fit, and later ones, do not."""
    store = await open_store(str(file))
    await store.acquire_shard(1, "host")
    pages = await store.database.read(lambda connection: connection.execute("PRAGMA page_count").fetchone()[0])
    await store.database.write(lambda connection: connection.execute(f"PRAGMA max_page_count={pages + 50}").fetchone())

    def commit(i: int) -> Commit:
        blob = bytes(MiB) if i == 3 else b"small"
        return Commit(
            1, 1, [RunWrite("ns", "wf", f"run-{i}", 0, blob, nodes=[HistoryNode(f"b-{i}", 1, 1, 0, 1, blob)])]
        )

    outcomes = await asyncio.gather(*(store.commit(commit(i)) for i in range(6)), return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [Unavailable if i == 3 else type(None) for i in range(6)]
    await store.commit(commit(6))
    assert len((await store.list_runs(1, 100, b""))[0]) == 6
    # The branch that was rolled back is made anew when there is room.
    await store.database.write(lambda connection: connection.execute("PRAGMA max_page_count=100000").fetchone())
    await store.commit(commit(3))
    await store.close()
    store = await open_store(str(file))
    assert [len(n.blob) for n in await store.read_history(1, "b-3", 1, 2, 1)] == [MiB]
    await store.close()


async def test_a_long_read_does_not_hold_writes_up(file: Path) -> None:
    store = await open_store(str(file))
    entered, leave = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    def long(connection: sqlite3.Connection) -> tuple[int, int]:
        count = "SELECT count(*) FROM document"
        before = connection.execute(count).fetchone()[0]
        loop.call_soon_threadsafe(entered.set)
        asyncio.run_coroutine_threadsafe(leave.wait(), loop).result(30)
        return before, connection.execute(count).fetchone()[0]

    reading = asyncio.ensure_future(store.database.read(long))
    await entered.wait()
    for i in range(10):
        await store.put_document("kind", str(i), 0, b"")
    assert len(await store.list_documents("kind")) == 10
    leave.set()
    assert await reading == (0, 0)
    await store.close()


async def test_deleted_tasks_leave_the_file(file: Path) -> None:
    """Deletes ride with later commits, and closing does what is left."""
    key = TaskQueueKey("ns", "queue", 1)

    def count(connection: sqlite3.Connection) -> tuple[int, int]:
        return connection.execute("SELECT (SELECT count(*) FROM task), (SELECT count(*) FROM backlog)").fetchone()

    store = await open_store(str(file))
    await store.acquire_shard(1, "host")
    await store.lease_task_queue(key)
    await store.commit(Commit(1, 1, tasks=[TaskRow(TaskCategory.TRANSFER, 0, i, b"") for i in range(3000)]))
    await store.append_backlog(key, 1, [BacklogTask(i, b"") for i in range(3000)])
    await store.delete_tasks(1, TaskCategory.TRANSFER, (0, 1999))
    await store.delete_backlog(key, 1999)
    assert await store.database.read(count) == (3000, 3000)
    for i in range(20):
        await store.put_document("kind", str(i), 0, b"")
    assert await store.database.read(count) == (1000, 1000)
    await store.delete_tasks(1, TaskCategory.TRANSFER, (0, 2998))
    await store.delete_backlog(key, 2998)
    await store.close()
    store = await open_store(str(file))
    assert await store.database.read(count) == (1, 1)
    await store.close()


async def test_the_log_does_not_grow_without_end(file: Path) -> None:
    store = await open_store(str(file), pragmas={"wal_autocheckpoint": "100"})
    for version in range(300):
        await store.put_document("kind", "key", version, os.urandom(100_000))
    assert Path(f"{file}-wal").stat().st_size < 5 * MiB
    assert file.stat().st_size < 5 * MiB
    await store.close()
    assert not Path(f"{file}-wal").exists()


# --- durability ------------------------------------------------------------------------------------------------------

WRITER = """
    import asyncio, sys
    from perdure.persistence.api import Commit, HistoryNode, PendingRow, RunWrite, TaskRow
    from perdure.persistence.sqlite import open_store

    async def one(store, range_id, worker):
        run = f"{range_id}-{worker}"
        for version in range(100_000):
            node = HistoryNode(run, version + 1, version + 1, version, 1, b"%d" % version)
            write = RunWrite("ns", "wf", run, version, b"%d" % version, [PendingRow(1, str(version), b"")], (), [node])
            task = TaskRow(1, 0, (range_id << 40) + (version << 8) + worker, b"")
            await store.commit(Commit(1, range_id, [write], (), [task]))
            print(run, version + 1, flush=True)

    async def main():
        store = await open_store(sys.argv[1])
        range_id = (await store.acquire_shard(1, "host")).range_id
        await asyncio.gather(*(one(store, range_id, worker) for worker in range(8)))

    asyncio.run(main())
"""


async def test_nothing_acknowledged_is_lost_when_the_process_is_killed(file: Path) -> None:
    acknowledged: dict[str, int] = {}
    for round in range(3):
        with subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(file)], stdout=subprocess.PIPE, text=True
        ) as writer:
            assert writer.stdout is not None
            for count, line in enumerate(writer.stdout):
                if not line.endswith("\n"):
                    break  # killed in the middle of it
                run, version = line.split()
                acknowledged[run] = int(version)
                if count == 500 + 333 * round:
                    writer.send_signal(signal.SIGKILL)
        store = await open_store(str(file))
        assert store.database.read_now(lambda connection: connection.execute("PRAGMA integrity_check").fetchone()) == (
            "ok",
        )
        total = 0
        for run, version in acknowledged.items():
            record = await store.load_run(1, "ns", "wf", run)
            assert record.version >= version
            assert record.state == b"%d" % (record.version - 1)
            assert len(record.pending) == record.version
            nodes = await store.read_history(1, run, 1, 1_000_000, MiB)
            assert [node.node_id for node in nodes] == list(range(1, record.version + 1))
            total += record.version
        assert len(await store.read_tasks(1, TaskCategory.TRANSFER, (0, 0), (2**62, 0), 1_000_000)) == total
        await store.close()
    assert len(acknowledged) == 24
