"""User timers whose time has come."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure import errors
from perdure.errors import ServiceError
from perdure.history.core import timers
from perdure.history.core.tasks import UserTimer
from perdure.history.executors import executes
from perdure.history.shard import Shard

if TYPE_CHECKING:
    from perdure.history.engine import HistoryService


@executes(UserTimer)
async def fire(engine: HistoryService, shard: Shard, task: UserTimer) -> None:
    del engine
    try:
        async with shard.run(task.namespace_id, task.workflow_id, task.run_id) as context:
            txn = shard.begin(context)
            if timers.fire(txn, task.timer_id, task.started_event_id):
                await shard.commit(context, txn)
    except ServiceError as e:
        if e.code != errors.Code.NOT_FOUND:
            raise
