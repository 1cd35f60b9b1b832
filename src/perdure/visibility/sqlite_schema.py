"""The tables of visibility in SQLite.

A list without an order of its own shows open runs first, then the last closed first: `close_key` is the close time, or
the greatest integer while the run is open. Most indexes end with that order, so that a page is read from an index
without sorting, and start with the namespace and its division (NULL for what users see).
"""

from __future__ import annotations

from typing import Final

_FIRST: Final = """
-- A namespace's number stands for it in the tables below: it is in each of their indexes.
CREATE TABLE visibility_namespaces (
    number INTEGER PRIMARY KEY,
    namespace_id TEXT NOT NULL UNIQUE
);

CREATE TABLE visibility (
    id INTEGER PRIMARY KEY,
    namespace INTEGER NOT NULL,
    run_id TEXT NOT NULL,
    version INTEGER NOT NULL,
    workflow_id TEXT NOT NULL,
    workflow_type TEXT NOT NULL,
    task_queue TEXT NOT NULL,
    status INTEGER NOT NULL,
    start_time INTEGER NOT NULL,
    execution_time INTEGER NOT NULL,
    close_key INTEGER NOT NULL,
    history_length INTEGER,
    history_size_bytes INTEGER,
    state_transition_count INTEGER,
    parent_workflow_id TEXT,
    parent_run_id TEXT,
    root_workflow_id TEXT NOT NULL,
    root_run_id TEXT NOT NULL,
    division TEXT,
    memo BLOB NOT NULL,
    search_attributes BLOB NOT NULL
);
CREATE UNIQUE INDEX visibility_by_run ON visibility (namespace, run_id);
CREATE INDEX visibility_in_order
ON visibility (namespace, division, close_key DESC, start_time DESC, run_id);
CREATE INDEX visibility_by_status
ON visibility (namespace, division, status, close_key DESC, start_time DESC, run_id);
-- With the status at its end, runs of a type that have a certain status are found without reading other rows.
CREATE INDEX visibility_by_type
ON visibility (namespace, division, workflow_type, close_key DESC, start_time DESC, run_id, status);
CREATE INDEX visibility_by_start ON visibility (namespace, division, start_time);
CREATE INDEX visibility_by_workflow ON visibility (namespace, workflow_id);
CREATE INDEX visibility_by_parent ON visibility (namespace, parent_workflow_id)
WHERE parent_workflow_id IS NOT NULL;

-- A value has the type it was given: its column has none. What follows it is copied from the run, for the index.
CREATE TABLE visibility_attributes (
    run INTEGER NOT NULL,
    name TEXT NOT NULL,
    value NOT NULL,
    namespace INTEGER NOT NULL,
    close_key INTEGER NOT NULL,
    start_time INTEGER NOT NULL,
    run_id TEXT NOT NULL,
    PRIMARY KEY (run, name, value)
) WITHOUT ROWID;
CREATE INDEX visibility_by_attribute
ON visibility_attributes (namespace, name, value, close_key DESC, start_time DESC, run_id);
"""

SCRIPTS: Final[tuple[str, ...]] = (_FIRST,)
"""For `Database.migrate("visibility", SCRIPTS)`."""
