"""What the tables of a SQLite database look like, and how an older one becomes the present one.

A database holds the tables of several modules. Each has a list of scripts, run in order and once; how many were run
is in the table `module_version`. Scripts are only ever appended. There is no way back: an older perdure refuses a
database that a newer one migrated.
"""

from __future__ import annotations

import os
import pathlib
import sqlite3
from collections.abc import Sequence

from perdure.persistence.api import SchemaMismatch

APPLICATION_ID = 0x50455244  # "PERD", in the file's header
FORMAT = 1  # of the file as a whole, in user_version; module_version holds the rest

MODULES = ("store", "visibility")
"""Who has tables here: `persistence.sqlite.schema` (below) and `visibility`, which keeps its scripts itself."""

STORE: Sequence[str] = (
    # Runs and branches are known by a small integer inside: their pending rows and history nodes need not repeat up to
    # 3,000 bytes of names, and what belongs to recent runs lies together, so a group of commits touches few pages.
    """
    CREATE TABLE shard (
        shard_id INTEGER PRIMARY KEY,
        range_id INTEGER NOT NULL,
        owner TEXT NOT NULL,
        blob BLOB NOT NULL
    );
    CREATE TABLE run (
        run_key INTEGER PRIMARY KEY,
        shard_id INTEGER NOT NULL,
        namespace_id TEXT NOT NULL,
        workflow_id TEXT NOT NULL,
        run_id TEXT NOT NULL,
        version INTEGER NOT NULL,
        state BLOB NOT NULL
    );
    CREATE UNIQUE INDEX run_name ON run (shard_id, namespace_id, workflow_id, run_id);
    CREATE TABLE pending (
        run_key INTEGER NOT NULL,
        kind INTEGER NOT NULL,
        key TEXT NOT NULL,
        blob BLOB NOT NULL,
        PRIMARY KEY (run_key, kind, key)
    ) WITHOUT ROWID;
    CREATE TABLE current (
        shard_id INTEGER NOT NULL,
        namespace_id TEXT NOT NULL,
        workflow_id TEXT NOT NULL,
        run_id TEXT NOT NULL,
        status INTEGER NOT NULL,
        blob BLOB NOT NULL,
        PRIMARY KEY (shard_id, namespace_id, workflow_id)
    ) WITHOUT ROWID;
    CREATE TABLE branch (
        shard_id INTEGER NOT NULL,
        branch_id TEXT NOT NULL,
        branch_key INTEGER NOT NULL,
        PRIMARY KEY (shard_id, branch_id)
    ) WITHOUT ROWID;
    CREATE TABLE node (
        branch_key INTEGER NOT NULL,
        node_id INTEGER NOT NULL,
        txn_id INTEGER NOT NULL,
        prev_txn_id INTEGER NOT NULL,
        events INTEGER NOT NULL,
        blob BLOB NOT NULL,
        PRIMARY KEY (branch_key, node_id, txn_id)
    ) WITHOUT ROWID;
    CREATE TABLE task (
        shard_id INTEGER NOT NULL,
        category INTEGER NOT NULL,
        fire_time INTEGER NOT NULL,
        task_id INTEGER NOT NULL,
        blob BLOB NOT NULL,
        PRIMARY KEY (shard_id, category, fire_time, task_id)
    ) WITHOUT ROWID;
    CREATE TABLE task_queue (
        queue_key INTEGER PRIMARY KEY,
        namespace_id TEXT NOT NULL,
        name TEXT NOT NULL,
        type INTEGER NOT NULL,
        range_id INTEGER NOT NULL,
        ack_level INTEGER NOT NULL,
        blob BLOB NOT NULL,
        UNIQUE (namespace_id, name, type)
    );
    CREATE TABLE backlog (
        queue_key INTEGER NOT NULL,
        level INTEGER NOT NULL,
        blob BLOB NOT NULL,
        PRIMARY KEY (queue_key, level)
    ) WITHOUT ROWID;
    CREATE TABLE document (
        kind TEXT NOT NULL,
        key TEXT NOT NULL,
        version INTEGER NOT NULL,
        blob BLOB NOT NULL,
        PRIMARY KEY (kind, key)
    ) WITHOUT ROWID;
    CREATE TABLE queue (
        name TEXT PRIMARY KEY,
        last_message_id INTEGER NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE message (
        queue TEXT NOT NULL,
        message_id INTEGER NOT NULL,
        blob BLOB NOT NULL,
        PRIMARY KEY (queue, message_id)
    ) WITHOUT ROWID;
    """,
)


