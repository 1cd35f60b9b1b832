"""Replies to pollers, put together from stored bytes: a history goes from the store to the wire unparsed.

The pages of one workflow task, those fetched later with its page token included, end exactly with the
WorkflowTaskStarted event that the task was handed out with, whatever happens to the task meanwhile: the token says
where they end, and carries the events that a transient or speculative task has in no store.
"""

from __future__ import annotations

import msgspec
from temporalio.api.history.v1 import History
from temporalio.api.workflowservice.v1 import PollWorkflowTaskQueueResponse

from perdure import tokens, wire
from perdure.clock import to_timestamp
from perdure.history.core import lifecycle, workflow_tasks
from perdure.history.core.state import FIRST_EVENT_ID, State, WorkflowTask
from perdure.history.shard import RunContext, Shard

PAGE_BYTES = 2 * 1024 * 1024

_HISTORY_FIELD = 8
_NEXT_PAGE_FIELD = 9


class HistoryToken(msgspec.Struct, array_like=True):
    """A page of a run's history: from next_event_id, before end_event_id. unwritten: a serialized History of events
    that follow the last page and are not stored. The remaining fields are for reads that wait for new events."""

    run_id: str
    next_event_id: int
    end_event_id: int
    unwritten: bytes = b""
    waiting: bool = False
    closed_at: int = 0
    branch_id: str = ""


async def read_range(
    shard: Shard, context: RunContext, first_event_id: int, end_event_id: int, max_bytes: int = PAGE_BYTES
) -> tuple[list[bytes], int]:
    """Serialized Histories of the events first_event_id <= id < end_event_id, and the id to go on with, 0 when that is
    all."""
    if first_event_id >= end_event_id:
        return [], 0
    nodes = await shard.nodes(context, first_event_id, end_event_id, max_bytes)
    parts: list[bytes] = []
    next_event_id = first_event_id
    for node in nodes:
        end = node.node_id + node.events
        if node.node_id < first_event_id or end > end_event_id:
            events = History.FromString(node.blob).events
            low = max(0, first_event_id - node.node_id)
            parts.append(History(events=events[low : end_event_id - node.node_id]).SerializeToString())
        else:
            parts.append(node.blob)
        next_event_id = end
    if next_event_id >= end_event_id or not nodes:
        return parts, 0
    return parts, next_event_id


def _unwritten(state: State, task: WorkflowTask | None) -> bytes:
    if task is None or not (task.transient or task.speculative):
        return b""
    return History(events=workflow_tasks.unwritten_events(state)).SerializeToString()


async def history_fields(
    shard: Shard,
    context: RunContext,
    first_event_id: int,
    end_event_id: int,
    unwritten: bytes,
) -> list[bytes]:
    """The `history` and `next_page_token` fields of a poll's reply."""
    parts, next_event_id = await read_range(shard, context, first_event_id, end_event_id)
    if next_event_id:
        token = HistoryToken(context.key[2], next_event_id, end_event_id, unwritten)
        return [
            *wire.joined_field(_HISTORY_FIELD, parts),
            wire.bytes_field(_NEXT_PAGE_FIELD, tokens.encode(token)),
        ]
    if unwritten:
        parts.append(unwritten)
    return wire.joined_field(_HISTORY_FIELD, parts)


async def workflow_task_reply(shard: Shard, context: RunContext, task: WorkflowTask, sticky: bool) -> bytes:
    """A serialized PollWorkflowTaskQueueResponse for the started task. sticky: the worker has the run in its cache, and
    needs only what came since the last task it completed."""
    state = context.loaded
    run, info = state.run, state.info
    head = PollWorkflowTaskQueueResponse(
        task_token=tokens.encode(
            tokens.WorkflowTaskToken(
                info.namespace_id,
                info.workflow_id,
                info.run_id,
                task.scheduled_event_id,
                task.started_event_id,
                task.attempt,
                task.started_time,
            )
        ),
        workflow_execution=lifecycle.execution(state),
        workflow_type=lifecycle.workflow_type(state),
        previous_started_event_id=run.last_started_event_id,
        started_event_id=task.started_event_id,
        attempt=task.attempt,
        workflow_execution_task_queue=lifecycle.task_queue(state),
        scheduled_time=to_timestamp(task.scheduled_time),
        started_time=to_timestamp(task.started_time),
    )
    first = run.last_started_event_id + 1 if sticky else FIRST_EVENT_ID
    unwritten = _unwritten(state, task)
    end = task.scheduled_event_id if unwritten else task.started_event_id + 1
    fields = await history_fields(shard, context, first, end, unwritten)
    return b"".join((head.SerializeToString(), *fields))
