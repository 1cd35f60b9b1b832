"""From a database's address to its store: the one place that knows the backends by name.

sqlite:PATH, or a PATH      a SQLite file; None: in memory
postgresql://USER@HOST/DB   PostgreSQL
mysql://USER@HOST/DB        MySQL, MariaDB
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final, NamedTuple
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
    url: str | None, *, pragmas: Mapping[str, str] | None = None, upgrade: bool = False
) -> OpenDatabase:
    """Opens the database, and makes its tables when it is new. upgrade: brings older tables up to date; they are
    refused without it, since there is no way back. pragmas: of SQLite. Raises SchemaMismatch, Unavailable."""
    backend = backend_of(url)
    if backend != SQLITE and pragmas:
        raise SchemaMismatch(f"pragmas are SQLite's: {shown(url)} has none")
    if backend == SQLITE:
        from perdure.persistence.sqlite import open_store
        from perdure.visibility.sqlite import SqliteVisibility

        store = await open_store(path_of(url), pragmas=pragmas, upgrade=upgrade)
        try:
            visibility = SqliteVisibility(store.database)
            await visibility.open()
            store.carry_visibility(visibility.write_along)
        except BaseException:
            await store.close()
            raise
        return OpenDatabase(store, visibility)
    raise SchemaMismatch(f"{shown(url)}: there is no store for {backend} yet")


async def schema_status(url: str) -> Sequence[ModuleVersion]:
    """What the database holds, without changing it. Raises SchemaMismatch when it cannot be used at all."""
    backend = backend_of(url)
    if backend == SQLITE:
        from perdure.persistence.sqlite import schema
        from perdure.visibility.sqlite_schema import SCRIPTS

        found = schema.versions(path_of(url) or "")
        known = {"store": len(schema.STORE), "visibility": len(SCRIPTS)}
        return [ModuleVersion(module, found.get(module, 0), version) for module, version in known.items()]
    raise SchemaMismatch(f"{shown(url)}: there is no store for {backend} yet")


async def is_unfinished_copy(store: Store) -> bool:
    """Then no server may use it."""
    try:
        await store.get_document(*COPY_PROGRESS)
    except NotFound:
        return False
    return True
