"""What perdure's tables in PostgreSQL look like, and how older ones become the present ones.

They are in a schema of their own (`perdure`, or `?schema=` of the URL). They belong to several modules, each with a
list of scripts, run in order and once; how many were run is in the table `schema_version`. Scripts are only ever
appended, and there is no way back. A server only works with tables of exactly its version: `init` and `upgrade` make
them, and several processes may do so at once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import asyncpg
from asyncpg import Connection

from perdure.persistence.api import SchemaMismatch, Unavailable
from perdure.persistence.postgresql.database import ERRORS, Target, one_line, sqlstate_of

OLDEST: Final = 13
_LOCK: Final = 0x50455244_00000001  # of migrations; "PERD"

# Names of runs may be 3,000 bytes long, more than an index takes, so a run's key is made of them by
# `persistence.keys.run_key`. Keys of what is recent lie together. Pending rows repeat it rather than refer to the run:
# a commit looks nothing up.
#
# `fillfactor` leaves room in a page for the next version of its rows, which then needs no new entries in indexes.
_TABLES: Final = """
CREATE TABLE shard (
    shard_id integer PRIMARY KEY,
    range_id bigint NOT NULL,
    owner text NOT NULL,
    blob bytea NOT NULL
) WITH (fillfactor = 10);

CREATE TABLE run (
    shard_id integer NOT NULL,
    run_key bytea NOT NULL,
    namespace_id text COLLATE "C" NOT NULL,
    workflow_id text COLLATE "C" NOT NULL,
    run_id text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    state bytea NOT NULL,
    PRIMARY KEY (shard_id, run_key)
) WITH (fillfactor = 60, autovacuum_vacuum_scale_factor = 0.05);

CREATE TABLE pending (
    shard_id integer NOT NULL,
    run_key bytea NOT NULL,
    kind smallint NOT NULL,
    key text COLLATE "C" NOT NULL,
    blob bytea NOT NULL,
    PRIMARY KEY (shard_id, run_key, kind, key)
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.05);

CREATE TABLE current_run (
    shard_id integer NOT NULL,
    workflow_key bytea NOT NULL,
    namespace_id text COLLATE "C" NOT NULL,
    workflow_id text COLLATE "C" NOT NULL,
    run_id text COLLATE "C" NOT NULL,
    status integer NOT NULL,
    blob bytea NOT NULL,
    PRIMARY KEY (shard_id, workflow_key)
) WITH (fillfactor = 70);

CREATE TABLE history_node (
    shard_id integer NOT NULL,
    branch_key bytea NOT NULL,
    node_id bigint NOT NULL,
    txn_id bigint NOT NULL,
    prev_txn_id bigint NOT NULL,
    events integer NOT NULL,
    blob bytea NOT NULL,
    PRIMARY KEY (shard_id, branch_key, node_id, txn_id)
);

CREATE TABLE task (
    shard_id integer NOT NULL,
    category smallint NOT NULL,
    fire_time bigint NOT NULL,
    task_id bigint NOT NULL,
    blob bytea NOT NULL,
    PRIMARY KEY (shard_id, category, fire_time, task_id)
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 2000);

