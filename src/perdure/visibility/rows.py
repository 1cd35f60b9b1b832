"""What the SQL backends have in common: columns of a record, values of a search attribute, page tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec

from perdure import tokens
from perdure.errors import invalid_argument
from perdure.visibility import attributes
from perdure.visibility.api import VisibilityRecord
from perdure.visibility.attributes import KEYWORD_LIST, NAMESPACE_DIVISION, TEXT
from perdure.visibility.sql import OPEN

FIELDS: Final = """
    v.workflow_id, v.run_id, v.version, v.workflow_type, v.task_queue, v.status, v.start_time,
    v.execution_time, v.close_key, v.history_length, v.history_size_bytes, v.state_transition_count, v.memo,
    v.search_attributes, v.parent_workflow_id, v.parent_run_id, v.root_workflow_id, v.root_run_id
"""
"""Of `visibility`, aliased v, in the order that `record_of` takes."""

GROUPED_BY: Final = {"ExecutionStatus": "v.status", NAMESPACE_DIVISION: "v.division"}


class PageToken(msgspec.Struct, array_like=True, frozen=True):
    """The sort key of the page's last run."""

    close_key: int
    start_time: int
    run_id: str


def record_of(namespace_id: str, row: Sequence[Any]) -> VisibilityRecord:
    return VisibilityRecord(
        namespace_id=namespace_id,
        workflow_id=row[0],
        run_id=row[1],
        version=row[2],
        workflow_type=row[3],
        task_queue=row[4],
        status=row[5],
        start_time=row[6],
        execution_time=row[7],
        close_time=0 if row[8] == OPEN else row[8],
        history_length=row[9] or 0,
        history_size_bytes=row[10] or 0,
        state_transition_count=row[11] or 0,
        memo=row[12],
        search_attributes=row[13],
        parent_workflow_id=row[14] or "",
        parent_run_id=row[15] or "",
        root_workflow_id=row[16],
        root_run_id=row[17],
    )


def decode_token(token: bytes) -> PageToken:
    decoded = tokens.decode(token, PageToken, "next page token")
    in_range = -OPEN <= decoded.close_key <= OPEN and -OPEN <= decoded.start_time <= OPEN
    if not in_range or "\0" in decoded.run_id:
        raise invalid_argument("Invalid next page token.")
    return decoded


def indexed(kind: int, value: Any) -> Sequence[Any]:
    """What `visibility_attributes` has a row for each of."""
    if kind == KEYWORD_LIST:
        return list(dict.fromkeys(value))
    if kind == TEXT:
        return ["", *attributes.tokenize(value)]
    return (value,)
