"""Updates that are not yet durable, per run: admitted, sent to a worker, waited for by callers."""

from __future__ import annotations

from temporalio.api.workflowservice.v1 import RespondWorkflowTaskCompletedRequest

from perdure.history.core.completion import Completion
from perdure.history.core.state import WorkflowTask
from perdure.history.core.txn import Txn
from perdure.history.shard import RunContext


class Updates:
    def too_many(self, context: RunContext) -> bool:
        """The run should continue as new because of its many updates."""
        return False

    def fields(self, context: RunContext, task: WorkflowTask) -> list[bytes]:
        """Fields of the poll's reply that carry the update requests to the worker."""
        return []

    def discardable(
        self, context: RunContext, txn: Txn, task: WorkflowTask, request: RespondWorkflowTaskCompletedRequest
    ) -> bool:
        """The answer to a speculative task has nothing but rejections."""
        return False

    def begin(
        self, context: RunContext, txn: Txn, request: RespondWorkflowTaskCompletedRequest, completed_event_id: int
    ) -> object:
        """Before the commands of an answer: its update messages, kept in Completion.updates."""
        return None

    def end(self, work: Completion) -> None:
        """After the commands: messages without a command, updates that the worker ignored, the end of the run."""

    def waiting(self, context: RunContext) -> bool:
        """There are updates that no worker has been sent."""
        return False

    def completed(self, context: RunContext) -> None:
        """The answer is committed."""

    def task_failed(self, context: RunContext) -> None:
        """The started task failed or timed out."""