CREATE TABLE task_queue (
    queue_key bytea PRIMARY KEY,
    namespace_id text COLLATE "C" NOT NULL,
    name text COLLATE "C" NOT NULL,
    type integer NOT NULL,
    range_id bigint NOT NULL,
    ack_level bigint NOT NULL,
    blob bytea NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE backlog (
    queue_key bytea NOT NULL,
    level bigint NOT NULL,
    blob bytea NOT NULL,
    PRIMARY KEY (queue_key, level)
) WITH (autovacuum_vacuum_scale_factor = 0.01, autovacuum_vacuum_threshold = 2000);

CREATE TABLE document (
    kind text COLLATE "C" NOT NULL,
    key text COLLATE "C" NOT NULL,
    version bigint NOT NULL,
    blob bytea NOT NULL,
    PRIMARY KEY (kind, key)
);

CREATE TABLE queue (
    name text COLLATE "C" PRIMARY KEY,
    last_message_id bigint NOT NULL
);

CREATE TABLE message (
    queue text COLLATE "C" NOT NULL,
    message_id bigint NOT NULL,
    blob bytea NOT NULL,
    PRIMARY KEY (queue, message_id)
);
"""

COMMIT_PARAMETERS: Final = """
    f_shard integer[], f_range bigint[],
    k_shard integer[], k_key bytea[], k_run text[], k_status integer[],
    w_shard integer[], w_key bytea[], w_namespace text[], w_workflow text[], w_run text[], w_status integer[],
    w_blob bytea[],
    n_shard integer[], n_key bytea[], n_namespace text[], n_workflow text[], n_run text[], n_state bytea[],
    u_shard integer[], u_key bytea[], u_version bigint[], u_state bytea[],
    d_shard integer[], d_run bytea[], d_kind smallint[], d_key text[],
    p_shard integer[], p_run bytea[], p_kind smallint[], p_key text[], p_blob bytea[],
    h_shard integer[], h_branch bytea[], h_node bigint[], h_txn bigint[], h_prev bigint[], h_events integer[],
    h_blob bytea[],
    t_shard integer[], t_category smallint[], t_time bigint[], t_id bigint[], t_blob bytea[]
"""
COMMIT_ANSWER: Final = (
    """RETURNS TABLE (reason integer, place bigint, range_id bigint, run_id text, status integer, blob bytea)"""
)

# Those functions are what takes more than one statement: in the database, they are one round trip, and what they read
# they read after they have the lock. Errors of class PD are theirs:
#   PD001  a run is not at the version that was expected
#
# The range id of a shard is checked under a lock on its row, kept until the end of the transaction. Who shares a row's
# lock need not queue, so a flow of commits could keep `acquire_shard` waiting for good: that is what the advisory locks
# are for, which are handed out in turn.
_FUNCTIONS: Final = f"""
CREATE FUNCTION acquire_shard(the_shard integer, new_owner text, at_least bigint)
RETURNS TABLE (range_id bigint, owner text, blob bytea) LANGUAGE plpgsql AS $$
#variable_conflict use_column
BEGIN
    PERFORM pg_advisory_xact_lock(1346720324, the_shard);
    RETURN QUERY
        INSERT INTO shard AS s VALUES (the_shard, at_least, new_owner, '')
        ON CONFLICT (shard_id) DO UPDATE SET range_id = greatest(s.range_id + 1, at_least), owner = excluded.owner
        RETURNING s.range_id, s.owner, s.blob;
END $$;

-- Answers the range id that the shard has: nothing was written when it is another one.
CREATE FUNCTION update_shard(the_shard integer, the_range bigint, new_blob bytea)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    found_range bigint;
BEGIN
    PERFORM pg_advisory_xact_lock(1346720324, the_shard);
    SELECT s.range_id INTO found_range FROM shard s WHERE s.shard_id = the_shard FOR NO KEY UPDATE;
    IF found_range = the_range THEN
        UPDATE shard s SET blob = new_blob WHERE s.shard_id = the_shard;
    END IF;
    RETURN coalesce(found_range, 0);
END $$;

-- Writes a group of commits, all of them or none. Answers no rows when it wrote them; else who failed:
--   reason 1: of f_shard/f_range, the place (from 1) and the range id that was found
--   reason 2: of k_shard/k_key, the place and the current run that was found, if any
-- f_: shards and the range ids that they must have, in order of shards. k_: current runs to check. w_: current runs to
-- write. n_: new runs. u_: runs to update. p_, d_: pending rows to put and to remove. h_: history nodes. t_: tasks.
CREATE FUNCTION commit_group(
{COMMIT_PARAMETERS})
{COMMIT_ANSWER}
LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    n bigint;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1346720324, f.s) FROM unnest(f_shard) f (s);
    SELECT count(*) INTO n FROM (
        SELECT 1 FROM unnest(f_shard, f_range) f (s, r) JOIN shard ON shard.shard_id = f.s AND shard.range_id = f.r
        FOR SHARE OF shard
    ) held;
    IF n <> cardinality(f_shard) THEN
        RETURN QUERY
            SELECT 1, f.i, coalesce(shard.range_id, 0), NULL::text, NULL::integer, NULL::bytea
            FROM unnest(f_shard, f_range) WITH ORDINALITY f (s, r, i) LEFT JOIN shard ON shard.shard_id = f.s
            WHERE shard.range_id IS DISTINCT FROM f.r;
        RETURN;
    END IF;
    IF cardinality(k_shard) > 0 THEN
        RETURN QUERY
            SELECT 2, k.i, NULL::bigint, c.run_id, c.status, c.blob
            FROM unnest(k_shard, k_key, k_run, k_status) WITH ORDINALITY k (s, key, run, status, i)
            LEFT JOIN current_run c ON c.shard_id = k.s AND c.workflow_key = k.key
            WHERE coalesce(c.run_id, '') <> k.run OR c.status <> k.status;
        IF FOUND THEN
            RETURN;
        END IF;
    END IF;
    IF cardinality(u_shard) > 0 THEN
        UPDATE run SET version = u.version + 1, state = u.state
        FROM unnest(u_shard, u_key, u_version, u_state) u (s, key, version, state)
        WHERE run.shard_id = u.s AND run.run_key = u.key AND run.version = u.version;
        GET DIAGNOSTICS n = ROW_COUNT;
        IF n <> cardinality(u_shard) THEN
            RAISE EXCEPTION 'a run is not at the version that was expected' USING ERRCODE = 'PD001';
        END IF;
    END IF;
    IF cardinality(n_shard) > 0 THEN
        INSERT INTO run (shard_id, run_key, namespace_id, workflow_id, run_id, version, state)
        SELECT s, key, namespace, workflow, run, 1, state
        FROM unnest(n_shard, n_key, n_namespace, n_workflow, n_run, n_state)
            x (s, key, namespace, workflow, run, state);
    END IF;
    IF cardinality(w_shard) > 0 THEN
        INSERT INTO current_run AS c (shard_id, workflow_key, namespace_id, workflow_id, run_id, status, blob)
        SELECT * FROM unnest(w_shard, w_key, w_namespace, w_workflow, w_run, w_status, w_blob)
        ON CONFLICT (shard_id, workflow_key) DO UPDATE
        SET run_id = excluded.run_id, status = excluded.status, blob = excluded.blob;
    END IF;
    IF cardinality(d_shard) > 0 THEN
        DELETE FROM pending p USING unnest(d_shard, d_run, d_kind, d_key) d (s, run, kind, key)
        WHERE p.shard_id = d.s AND p.run_key = d.run AND p.kind = d.kind AND p.key = d.key;
    END IF;
    IF cardinality(p_shard) > 0 THEN
        INSERT INTO pending SELECT * FROM unnest(p_shard, p_run, p_kind, p_key, p_blob)
        ON CONFLICT (shard_id, run_key, kind, key) DO UPDATE SET blob = excluded.blob;
    END IF;
    IF cardinality(h_shard) > 0 THEN
        INSERT INTO history_node SELECT * FROM unnest(h_shard, h_branch, h_node, h_txn, h_prev, h_events, h_blob);
    END IF;
    IF cardinality(t_shard) > 0 THEN
        INSERT INTO task SELECT * FROM unnest(t_shard, t_category, t_time, t_id, t_blob);
    END IF;
