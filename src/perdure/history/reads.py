"""Reading histories: pages spliced from stored bytes, waiting for new events, the closing event alone, backwards."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.history.v1 import History
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryRequest

from perdure import errors, tokens, wire
from perdure.clock import SECOND
from perdure.history.api import close_events_only
from perdure.history.core import workflow_tasks
from perdure.history.core.state import FIRST_EVENT_ID
from perdure.history.replies import PAGE_BYTES, HistoryToken, read_range
from perdure.history.shard import RunContext, Shard
from perdure.persistence.api import HistoryNode

if TYPE_CHECKING:
    from perdure.history.engine import HistoryService

_HISTORY_FIELD = 1
_NEXT_PAGE_FIELD = 3
_REVERSE_NEXT_PAGE_FIELD = 3


async def history(
    engine: HistoryService, namespace_id: str, request: GetWorkflowExecutionHistoryRequest, deadline: int
) -> bytes:
    """A serialized GetWorkflowExecutionHistoryResponse. deadline: nanoseconds, until when to wait for a new event."""
    workflow_id = request.execution.workflow_id
    shard = engine.shard(namespace_id, workflow_id)
    only_close = close_events_only(request.history_event_filter_type)
    if request.next_page_token:
        token = tokens.decode(request.next_page_token, HistoryToken, "next page token")
        if request.execution.run_id and request.execution.run_id != token.run_id:
            raise errors.invalid_argument("RunId in the request does not match the next page token.")
    else:
        run_id = await shard.run_id_of(namespace_id, workflow_id, request.execution.run_id)
        token = HistoryToken(run_id, FIRST_EVENT_ID, 0, waiting=request.wait_new_event)
    key = (namespace_id, workflow_id, token.run_id)
    page_size = request.maximum_page_size or 1000
    while True:
        async with shard.run(*key) as context:
            state = context.loaded
            end = token.end_event_id or state.run.next_event_id
            closed = not state.open
            if only_close and closed:
                parts, _ = await read_range(shard, context, state.run.close_event_id, state.run.close_event_id + 1)
                return _reply(parts, None)
            if only_close and not token.waiting:
                last = state.run.next_event_id - 1
                parts, _ = await read_range(shard, context, last, last + 1)
                return _reply(parts, None)
            if not only_close and token.next_event_id < end:
                return await _page(shard, context, token, end, page_size, closed)
            if not token.waiting or token.end_event_id or closed:
                return _reply([token.unwritten] if token.unwritten else [], None)
            watcher = shard.watch(key, until_end=only_close)
        try:
            async with asyncio.timeout(max(0, deadline - engine.clock.now()) / SECOND):
                await watcher
        except TimeoutError:
            return _reply([], token)
        finally:
            watcher.cancel()


async def _page(
    shard: Shard, context: RunContext, token: HistoryToken, end: int, page_size: int, closed: bool
) -> bytes:
    state = context.loaded
    parts, next_event_id = await read_range(
        shard, context, token.next_event_id, min(end, token.next_event_id + page_size)
    )
    reached = next_event_id or min(end, token.next_event_id + page_size)
    if reached < end:
        return _reply(parts, HistoryToken(token.run_id, reached, token.end_event_id, token.unwritten, token.waiting))
    if token.waiting and not closed and not token.end_event_id:
        return _reply(parts, HistoryToken(token.run_id, reached, 0, waiting=True))
    if token.unwritten:
        parts.append(token.unwritten)
    elif not token.end_event_id and not token.waiting:
        # A history read on its own shows what the worker was shown of the task it works on.
        unwritten = workflow_tasks.unwritten_events(state)
        if unwritten:
            parts.append(History(events=unwritten).SerializeToString())
    return _reply(parts, None)


def _reply(parts: list[bytes], token: HistoryToken | None) -> bytes:
    fields = wire.joined_field(_HISTORY_FIELD, parts)
    if token is not None:
        fields.append(wire.bytes_field(_NEXT_PAGE_FIELD, tokens.encode(token)))
    return b"".join(fields)


async def history_reverse(
    engine: HistoryService, namespace_id: str, execution: WorkflowExecution, page_size: int, token: bytes
) -> bytes:
    """A serialized GetWorkflowExecutionHistoryReverseResponse: newest event first."""
    workflow_id = execution.workflow_id
    shard = engine.shard(namespace_id, workflow_id)
    if token:
        at = tokens.decode(token, HistoryToken, "next page token")
    else:
        run_id = await shard.run_id_of(namespace_id, workflow_id, execution.run_id)
        at = HistoryToken(run_id, FIRST_EVENT_ID, 0)
    page_size = page_size or 1000
    async with shard.run(namespace_id, workflow_id, at.run_id) as context:
        state = context.loaded
        end = at.end_event_id or state.run.next_event_id
        nodes: list[HistoryNode] = await shard.stored_nodes(state, FIRST_EVENT_ID, end, PAGE_BYTES, reverse=True)
    page = History()
    for node in nodes:
        for event in reversed(History.FromString(node.blob).events):
            if event.event_id < end and len(page.events) < page_size:
                page.events.append(event)
        if len(page.events) >= page_size:
            break
    fields = [wire.bytes_field(_HISTORY_FIELD, page.SerializeToString())]
    first = page.events[-1].event_id if page.events else FIRST_EVENT_ID
    if first > FIRST_EVENT_ID:
        fields.append(
            wire.bytes_field(_REVERSE_NEXT_PAGE_FIELD, tokens.encode(HistoryToken(at.run_id, FIRST_EVENT_ID, first)))
        )
    return b"".join(fields)
