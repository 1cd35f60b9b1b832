"""The tables of visibility in MySQL and MariaDB.

A list without an order of its own shows open runs first, then the last closed first: `close_key` is the close time, or
the greatest integer while the run is open. Most indexes end with that order, so that a page is read from an index
without sorting. They start with a digest of the namespace, and whether the run is in a namespace division.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from perdure.persistence.mysql.schema import ENGINE

# A value of any type is kept as text that has its order (`mysql_values`). `item` is a digest of it, for an index, since
# a value may be longer than an index takes. What follows it is copied from the run, for the index too.
SCRIPTS: Final[Sequence[Sequence[str]]] = (
    (
        f"""CREATE TABLE IF NOT EXISTS visibility (
            id BINARY(16) NOT NULL PRIMARY KEY,
            namespace BINARY(16) NOT NULL,
            hidden TINYINT NOT NULL,
            run_id VARBINARY(1000) NOT NULL,
            version BIGINT NOT NULL,
            workflow_id VARBINARY(1000) NOT NULL,
            workflow_type VARBINARY(1000) NOT NULL,
            task_queue VARBINARY(2000) NOT NULL,
            status INT NOT NULL,
            start_time BIGINT NOT NULL,
            execution_time BIGINT NOT NULL,
            close_key BIGINT NOT NULL,
            history_length BIGINT,
            history_size_bytes BIGINT,
            state_transition_count BIGINT,
            parent_workflow_id VARBINARY(1000),
            parent_run_id VARBINARY(1000),
            root_workflow_id VARBINARY(1000) NOT NULL,
            root_run_id VARBINARY(1000) NOT NULL,
            division VARBINARY(4096),
            memo MEDIUMBLOB NOT NULL,
            search_attributes MEDIUMBLOB NOT NULL,
            KEY in_order (namespace, hidden, close_key DESC, start_time DESC, run_id),
            KEY by_status (namespace, hidden, status, close_key DESC, start_time DESC, run_id),
            KEY by_type (namespace, hidden, workflow_type, close_key DESC, start_time DESC, run_id),
            KEY by_start (namespace, hidden, start_time),
            KEY by_workflow (namespace, workflow_id),
            KEY by_parent (namespace, parent_workflow_id)
        ) {ENGINE}""",
        f"""CREATE TABLE IF NOT EXISTS visibility_attributes (
            run BINARY(16) NOT NULL,
            name VARBINARY(1000) NOT NULL,
            item BINARY(16) NOT NULL,
            value MEDIUMBLOB NOT NULL,
            namespace BINARY(16) NOT NULL,
            close_key BIGINT NOT NULL,
            start_time BIGINT NOT NULL,
            run_id VARBINARY(1000) NOT NULL,
            PRIMARY KEY (run, name, item),
            KEY by_attribute (namespace, name, item, close_key DESC, start_time DESC, run_id)
        ) {ENGINE}""",
    ),
)