END $$;

-- Answers the range id that the shard has: nothing was deleted when it is another one.
CREATE FUNCTION delete_run(
    the_shard integer, the_range bigint, the_run bytea, the_workflow bytea, the_run_id text, branches bytea[]
)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    found_range bigint;
BEGIN
    PERFORM pg_advisory_xact_lock_shared(1346720324, the_shard);
    SELECT s.range_id INTO found_range FROM shard s WHERE s.shard_id = the_shard FOR SHARE;
    IF found_range = the_range THEN
        DELETE FROM run r WHERE r.shard_id = the_shard AND r.run_key = the_run;
        DELETE FROM current_run c
        WHERE c.shard_id = the_shard AND c.workflow_key = the_workflow AND c.run_id = the_run_id;
        DELETE FROM pending p WHERE p.shard_id = the_shard AND p.run_key = the_run;
        DELETE FROM history_node h WHERE h.shard_id = the_shard AND h.branch_key = ANY (branches);
    END IF;
    RETURN coalesce(found_range, 0);
END $$;

-- Appends to several backlogs, to all of them or none. Answers the places (from 1) of queues that are not at their
-- range id, and the one they have; no rows when it wrote. q_: queues, in order of keys. b_: tasks.
CREATE FUNCTION append_backlogs(
    q_key bytea[], q_range bigint[], b_key bytea[], b_level bigint[], b_blob bytea[]
)
RETURNS TABLE (place bigint, range_id bigint) LANGUAGE plpgsql AS $$
#variable_conflict use_column
DECLARE
    n bigint;
