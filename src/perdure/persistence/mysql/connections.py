"""Connections to a MySQL or MariaDB server, and what its errors mean."""

from __future__ import annotations

import asyncio
import re
import ssl
from collections import deque
from collections.abc import Sequence
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import asyncmy
from asyncmy.errors import MySQLError

from perdure.persistence.api import SchemaMismatch

CONNECT_TIMEOUT: Final = 5
STATEMENT_TIMEOUT: Final = 20.0
"""Seconds that a packet of statements may take."""

SMALLEST_PACKET: Final = 8 << 20
"""max_allowed_packet must not be less: a row may be about 4 MiB long."""

# A process that was stopped in the middle of a transaction keeps its locks no longer than wait_timeout.
_SESSION: Final = (
    "SET NAMES binary;"
    "SET SESSION sql_mode = 'STRICT_ALL_TABLES,NO_ENGINE_SUBSTITUTION', autocommit = 1, innodb_lock_wait_timeout = 3,"
    " wait_timeout = {idle};"
    "SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED;"
    "SELECT VERSION(), @@GLOBAL.read_only, @@max_allowed_packet, @@GLOBAL.innodb_flush_log_at_trx_commit"
)

DUPLICATE: Final = 1062
NO_DATABASE: Final = 1049
NO_TABLE: Final = 1146
_DEADLOCK: Final = 1213
_LOCK_TIMEOUT: Final = 1205

# The statement did nothing, for a reason that passes.
PASSING: Final = frozenset(
    (
        _LOCK_TIMEOUT,
        _DEADLOCK,
        1040,  # too many connections
        1047,  # a node of a Galera cluster that is not ready
        1053,  # the server shuts down
        1203,  # more than max_user_connections
        1226,  # a user's limit
        1290,  # --read-only
        1317,  # the statement was killed
        1637,  # too many transactions
        1792,  # a read-only transaction
        1836,  # read-only mode
        1927,  # the connection was killed
        3032,  # offline mode
        3169,  # the session was killed
        4031,  # idle for longer than wait_timeout
    )
)
# After these the connection is of no use: another one may lead to a server that takes writes.
_MOVED: Final = frozenset((1047, 1053, 1290, 1792, 1836, 1927, 3032, 3169, 4031))
# The driver's own (2000 to 2999), and the server's about the network: nobody knows how far the statements came.
_LOST: Final = frozenset((0, *range(1152, 1162), 1184, *range(2000, 3000)))
# A value does not fit its column.
_UNFIT: Final = frozenset((1048, 1264, 1292, 1366, 1406, 1690))
# Refused for good.
_REFUSED: Final = frozenset((1044, 1045, NO_DATABASE, 1130, 1142, 1143, 1251, 1698, 1227))


class Failure(Exception):
    """A statement failed. code: MySQL's, 0 when there is none. at: how many of the packet's statements succeeded."""

    def __init__(self, code: int, message: str, at: int = 0) -> None:
        super().__init__(f"{message} ({code})" if code else message)
        self.code = code
        self.at = at

    @property
    def lost(self) -> bool:
        return self.code in _LOST

    @property
    def moved(self) -> bool:
        return self.code in _MOVED

    @property
    def passing(self) -> bool:
        return self.code in PASSING

    @property
    def unfit(self) -> bool:
        return self.code in _UNFIT

    @property
    def refused(self) -> bool:
        return self.code in _REFUSED

    @property
    def rolled_back(self) -> bool:
        """Even as the answer to a COMMIT."""
        return self.code in (_DEADLOCK, _LOCK_TIMEOUT)


class NotSent(Exception):
    """No connection was to be had: nothing was sent."""


def one_line(error: BaseException) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _failure(error: Exception, at: int) -> Failure:
    if isinstance(error, MySQLError) and len(error.args) > 1 and isinstance(error.args[0], int):
        return Failure(error.args[0], " ".join(str(error.args[1]).split()), at)
    return Failure(0, one_line(error), at)


