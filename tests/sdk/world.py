"""Workers and clients of the Python SDK for the tests, and the check that every history must pass: well-formed, and
replayed by the SDK without a difference."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryRequest
from temporalio.client import (
    Client,
    Interceptor,
    OutboundInterceptor,
    StartWorkflowInput,
    StartWorkflowUpdateWithStartInput,
    WorkflowHandle,
    WorkflowHistory,
)
from temporalio.worker import Replayer, UnsandboxedWorkflowRunner, Worker
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner, SandboxRestrictions

Run = tuple[str, str]  # workflow id, run id

# Workflows as users run them; most tests do without, because a sandbox imports everything anew for each workflow.
SANDBOX = SandboxedWorkflowRunner(
    restrictions=SandboxRestrictions.default.with_passthrough_modules("pytest", "_pytest", "sdk.world")
)

STUCK_SECONDS = 40  # a test that takes so long waits for what will not come

SOON = timedelta(seconds=10)  # what an activity may take at most in a test that does not end by time


def name(prefix: str = "w") -> str:
    return f"{prefix}-{uuid.uuid4()}"


class Recorder(Interceptor):
    """Notes the first run of every workflow that the client starts."""

    def __init__(self) -> None:
        self.started: set[Run] = set()

    def intercept_client(self, next: OutboundInterceptor) -> OutboundInterceptor:
        return _Recording(next, self)


class _Recording(OutboundInterceptor):
    def __init__(self, next: OutboundInterceptor, recorder: Recorder) -> None:
        super().__init__(next)
        self.recorder = recorder

    async def start_workflow(self, input: StartWorkflowInput) -> WorkflowHandle[Any, Any]:
        handle = await super().start_workflow(input)
        self.recorder.started.add((handle.id, handle.result_run_id or ""))
        return handle

    async def start_update_with_start_workflow(self, input: StartWorkflowUpdateWithStartInput) -> Any:
        started = input.start_workflow_input
        update = await super().start_update_with_start_workflow(input)
        self.recorder.started.add((started.id, update.workflow_run_id or ""))
        return update


@dataclass
class World:
    """A client of a running server, and the workflows it started."""

    client: Client
    recorder: Recorder = field(default_factory=Recorder)

    @contextlib.asynccontextmanager
    async def worker(
        self,
        *workflows: type,
        activities: Sequence[Callable[..., Any]] = (),
        task_queue: str = "",
        check: bool = True,
        **options: Any,
    ) -> AsyncIterator[str]:
        """A worker; its task queue. At the end every run that this world started, continued as new, retried or started
        as a child is checked."""
        task_queue = task_queue or name("tq")
        async with Worker(
            self.client,
            task_queue=task_queue,
            workflows=workflows,
            activities=activities,
            workflow_runner=options.pop("workflow_runner", UnsandboxedWorkflowRunner()),
            **options,
        ):
            async with asyncio.timeout(STUCK_SECONDS):
                yield task_queue
                if check:
                    await self.check(*workflows)

    async def check(self, *workflows: type) -> None:
        seen = await check_histories(self.client, self.recorder.started, workflows)
        self.recorder.started.clear()
        assert seen, "the test started nothing that could be checked"


async def connect(address: str, **options: Any) -> World:
    recorder = Recorder()
    client = await Client.connect(address, interceptors=[recorder], **options)
    return World(client, recorder)


async def events(client: Client, workflow_id: str, run_id: str = "") -> list[HistoryEvent]:
    found: list[HistoryEvent] = []
    request = GetWorkflowExecutionHistoryRequest(
        namespace=client.namespace, execution=WorkflowExecution(workflow_id=workflow_id, run_id=run_id)
    )
    while True:
        page = await client.workflow_service.get_workflow_execution_history(request)
        found += page.history.events
        if not page.next_page_token:
            return found
        request.next_page_token = page.next_page_token


def types(history: Sequence[HistoryEvent]) -> list[str]:
    """ActivityTaskScheduled, … as people write them."""
    return [EventType.Name(e.event_type).removeprefix("EVENT_TYPE_").title().replace("_", "") for e in history]


async def check_histories(client: Client, runs: set[Run], workflows: Sequence[type]) -> dict[Run, list[HistoryEvent]]:
    """Every run reachable from these: its history is well-formed, and a replay of it makes the same commands."""
    seen: dict[Run, list[HistoryEvent]] = {}
    todo = list(runs)
    replayer = Replayer(workflows=workflows, workflow_runner=UnsandboxedWorkflowRunner(), namespace=client.namespace)
    while todo:
        run = todo.pop()
        if run in seen:
            continue
        history = await events(client, *run)
        seen[run] = history
        check_well_formed(history)
        todo += [r for r in _reached(run[0], history) if r not in seen]
        if any(e.HasField("workflow_task_started_event_attributes") for e in history):
            await replayer.replay_workflow(WorkflowHistory(run[0], history))
    return seen


def _reached(workflow_id: str, history: Sequence[HistoryEvent]) -> list[Run]:
    runs: list[Run] = []
    for event in history:
        if event.HasField("child_workflow_execution_started_event_attributes"):
            child = event.child_workflow_execution_started_event_attributes.workflow_execution
            runs.append((child.workflow_id, child.run_id))
    close = getattr(history[-1], history[-1].WhichOneof("attributes") or "")
    if next_run := getattr(close, "new_execution_run_id", ""):
        runs.append((workflow_id, next_run))
    return runs


NEVER_WRITTEN = {
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ADMITTED,  # only a reset writes it
    EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_REJECTED,
    EventType.EVENT_TYPE_WORKFLOW_PROPERTIES_MODIFIED_EXTERNALLY,
    EventType.EVENT_TYPE_ACTIVITY_PROPERTIES_MODIFIED_EXTERNALLY,
}

# What an event closes, and by which field it names it. No id is closed twice by the events of one row.
CLOSERS: list[tuple[str, set[str]]] = [
    (
        "scheduled_event_id",
        {"activity_task_completed", "activity_task_failed", "activity_task_timed_out", "activity_task_canceled"},
    ),
    ("scheduled_event_id", {"workflow_task_completed", "workflow_task_failed", "workflow_task_timed_out"}),
    ("scheduled_event_id", {"activity_task_started"}),
    ("scheduled_event_id", {"workflow_task_started"}),
    ("started_event_id", {"timer_fired", "timer_canceled"}),
    ("initiated_event_id", {"child_workflow_execution_started", "start_child_workflow_execution_failed"}),
    (
        "initiated_event_id",
        {f"child_workflow_execution_{end}" for end in ("completed", "failed", "timed_out", "canceled", "terminated")}
        | {"start_child_workflow_execution_failed"},
    ),
    (
        "initiated_event_id",
        {"external_workflow_execution_signaled", "signal_external_workflow_execution_failed"},
    ),
    (
        "initiated_event_id",
        {"external_workflow_execution_cancel_requested", "request_cancel_external_workflow_execution_failed"},
    ),
]


def check_well_formed(history: Sequence[HistoryEvent]) -> None:
    assert [e.event_id for e in history] == list(range(1, len(history) + 1))
    assert history[0].HasField("workflow_execution_started_event_attributes")
    closed: list[set[int]] = [set() for _ in CLOSERS]
    for event in history:
        assert event.event_type not in NEVER_WRITTEN
        kind = (event.WhichOneof("attributes") or "").removesuffix("_event_attributes")
        attributes = getattr(event, f"{kind}_event_attributes")
        for (id_field, kinds), done in zip(CLOSERS, closed, strict=True):
            if kind in kinds:
                opened = getattr(attributes, id_field)
                assert 0 < opened < event.event_id, f"{kind} {event.event_id} closes {opened}"
                assert opened not in done, f"{kind} {event.event_id} closes {opened} once more"
                done.add(opened)
        for id_field in ("workflow_task_completed_event_id", "started_event_id", "scheduled_event_id"):
            if named := getattr(attributes, id_field, 0):
                assert named < event.event_id
    ends = [e.event_id for e in history if (e.WhichOneof("attributes") or "") in ENDS]
    assert ends in ([], [len(history)]), "something follows the end"


ENDS = {
    f"workflow_execution_{end}_event_attributes"
    for end in ("completed", "failed", "timed_out", "canceled", "terminated", "continued_as_new")
}