BEGIN
    SELECT count(*) INTO n FROM (
        SELECT 1 FROM unnest(q_key, q_range) f (q, r)
        JOIN task_queue t ON t.queue_key = f.q AND t.range_id = f.r
        FOR SHARE OF t
    ) held;
    IF n <> cardinality(q_key) THEN
        RETURN QUERY
            SELECT f.i, coalesce(t.range_id, 0)
            FROM unnest(q_key, q_range) WITH ORDINALITY f (q, r, i) LEFT JOIN task_queue t ON t.queue_key = f.q
            WHERE t.range_id IS DISTINCT FROM f.r;
        RETURN;
    END IF;
    INSERT INTO backlog SELECT * FROM unnest(b_key, b_level, b_blob);
END $$;

-- Answers the range id that the queue has: nothing was deleted when it is another one.
CREATE FUNCTION delete_task_queue(the_queue bytea, the_range bigint)
RETURNS bigint LANGUAGE plpgsql AS $$
DECLARE
    found_range bigint;
BEGIN
    SELECT t.range_id INTO found_range FROM task_queue t WHERE t.queue_key = the_queue FOR UPDATE;
    IF found_range = the_range THEN
        DELETE FROM backlog b WHERE b.queue_key = the_queue;
        DELETE FROM task_queue t WHERE t.queue_key = the_queue;
    END IF;
    RETURN coalesce(found_range, 0);
