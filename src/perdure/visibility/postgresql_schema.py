"""The tables of visibility in PostgreSQL: those of SQLite (see `sqlite_schema` for what `close_key` and `namespace`
are), but that a value of a search attribute has the column of its type.

Indexes hold what users see (`division IS NULL`), and the rest apart. An index takes no more than 2,700 bytes a row, so
the values that may be long are in it with their beginning.
"""

from __future__ import annotations

import re
from typing import Final

from perdure.persistence.postgresql.schema import COMMIT_ANSWER, COMMIT_PARAMETERS

PREFIX: Final = 200
"""Characters of a value that are in an index."""

UPSERT_PARAMETERS: Final = """
    v_namespace integer[], v_run text[], v_version bigint[], v_workflow text[], v_type text[], v_queue text[],
    v_status smallint[], v_start bigint[], v_execution bigint[], v_close bigint[], v_length bigint[], v_size bigint[],
    v_transitions bigint[], v_parent text[], v_parent_run text[], v_root text[], v_root_run text[], v_division text[],
    v_memo bytea[], v_attributes bytea[],
    a_namespace integer[], a_run text[], a_name text[], a_text text[], a_integer bigint[], a_double double precision[]
"""


def _names(parameters: str) -> str:
    return ", ".join(re.findall(r"\w_\w+", parameters))


