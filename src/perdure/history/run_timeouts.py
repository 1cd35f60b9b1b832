"""Runs that last too long."""

from __future__ import annotations

from typing import TYPE_CHECKING

from perdure import errors
from perdure.errors import ServiceError
from perdure.history.core import continuation, lifecycle
from perdure.history.core.tasks import RunTimeout
from perdure.history.executors import executes
from perdure.history.shard import Shard

if TYPE_CHECKING:
    from perdure.history.engine import HistoryService


@executes(RunTimeout)
async def time_out(engine: HistoryService, shard: Shard, task: RunTimeout) -> None:
    """The run's time is over; a retry policy or a cron schedule may begin another one, the execution timeout
    allowing."""
    del engine
    try:
        async with shard.run(task.namespace_id, task.workflow_id, task.run_id) as context:
            info = context.loaded.info
            if not context.loaded.open or shard.clock.now() < info.run_expiration:
                return
            started = None
            if info.retry_policy_proto or info.cron_schedule:
                started = (await shard.event(context, 1)).workflow_execution_started_event_attributes
            txn = shard.begin(context)
            failure = continuation.timeout_failure()
            retry_state, new_run_id = continuation.after_failure(txn, started, failure)
            lifecycle.time_out(txn, retry_state, new_run_id)
            await shard.commit(context, txn)
    except ServiceError as e:
        if e.code != errors.Code.NOT_FOUND:
            raise