def identify(connection: sqlite3.Connection, name: str) -> None:
    """Raises SchemaMismatch unless the database is new or perdure's. Writes nothing."""
    try:
        application_id = connection.execute("PRAGMA application_id").fetchone()[0]
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        tables = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        if application_id != APPLICATION_ID:
            if tables or application_id or version:
                raise SchemaMismatch(f"{name} is a SQLite database of another program")
            return
        if version > FORMAT:
            raise SchemaMismatch(f"{name} was written by a newer version (format {version}, known: {FORMAT})")
        for table in tables:  # touches the root page of each
            connection.execute(f'SELECT 1 FROM "{table}" LIMIT 1').fetchall()
    except sqlite3.Error as error:
        raise unusable(name, error) from error


def unusable(name: str, error: sqlite3.Error) -> SchemaMismatch:
    text = str(error)
    if "not a database" in text:
        return SchemaMismatch(f"{name} is not a SQLite database")
    if "malformed" in text:
        return SchemaMismatch(f"{name} is damaged: {text}")
    return SchemaMismatch(f"{name} cannot be opened: {text}")


def prepare(connection: sqlite3.Connection, name: str) -> None:
    """Makes a new database perdure's."""
    try:
        connection.execute("BEGIN IMMEDIATE")
        connection.execute(
            "CREATE TABLE IF NOT EXISTS module_version"
            " (module TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID"
        )
        connection.execute(f"PRAGMA application_id={APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version={FORMAT}")
        connection.execute("COMMIT")
    except sqlite3.Error as error:
        raise unusable(name, error) from error


def migrate(
    connection: sqlite3.Connection, name: str, module: str, scripts: Sequence[str], upgrade: bool = True
) -> None:
    """Within a transaction: runs those of `scripts` that were not run yet. upgrade: also where some were run before,
    so that the tables of an older version become those of this one. Raises SchemaMismatch."""
    row = connection.execute("SELECT version FROM module_version WHERE module = ?", (module,)).fetchone()
    version = 0 if row is None else int(row[0])
    if version > len(scripts):
        raise SchemaMismatch(
            f"{name} was written by a newer version ({module} tables: version {version}, known: {len(scripts)})"
        )
    if version == len(scripts):
        return
    if version and not upgrade:
        raise SchemaMismatch(
            f"{name} was written by an older version ({module} tables: version {version}, known: {len(scripts)}):"
            " back it up, then run `perdure db upgrade`"
        )
    for script in scripts[version:]:
        for statement in statements(script):
            connection.execute(statement)
    connection.execute("INSERT OR REPLACE INTO module_version VALUES (?, ?)", (module, len(scripts)))


def versions(file: str) -> dict[str, int]:
    """How many scripts of each module the database at `file` has seen, {} when there is no such file or it is empty.
    Reads only, also while a server has the file. Raises SchemaMismatch."""
    if not os.path.exists(file):
        return {}
    try:
        connection = sqlite3.connect(f"{pathlib.Path(file).absolute().as_uri()}?mode=ro", uri=True, timeout=1)
    except sqlite3.Error as error:
        raise unusable(file, error) from error
    try:
        identify(connection, file)
        if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'module_version'").fetchone():
            return {}
        return dict(connection.execute("SELECT module, version FROM module_version").fetchall())
    except sqlite3.Error as error:
        raise unusable(file, error) from error
    finally:
        connection.close()


def statements(script: str) -> list[str]:
    """The single statements of a script (`executescript` would end the transaction)."""
    found: list[str] = []
    start = 0
    for end, character in enumerate(script):
        if character == ";" and sqlite3.complete_statement(script[start : end + 1]):
            found.append(script[start : end + 1].strip())
            start = end + 1
    if script[start:].strip():
        found.append(script[start:].strip())
    return found