_FIRST: Final = f"""
CREATE TABLE visibility_namespaces (
    number integer GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    namespace_id text COLLATE "C" NOT NULL UNIQUE
);

CREATE TABLE visibility (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    start_time bigint NOT NULL,
    execution_time bigint NOT NULL,
    close_key bigint NOT NULL,
    version bigint NOT NULL,
    history_length bigint,
    history_size_bytes bigint,
    state_transition_count bigint,
    namespace integer NOT NULL,
    status smallint NOT NULL,
    run_id text COLLATE "C" NOT NULL,
    workflow_id text COLLATE "C" NOT NULL,
    workflow_type text COLLATE "C" NOT NULL,
    task_queue text COLLATE "C" NOT NULL,
    parent_workflow_id text COLLATE "C",
    parent_run_id text COLLATE "C",
    root_workflow_id text COLLATE "C" NOT NULL,
    root_run_id text COLLATE "C" NOT NULL,
    division text COLLATE "C",
    memo bytea NOT NULL,
    search_attributes bytea NOT NULL
) WITH (autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05);
CREATE UNIQUE INDEX visibility_by_run ON visibility (namespace, run_id);
CREATE INDEX visibility_in_order ON visibility (namespace, close_key DESC, start_time DESC, run_id)
WHERE division IS NULL;
CREATE INDEX visibility_by_status ON visibility (namespace, status, close_key DESC, start_time DESC, run_id)
WHERE division IS NULL;
CREATE INDEX visibility_by_type
ON visibility (namespace, workflow_type, status, close_key DESC, start_time DESC, run_id) WHERE division IS NULL;
CREATE INDEX visibility_by_type_in_order
ON visibility (namespace, workflow_type, close_key DESC, start_time DESC, run_id) WHERE division IS NULL;
CREATE INDEX visibility_by_start ON visibility (namespace, start_time) WHERE division IS NULL;
CREATE INDEX visibility_by_workflow ON visibility (namespace, workflow_id);
CREATE INDEX visibility_by_parent ON visibility (namespace, parent_workflow_id) WHERE parent_workflow_id IS NOT NULL;
CREATE INDEX visibility_by_division
ON visibility (namespace, left(division, {PREFIX}), close_key DESC, start_time DESC, run_id)
WHERE division IS NOT NULL;

-- name: with the type, see `sql.attribute_key`. From `namespace` on copied from the run, for the indexes.
CREATE TABLE visibility_attributes (
    run bigint NOT NULL,
    name text COLLATE "C" NOT NULL,
    text_value text COLLATE "C",
    integer_value bigint,
    double_value double precision,
    namespace integer NOT NULL,
    close_key bigint NOT NULL,
    start_time bigint NOT NULL,
    run_id text COLLATE "C" NOT NULL
) WITH (autovacuum_analyze_scale_factor = 0.05);
CREATE INDEX visibility_attributes_of_run ON visibility_attributes (run);
CREATE INDEX visibility_by_text ON visibility_attributes
(namespace, left(name, {PREFIX}), left(text_value, {PREFIX}), close_key DESC, start_time DESC, run_id)
WHERE text_value IS NOT NULL;
CREATE INDEX visibility_by_integer ON visibility_attributes
(namespace, left(name, {PREFIX}), integer_value, close_key DESC, start_time DESC, run_id)
WHERE integer_value IS NOT NULL;
CREATE INDEX visibility_by_double ON visibility_attributes
(namespace, left(name, {PREFIX}), double_value, close_key DESC, start_time DESC, run_id)
WHERE double_value IS NOT NULL;

-- v_: records. a_: values of their search attributes. A record that is older than what is there is ignored. Those of a
-- run are replaced after its row is locked, so that two who write it at once do not mix theirs.
CREATE FUNCTION upsert_visibility({UPSERT_PARAMETERS})
RETURNS void LANGUAGE plpgsql AS $$
DECLARE
    ids bigint[];
    old bigint[];
BEGIN
    WITH written AS (
        INSERT INTO visibility AS v (
            namespace, run_id, version, workflow_id, workflow_type, task_queue, status, start_time, execution_time,
            close_key, history_length, history_size_bytes, state_transition_count, parent_workflow_id, parent_run_id,
            root_workflow_id, root_run_id, division, memo, search_attributes
        )
        SELECT * FROM unnest(
            v_namespace, v_run, v_version, v_workflow, v_type, v_queue, v_status, v_start, v_execution, v_close,
            v_length, v_size, v_transitions, v_parent, v_parent_run, v_root, v_root_run, v_division, v_memo,
            v_attributes
        )
        ON CONFLICT (namespace, run_id) DO UPDATE SET
            version = excluded.version, workflow_id = excluded.workflow_id, workflow_type = excluded.workflow_type,
            task_queue = excluded.task_queue, status = excluded.status, start_time = excluded.start_time,
            execution_time = excluded.execution_time, close_key = excluded.close_key,
            history_length = excluded.history_length, history_size_bytes = excluded.history_size_bytes,
            state_transition_count = excluded.state_transition_count,
            parent_workflow_id = excluded.parent_workflow_id, parent_run_id = excluded.parent_run_id,
            root_workflow_id = excluded.root_workflow_id, root_run_id = excluded.root_run_id,
            division = excluded.division, memo = excluded.memo, search_attributes = excluded.search_attributes
        WHERE v.version <= excluded.version
        RETURNING v.id, v.xmax = 0 AS is_new
    )
    SELECT array_agg(id), array_agg(id) FILTER (WHERE NOT is_new) INTO ids, old FROM written;
    IF old IS NOT NULL THEN
        DELETE FROM visibility_attributes a WHERE a.run = ANY (old);
    END IF;
    IF cardinality(a_run) > 0 THEN
        INSERT INTO visibility_attributes
        SELECT v.id, a.name, a.txt, a.int, a.dbl, v.namespace, v.close_key, v.start_time, v.run_id
        FROM unnest(a_namespace, a_run, a_name, a_text, a_integer, a_double) a (namespace, run, name, txt, int, dbl)
        JOIN visibility v ON v.namespace = a.namespace AND v.run_id = a.run
        WHERE v.id = ANY (ids);
    END IF;
END $$;

CREATE FUNCTION commit_group_with_visibility({COMMIT_PARAMETERS}, {UPSERT_PARAMETERS})
{COMMIT_ANSWER} LANGUAGE plpgsql AS $$
BEGIN
    RETURN QUERY SELECT * FROM commit_group({_names(COMMIT_PARAMETERS)});
    IF NOT FOUND THEN
        PERFORM upsert_visibility({_names(UPSERT_PARAMETERS)});
    END IF;
END $$;
"""

SCRIPTS: Final[tuple[str, ...]] = (_FIRST,)
"""Of the module "visibility" in `persistence.postgresql.schema`."""
