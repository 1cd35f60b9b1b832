"""What matching's tests run in: a clock that they turn, a history that records starts as the true one does, and a real
store that can be told to fail."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Coroutine
from itertools import count
from typing import Any

from temporalio.api.enums.v1 import TaskQueueKind
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    PollActivityTaskQueueRequest,
    PollActivityTaskQueueResponse,
    PollNexusTaskQueueRequest,
    PollNexusTaskQueueResponse,
    PollWorkflowTaskQueueRequest,
    PollWorkflowTaskQueueResponse,
)

from perdure.clock import SECOND
from perdure.config.dynamic import DynamicConfig
from perdure.errors import already_started, not_found
from perdure.history.api import Poller
from perdure.matching.api import TaskRef
from perdure.matching.engine import MatchingEngine

NS = "namespace-id"
START = 1_700_000_000 * SECOND


async def settle() -> None:
    """Lets everything run that can run without time or store."""
    for _ in range(30):
        await asyncio.sleep(0)


class ManualClock:
    def __init__(self) -> None:
        self._now = START
        self._timers: list[tuple[int, int, Timer]] = []
        self._numbers = count()

    def now(self) -> int:
        return self._now

    def call_at(self, when: int, callback: Callable[[], object]) -> Timer:
        timer = Timer(callback)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    async def sleep(self, duration: int) -> None:
        woken = asyncio.Event()
        self.call_at(self._now + duration, woken.set)
        await woken.wait()

    async def advance(self, duration: int) -> None:
        end = self._now + duration
        await settle()
        while self._timers and self._timers[0][0] <= end:
            when, _, timer = heapq.heappop(self._timers)
            self._now = max(self._now, when)
            if timer.callback is not None:
                timer.callback()
                await settle()
        self._now = end
        await settle()


class Timer:
    def __init__(self, callback: Callable[[], object]) -> None:
        self.callback: Callable[[], object] | None = callback

    def cancel(self) -> None:
        self.callback = None


class History:
    """started: (workflow id, event id) -> who got it. errors: raised by the next calls, in order; errors_after: when
    they have recorded the start. gate: while it is
    closed, calls wait in the middle."""

    def __init__(self) -> None:
        self.started: dict[tuple[str, int], Poller] = {}
        self.closed_workflows: set[str] = set()
        self.errors: list[Exception] = []
        self.errors_after: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.calls = 0

    async def _start(self, task: TaskRef, poller: Poller) -> None:
        self.calls += 1
        key = (task.workflow_id, task.scheduled_event_id)
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        if task.workflow_id in self.closed_workflows:
            raise not_found("workflow execution already completed")
        if key in self.started and self.started[key].request_id != poller.request_id:
            raise already_started("task already started", poller.request_id, task.run_id)
        self.started[key] = Poller(poller.identity, poller.request_id, poller.task_queue, poller.sticky_queue)
        await self.gate.wait()
        if self.errors_after:
            raise self.errors_after.pop(0)

    async def record_workflow_task_started(self, task: TaskRef, poller: Poller) -> bytes:
        await self._start(task, poller)
        return PollWorkflowTaskQueueResponse(
            task_token=f"{task.workflow_id}/{task.scheduled_event_id}".encode(), attempt=1
        ).SerializeToString()

    async def record_activity_task_started(self, task: TaskRef, poller: Poller) -> bytes:
        await self._start(task, poller)
        return PollActivityTaskQueueResponse(
            task_token=f"{task.workflow_id}/{task.scheduled_event_id}".encode(), attempt=1
        ).SerializeToString()

    async def make_query_task(self, task: TaskRef, poller: Poller, query: WorkflowQuery, query_token: bytes) -> bytes:
        await self.gate.wait()
        if self.errors:
            raise self.errors.pop(0)
        return PollWorkflowTaskQueueResponse(task_token=query_token, query=query).SerializeToString()


class Store:
    """A real store. errors: raised instead of the next calls of a method. calls: how often each was called."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self.errors: dict[str, list[Exception]] = {}
        self.calls: dict[str, int] = {}

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._inner, name)

        async def call(*args: Any) -> Any:
            self.calls[name] = self.calls.get(name, 0) + 1
            if self.errors.get(name):
                raise self.errors[name].pop(0)
            return await method(*args)

        return call


