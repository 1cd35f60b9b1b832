"""The visibility queue: what users list and count, brought up to date after each commit that changes it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure import errors
from perdure.errors import ServiceError
from perdure.history.core.state import visibility_record
from perdure.history.core.tasks import DeleteVisibility, UpsertVisibility
from perdure.history.executors import executes
from perdure.history.shard import Shard

if TYPE_CHECKING:
    from perdure.history.engine import HistoryService


@executes(UpsertVisibility)
async def upsert(engine: HistoryService, shard: Shard, task: UpsertVisibility) -> None:
    try:
        async with shard.run(task.namespace_id, task.workflow_id, task.run_id) as context:
            record = visibility_record(context.loaded)
    except ServiceError as e:
        if e.code == errors.Code.NOT_FOUND:
            return  # deleted since
        raise
    await engine.visibility.upsert(record)
    if task.run_id in shard.removed:
        # It was removed in between: what this wrote must not stay behind.
        await engine.visibility.delete(task.namespace_id, task.run_id, record.version)


@executes(DeleteVisibility)
async def delete(engine: HistoryService, shard: Shard, task: DeleteVisibility) -> None:
    del shard
    await engine.visibility.delete(task.namespace_id, task.run_id, task.version)
