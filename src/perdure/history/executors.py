"""Which function runs which task of the queues. A room registers its own with `@executes`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar

from perdure.errors import Code, ServiceError
from perdure.history.core.tasks import Task

if TYPE_CHECKING:
    from perdure.history.engine import HistoryService
    from perdure.history.shard import Shard

T = TypeVar("T", bound=Task)
_handlers: dict[type[Task], Callable[[Any, Any, Any], Awaitable[None]]] = {}


def executes(
    task_type: type[T],
) -> Callable[
    [Callable[[HistoryService, Shard, T], Awaitable[None]]], Callable[[HistoryService, Shard, T], Awaitable[None]]
]:
    """The function runs tasks of this type: at least once, possibly late, so it looks up whether the task still
    applies. It raises ServiceError or StoreError to be tried again; a run that is gone (NOT_FOUND) ends the task."""

    def register(
        function: Callable[[HistoryService, Shard, T], Awaitable[None]],
    ) -> Callable[[HistoryService, Shard, T], Awaitable[None]]:
        assert task_type not in _handlers, task_type
        _handlers[task_type] = function
        return function

    return register


async def execute(engine: HistoryService, shard: Shard, task: Task) -> None:
    try:
        await _handlers[type(task)](engine, shard, task)
    except ServiceError as error:
        if error.code != Code.NOT_FOUND:
            raise
