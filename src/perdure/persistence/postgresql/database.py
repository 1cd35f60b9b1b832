"""A PostgreSQL database under an event loop: connections, and what becomes of a statement when one breaks.

Each statement is a transaction of its own: one round trip, and one wait for the disk where it writes. What needs more
is a function in the database (`schema`), so that it still is one statement.

A statement is tried again inside when it surely did nothing: it was never sent, or the server said that it failed for a
passing reason (a deadlock, a standby that is not the primary yet). When the answer to a write is lost, its outcome is
unknown, and the caller has to find out: `Unavailable`, never a second try.
"""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg
from asyncpg import Connection

from perdure.persistence.api import SchemaMismatch, StoreError, Unavailable

T = TypeVar("T")

RETRY_FOR: Final = 10.0
"""Seconds for which a statement that did nothing is tried again: a restart of the database takes less."""

STATEMENT_TIMEOUT: Final = 20.0
"""Seconds that a statement may take."""

CONNECT_TIMEOUT: Final = 5

WRITERS: Final = 6
READERS: Final = 4
LISTERS: Final = 2

# All statements of the store go by keys. Without these, the plan of a table that is still small would be kept when it
# has grown, and planning anew for each call costs more than running.
_BY_KEY: Final[Mapping[str, str]] = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_hashjoin": "off",
    "enable_mergejoin": "off",
}
# The plan of a list depends on the values in its filter.
_BY_FILTER: Final[Mapping[str, str]] = {"plan_cache_mode": "force_custom_plan"}

# SQLSTATEs of a transaction that was rolled back for a reason that passes.
_PASSING: Final = frozenset(
    (
        "40001",  # serialization_failure
        "40P01",  # deadlock_detected
        "55P03",  # lock_not_available
        "25006",  # read_only_sql_transaction: a standby, or a primary that was demoted
        "57P03",  # cannot_connect_now: the server starts or stops
        "53300",  # too_many_connections
        "53400",  # configuration_limit_exceeded
    )
)
# After these the connection is of no use: another one may lead to the primary.
_MOVED: Final = frozenset(("25006", "57P03"))
# The server ended the connection, or nobody knows what happened to it.
_LOST_CLASSES: Final = ("08",)
# What the statement did wrong: a broken constraint, a value that is none, a condition of a function in `schema`.
_WRONG_CLASSES: Final = ("21", "22", "23", "PD")
_LOST: Final = frozenset(("40003", "57P01", "57P02", "57P04", "57P05"))


class _NotSent(Exception):
    """No connection was to be had: the statement was not sent."""


def is_postgresql(url: str) -> bool:
    return url.startswith(("postgresql://", "postgres://"))


class Target:
    """Where a database is. name: the URL without its secrets, for messages. dsn: for asyncpg. schema: where all of
    perdure's tables are. Raises SchemaMismatch for a URL that is none."""

    def __init__(self, url: str) -> None:
        self.name = re.sub(r"://([^:/@]*):[^@/]*@", r"://\1@", url)
        self.name = re.sub(r"([?&]password=)[^&]*", r"\1…", self.name)
        try:
            parts = urlsplit(url)
            query = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
        except ValueError as e:
            raise SchemaMismatch(f"{self.name} is not a URL: {e}") from None
        if not is_postgresql(url):
            raise SchemaMismatch(f"{self.name} is not a URL like postgresql://user:password@host/database")
        options = dict(query)
        self.schema = options.pop("schema", "perdure")
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]{0,62}", self.schema):
            raise SchemaMismatch(f"{self.name}: schema={self.schema} is not a plain name")
        # Of several hosts, the one that takes writes.
        options.setdefault("target_session_attrs", "read-write" if "," in parts.netloc else "any")
        query_text = urlencode(options)
        self.dsn = urlunsplit((parts.scheme, parts.netloc, parts.path, query_text, ""))

    async def connect(self, settings: Mapping[str, str]) -> Connection:
        """Raises what asyncpg raises."""
        return await asyncpg.connect(
            self.dsn,
            timeout=CONNECT_TIMEOUT,
            command_timeout=STATEMENT_TIMEOUT,
            statement_cache_size=256,
            max_cached_statement_lifetime=0,
            server_settings={
                "application_name": "perdure",
                "search_path": f'"{self.schema}"',
                "jit": "off",
                "default_transaction_isolation": "read committed",
                "client_min_messages": "error",
                **settings,
            },
        )


def one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return text or type(error).__name__


def placeholders(first: int, last: int) -> str:
    return ", ".join([f"${n}" for n in range(first, last + 1)])


def sqlstate_of(error: BaseException) -> str:
    return getattr(error, "sqlstate", None) or ""


ERRORS: Final = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    TimeoutError,
)
"""What asyncpg raises."""


def _is_unusable(error: BaseException) -> bool:
    """asyncpg sent nothing: while the connection was idle, the server's word that it ends it came first."""
    return isinstance(error, asyncpg.InternalClientError) and "cannot switch to state" in str(error)


def _is_lost(error: BaseException) -> bool:
    """Whether the connection broke, so that nobody knows how far the statement came."""
    if isinstance(error, asyncpg.PostgresError):
        state = sqlstate_of(error)
        return state in _LOST or state.startswith(_LOST_CLASSES)
    return isinstance(error, ERRORS)


