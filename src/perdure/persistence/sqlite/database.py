"""A SQLite database under an event loop: writes in groups, reads beside them.

All tables of the process live in one database; whoever has tables in it shares the group commit:

    database = await open_database(path, pragmas)
    await database.migrate("visibility", SCRIPTS)
    await database.write(lambda connection: connection.execute("INSERT ...", row))
    rows = await database.read(lambda connection: connection.execute("SELECT ...").fetchall())

How a group is written. The statements run on the event loop's thread, in a transaction that stays open until the queue
of waiting writes is empty; only the COMMIT, which waits for the disk, runs on the writer thread. Writes that come
meanwhile are the next group: how long the disk takes decides how large a group is. Running the statements on the
thread instead would be slower for everybody: `sqlite3` gives up the GIL at each step, and beside a busy event loop a
thread waits up to `sys.getswitchinterval()` (5 ms) to get it back, some ten times a write. A statement costs a few
microseconds, for it touches pages in memory; what may take long says `heavy=True`.
"""

from __future__ import annotations

import asyncio
import os
import re
import sqlite3
import threading
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, Protocol, TypeVar

from perdure.persistence.api import SchemaMismatch, StoreError, Unavailable
from perdure.persistence.sqlite import schema

T = TypeVar("T")

READERS = 2
"""Threads for `Database.read`, each with a connection of its own."""

DEFAULT_PRAGMAS: Mapping[str, str] = {
    "synchronous": "FULL",
    "wal_autocheckpoint": "4000",  # pages of 4 KiB
    "journal_size_limit": str(64 << 20),
    "cache_size": "-65536",  # KiB
    "temp_store": "MEMORY",
}


class Rider(Protocol):
    """Takes part in each group: for work that need not be durable at once, and for caches of what is stored."""

    def begin(self, connection: sqlite3.Connection) -> None:
        """Within the transaction, before the group's writes."""
        ...

    def committed(self) -> None:
        """The group is durable."""
        ...

    def rolled_back(self) -> None:
        """What was written since the last `committed` is undone (the group's writes are then tried one by one)."""
        ...


class _Write:
    __slots__ = ("error", "fn", "future", "heavy", "result")

    def __init__(self, fn: Callable[[sqlite3.Connection], Any], future: asyncio.Future[Any], heavy: bool) -> None:
        self.fn = fn
        self.future = future
        self.heavy = heavy
        self.result: Any = None
        self.error: BaseException | None = None


