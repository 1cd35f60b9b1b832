"""The last act of every step: what must hold when a transaction is committed."""

from __future__ import annotations

from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause

from perdure.config import dynamic
from perdure.history.core import workflow_tasks
from perdure.history.core.txn import Txn


def finish(txn: Txn) -> None:
    """Empties the buffer when no workflow task is started, and leaves no event that the worker has not been told of
    without a workflow task. Idempotent."""
    state = txn.state
    if not state.open:
        return
    run = state.run
    if run.buffered_count:
        task = run.workflow_task
        if task is not None and task.started_event_id:
            config, namespace = txn.env.config, txn.env.namespace
            if run.buffered_count <= config.get(dynamic.MAX_BUFFERED_EVENTS, namespace) and (
                run.buffered_bytes <= config.get(dynamic.MAX_BUFFERED_BYTES, namespace)
            ):
                return
            # The worker takes too long for what comes in meanwhile: its answer would be void anyway.
            workflow_tasks.fail(txn, Cause.WORKFLOW_TASK_FAILED_CAUSE_FORCE_CLOSE_COMMAND, None, "")
        txn.flush_buffer()
        workflow_tasks.ensure_scheduled(txn)
