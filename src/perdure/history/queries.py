"""Queries of open runs that go along with a workflow task, and direct queries through matching."""

from __future__ import annotations

from temporalio.api.workflowservice.v1 import (
    RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskFailedRequest,
)

from perdure.history.core.state import WorkflowTask
from perdure.history.shard import RunContext


class Queries:
    def fields(self, context: RunContext, task: WorkflowTask) -> list[bytes]:
        """Fields of the poll's reply that carry queries (only on tasks of a worker that may answer them)."""
        return []

    def before_commit(self, context: RunContext, request: RespondWorkflowTaskCompletedRequest, new_task: bool) -> None:
        """An answer is about to be committed."""

    def completed(self, context: RunContext, request: RespondWorkflowTaskCompletedRequest) -> None:
        """The answer is committed: its query results reach their callers."""

    def task_failed(self, context: RunContext, request: RespondWorkflowTaskFailedRequest) -> None: ...
