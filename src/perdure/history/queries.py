"""Queries that go along with a workflow task: a query must see all that came before it, so while a workflow task is
pending it waits in memory, is handed to the worker with the task, and answered with it."""

from __future__ import annotations

import asyncio

from temporalio.api.query.v1 import WorkflowQuery, WorkflowQueryResult
from temporalio.api.workflowservice.v1 import RespondWorkflowTaskCompletedRequest

from perdure import errors, wire
from perdure.config import dynamic
from perdure.config.dynamic import DynamicConfig
from perdure.history.core.state import State
from perdure.history.shard import RunContext

_MEMORY = "queries"
_QUERIES_FIELD = 14

Answer = asyncio.Future[WorkflowQueryResult | None]


class _Waiting:
    """The queries of one run: its part of `RunContext.memory`, there while any waits."""

    __slots__ = ("queries",)

    def __init__(self) -> None:
        self.queries: dict[str, tuple[bytes, Answer]] = {}

    def release(self) -> None:
        for _, answer in self.queries.values():
            if not answer.done():
                answer.set_result(None)
        self.queries.clear()

    def closed(self, state: State) -> None:
        self.release()

    def lost(self) -> None:
        self.release()


def _waiting(context: RunContext) -> _Waiting | None:
    return context.memory.get(_MEMORY)


def _tidy(context: RunContext, waiting: _Waiting) -> None:
    if not waiting.queries:
        context.memory.pop(_MEMORY, None)


class Queries:
    """Called with the run locked, but for `forget`."""

    def __init__(self, config: DynamicConfig) -> None:
        self._config = config

    def wait(self, context: RunContext, query_id: str, query: WorkflowQuery) -> tuple[str, Answer]:
        """Lets the query go along with the pending workflow task, or the next one. The answer is None when the caller
        is to look again what to do: nothing stands in the way of a direct query any more, or the run's state was
        thrown away. `forget` it when it is no longer waited for.

        Raises ServiceError RESOURCE_EXHAUSTED."""
        waiting = _waiting(context) or _Waiting()
        if len(waiting.queries) >= self._config.get(dynamic.QUERY_BUFFER_LIMIT):
            raise errors.resource_exhausted(
                "consistent query buffer is full, this may be caused by too many queries and workflow not able to "
                "process query fast enough",
                errors.ResourceExhaustedCause.RESOURCE_EXHAUSTED_CAUSE_BUSY_WORKFLOW,
            )
        answer: Answer = asyncio.get_running_loop().create_future()
        waiting.queries[query_id] = (query.SerializeToString(), answer)
        context.memory[_MEMORY] = waiting
        return query_id, answer

    def forget(self, context: RunContext, query_id: str) -> None:
        waiting = _waiting(context)
        if waiting is not None:
            waiting.queries.pop(query_id, None)
            _tidy(context, waiting)

    def fields(self, context: RunContext) -> list[bytes]:
        """Fields of the reply to a workflow task's poll that carry the queries."""
        waiting = _waiting(context)
        if waiting is None:
            return []
        return [
            wire.bytes_field(_QUERIES_FIELD, wire.bytes_field(1, query_id.encode()) + wire.bytes_field(2, query))
            for query_id, (query, _) in waiting.queries.items()
        ]

    def completed(self, context: RunContext, request: RespondWorkflowTaskCompletedRequest) -> None:
        """The answer to a workflow task is committed: its query results reach their callers. With no further workflow
        task there is nothing left that the others have to see."""
        waiting = _waiting(context)
        if waiting is None:
            return
        state = context.loaded
        namespace = request.namespace
        for query_id, result in request.query_results.items():
            entry = waiting.queries.pop(query_id, None)
            if entry is None or entry[1].done():
                continue
            if result.answer.ByteSize() > self._config.get(dynamic.BLOB_SIZE_ERROR, namespace):
                entry[1].set_exception(errors.invalid_argument("Blob data size exceeds limit."))
            else:
                entry[1].set_result(result)
        if state.run.workflow_task is None:
            waiting.release()
        _tidy(context, waiting)

    def task_gone(self, context: RunContext) -> None:
        """The pending workflow task is no more, and none follows."""
        waiting = _waiting(context)
        if waiting is not None:
            waiting.release()
            _tidy(context, waiting)