class Database:
    """Made by `open_database`. Belongs to the event loop that opened it; not thread-safe."""

    def __init__(self, name: str, writer: sqlite3.Connection, near: sqlite3.Connection | None) -> None:
        self.name = name
        self._loop = asyncio.get_running_loop()
        self._writer = writer
        self._near = writer if near is None else near
        self._in_memory = near is None
        self._waiting: list[_Write] = []
        self._group: list[_Write] = []
        self._busy = False
        self._scheduled = False
        self._closing: asyncio.Future[None] | None = None
        self._rider: Rider | None = None
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._reads: SimpleQueue[tuple[Callable[[sqlite3.Connection], Any], asyncio.Future[Any]] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._release: Callable[[], None] = lambda: None
        self.upgrade = True

    # --- for everybody -----------------------------------------------------------------------------------------------

    def write(self, fn: Callable[[sqlite3.Connection], T], *, heavy: bool = False) -> asyncio.Future[T]:
        """Runs `fn` in the next group's transaction, in order of arrival: it sees what earlier ones wrote. Await the
        result: what `fn` wrote is durable then.

        `fn` checks first and writes after: raising before it wrote anything fails nothing but itself, and what it
        raised is raised here. It may run twice, so it has no effect but in the database. It neither begins nor ends
        transactions. heavy: it may touch many pages, so it runs on the writer thread. Raises Unavailable when
        the database fails or is closed."""
        future: asyncio.Future[T] = self._loop.create_future()
        if self._closing is not None:
            future.set_exception(Unavailable(f"{self.name} is closed"))
            return future
        self._waiting.append(_Write(fn, future, heavy))
        if not self._busy and not self._scheduled:
            # Not at once: what the loop's other ready callbacks write comes into the same group.
            self._scheduled = True
            self._loop.call_soon(self._begin_group)
        return future

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Runs `fn` on a reader thread in a transaction of its own: all its statements see one state, which contains
        every write that was acknowledged. Raises Unavailable."""
        if self._in_memory:
            return self.read_now(fn)
        if self._closing is not None:
            raise Unavailable(f"{self.name} is closed")
        future: asyncio.Future[T] = self._loop.create_future()
        self._reads.put((fn, future))
        return await future

    def read_now(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """The same at once, on the event loop: for a few rows by key, where going to a thread would cost more than
        the read. Never waits for a commit."""
        if self._closing is not None:
            raise Unavailable(f"{self.name} is closed")
        return _read(self._near, fn)

    async def migrate(self, module: str, scripts: Sequence[str]) -> None:
        """Brings `module`'s tables up to `len(scripts)` versions: runs those scripts that this database has not seen
        yet, each in a transaction. A script that was released is never changed; a new one is appended. Raises
        SchemaMismatch when the database has seen more, or when it has seen some but not all and `upgrade` is False."""
        await self.write(
            lambda connection: schema.migrate(connection, self.name, module, scripts, self.upgrade), heavy=True
        )

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._closing is not None

    def ride(self, rider: Rider) -> None:
        """The one rider of this database: the store."""
        self._rider = rider

    async def close(self) -> None:
        """Writes what waits, then closes. Closing again waits for the first."""
        if self._closing is None:
            self._closing = self._loop.create_future()
            if not self._busy and not self._waiting:
                self._busy = True
                self._end()
        await asyncio.shield(self._closing)

    # --- groups ------------------------------------------------------------------------------------------------------

    def _begin_group(self) -> None:
        self._scheduled = False
        if self._busy or not self._waiting:
            return
        self._busy = True
        self._group = group = self._waiting
        self._waiting = []
        if self._in_memory:
            self._commit(group, 0, self._begin())
            self._group_done()
            return
        sound = self._begin()
        done = 0
        while sound and done < len(group) and not group[done].heavy:
            sound = self._apply(group[done])
            done += 1
        self._jobs.put(lambda: self._commit_on_thread(group, done, sound))

    def _begin(self) -> bool:
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            if self._rider is not None:
                self._rider.begin(self._writer)
        except sqlite3.Error:
            return False
        return True

    def _apply(self, write: _Write) -> bool:
        """False when the write failed in a way that leaves the transaction unusable."""
        connection = self._writer
        before = connection.total_changes
        try:
            write.result = write.fn(connection)
        except Exception as error:
            if connection.total_changes != before or isinstance(error, sqlite3.Error):
                return False
            write.error = error
        return True

    def _commit_on_thread(self, group: list[_Write], start: int, sound: bool) -> None:
        self._commit(group, start, sound)
        try:
            self._loop.call_soon_threadsafe(self._group_done)
        except RuntimeError:
            pass  # the loop was closed without closing the database

    def _commit(self, group: list[_Write], start: int, sound: bool) -> None:
        """Applies the group's writes from `start` and commits; if that does not work out, each write by itself."""
        if sound and all(map(self._apply, group[start:])):
            try:
                self._writer.execute("COMMIT")
                return
            except sqlite3.Error:
                pass
        self._roll_back()
        if self._rider is not None:
            self._rider.rolled_back()
        for write in group:
            self._alone(write)

    def _alone(self, write: _Write) -> None:
        connection = self._writer
        write.error = None
        try:
            connection.execute("BEGIN IMMEDIATE")
            write.result = write.fn(connection)
            connection.execute("COMMIT")
        except Exception as error:
            write.error = _translated(error)
            self._roll_back()
            if self._rider is not None:
                self._rider.rolled_back()

    def _roll_back(self) -> None:
        if self._writer.in_transaction:
            try:
                self._writer.execute("ROLLBACK")
            except sqlite3.Error:
                pass  # SQLite rolled back by itself

    def _group_done(self) -> None:
        group = self._group
        self._group = []
        if self._rider is not None:
            self._rider.committed()
        for write in group:
            future = write.future
            if future.done():
                continue  # the caller was cancelled
            if write.error is None:
                future.set_result(write.result)
            else:
                future.set_exception(write.error)
        self._busy = False
        if self._waiting:
            self._begin_group()
        elif self._closing is not None:
            self._busy = True
            self._end()

    # --- the threads, the end ----------------------------------------------------------------------------------------

    def start(self, readers: Sequence[sqlite3.Connection], release: Callable[[], None]) -> None:
        """For `open_database`. release: gives up the lock on the file, after everything is closed."""
        self._release = release
        if self._in_memory:
            return
        self._threads.append(threading.Thread(target=self._run_jobs, name="sqlite-writer", daemon=True))
        for reader in readers:
            self._threads.append(
                threading.Thread(target=self._run_reads, args=(reader,), name="sqlite-reader", daemon=True)
            )
        for thread in self._threads:
            thread.start()

    def _run_jobs(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()

    def _run_reads(self, connection: sqlite3.Connection) -> None:
        while (item := self._reads.get()) is not None:
            fn, future = item
            if future.done():
                continue
            result: Any = None
            error: BaseException | None = None
            try:
                result = _read(connection, fn)
            except Exception as raised:
                error = raised
            try:
                self._loop.call_soon_threadsafe(_resolve, future, result, error)
            except RuntimeError:
                break
        connection.close()

    def _end(self) -> None:
        if self._in_memory:
            self._writer.close()
            self._ended()
            return
        for _ in range(len(self._threads) - 1):
            self._reads.put(None)
        self._jobs.put(self._end_on_thread)

    def _end_on_thread(self) -> None:
        for thread in self._threads[1:]:
            thread.join()
        self._near.close()
        self._writer.close()
        self._release()
        self._jobs.put(None)
        try:
            self._loop.call_soon_threadsafe(self._ended)
        except RuntimeError:
            pass

    def _ended(self) -> None:
        assert self._closing is not None
        if not self._closing.done():
            self._closing.set_result(None)


def _resolve(future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(result)
    else:
        future.set_exception(error)


def _read(connection: sqlite3.Connection, fn: Callable[[sqlite3.Connection], T]) -> T:
    try:
        connection.execute("BEGIN")
        try:
            return fn(connection)
        finally:
            connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise _translated(error) from error


def _translated(error: Exception) -> Exception:
    """What the disk or the file did is Unavailable; what the statement did (a broken constraint, a wrong number of
    parameters) stays what it is."""
    if isinstance(error, sqlite3.OperationalError) or type(error) is sqlite3.DatabaseError:
        unavailable = Unavailable(str(error))
        unavailable.__cause__ = error
        return unavailable
    return error


# --- opening ---------------------------------------------------------------------------------------------------------


async def open_database(path: str | None, pragmas: Mapping[str, str] | None = None) -> Database:
    """Opens the file at `path`, or creates it; None: in memory. pragmas: set on each connection, over the defaults.

    One process has a file at a time. Raises SchemaMismatch: in use, not writable, not a database, not perdure's,
    damaged, written by a newer version, or a pragma is not one."""
    settings = {**DEFAULT_PRAGMAS, **_checked(pragmas or {})}
    if path is None:
        writer = _connect(":memory:", settings)
        schema.prepare(writer, "the database in memory")
        database = Database("the database in memory", writer, None)
        database.start((), lambda: None)
        return database
    file, writer, readers, release = await asyncio.to_thread(_open_file, path, settings)
    database = Database(file, writer, readers[0])
    database.start(readers[1:], release)
    return database


def _checked(pragmas: Mapping[str, str]) -> dict[str, str]:
    checked: dict[str, str] = {}
    for name, value in pragmas.items():
        key = name.strip().lower()
        if not re.fullmatch(r"[a-z_]+", key) or not re.fullmatch(r"-?[A-Za-z0-9_]+", value.strip()):
            raise SchemaMismatch(f"SQLite pragma {name}={value} is not a name and a plain value")
        if key == "journal_mode":
            if value.strip().lower() != "wal":
                raise SchemaMismatch(f"SQLite pragma {name}={value}: the journal mode is always WAL")
            continue
        if key in ("locking_mode", "query_only", "application_id", "user_version"):
            raise SchemaMismatch(f"SQLite pragma {name} cannot be set: the server depends on it")
        checked[key] = value.strip()
    return checked


def _connect(name: str, settings: Mapping[str, str], *, reader: bool = False) -> sqlite3.Connection:
    connection = sqlite3.connect(name, isolation_level=None, check_same_thread=False, timeout=1, cached_statements=512)
    known = {row[0] for row in connection.execute("PRAGMA pragma_list")}
    for key, value in settings.items():
        if key not in known:
            connection.close()
            raise SchemaMismatch(f"SQLite has no pragma {key}")
        connection.execute(f"PRAGMA {key}={value}").fetchall()
    if reader:
        connection.execute("PRAGMA query_only=ON")
    return connection


def _open_file(
    path: str, settings: Mapping[str, str]
) -> tuple[str, sqlite3.Connection, list[sqlite3.Connection], Callable[[], None]]:
    file = os.path.realpath(path)
    opened: list[sqlite3.Connection] = []
    try:
        lock = _lock(file)
        opened.append(lock)
        writer = _connect(file, settings)
        opened.append(writer)
        schema.identify(writer, file)
        mode = str(writer.execute("PRAGMA journal_mode=WAL").fetchone()[0])
        if mode != "wal":
            raise SchemaMismatch(f"{file} cannot be used in WAL mode (it is in {mode} mode)")
        schema.prepare(writer, file)
        readers = [_connect(file, settings, reader=True) for _ in range(READERS + 1)]
        return file, writer, readers, lock.close
    except (sqlite3.Error, StoreError) as error:
        for connection in reversed(opened):
            connection.close()
        if isinstance(error, StoreError):
            raise
        raise schema.unusable(file, error) from error


def _lock(file: str) -> sqlite3.Connection:
    """Takes the file for this process. The lock is a SQLite lock on an empty file beside it: portable, released when
    the process dies, and other programs can still read the database (to back it up, say)."""
    lock = sqlite3.connect(file + "-lock", isolation_level=None, check_same_thread=False, timeout=0)
    try:
        lock.execute("PRAGMA journal_mode=MEMORY")  # no journal file beside it
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.Error as error:
        lock.close()
        if "locked" in str(error):
            raise SchemaMismatch(f"{file} is in use by another process") from error
        raise
    return lock
