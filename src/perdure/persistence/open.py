"""From a database's address to its store: the one place that knows the backends by name.

sqlite:PATH, or a PATH      a SQLite file; None: in memory
postgresql://USER@HOST/DB   PostgreSQL
mysql://USER@HOST/DB        MySQL, MariaDB
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from perdure.persistence.api import NotFound, SchemaMismatch, Store
from perdure.visibility.api import VisibilityStore

SQLITE: Final = "sqlite"
POSTGRESQL: Final = "postgresql"
MYSQL: Final = "mysql"

_SCHEMES: Final = {"postgresql": POSTGRESQL, "postgres": POSTGRESQL, "mysql": MYSQL, "mariadb": MYSQL}

DEFAULT_SHARDS: Final = {SQLITE: 4, POSTGRESQL: 128, MYSQL: 128}
"""Of a new database. A SQLite file has one owner, and shards only cost there. On a database server their number is the
greatest number of processes that can ever share the work, and cannot be changed but by a copy: 128 leave room, and
still cost an idle process next to nothing."""


COPY_PROGRESS: Final = ("cluster", "copy")
"""Kind and key of the document that a database has while it is the target of a copy that is not complete."""


class OpenDatabase(NamedTuple):
    """Closing `store` closes both."""

    store: Store
    visibility: VisibilityStore


class ModuleVersion(NamedTuple):
    """found: of the module's tables in the database, 0 when there are none. known: of those that this version of
    perdure works with."""

    module: str
    found: int
    known: int


def backend_of(url: str | None) -> str:
    """SQLITE, POSTGRESQL or MYSQL. Raises SchemaMismatch for an address that none of them has."""
    if url is None:
        return SQLITE
    match = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", url)
    if match is None:
        return SQLITE
    scheme = match[1].lower()
    if scheme == SQLITE:
        return SQLITE
    if scheme not in _SCHEMES:
        raise SchemaMismatch(f"{shown(url)} is no address of a database: sqlite:PATH, postgresql://… or mysql://…")
    return _SCHEMES[scheme]


def path_of(url: str | None) -> str | None:
    """The file of a SQLite address."""
    if url is None or not url.lower().startswith("sqlite:"):
        return url
    path = url[len("sqlite:") :]
    if path.startswith("//"):
        path = path[2:]
    if not path:
        raise SchemaMismatch("sqlite: names no file (sqlite:PATH)")
    return path


def shown(url: str | None) -> str:
    """The address for people and logs: without a password."""
    if url is None:
        return "in memory"
    if "://" not in url:
        return url
    parts = urlsplit(url)
    if parts.password is None:
        return url
    login, _, host = parts.netloc.rpartition("@")
    return urlunsplit(parts._replace(netloc=f"{login.partition(':')[0]}@{host}"))


async def open_database_url(
    url: str | None, *, pragmas: Mapping[str, str] | None = None, create: bool = True
) -> OpenDatabase:
    """Opens the database. create: makes perdure's tables where there are none. pragmas: of SQLite. Raises
    SchemaMismatch, also for tables of a newer or an older version (see `upgrade`), and Unavailable."""
    backend = backend_of(url)
    if url is None or backend == SQLITE:
        from perdure.persistence.sqlite import open_store
        from perdure.visibility.sqlite import SqliteVisibility

        if not create:
            _refuse_new(url, await schema_status(url or ""))
        store = await open_store(path_of(url), pragmas=pragmas, upgrade=False)
        try:
            visibility = SqliteVisibility(store.database)
            await visibility.open()
            store.carry_visibility(visibility.write_along)
        except BaseException:
            await store.close()
            raise
        return OpenDatabase(store, visibility)
    if pragmas:
        raise SchemaMismatch(f"pragmas are SQLite's: {shown(url)} has none")
    _import(backend)
    if backend == POSTGRESQL:
        from perdure.persistence import postgresql
        from perdure.visibility.postgresql import PostgresVisibility

        store = await postgresql.open_store(url, create=create)
        visibility = PostgresVisibility(store.database)
        store.carry_visibility(visibility)
        return OpenDatabase(store, visibility)
    from perdure.persistence import mysql
    from perdure.visibility.mysql import MysqlVisibility

    store = await mysql.open_store(url, create=create)
    visibility = MysqlVisibility(store.database)
    store.carry_visibility(visibility)
    return OpenDatabase(store, visibility)


async def init(url: str) -> None:
    """Makes perdure's tables where there are none. Raises SchemaMismatch when there are those of another version."""
    backend = backend_of(url)
    if backend == SQLITE:
        await (await open_database_url(url)).store.close()
    else:
        await _import(backend).init(url)


async def upgrade(url: str) -> None:
    """Brings tables of an older version, or none, to this one. There is no way back. Raises SchemaMismatch."""
    backend = backend_of(url)
    if backend == SQLITE:
        from perdure.persistence.sqlite import open_store
        from perdure.visibility.sqlite import SqliteVisibility

        store = await open_store(path_of(url))
        try:
            await SqliteVisibility(store.database).open()
        finally:
            await store.close()
    else:
        await _import(backend).upgrade(url)


async def schema_status(url: str) -> Sequence[ModuleVersion]:
    """What the database holds, without changing it. Raises SchemaMismatch when it cannot be used at all."""
    backend = backend_of(url)
    if backend == SQLITE:
        from perdure.persistence.sqlite import schema
        from perdure.visibility.sqlite_schema import SCRIPTS

        found = schema.versions(path_of(url) or "")
        known = {"store": len(schema.STORE), "visibility": len(SCRIPTS)}
        return [ModuleVersion(module, found.get(module, 0), known.get(module, 0)) for module in {**known, **found}]
    status = await _import(backend).status(url)
    return [ModuleVersion(module, *versions) for module, versions in status.versions.items()]


def _import(backend: str) -> Any:
    """The module that looks after the tables. Raises SchemaMismatch when the database's driver is not installed."""
    try:
        return importlib.import_module(f"perdure.persistence.{backend}.schema")
    except ModuleNotFoundError as e:
        if e.name is None or e.name.startswith("perdure"):
            raise
        raise SchemaMismatch(f"{e.name} is not installed, which {backend} needs: pip install perdure[{backend}]") from e


def _refuse_new(url: str | None, found: Sequence[ModuleVersion]) -> None:
    if all(module.found == 0 for module in found):
        raise SchemaMismatch(f"{shown(url)} has no tables of perdure: run `perdure db init`")


async def is_unfinished_copy(store: Store) -> bool:
    """Then no server may use it."""
    try:
        await store.get_document(*COPY_PROGRESS)
    except NotFound:
        return False
    return True
