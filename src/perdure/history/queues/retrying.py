"""What happens to a task whose handler fails: tried again, ever more slowly; a task that keeps failing for no known
passing reason is set aside in a dead-letter queue, where an operator sees it, so that it never stops its shard."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import grpc

from perdure.clock import MILLISECOND, SECOND, Clock
from perdure.errors import ServiceError
from perdure.history.core import tasks
from perdure.history.core.closing import LimitReached
from perdure.history.core.tasks import Task
from perdure.persistence.api import QueueStore, StoreError, TaskCategory

log = logging.getLogger("perdure.history.queues")

_FIRST_WAIT = 20 * MILLISECOND
_LONGEST_WAIT = 30 * SECOND
_UNEXPECTED_ATTEMPTS = 12  # about two minutes

_PASSING = frozenset(
    (
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
    )
)


def dead_letters(category: TaskCategory) -> str:
    """Name of the queue (persistence.api.QueueStore) of tasks set aside."""
    return f"dead-letters-{category.name.lower()}"


@dataclass(slots=True)
class Retrying:
    clock: Clock
    store: QueueStore
    shard_id: int
    failures: Counter[str]  # counted by category and kind of error, for metrics

    def begin(self, category: TaskCategory, task: Task) -> Attempts:
        return Attempts(self, category, task)

    def decode(self, category: TaskCategory, blob: bytes, decode: Callable[[bytes], Task]) -> Task | None:
        """None when the row is not readable: it stays in the store for an operator, and is counted."""
        try:
            return decode(blob)
        except Exception:
            self.failures[f"{category.name.lower()}:undecodable"] += 1
            log.exception("a %s task of shard %d cannot be read", category.name.lower(), self.shard_id)
            return None


@dataclass(slots=True)
class Attempts:
    of: Retrying
    category: TaskCategory
    task: Task
    unexpected: int = 0
    count: int = 0

    async def failed(self, error: Exception) -> int | None:
        """Nanoseconds to wait before the next attempt. None: there is none, the task is set aside."""
        self.count += 1
        retrying = self.of
        passing = isinstance(error, StoreError | LimitReached) or (
            isinstance(error, ServiceError) and error.code in _PASSING
        )
        name = f"{self.category.name.lower()}:{'passing' if passing else type(error).__name__}"
        retrying.failures[name] += 1
        if not passing:
            self.unexpected += 1
            task = self.task
            log.error(
                "%s failed (attempt %d): shard %d namespace %s workflow %s run %s",
                type(task).__name__,
                self.count,
                retrying.shard_id,
                task.namespace_id,
                task.workflow_id,
                task.run_id,
                exc_info=error if self.unexpected in (1, _UNEXPECTED_ATTEMPTS) else None,
            )
            if self.unexpected >= _UNEXPECTED_ATTEMPTS:
                try:
                    await retrying.store.enqueue(dead_letters(self.category), tasks.encode(task))
                    return None
                except StoreError:
                    pass  # cannot be set aside now: keep trying
        return min(_LONGEST_WAIT, _FIRST_WAIT << min(self.count - 1, 20))
