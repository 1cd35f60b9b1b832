"""A MySQL or MariaDB database under an event loop: reads, transactions, and writes in groups.

A transaction takes two round trips, however much it writes: the first packet locks and reads what its conditions are
about, the second one writes and commits. A group of writes is one such transaction: what waits while others are under
way is written together, by statements of many rows.

What surely did nothing is tried again inside, for a while: no connection was to be had, it broke before the packet with
the COMMIT was sent, a deadlock, a lock that another one keeps, a server that became read-only. When the answer to that
packet is lost, the outcome is unknown and the caller has to find out: Unavailable, never a second try.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Final, NoReturn, Protocol, TypeVar

from perdure.persistence.api import ConditionFailed, StoreError, Unavailable
from perdure.persistence.groups import Groups, Item
from perdure.persistence.mysql.connections import DUPLICATE, Connection, Failure, NotSent, Pool, Target, one_line
from perdure.persistence.mysql.sql import chunks

T = TypeVar("T")

RETRY_FOR: Final = 10.0
"""Seconds for which something that did nothing is tried again: a restart of the database takes less."""

WRITERS: Final = 6
READERS: Final = 4
LISTERS: Final = 2

WRITER_IDLE: Final = 5  # seconds: how long a process that was stopped within a transaction keeps its locks
READER_IDLE: Final = 600

PACKET: Final = 4 << 20
"""Bytes of statements that are sent at once, unless one statement is larger."""

_LISTER_SETUP: Final = (
    ("MariaDB", b"SET SESSION max_statement_time = 20"),
    # A filter of hundreds of conditions would become a join of as many tables, which takes long to plan.
    ("MySQL", b"SET SESSION max_execution_time = 20000, optimizer_switch = 'semijoin=off'"),
)

logger = logging.getLogger(__name__)


class Duplicate(ConditionFailed):
    """A row with that key exists."""


class Refused(StoreError):
    """The database cannot hold what was to be written."""


class Lookup:
    """Reads rows by key, under a lock. head, tail: around the list of keys; the key is the first column. rank: the
    order in which a transaction does its lookups, and then what it writes."""

    __slots__ = ("head", "rank", "tail")

    def __init__(self, rank: int, table: str, key: str, columns: str, lock: str = "FOR UPDATE") -> None:
        # An optimizer that finds the table small would read, and so lock, all of it.
        self.rank = rank
        self.head = f"SELECT {key}, {columns} FROM {table} FORCE INDEX (PRIMARY) WHERE {key} IN (".encode()
        self.tail = f") {lock}".encode()


class Insert:
    """head, tail: around the rows. update: the columns that are set where the row exists; without them it must not."""

    __slots__ = ("head", "rank", "tail")

    def __init__(self, rank: int, table: str, columns: str, update: Sequence[str] = ()) -> None:
        self.rank = rank
        self.head = f"INSERT INTO {table} ({columns}) VALUES ".encode()
        sets = ", ".join(f"{name} = VALUES({name})" for name in update)
        self.tail = f" ON DUPLICATE KEY UPDATE {sets}".encode() if sets else b""


class Delete:
    """Rows that match any of some conditions."""

    __slots__ = ("head", "rank")

    def __init__(self, rank: int, table: str) -> None:
        self.rank = rank
        self.head = f"DELETE {table} FROM {table} FORCE INDEX (PRIMARY) WHERE ".encode()


Asks = dict[Lookup, dict[bytes, None]]
"""For each lookup the literals of its keys."""

Found = dict[Lookup, dict[Any, Any]]
"""For each lookup the rows by key."""

Batch = dict[Insert | Delete, list[bytes]]
"""Literals of rows to insert, conditions of rows to delete."""


class Write(Protocol):
    """One of a group. May be asked several times, so it changes nothing but what it is handed."""

    def ask(self, asks: Asks) -> None: ...

    def apply(self, found: Found, batch: Batch) -> None:
        """Adds what is to be written. Raises StoreError, having added nothing, when its condition does not hold."""
        ...


def statements_of(batch: Batch) -> list[bytes]:
    statements: list[bytes] = []
    for kind in sorted(batch, key=lambda kind: kind.rank):
        rows = batch[kind]
        if isinstance(kind, Delete):
            for chunk in chunks(rows):
                statements.append(kind.head + b" OR ".join(chunk))
        else:
            for chunk in chunks(rows):
                statements.append(kind.head + b",".join(chunk) + kind.tail)
    return statements


class Database:
    """Made by `open_database`. Belongs to the event loop that opened it. Everything raises Unavailable."""

    def __init__(self, target: Target, max_packet: int) -> None:
        self.target = target
        self.name = target.name
        self._max_packet = max_packet
        self._writers = Pool(target, WRITERS, WRITER_IDLE)
        self._readers = Pool(target, READERS, READER_IDLE)
        self._listers = Pool(target, LISTERS, READER_IDLE, _LISTER_SETUP)
        self._groups = Groups[Write](self._send)
        self._single = 0  # transactions under way that are no group
        self._idle: asyncio.Future[None] | None = None
        self._closing: asyncio.Future[None] | None = None

    # --- reads -------------------------------------------------------------------------------------------------------

    async def read(self, statements: bytes) -> list[Any]:
        """The rows of each of the statements, by key. Sees every write that was acknowledged; one statement sees one
        state of the database."""
        return await self._repeat(self._readers, statements)

    async def read_by_filter(self, statements: bytes) -> list[Any]:
        """The same for what may take long."""
        return await self._repeat(self._listers, statements)

    async def repeatable(self, statement: bytes) -> int:
        """A write that may happen twice. Durable when it returns; answers the number of rows that it changed."""
        return (await self._repeat(self._writers, statement))[0]

    async def _repeat(self, pool: Pool, statements: bytes) -> list[Any]:
        self.check_open()
        retry = _Retry(self.name)
        while True:
            try:
                connection = await pool.acquire()
            except NotSent as e:
                await retry.wait(e)
                continue
            broken = True
            try:
                answers = await connection.run(statements)
                broken = False
                return answers
            except Failure as e:
                broken = e.lost or e.moved
                if broken:
                    pool.drop_idle()
                elif not e.passing:
                    self._raise(e)
                problem = e
            finally:
                pool.release(connection, broken=broken)
            await retry.wait(problem)

    # --- transactions ------------------------------------------------------------------------------------------------

    async def transact(
        self,
        first: bytes,
        decide: Callable[[list[Any]], tuple[T, Sequence[bytes]]],
        *,
        repeatable: bool = False,
    ) -> T:
        """One transaction. first: the statements of the first packet. decide: from their answers makes the result, and
        what else is to be written; raises StoreError to roll back. May be called several times. repeatable: it may
        happen twice, so an unknown outcome is tried again. Raises Duplicate, Refused."""
        self.check_open()
        self._single += 1
        try:
            return await self._transact(first, decide, repeatable)
        finally:
            self._single -= 1
            if not self._single and self._idle is not None and not self._idle.done():
                self._idle.set_result(None)

    async def _transact(
        self, first: bytes, decide: Callable[[list[Any]], tuple[T, Sequence[bytes] | None]], repeatable: bool = False
    ) -> T:
        """decide may answer None: nothing is to be written, and what the first packet did is undone."""
        pool = self._writers
        retry = _Retry(self.name)
        while True:
            try:
                connection = await pool.acquire()
            except NotSent as e:
                await retry.wait(e)
                continue
            broken = True
            last = False  # the packet with the COMMIT was sent
            size = 0  # its number of statements
            try:
                answers = await connection.run(b"BEGIN;" + first)
                del answers[0]
                try:
                    result, statements = decide(answers)
                except StoreError:
                    broken = not await _rolled_back(connection)
                    raise
                if statements is None:
                    broken = not await _rolled_back(connection)
                    return result
                packets = self._packets(statements)
                for packet in packets[:-1]:
                    await connection.run(b";".join(packet))
                size = len(packets[-1])
                last = True
                await connection.run(b";".join(packets[-1]))
                broken = False
                return result
            except Failure as e:
                problem = e
                if e.lost or e.moved:
                    pool.drop_idle()
                unknown = last and (e.lost or (e.at == size - 1 and not e.rolled_back))
                if unknown and not repeatable:
                    raise Unavailable(f"{self.name}: the outcome of a write is unknown: {one_line(e)}") from e
                if not unknown and not e.lost:
                    broken = e.moved or not await _rolled_back(connection)
                    if not e.passing:
                        self._raise(e)
            finally:
                pool.release(connection, broken=broken)
            await retry.wait(problem)

    def _packets(self, statements: Sequence[bytes]) -> list[list[bytes]]:
        packets: list[list[bytes]] = [[]]
        size = 0
        for statement in statements:
            if len(statement) + 64 > self._max_packet:
                raise Refused(
                    f"{self.name} takes packets of {self._max_packet} bytes: a row is too large (max_allowed_packet)"
                )
            if packets[-1] and size + len(statement) > PACKET:
                packets.append([])
                size = 0
            packets[-1].append(statement)
            size += len(statement) + 1
        packets[-1].append(b"COMMIT")
        return packets

    def _raise(self, failure: Failure) -> NoReturn:
        if failure.code == DUPLICATE:
            raise Duplicate(one_line(failure)) from failure
        if failure.unfit:
            raise Refused(f"{self.name}: {one_line(failure)}") from failure
        raise Unavailable(f"{self.name}: {one_line(failure)}") from failure

    # --- groups ------------------------------------------------------------------------------------------------------

    def submit(self, write: Write, keys: Sequence[Hashable], size: int) -> asyncio.Future[None]:
        """Writes it with others; what it touches (keys) is not touched by others meanwhile. Raises what it raised,
        Duplicate or Refused."""
        self.check_open()
        return self._groups.submit(write, keys, size)

    async def settle(self, touches: Callable[[Write], bool]) -> None:
        """Returns when those submitted writes that match are done."""
        await self._groups.settle(touches)

    async def _send(self, items: Sequence[Item[Write]]) -> None:
        asks: Asks = {}
        for item in items:
            item.write.ask(asks)
        lookups = sorted(asks, key=lambda lookup: lookup.rank)
        first = b";".join([lookup.head + b",".join(asks[lookup]) + lookup.tail for lookup in lookups])
        good: list[Item[Write]] = []
        failed: list[tuple[Item[Write], StoreError]] = []

        def decide(answers: list[Any]) -> tuple[None, Sequence[bytes] | None]:
            good.clear()
            failed.clear()
            found = {lookup: {row[0]: row for row in rows} for lookup, rows in zip(lookups, answers, strict=True)}
            batch: Batch = {}
            for item in items:
                try:
                    item.write.apply(found, batch)
                except StoreError as e:
                    failed.append((item, e))
                else:
                    good.append(item)
            return None, statements_of(batch) if good else None

        try:
            await self._transact(first, decide)
        except (Duplicate, Refused) as e:
            if len(good) == 1:
                good[0].fail(e)
            else:  # this should not happen, so who it was is found by halving
                middle = len(good) // 2
                halves = list(good[:middle]), list(good[middle:])
                for item, error in failed:
                    item.fail(error)
                for half in halves:
                    await self._send(half)
                return
        except StoreError as e:
            for item in good or items:
                item.fail(e)
        for item in good:
            item.succeed()
        for item, error in failed:
            item.fail(error)

    # --- the end -----------------------------------------------------------------------------------------------------

    def check_open(self) -> None:
        if self._closing is not None:
            raise Unavailable(f"{self.name} is closed")

    async def close(self) -> None:
        """Writes what waits, then closes. Closing again waits for the first."""
        if self._closing is not None:
            await asyncio.shield(self._closing)
            return
        loop = asyncio.get_running_loop()
        self._closing = loop.create_future()
        try:
            await self._groups.drain()
            if self._single:
                self._idle = loop.create_future()
                await self._idle
        finally:
            await asyncio.gather(*(pool.close() for pool in (self._writers, self._readers, self._listers)))
            self._closing.set_result(None)


class _Retry:
    """How long something is tried again."""

    __slots__ = ("_deadline", "_name", "_pause")

    def __init__(self, name: str) -> None:
        self._name = name
        self._deadline = 0.0
        self._pause = 0.005

    async def wait(self, problem: BaseException) -> None:
        """Raises Unavailable when it was tried for long enough."""
        now = asyncio.get_running_loop().time()
        self._deadline = self._deadline or now + RETRY_FOR
        if now + self._pause > self._deadline:
            raise Unavailable(f"{self._name} cannot be used: {one_line(problem)}") from problem
        await asyncio.sleep(self._pause)
        self._pause = min(self._pause * 2, 0.5)


async def _rolled_back(connection: Connection) -> bool:
    """Whether the connection can be used again."""
    try:
        await connection.run(b"ROLLBACK")
        return True
    except Failure:
        return False


async def delete_pieces(database: Database, statement: bytes, piece: int) -> int:
    """Runs a DELETE that ends with LIMIT `piece` until it finds less. Answers how many rows are gone."""
    total = 0
    while True:
        count = await database.repeatable(statement)
        total += count
        if count < piece:
            return total