class World:
    def __init__(self, store: Any, partitions: int | None = 1) -> None:
        self.clock = ManualClock()
        self.history = History()
        self.store = Store(store)
        self.config = DynamicConfig()
        self.partitions = partitions
        self.engine = self.new_engine()

    def new_engine(self) -> MatchingEngine:
        return MatchingEngine(
            self.store,
            self.history,  # type: ignore[arg-type]
            self.clock,
            self.config,
            lambda namespace_id: "default",
            physical_partitions=self.partitions,
        )

    def task(self, workflow_id: str, event_id: int = 5, **more: Any) -> TaskRef:
        return TaskRef(NS, workflow_id, "run", event_id, 0, more.pop("created", self.clock.now()), **more)

    async def add(self, workflow_id: str, queue: str = "q", **more: Any) -> None:
        await self.engine.add_workflow_task(TaskQueue(name=queue), self.task(workflow_id, **more))

    async def add_activity(self, workflow_id: str, queue: str = "q", **more: Any) -> None:
        await self.engine.add_activity_task(TaskQueue(name=queue), self.task(workflow_id, **more))

    async def add_sticky(self, workflow_id: str, queue: str = "sticky", **more: Any) -> None:
        await self.engine.add_workflow_task(sticky(queue), self.task(workflow_id, **more))

    def poll(
        self, identity: str = "worker", *, queue: str | TaskQueue = "q", timeout: int = 60 * SECOND, key: str = ""
    ) -> asyncio.Task[PollWorkflowTaskQueueResponse]:
        task_queue = TaskQueue(name=queue) if isinstance(queue, str) else queue
        request = PollWorkflowTaskQueueRequest(task_queue=task_queue, identity=identity, worker_instance_key=key)
        return asyncio.create_task(
            _poll(
                self.engine.poll_workflow_task_queue,
                request,
                self.clock.now() + timeout,
                PollWorkflowTaskQueueResponse,
            )
        )

    def poll_nexus(self, *, timeout: int = 60 * SECOND, key: str = "") -> asyncio.Task[PollNexusTaskQueueResponse]:
        request = PollNexusTaskQueueRequest(task_queue=TaskQueue(name="q"), identity="worker", worker_instance_key=key)
        deadline = self.clock.now() + timeout
        return asyncio.create_task(
            _poll(self.engine.poll_nexus_task_queue, request, deadline, PollNexusTaskQueueResponse)
        )

    def poll_activity(
        self, identity: str = "worker", *, queue: str = "q", timeout: int = 60 * SECOND, rate: float | None = None
    ) -> asyncio.Task[PollActivityTaskQueueResponse]:
        request = PollActivityTaskQueueRequest(task_queue=TaskQueue(name=queue), identity=identity)
        if rate is not None:
            request.task_queue_metadata.max_tasks_per_second.value = rate
        return asyncio.create_task(
            _poll(
                self.engine.poll_activity_task_queue,
                request,
                self.clock.now() + timeout,
                PollActivityTaskQueueResponse,
            )
        )


async def _poll(method: Callable[..., Coroutine[Any, Any, bytes]], request: Any, deadline: int, kind: Any) -> Any:
    return kind.FromString(await method(NS, request, deadline))


def sticky(name: str = "sticky", normal: str = "q") -> TaskQueue:
    return TaskQueue(name=name, kind=TaskQueueKind.TASK_QUEUE_KIND_STICKY, normal_name=normal)


async def got(poll: asyncio.Task[Any]) -> str:
    """Workflow id of the task that the poll got, "" for none."""
    async with asyncio.timeout(5):
        response = await poll
    return response.task_token.decode().partition("/")[0]