class Target:
    """Where a database is: mysql://user:password@host:port/database, or mariadb://…; options behind a `?`:

    unix_socket: a path, instead of host and port. ssl=true: encrypted. ssl_ca: a file, by which the server's
    certificate and name are verified. ssl_cert, ssl_key: the client's. name: the URL without its password, for
    messages.

    Raises SchemaMismatch for a URL that is none."""

    def __init__(self, url: str) -> None:
        self.name = re.sub(r"://([^:/@]*):[^@/]*@", r"://\1@", url)
        try:
            parts = urlsplit(url)
            port = parts.port or 3306
            options = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
        except ValueError as e:
            raise SchemaMismatch(f"{self.name} is not a URL: {e}") from None
        self.database = unquote(parts.path[1:])
        if parts.scheme.lower() not in ("mysql", "mariadb") or not self.database or "/" in self.database:
            raise SchemaMismatch(f"{self.name} is not a URL like mysql://user:password@host/database")
        self._arguments: dict[str, Any] = {
            "host": parts.hostname or "127.0.0.1",
            "port": port,
            "user": unquote(parts.username or "") or None,
            "password": unquote(parts.password or ""),
            "unix_socket": options.pop("unix_socket", None),
            "ssl": self._tls(options),
        }
        if options:
            raise SchemaMismatch(f"{self.name}: there is no option {next(iter(options))}")

    def _tls(self, options: dict[str, str]) -> ssl.SSLContext | None:
        ca, cert, key = options.pop("ssl_ca", None), options.pop("ssl_cert", None), options.pop("ssl_key", None)
        wanted = options.pop("ssl", "true" if ca or cert else "false").lower()
        if wanted not in ("true", "false", "1", "0"):
            raise SchemaMismatch(f"{self.name}: ssl is true or false")
        if wanted in ("false", "0"):
            return None
        try:
            context = ssl.create_default_context(cafile=ca)
            if ca is None:  # encrypted only, as the ssl mode REQUIRED of the servers' own clients
                context.check_hostname = False
                context.verify_mode = ssl.CERT_NONE
            if cert is not None:
                context.load_cert_chain(cert, key)
        except OSError as e:
            raise SchemaMismatch(f"{self.name}: {one_line(e)}") from e
        return context

    async def connect(self, idle: int, *, database: bool = True) -> Connection:
        """idle: seconds after which the server ends a connection that is not used. Raises Failure."""
        raw: Any = None
        try:
            raw = await asyncmy.connect(
                **self._arguments,
                db=self.database if database else None,
                connect_timeout=CONNECT_TIMEOUT,
                charset="utf8mb4",
                autocommit=True,
                program_name="perdure",
            )
            connection = Connection(raw)
            (row,) = (await connection.run(_SESSION.format(idle=idle).encode()))[-1]
        except (MySQLError, OSError, TimeoutError, asyncio.IncompleteReadError, ValueError, RuntimeError) as e:
            if raw is not None:
                raw.close()
            raise _failure(e, 0) from e
        except BaseException:
            if raw is not None:
                raw.close()
            raise
        version, read_only, connection.max_packet, flush = row
        connection.version = version.decode() if isinstance(version, bytes) else str(version)
        connection.read_only = read_only not in (0, b"0", b"OFF")
        connection.flushes = flush == 1
        return connection


class Connection:
    """version: of the server, as it says. max_packet: bytes. read_only: it takes no writes. flushes: each commit waits
    for the disk."""

    __slots__ = ("_loop", "_raw", "flushes", "max_packet", "read_only", "version")

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self._loop = asyncio.get_running_loop()
        self.version = ""
        self.max_packet = 0
        self.read_only = False
        self.flushes = True

    async def run(self, packet: bytes, timeout: float = STATEMENT_TIMEOUT) -> list[Any]:
        """Runs the statements of a packet, separated by `;`, up to the first that fails. Answers for each its rows, or
        the number of rows that it changed. Raises Failure."""
        raw = self._raw
        answers: list[Any] = []
        timer = self._loop.call_later(timeout, raw.close)
        try:
            await raw.query(packet)
            while True:
                result = raw._result
                rows = result.rows
                answers.append(result.affected_rows if rows is None else rows)
                if not result.has_next:
                    return answers
                await raw.next_result()
        except (MySQLError, OSError, TimeoutError, asyncio.IncompleteReadError) as e:
            raise _failure(e, len(answers)) from e
        except BaseException:
            raw.close()  # answers are left unread
            raise
        finally:
            timer.cancel()

    @property
    def closed(self) -> bool:
        return self._raw._stream_broken

    def terminate(self) -> None:
        self._raw.close()

    async def close(self) -> None:
        try:
            async with asyncio.timeout(2):
                await self._raw.ensure_closed()
        except Exception:
            self._raw.close()


class Pool:
    """Connections, made when they are needed. The one used last is used first. setup: run on each new one."""

    def __init__(self, target: Target, size: int, idle: int, setup: Sequence[tuple[str, bytes]] = ()) -> None:
        self._target = target
        self._idle_seconds = idle
        self._setup = setup
        self._idle: list[Connection] = []
        self._room = size
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._closed = False

    async def acquire(self) -> Connection:
        """Raises NotSent."""
        while True:
            while self._idle:
                connection = self._idle.pop()
                if not connection.closed:
                    return connection
                connection.terminate()
                self._room += 1
            if self._room:
                break
            future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(future)
            try:
                await future
            except asyncio.CancelledError:
                if future.done() and not future.cancelled():
                    self._wake()
                raise
        self._room -= 1
        connection = None
        try:
            connection = await self._target.connect(self._idle_seconds)
            if connection.read_only:
                raise NotSent("the server is read-only")
            for vendor, statement in self._setup:
                if (vendor == "MariaDB") == ("MariaDB" in connection.version):
                    await connection.run(statement)
        except BaseException as e:
            if connection is not None:
                connection.terminate()
            self._room += 1
            self._wake()
            if isinstance(e, Failure):
                raise NotSent(one_line(e)) from e
            raise
        return connection

    def release(self, connection: Connection, *, broken: bool) -> None:
        if broken or connection.closed or self._closed:
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
        """They lead to a server that is gone, or takes no writes any more."""
        while self._idle:
            self._idle.pop().terminate()
            self._room += 1

    async def close(self) -> None:
        self._closed = True
        idle, self._idle = self._idle, []
        for connection in idle:
            await connection.close()