class _Pool:
    """Connections of one kind, made when they are needed. The one used last is used first."""

    def __init__(self, target: Target, size: int, settings: Mapping[str, str]) -> None:
        self._target = target
        self._settings = settings
        self._idle: list[Connection] = []
        self._room = size
        self._waiting: deque[asyncio.Future[Connection | None]] = deque()
        self.used = 0

    async def acquire(self) -> Connection:
        """Raises _NotSent."""
        connection: Connection | None = None
        while True:
            while self._idle:
                connection = self._idle.pop()
                if not connection.is_closed():
                    self.used += 1
                    return connection
                self._room += 1
            if self._room:
                break
            future: asyncio.Future[Connection | None] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            try:
                await future
            except asyncio.CancelledError:
                if future.done() and not future.cancelled():
                    self._wake()
                raise
        self._room -= 1
        try:
            connection = await self._target.connect(self._settings)
        except BaseException as e:
            self._room += 1
            self._wake()
            if isinstance(e, Exception):
                raise _NotSent(one_line(e)) from e
            raise
        self.used += 1
        return connection

    def release(self, connection: Connection, broken: bool) -> None:
        self.used -= 1
        if broken or connection.is_closed():
            connection.terminate()
            self._room += 1
        else:
            self._idle.append(connection)
        self._wake()

    def _wake(self) -> None:
        while self._waiting:
            future = self._waiting.popleft()
            if not future.done():
                future.set_result(None)
                return

    def drop_idle(self) -> None:
        """They lead to a server that is gone, or is not the primary any more."""
        while self._idle:
            self._idle.pop().terminate()
            self._room += 1

    async def close(self) -> None:
        idle, self._idle = self._idle, []
        for connection in idle:
            try:
                await connection.close(timeout=2)
            except Exception:
                connection.terminate()


class Database:
    """Made by `open_database`. Belongs to the event loop that opened it.

    `read` and `write` run one statement each, with `$1`, `$2`, … for its arguments. They raise StoreErrors."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self.name = target.name
        self._writers = _Pool(target, WRITERS, _BY_KEY)
        self._readers = _Pool(target, READERS, _BY_KEY)
        self._listers = _Pool(target, LISTERS, _BY_FILTER)
        self._closing: asyncio.Future[None] | None = None
        self._before_closing: list[Callable[[], Awaitable[None]]] = []
        self._ended = False

    async def read(self, sql: str, *arguments: object) -> list[Any]:
        """Rows by key. Sees every write that was acknowledged."""
        self.check_open()
        return await self._alone(self._readers, False, sql, arguments)

    async def read_by_filter(self, sql: str, *arguments: object) -> list[Any]:
        """The same, planned anew for its values."""
        self.check_open()
        return await self._alone(self._listers, False, sql, arguments)

    async def write(self, sql: str, *arguments: object) -> list[Any]:
        """Durable when it returns. When it raises Unavailable, it may have been written, and may still be."""
        self.check_open()
        return await self._alone(self._writers, True, sql, arguments)

    async def write_group(self, sql: str, arguments: Sequence[object]) -> list[Any]:
        """`write` for a group that was taken before closing began. What it did wrong (a row that exists, a condition
        of a function in `schema`, a text that no text can hold) is raised as asyncpg's PostgresError."""
        if self._ended:
            raise Unavailable(f"{self.name} is closed")
        return await self._run(self._writers, True, sql, arguments)

    async def _alone(self, pool: _Pool, writes: bool, sql: str, arguments: Sequence[object]) -> list[Any]:
        try:
            return await self._run(pool, writes, sql, arguments)
        except asyncpg.PostgresError as e:
            raise StoreError(one_line(e)) from e

    async def _run(self, pool: _Pool, writes: bool, sql: str, arguments: Sequence[object]) -> list[Any]:
        loop = asyncio.get_running_loop()
        deadline = 0.0
        wait = 0.005
        while True:
            problem: BaseException
            try:
                connection = await pool.acquire()
            except _NotSent as e:
                problem = e
            else:
                broken = True
                try:
                    rows: list[Any] = await connection.fetch(sql, *arguments)
                    broken = False
                    return rows
                except ERRORS as e:
                    problem = e
                    state = sqlstate_of(e)
                    if _is_unusable(e):
                        pool.drop_idle()
                    elif _is_lost(e):
                        # The others of the pool are likely to be broken too.
                        pool.drop_idle()
                        if writes:
                            raise Unavailable(f"the outcome of a write is unknown: {one_line(e)}") from e
                    elif state in _PASSING:
                        broken = state in _MOVED
                        if broken:
                            pool.drop_idle()
                    else:
                        broken = False
                        if state[:2] in _WRONG_CLASSES:
                            raise
                        raise Unavailable(f"{self.name}: {one_line(e)}") from e
                finally:
                    pool.release(connection, broken)
            now = loop.time()
            deadline = deadline or now + RETRY_FOR
            if now + wait > deadline:
                raise Unavailable(f"{self.name} cannot be used: {one_line(problem)}") from problem
            await asyncio.sleep(wait)
            wait = min(wait * 2, 0.5)

    def before_closing(self, drain: Callable[[], Awaitable[None]]) -> None:
        """drain: returns when what waits is written."""
        self._before_closing.append(drain)

    def check_open(self) -> None:
        """Raises Unavailable once `close` was called."""
        if self._closing is not None:
            raise Unavailable(f"{self.name} is closed")

    async def close(self) -> None:
        """Writes what waits, then closes. Closing again waits for the first."""
        if self._closing is not None:
            await asyncio.shield(self._closing)
            return
        self._closing = asyncio.get_running_loop().create_future()
        try:
            for drain in self._before_closing:
                await drain()
        finally:
            self._ended = True
            await asyncio.gather(*(pool.close() for pool in (self._writers, self._readers, self._listers)))
            self._closing.set_result(None)
