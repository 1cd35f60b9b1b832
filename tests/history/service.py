"""The history service over a real database, with a clock that the test turns, and a matching that only keeps what it is
given: the test is the worker, and knows of every task that is handed over."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

from temporalio.api.command.v1 import Command
from temporalio.api.enums.v1 import TaskQueueKind
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    GetWorkflowExecutionHistoryRequest,
    GetWorkflowExecutionHistoryResponse,
    PollActivityTaskQueueResponse,
    PollWorkflowTaskQueueResponse,
    RespondActivityTaskCompletedRequest,
    RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskCompletedResponse,
    RespondWorkflowTaskFailedRequest,
    StartWorkflowExecutionResponse,
)
from tests.history.live import start_request
from tests.history.support import type_name
from tests.matching.world import ManualClock

from perdure.clock import SECOND
from perdure.config.dynamic import DynamicConfig
from perdure.errors import Code, ServiceError
from perdure.history.api import Poller
from perdure.history.core.state import State
from perdure.history.engine import HistoryService
from perdure.history.shard import Shard
from perdure.matching.api import NoPoller, TaskRef
from perdure.namespaces import NamespaceRegistry
from perdure.persistence.sqlite import SqliteStore, open_store
from perdure.visibility.sqlite import SqliteVisibility


class Dispatched:
    """As MatchingClient, as far as history dispatches tasks. down: every call fails as that of a matching that is not
    reached. sticky_polled: a worker polls the sticky task queues."""

    def __init__(self) -> None:
        self.workflow_tasks: asyncio.Queue[tuple[TaskQueue, TaskRef]] = asyncio.Queue()
        self.activity_tasks: asyncio.Queue[tuple[TaskQueue, TaskRef]] = asyncio.Queue()
        self.down = False
        self.sticky_polled = True

    async def add_workflow_task(self, task_queue: TaskQueue, task: TaskRef) -> None:
        self._reached()
        if task_queue.kind == TaskQueueKind.TASK_QUEUE_KIND_STICKY and not self.sticky_polled:
            raise NoPoller
        self.workflow_tasks.put_nowait((task_queue, task))

    async def add_activity_task(self, task_queue: TaskQueue, task: TaskRef) -> None:
        self._reached()
        self.activity_tasks.put_nowait((task_queue, task))

    def _reached(self) -> None:
        if self.down:
            raise ServiceError(Code.UNAVAILABLE, "matching is down")


class Service:
    """One workflow id at a time: "workflow". path: of the database, None for one in memory."""

    def __init__(self, path: str | None = None, **settings: Any) -> None:
        self.path = path
        self.clock = ManualClock()
        self.config = DynamicConfig()
        for name, value in settings.items():
            self.config.set(name.replace("__", "."), value)
        self.matching = Dispatched()
        self.store: SqliteStore
        self.visibility: SqliteVisibility
        self.history: HistoryService
        self.namespace_id = ""
        self._numbers = iter(range(1, 1_000_000))

    async def begin(self) -> None:
        self.store = await open_store(self.path)
        self.visibility = SqliteVisibility(self.store.database)
        await self.visibility.open()
        namespaces = NamespaceRegistry(self.store, self.clock)
        await namespaces.load()
        await namespaces.ensure(["default"], 3600 * SECOND, {})
        self.namespace_id = namespaces.by_name("default").id
        self.history = await self.another_owner(namespaces)

    async def another_owner(self, namespaces: NamespaceRegistry | None = None) -> HistoryService:
        """Another process that takes the shards."""
        history = HistoryService(
            self.store, self.visibility, self.clock, self.config, namespaces or self.history.namespaces, 1
        )
        history.set_matching(self.matching)  # type: ignore[arg-type]
        await history.start()
        return history

    async def end(self) -> None:
        await self.history.stop(0)
        await self.store.close()

    async def crash(self) -> None:
        """The process is gone at once, with what matching had in memory, and another one is there."""
        await self.end()
        self.matching = Dispatched()
        await self.begin()

    async def until(self, what: Callable[[], Any]) -> None:
        """Waits, in true time, until it holds: the database has a thread of its own. what: may be a coroutine
        function."""
        async with asyncio.timeout(20):
            while True:
                holds = what()
                if inspect.isawaitable(holds):
                    holds = await holds
                if holds:
                    return
                await asyncio.sleep(0.002)

    async def until_last(self, name: str) -> None:
        """Until the history ends with this type of event."""

        async def ends() -> bool:
            return (await self.types())[-1] == name

        await self.until(ends)

    async def advance(self, seconds: float) -> None:
        """Turns the clock, a second at a time, so that what is due within has time to happen."""
        whole, rest = divmod(round(seconds * SECOND), SECOND)
        for _ in range(whole):
            await self.clock.advance(SECOND)
            await self.quiet()
        await self.clock.advance(rest)
        await self.quiet()

    async def quiet(self) -> None:
        """Until no task of the queues runs that needs no more time."""
        for _ in range(3):
            # A read is answered after what came before it is written.
            await self.store.list_runs(1, 1, b"")
            await asyncio.sleep(0)

    # --- the client

    async def start(self, **fields: Any) -> StartWorkflowExecutionResponse:
        return await self.history.start_workflow_execution(self.namespace_id, start_request(**fields))

    async def events(self, run_id: str = "") -> list[HistoryEvent]:
        request = GetWorkflowExecutionHistoryRequest()
        request.execution.workflow_id = "workflow"
        request.execution.run_id = run_id
        reply = await self.history.get_workflow_execution_history(self.namespace_id, request, self.clock.now())
        return list(GetWorkflowExecutionHistoryResponse.FromString(reply).history.events)

    async def types(self, run_id: str = "") -> list[str]:
        return [type_name(e) for e in await self.events(run_id)]

    @property
    def shard(self) -> Shard:
        return self.history.shard(self.namespace_id, "workflow")

    async def state(self, run_id: str) -> State:
        async with self.shard.run(self.namespace_id, "workflow", run_id) as context:
            return context.loaded

    # --- the worker

    async def next_workflow_task(self) -> tuple[TaskQueue, TaskRef]:
        async with asyncio.timeout(20):
            return await self.matching.workflow_tasks.get()

    async def poll(self, sticky: str = "", request_id: str = "") -> PollWorkflowTaskQueueResponse:
        _, task = await self.next_workflow_task()
        return await self.take(task, sticky, request_id)

    async def take(self, task: TaskRef, sticky: str = "", request_id: str = "") -> PollWorkflowTaskQueueResponse:
        poller = Poller("worker", request_id or f"poll-{next(self._numbers)}", "queue", sticky)
        return PollWorkflowTaskQueueResponse.FromString(await self.history.record_workflow_task_started(task, poller))

    async def complete(
        self,
        task: PollWorkflowTaskQueueResponse,
        *commands: Command,
        sticky: str = "",
        inline: bool = False,
        heartbeat: bool = False,
    ) -> RespondWorkflowTaskCompletedResponse:
        request = RespondWorkflowTaskCompletedRequest(
            identity="worker",
            task_token=task.task_token,
            commands=commands,
            return_new_workflow_task=inline,
            force_create_new_workflow_task=heartbeat,
        )
        if sticky:
            request.sticky_attributes.worker_task_queue.name = sticky
            request.sticky_attributes.schedule_to_start_timeout.seconds = 5
        reply = await self.history.respond_workflow_task_completed(self.namespace_id, request)
        return RespondWorkflowTaskCompletedResponse.FromString(reply)

    async def fail(self, task: PollWorkflowTaskQueueResponse) -> None:
        request = RespondWorkflowTaskFailedRequest(
            task_token=task.task_token, cause=Cause.WORKFLOW_TASK_FAILED_CAUSE_WORKFLOW_WORKER_UNHANDLED_FAILURE
        )
        await self.history.respond_workflow_task_failed(self.namespace_id, request)

    async def poll_activity(self) -> PollActivityTaskQueueResponse:
        async with asyncio.timeout(20):
            _, task = await self.matching.activity_tasks.get()
        poller = Poller("worker", f"poll-{next(self._numbers)}", "queue")
        return PollActivityTaskQueueResponse.FromString(await self.history.record_activity_task_started(task, poller))

    async def complete_activity(self, task: PollActivityTaskQueueResponse) -> None:
        request = RespondActivityTaskCompletedRequest(task_token=task.task_token, identity="worker")
        await self.history.respond_activity_task_completed(self.namespace_id, request)


@asynccontextmanager
async def service(path: str | None = None, **settings: Any) -> AsyncGenerator[Service]:
    """settings: of the dynamic configuration, "__" for each dot."""
    world = Service(path, **settings)
    await world.begin()
    try:
        yield world
    finally:
        await world.end()
