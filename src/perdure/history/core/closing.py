"""The last act of every step: what must hold when a transaction is committed."""

from __future__ import annotations

from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause

from perdure.config import dynamic
from perdure.errors import Code, ServiceError
from perdure.history.core import lifecycle, workflow_tasks
from perdure.history.core.txn import Txn


class LimitReached(ServiceError):
    """The run has come to a limit of what a run may be, and was terminated for it. Whoever asks again meets a closed
    run."""


def exceeded(txn: Txn) -> str:
    """The reason why the run must not have this step, nor any other but its end; "" if it may."""
    state, config, namespace = txn.state, txn.env.config, txn.env.namespace
    run = state.run
    if not state.open or not txn.dirty:
        return ""
    if run.history_size > config.get(dynamic.HISTORY_SIZE_ERROR, namespace):
        return "Workflow history size exceeds limit."
    if run.next_event_id - 1 > config.get(dynamic.HISTORY_COUNT_ERROR, namespace):
        return "Workflow history count exceeds limit."
    if state.large_rows and state.large_bytes() > config.get(dynamic.STATE_SIZE_ERROR, namespace):
        return "Workflow mutable state size exceeds limit."
    return ""


def end(txn: Txn, reason: str) -> LimitReached:
    """txn: of the run as it was before the step that went too far. What its caller is told."""
    lifecycle.terminate(txn, reason, None, "history-service")
    return LimitReached(Code.INVALID_ARGUMENT, reason)


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
