"""Runs are removed: on request, or when their retention is over. Visibility first, then the run: so what is listed can
be looked up. A run that is open is terminated first."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio.api.common.v1 import WorkflowExecution

from perdure import errors
from perdure.errors import ServiceError
from perdure.history.core import lifecycle
from perdure.history.core.tasks import DeleteAfterRetention, DeleteExecution, Task
from perdure.history.executors import executes
from perdure.history.shard import Shard

if TYPE_CHECKING:
    from perdure.history.engine import HistoryService

_FOREVER = 2**62  # above every version of a visibility record


async def delete(engine: HistoryService, namespace_id: str, execution: WorkflowExecution) -> None:
    """Asks for the removal; it happens soon, by a task that outlives a crash."""
    workflow_id = execution.workflow_id
    shard = engine.shard(namespace_id, workflow_id)
    run_id = await shard.run_id_of(namespace_id, workflow_id, execution.run_id)
    async with shard.run(namespace_id, workflow_id, run_id) as context:
        txn = shard.begin(context)
        if context.loaded.open:
            lifecycle.terminate(txn, "Delete workflow execution", None, "history-service")
        txn.task(DeleteExecution())
        await shard.commit(context, txn)


@executes(DeleteExecution)
async def delete_asked_for(engine: HistoryService, shard: Shard, task: DeleteExecution) -> None:
    await _remove(engine, shard, task)


@executes(DeleteAfterRetention)
async def retention_over(engine: HistoryService, shard: Shard, task: DeleteAfterRetention) -> None:
    await _remove(engine, shard, task)


async def _remove(engine: HistoryService, shard: Shard, task: Task) -> None:
    shard.removed[task.run_id] = None
    await engine.visibility.delete(task.namespace_id, task.run_id, _FOREVER)
    try:
        async with shard.run(task.namespace_id, task.workflow_id, task.run_id) as context:
            await shard.delete(context)
    except ServiceError as e:
        if e.code != errors.Code.NOT_FOUND:
            raise