END $$;
"""

STORE: Final[Sequence[str]] = (
    _TABLES
    # States change with each step: compressing them each time would cost more than it saves.
    + "ALTER TABLE run ALTER COLUMN state SET STORAGE EXTERNAL;"
    + _FUNCTIONS,
)


def modules() -> Mapping[str, Sequence[str]]:
    """Who has tables here, and their scripts."""
    from perdure.visibility.postgresql_schema import SCRIPTS

    return {"store": STORE, "visibility": SCRIPTS}


@dataclass(slots=True)
class Status:
    """versions: of each module, (found in the database, known to this perdure); 0 for none."""

    versions: dict[str, tuple[int, int]]

    @property
    def empty(self) -> bool:
        return all(found == 0 for found, _ in self.versions.values())

    @property
    def current(self) -> bool:
        return all(found == known for found, known in self.versions.values())

    @property
    def newer(self) -> bool:
        """Written by a newer perdure."""
        return any(found > known for found, known in self.versions.values())


async def status(url: str) -> Status:
    """What the database has. Raises Unavailable, SchemaMismatch."""
    return await _with(url, lambda target, connection: _status(connection, target.schema))


async def init(url: str) -> Status:
    """Lays perdure's tables down in a database that has none; when they are there and current, does nothing. Raises
    SchemaMismatch when they are of another version, Unavailable."""
    return await _with(url, lambda target, connection: _migrate(target, connection, only_empty=True))


async def upgrade(url: str) -> Status:
    """Brings perdure's tables to this version, from any older one or from nothing. Raises SchemaMismatch when they are
    of a newer one, Unavailable."""
    return await _with(url, lambda target, connection: _migrate(target, connection, only_empty=False))


async def check(target: Target, create: bool) -> None:
    """That the tables are of this version. create: lays them down in an empty database. Raises SchemaMismatch,
    Unavailable."""

    async def look(target: Target, connection: Connection) -> None:
        found = await _status(connection, target.schema)
        if found.empty and create:
            found = await _migrate(target, connection, only_empty=True)
        _refuse_other(target, found)

    await _on(target, look)


def _refuse_other(target: Target, found: Status) -> None:
    if found.current:
        return
    if found.empty:
        raise SchemaMismatch(f"{target.name} has no tables of perdure: run `perdure db init`")
    module, (version, known) = next((m, v) for m, v in found.versions.items() if v[0] != v[1])
    if found.newer:
        module, (version, known) = next((m, v) for m, v in found.versions.items() if v[0] > v[1])
        raise SchemaMismatch(
            f"{target.name} was written by a newer version ({module} tables: version {version}, known: {known})"
        )
    raise SchemaMismatch(
        f"{target.name} was written by an older version ({module} tables: version {version}, needed: {known}):"
        " run `perdure db upgrade`"
    )


T = TypeVar("T")


async def _with(url: str, use: Callable[[Target, Connection], Any]) -> Any:
    return await _on(Target(url), use)


async def _on(target: Target, use: Callable[[Target, Connection], Any]) -> Any:
    try:
        connection = await target.connect({})
    except (*ERRORS, ValueError) as e:
        state = sqlstate_of(e)
        if state[:2] in ("28", "3D") or isinstance(e, asyncpg.ClientConfigurationError | ValueError):
            raise SchemaMismatch(f"{target.name} cannot be opened: {one_line(e)}") from e
        raise Unavailable(f"{target.name} cannot be reached: {one_line(e)}") from e
    try:
        version = connection.get_server_version()
        if version.major < OLDEST:
            raise SchemaMismatch(f"{target.name} is PostgreSQL {version.major}: perdure needs {OLDEST} or newer")
        encoding = connection.get_settings().server_encoding
        if encoding != "UTF8":
            raise SchemaMismatch(f"{target.name} has the encoding {encoding}: perdure needs UTF8")
        return await use(target, connection)
    except asyncpg.InsufficientPrivilegeError as e:
        raise SchemaMismatch(f"{target.name} cannot be used: {one_line(e)}") from e
    except ERRORS as e:
        raise Unavailable(f"{target.name} cannot be used: {one_line(e)}") from e
    finally:
        try:
            await connection.close(timeout=2)
        except Exception:
            connection.terminate()


async def _status(connection: Connection, schema: str) -> Status:
    found: dict[str, int] = {}
    # Not by to_regclass: where another process made it while this one waited, that may still answer by what it knew.
    if await connection.fetchval(
        "SELECT EXISTS (SELECT 1 FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace"
        " WHERE n.nspname = $1 AND c.relname = 'schema_version')",
        schema,
    ):
        rows = await connection.fetch(f'SELECT module, version FROM "{schema}".schema_version')
        found = {row[0]: row[1] for row in rows}
    known = {module: len(scripts) for module, scripts in modules().items()}
    return Status({module: (found.get(module, 0), known.get(module, 0)) for module in {**known, **found}})


async def _migrate(target: Target, connection: Connection, *, only_empty: bool) -> Status:
    """In one transaction, under a lock: who comes second finds it done."""
    schema = target.schema
    async with connection.transaction():
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK, timeout=120)
        found = await _status(connection, schema)
        if found.current:
            return found
        if found.newer or (only_empty and not found.empty):
            _refuse_other(target, found)
        if not await connection.fetchval("SELECT EXISTS (SELECT 1 FROM pg_namespace WHERE nspname = $1)", schema):
            await connection.execute(f'CREATE SCHEMA "{schema}"')
        await connection.execute(
            f'CREATE TABLE IF NOT EXISTS "{schema}".schema_version'
            ' (module text COLLATE "C" PRIMARY KEY, version integer NOT NULL)'
        )
        for module, scripts in modules().items():
            version = found.versions[module][0]
            for script in scripts[version:]:
                await connection.execute(script, timeout=3600)
            await connection.execute(
                "INSERT INTO schema_version VALUES ($1, $2)"
                " ON CONFLICT (module) DO UPDATE SET version = excluded.version",
                module,
                len(scripts),
            )
        return await _status(connection, schema)
