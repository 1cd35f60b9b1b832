"""What perdure's tables in MySQL and MariaDB look like, and how older ones become the present ones.

They belong to several modules, each with a list of scripts, run in order and once; how many were run is in the table
`schema_version`. Scripts are only ever appended, and there is no way back. A server only works with tables of exactly
its version: `init` and `upgrade` make them, one process at a time (GET_LOCK).

A statement that changes tables commits by itself here. So a script is a list of statements each of which may run again
(IF NOT EXISTS): one that was cut off is run anew from its start.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Final, TypeVar

from perdure.persistence.api import SchemaMismatch, Unavailable
from perdure.persistence.mysql.connections import (
    NO_DATABASE,
    NO_TABLE,
    SMALLEST_PACKET,
    Connection,
    Failure,
    Target,
    one_line,
)
from perdure.persistence.mysql.sql import bind

T = TypeVar("T")

OLDEST: Final = {"MySQL": (8, 0, 0), "MariaDB": (10, 11, 0)}

_PATIENCE: Final = 120
"""Seconds to wait for another process that changes the tables."""
_LONGEST_CHANGE: Final = 3600.0

ENGINE: Final = "ENGINE = InnoDB ROW_FORMAT = DYNAMIC CHARACTER SET = binary"

# Identifiers are VARBINARY: they compare as bytes. Keys (`persistence.keys`) are the shard's number, 4 bytes, and a
# digest of the names: those of a run may be 3,000 bytes long, nearly all that an index takes. Pending rows and history
# nodes repeat the key rather than refer to the run: a commit looks nothing up. Keys of what is recent lie together.
STORE: Final[Sequence[Sequence[str]]] = (
    (
        f"""CREATE TABLE IF NOT EXISTS shard (
            shard_id INT NOT NULL PRIMARY KEY,
            range_id BIGINT NOT NULL,
            owner VARBINARY(1000) NOT NULL,
            data MEDIUMBLOB NOT NULL
        ) {ENGINE}""",
        f"""CREATE TABLE IF NOT EXISTS run (
            run_key BINARY(20) NOT NULL PRIMARY KEY,
            namespace_id VARBINARY(1000) NOT NULL,
            workflow_id VARBINARY(1000) NOT NULL,
            run_id VARBINARY(1000) NOT NULL,
            version BIGINT NOT NULL,
            state MEDIUMBLOB NOT NULL
        ) {ENGINE}""",
        f"""CREATE TABLE IF NOT EXISTS pending (
            run_key BINARY(20) NOT NULL,
            kind INT NOT NULL,
            item VARBINARY(1000) NOT NULL,
            data MEDIUMBLOB NOT NULL,
            PRIMARY KEY (run_key, kind, item)
        ) {ENGINE}""",
        f"""CREATE TABLE IF NOT EXISTS current_run (
            workflow_key BINARY(20) NOT NULL PRIMARY KEY,
            namespace_id VARBINARY(1000) NOT NULL,
            workflow_id VARBINARY(1000) NOT NULL,
            run_id VARBINARY(1000) NOT NULL,
            status INT NOT NULL,
            data MEDIUMBLOB NOT NULL
        ) {ENGINE}""",
        f"""CREATE TABLE IF NOT EXISTS history_node (
            branch_key VARBINARY(1010) NOT NULL,
            node_id BIGINT NOT NULL,
            txn_id BIGINT NOT NULL,
            prev_txn_id BIGINT NOT NULL,
            events INT NOT NULL,
            data MEDIUMBLOB NOT NULL,
            PRIMARY KEY (branch_key, node_id, txn_id)
        ) {ENGINE}""",
        f"""CREATE TABLE IF NOT EXISTS task (
            shard_id INT NOT NULL,
            category INT NOT NULL,
            fire_time BIGINT NOT NULL,
            task_id BIGINT NOT NULL,
            data MEDIUMBLOB NOT NULL,
            PRIMARY KEY (shard_id, category, fire_time, task_id)
        ) {ENGINE}""",
        f"""CREATE TABLE IF NOT EXISTS task_queue (
            queue_key BINARY(16) NOT NULL PRIMARY KEY,
            namespace_id VARBINARY(1000) NOT NULL,
            name VARBINARY(2000) NOT NULL,
            type INT NOT NULL,
            range_id BIGINT NOT NULL,
            ack_level BIGINT NOT NULL,
            data MEDIUMBLOB NOT NULL
        ) {ENGINE}""",
        f"""CREATE TABLE IF NOT EXISTS backlog (
            queue_key BINARY(16) NOT NULL,
            task_level BIGINT NOT NULL,
            data MEDIUMBLOB NOT NULL,
            PRIMARY KEY (queue_key, task_level)
        ) {ENGINE}""",
        f"""CREATE TABLE IF NOT EXISTS document (
            kind VARBINARY(1000) NOT NULL,
            item VARBINARY(2000) NOT NULL,
            version BIGINT NOT NULL,
            data MEDIUMBLOB NOT NULL,
            PRIMARY KEY (kind, item)
        ) {ENGINE}""",
        f"""CREATE TABLE IF NOT EXISTS queue (
            name VARBINARY(1000) NOT NULL PRIMARY KEY,
            last_message_id BIGINT NOT NULL
        ) {ENGINE}""",
        f"""CREATE TABLE IF NOT EXISTS message (
            queue VARBINARY(1000) NOT NULL,
            message_id BIGINT NOT NULL,
            data MEDIUMBLOB NOT NULL,
            PRIMARY KEY (queue, message_id)
        ) {ENGINE}""",
    ),
)


def modules() -> Mapping[str, Sequence[Sequence[str]]]:
    """Who has tables here, and their scripts."""
    from perdure.visibility.mysql_schema import SCRIPTS

    return {"store": STORE, "visibility": SCRIPTS}


@dataclass(slots=True)
class Status:
    """versions: of each module, (found in the database, known to this perdure); 0 for none."""

    versions: dict[str, tuple[int, int]]

    @property
    def empty(self) -> bool:
        return all(found == 0 for found, _ in self.versions.values())

    @property
    def unfinished(self) -> bool:
        """The first making of the tables was cut off: each change of the tables commits by itself. What is there is of
        this version, and the rest was never there."""
        return all(found in (0, known) for found, known in self.versions.values())

    @property
    def current(self) -> bool:
        return all(found == known for found, known in self.versions.values())

    @property
    def newer(self) -> bool:
        """Written by a newer perdure."""
        return any(found > known for found, known in self.versions.values())


async def status(url: str) -> Status:
    """What the database has. Raises Unavailable, SchemaMismatch."""
    return await _on(Target(url), _status)


async def init(url: str) -> Status:
    """Lays perdure's tables down in a database that has none, which is created when it is missing; when they are there
    and current, does nothing. Raises SchemaMismatch when they are of another version, Unavailable."""
    target = Target(url)
    await _create_database(target)
    return await _on(target, lambda connection: _migrate(target, connection, only_empty=True))


async def upgrade(url: str) -> Status:
    """Brings perdure's tables to this version, from any older one or from nothing. Raises SchemaMismatch when they are
    of a newer one, Unavailable."""
    target = Target(url)
    return await _on(target, lambda connection: _migrate(target, connection, only_empty=False))


async def check(target: Target, create: bool) -> Connection:
    """That the tables are of this version. create: lays them down in an empty database. Answers a connection, closed
    by now, that says what the server is like. Raises SchemaMismatch, Unavailable."""

    async def look(connection: Connection) -> Connection:
        found = await _status(connection)
        if found.unfinished and create:
            found = await _migrate(target, connection, only_empty=True)
        _refuse_other(target, found)
        return connection

    return await _on(target, look)


def _refuse_other(target: Target, found: Status) -> None:
    if found.current:
        return
    if found.empty:
        raise SchemaMismatch(f"{target.name} has no tables of perdure: run `perdure db init`")
    for module, (version, known) in found.versions.items():
        if version > known:
            raise SchemaMismatch(
                f"{target.name} was written by a newer version ({module} tables: version {version}, known: {known})"
            )
    module, (version, known) = next((m, v) for m, v in found.versions.items() if v[0] < v[1])
    raise SchemaMismatch(
        f"{target.name} was written by an older version ({module} tables: version {version}, needed: {known}):"
        " run `perdure db upgrade`"
    )


async def _on(target: Target, use: Callable[[Connection], Awaitable[T]]) -> T:
    try:
        connection = await target.connect(_PATIENCE * 2)
    except Failure as e:
        if e.refused:
            raise SchemaMismatch(f"{target.name} cannot be opened: {one_line(e)}") from e
        raise Unavailable(f"{target.name} cannot be reached: {one_line(e)}") from e
    try:
        _check_server(target, connection)
        return await use(connection)
    except Failure as e:
        if e.refused:
            raise SchemaMismatch(f"{target.name} cannot be used: {one_line(e)}") from e
        raise Unavailable(f"{target.name} cannot be used: {one_line(e)}") from e
    finally:
        await connection.close()


def _check_server(target: Target, connection: Connection) -> None:
    vendor = "MariaDB" if "MariaDB" in connection.version else "MySQL"
    # A MariaDB server may say 5.5.5-10.11.2-MariaDB.
    numbers = re.match(r"(?:5\.5\.5-)?(\d+)\.(\d+)\.(\d+)", connection.version)
    if numbers is None or tuple(int(n) for n in numbers.groups()) < OLDEST[vendor]:
        needed = ".".join(str(n) for n in OLDEST[vendor][:2])
        raise SchemaMismatch(f"{target.name} is {vendor} {connection.version}: perdure needs {needed} or newer")
    if connection.max_packet < SMALLEST_PACKET:
        raise SchemaMismatch(
            f"{target.name}: max_allowed_packet is {connection.max_packet}: perdure needs {SMALLEST_PACKET} or more"
        )


async def _create_database(target: Target) -> None:
    try:
        connection = await target.connect(_PATIENCE)
    except Failure as e:
        if e.code != NO_DATABASE:
            return  # says so when it is used
        try:
            connection = await target.connect(_PATIENCE, database=False)
            try:
                name = target.database.replace("`", "``")
                await connection.run(f"CREATE DATABASE IF NOT EXISTS `{name}`".encode())
            finally:
                await connection.close()
        except Failure as failure:
            raise SchemaMismatch(f"{target.name} cannot be created: {one_line(failure)}") from failure
    else:
        await connection.close()


async def _status(connection: Connection) -> Status:
    found: dict[str, int] = {}
    try:
        (rows,) = await connection.run(b"SELECT module, version FROM schema_version")
        found = {module.decode(): version for module, version in rows}
    except Failure as e:
        if e.code != NO_TABLE:
            raise
    known = {module: len(scripts) for module, scripts in modules().items()}
    return Status({module: (found.get(module, 0), known.get(module, 0)) for module in {**known, **found}})


async def _migrate(target: Target, connection: Connection, *, only_empty: bool) -> Status:
    """Under a lock: who comes second finds it done. The lock goes with the connection."""
    lock = "perdure." + blake2b(target.database.encode(), digest_size=16).hexdigest()  # 64 characters at most
    ((row,),) = await connection.run(bind("SELECT GET_LOCK(?, ?)", lock, _PATIENCE), _PATIENCE + 10)
    if row[0] != 1:
        raise Unavailable(f"{target.name}: another process is changing the tables")
    found = await _status(connection)
    if found.current:
        return found
    if found.newer or (only_empty and not found.unfinished):
        _refuse_other(target, found)
    if connection.read_only:
        raise Unavailable(f"{target.name} is read-only")
    await connection.run(
        b"CREATE TABLE IF NOT EXISTS schema_version"
        b" (module VARBINARY(100) NOT NULL PRIMARY KEY, version INT NOT NULL) " + ENGINE.encode()
    )
    for module, scripts in modules().items():
        for number, script in enumerate(scripts, 1):
            if number <= found.versions[module][0]:
                continue
            for statement in script:
                await connection.run(statement.encode(), _LONGEST_CHANGE)
            await connection.run(
                bind(
                    "INSERT INTO schema_version (module, version) VALUES (?, ?)"
                    " ON DUPLICATE KEY UPDATE version = VALUES(version)",
                    module,
                    number,
                )
            )
    return await _status(connection)
