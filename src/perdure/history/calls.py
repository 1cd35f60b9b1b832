"""What the calls of every room share: finding the run that is meant, and changing it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager

from perdure import errors
from perdure.history.shard import RunContext, Shard


@asynccontextmanager
async def open_run(
    shard: Shard, namespace_id: str, workflow_id: str, run_id: str, first_run_id: str = "", *, closed_too: bool = False
) -> AsyncGenerator[RunContext]:
    """The run that is meant, locked, and open. Without a run id the current one is meant: if it goes on as another run
    while we wait for its lock, that one. first_run_id: if given, the run must be of that chain. closed_too: a run that
    is closed, and not followed by another, will do.

    Raises ServiceError NOT_FOUND: no such run, or it is closed."""
    while True:
        target = await shard.run_id_of(namespace_id, workflow_id, run_id)
        async with shard.run(namespace_id, workflow_id, target) as context:
            state = context.loaded
            if first_run_id and state.info.first_run_id != first_run_id:
                raise errors.workflow_not_found(workflow_id, run_id)
            if not state.open:
                if not run_id:
                    current = await shard.current(namespace_id, workflow_id)
                    if current is not None and current.run_id != target:
                        continue
                if not closed_too:
                    raise errors.execution_completed()
            yield context
            return


@asynccontextmanager
async def any_run(shard: Shard, namespace_id: str, workflow_id: str, run_id: str) -> AsyncGenerator[RunContext]:
    """As `open_run`, but closed runs count too."""
    target = await shard.run_id_of(namespace_id, workflow_id, run_id)
    async with shard.run(namespace_id, workflow_id, target) as context:
        yield context
