"""History and matching over a real database, and a worker played by hand: what a client and a worker would see, without
the wire between."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Coroutine, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from google.protobuf.message import Message as ProtobufMessage
from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.api.enums.v1 import CommandType, QueryRejectCondition, QueryResultType, TaskQueueKind
from temporalio.api.enums.v1 import UpdateWorkflowExecutionLifecycleStage as Lifecycle
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.protocol.v1 import Message
from temporalio.api.query.v1 import WorkflowQueryResult
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.update.v1 import Acceptance, Outcome, Rejection, Request, Response
from temporalio.api.workflowservice.v1 import (
    ExecuteMultiOperationRequest,
    ExecuteMultiOperationResponse,
    GetWorkflowExecutionHistoryRequest,
    GetWorkflowExecutionHistoryResponse,
    PollWorkflowExecutionUpdateRequest,
    PollWorkflowExecutionUpdateResponse,
    PollWorkflowTaskQueueRequest,
    PollWorkflowTaskQueueResponse,
    QueryWorkflowRequest,
    QueryWorkflowResponse,
    RespondQueryTaskCompletedRequest,
    RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskCompletedResponse,
    RespondWorkflowTaskFailedRequest,
    SignalWorkflowExecutionRequest,
    StartWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest,
    UpdateWorkflowExecutionRequest,
    UpdateWorkflowExecutionResponse,
)
from tests.history.support import type_name

from perdure.clock import SECOND, RealClock
from perdure.config.dynamic import DynamicConfig
from perdure.history.engine import HistoryService
from perdure.history.shard import RunContext
from perdure.matching.engine import MatchingEngine
from perdure.namespaces import NamespaceRegistry
from perdure.persistence.api import Store
from perdure.persistence.sqlite import open_store
from perdure.visibility.sqlite import SqliteVisibility

T = TypeVar("T")

QUEUE = "queue"
STICKY = "sticky-of-worker"
ACCEPTED = Lifecycle.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ACCEPTED
COMPLETED = Lifecycle.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_COMPLETED
ADMITTED = Lifecycle.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ADMITTED

_ids = itertools.count(1)


class Live:
    """One workflow id at a time: "workflow". Seconds are the test's, calls that wait do so for `patience`."""

    def __init__(self, store: Store, visibility: SqliteVisibility, settings: dict[str, Any]) -> None:
        self.clock = RealClock()
        self.store = store
        self.visibility = visibility
        self.config = DynamicConfig()
        for name, value in settings.items():
            self.config.set(name, value)
        self.patience = 10 * SECOND
        self._tasks: list[asyncio.Task[Any]] = []

    async def begin(self) -> None:
        namespaces = NamespaceRegistry(self.store, self.clock)
        await namespaces.load()
        await namespaces.ensure(["default"], 3600 * SECOND, {})
        self.namespace_id = namespaces.by_name("default").id
        self.history = HistoryService(self.store, self.visibility, self.clock, self.config, namespaces, 1)
        self.matching = MatchingEngine(
            self.store, self.history, self.clock, self.config, lambda _: "default", physical_partitions=1
        )
        self.history.set_matching(self.matching)
        await self.matching.start()
        await self.history.start()

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.matching.stop()
        await self.history.stop(0.1)

    async def restart(self) -> None:
        """As a process that ended and began again: memory is gone, the database is not."""
        await self.end()
        await self.begin()

    def deadline(self, seconds: float | None = None) -> int:
        return self.clock.now() + (self.patience if seconds is None else round(seconds * SECOND))

    def soon(self, call: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(call)
        self._tasks.append(task)
        return task

    async def settle(self, task: asyncio.Task[Any]) -> None:
        """Lets a call get as far as it can without an answer from elsewhere."""
        for _ in range(20):
            await asyncio.sleep(0)
        assert not task.done(), task

    # --- the client

    async def start(self, **fields: Any) -> str:
        request = start_request(**fields)
        return (await self.history.start_workflow_execution(self.namespace_id, request)).run_id

    async def signal(self, name: str = "signal") -> None:
        request = SignalWorkflowExecutionRequest(signal_name=name, request_id=f"request-{next(_ids)}")
        request.workflow_execution.workflow_id = "workflow"
        await self.history.signal_workflow_execution(self.namespace_id, request)

    async def terminate(self) -> None:
        request = TerminateWorkflowExecutionRequest(reason="enough")
        request.workflow_execution.workflow_id = "workflow"
        await self.history.terminate_workflow_execution(self.namespace_id, request)

    async def update(
        self,
        update_id: str = "u",
        wait: Lifecycle.ValueType = COMPLETED,
        *,
        run_id: str = "",
        seconds: float | None = None,
        **fields: Any,
    ) -> UpdateWorkflowExecutionResponse:
        request = update_request(update_id, wait, run_id, **fields)
        return await self.history.update_workflow_execution(self.namespace_id, request, self.deadline(seconds))

    async def poll_update(
        self,
        update_id: str = "u",
        wait: Lifecycle.ValueType = COMPLETED,
        run_id: str = "",
        seconds: float | None = None,
    ) -> PollWorkflowExecutionUpdateResponse:
        request = PollWorkflowExecutionUpdateRequest()
        request.update_ref.workflow_execution.workflow_id = "workflow"
        request.update_ref.workflow_execution.run_id = run_id
        request.update_ref.update_id = update_id
        request.wait_policy.lifecycle_stage = wait
        return await self.history.poll_workflow_execution_update(self.namespace_id, request, self.deadline(seconds))

    async def start_and_update(self, start: StartWorkflowExecutionRequest, *args: Any) -> ExecuteMultiOperationResponse:
        request = ExecuteMultiOperationRequest()
        request.operations.add().start_workflow.CopyFrom(start)
        request.operations.add().update_workflow.CopyFrom(update_request(*args))
        return await self.history.execute_multi_operation(self.namespace_id, request, self.deadline())

    async def query(
        self,
        name: str = "q",
        reject: QueryRejectCondition.ValueType = QueryRejectCondition.QUERY_REJECT_CONDITION_NONE,
        seconds: float | None = None,
    ) -> QueryWorkflowResponse:
        request = QueryWorkflowRequest(query_reject_condition=reject)
        request.execution.workflow_id = "workflow"
        request.query.query_type = name
        return await self.history.query_workflow(self.namespace_id, request, self.deadline(seconds))

    async def events(self, run_id: str = "") -> list[HistoryEvent]:
        request = GetWorkflowExecutionHistoryRequest()
        request.execution.workflow_id = "workflow"
        request.execution.run_id = run_id
        reply = await self.history.get_workflow_execution_history(self.namespace_id, request, self.deadline())
        return list(GetWorkflowExecutionHistoryResponse.FromString(reply).history.events)

    async def types(self, run_id: str = "") -> list[str]:
        return [type_name(e) for e in await self.events(run_id)]

    async def stored_version(self, run_id: str) -> int:
        """Grows with each write of the run."""
        return (await self.store.load_run(1, self.namespace_id, "workflow", run_id)).version

    # --- the worker

    async def poll(self, sticky: bool = False, seconds: float | None = None) -> PollWorkflowTaskQueueResponse:
        queue = TaskQueue(name=QUEUE)
        if sticky:
            queue = TaskQueue(name=STICKY, kind=TaskQueueKind.TASK_QUEUE_KIND_STICKY, normal_name=QUEUE)
        request = PollWorkflowTaskQueueRequest(identity="worker", task_queue=queue)
        reply = await self.matching.poll_workflow_task_queue(self.namespace_id, request, self.deadline(seconds))
        return PollWorkflowTaskQueueResponse.FromString(reply)

    async def complete(
        self,
        task: PollWorkflowTaskQueueResponse,
        *commands: Command,
        messages: Sequence[Message] = (),
        queries: dict[str, WorkflowQueryResult] | None = None,
        sticky: bool = False,
        inline: bool = True,
        heartbeat: bool = False,
        shown_twice: bool = True,
    ) -> RespondWorkflowTaskCompletedResponse:
        request = RespondWorkflowTaskCompletedRequest(
            identity="worker",
            task_token=task.task_token,
            commands=commands,
            messages=messages,
            return_new_workflow_task=inline,
            force_create_new_workflow_task=heartbeat,
        )
        request.capabilities.discard_speculative_workflow_task_with_events = shown_twice
        for query_id, result in (queries or {}).items():
            request.query_results[query_id].CopyFrom(result)
        if sticky:
            request.sticky_attributes.worker_task_queue.name = STICKY
            request.sticky_attributes.schedule_to_start_timeout.seconds = 5
        reply = await self.history.respond_workflow_task_completed(self.namespace_id, request)
        return RespondWorkflowTaskCompletedResponse.FromString(reply)

    async def fail(self, task: PollWorkflowTaskQueueResponse) -> None:
        request = RespondWorkflowTaskFailedRequest(
            task_token=task.task_token,
            cause=Cause.WORKFLOW_TASK_FAILED_CAUSE_WORKFLOW_WORKER_UNHANDLED_FAILURE,
        )
        await self.history.respond_workflow_task_failed(self.namespace_id, request)

    async def answer_query(self, task: PollWorkflowTaskQueueResponse, result: WorkflowQueryResult) -> None:
        request = RespondQueryTaskCompletedRequest(
            task_token=task.task_token,
            completed_type=result.result_type,
            query_result=result.answer,
            error_message=result.error_message,
        )
        if result.HasField("failure"):
            request.failure.CopyFrom(result.failure)
        await self.matching.respond_query_task_completed(self.namespace_id, request)

    async def idle(self, sticky: bool = False, **fields: Any) -> str:
        """A run that has done its first workflow task."""
        run_id = await self.start(**fields)
        await self.complete(await self.poll(), sticky=sticky)
        return run_id

    def context(self, run_id: str) -> RunContext:
        context = self.history.shard(self.namespace_id, "workflow").cached((self.namespace_id, "workflow", run_id))
        assert context is not None
        return context


@asynccontextmanager
async def live(**settings: Any) -> AsyncGenerator[Live]:
    """settings: of the dynamic configuration, "__" for each dot."""
    store = await open_store(None)
    visibility = SqliteVisibility(store.database)
    await visibility.open()
    world = Live(store, visibility, {name.replace("__", "."): value for name, value in settings.items()})
    await world.begin()
    try:
        yield world
    finally:
        await world.end()
        await store.close()


# --- what they say ---


def start_request(**fields: Any) -> StartWorkflowExecutionRequest:
    return StartWorkflowExecutionRequest(
        **{
            "namespace": "default",
            "workflow_id": "workflow",
            "workflow_type": {"name": "Type"},
            "task_queue": {"name": QUEUE},
            "request_id": f"request-{next(_ids)}",
            "workflow_id_conflict_policy": "WORKFLOW_ID_CONFLICT_POLICY_FAIL",
            **fields,
        }
    )


def update_request(
    update_id: str = "u", wait: Lifecycle.ValueType = COMPLETED, run_id: str = "", **fields: Any
) -> UpdateWorkflowExecutionRequest:
    request = UpdateWorkflowExecutionRequest(namespace="default", **fields)
    request.workflow_execution.workflow_id = "workflow"
    request.workflow_execution.run_id = run_id
    request.request.meta.update_id = update_id
    request.request.input.name = "handler"
    request.wait_policy.lifecycle_stage = wait
    return request


def payloads(text: str) -> Payloads:
    return Payloads(payloads=[Payload(data=text.encode())])


def request_of(message: Message) -> Request:
    request = Request()
    assert message.body.Unpack(request)
    return request


def _message(message_id: str, update_id: str, body: ProtobufMessage) -> Message:
    message = Message(id=message_id, protocol_instance_id=update_id)
    message.body.Pack(body)
    return message


def accept(message: Message) -> Message:
    body = Acceptance(
        accepted_request_message_id=message.id,
        accepted_request_sequencing_event_id=message.event_id,
        accepted_request=request_of(message),
    )
    return _message(f"{message.protocol_instance_id}/accept", message.protocol_instance_id, body)


def reject(message: Message, why: str = "no") -> Message:
    body = Rejection(
        rejected_request_message_id=message.id,
        rejected_request_sequencing_event_id=message.event_id,
        rejected_request=request_of(message),
    )
    body.failure.message = why
    return _message(f"{message.protocol_instance_id}/reject", message.protocol_instance_id, body)


def finish(update_id: str, result: str = "done") -> Message:
    body = Response(outcome=Outcome(success=payloads(result)))
    body.meta.update_id = update_id
    return _message(f"{update_id}/complete", update_id, body)


def turn_of(message: Message) -> Command:
    """The command that says where in the order of commands a message belongs."""
    command = Command(command_type=CommandType.COMMAND_TYPE_PROTOCOL_MESSAGE)
    command.protocol_message_command_attributes.message_id = message.id
    return command


def marker(name: str = "m") -> Command:
    command = Command(command_type=CommandType.COMMAND_TYPE_RECORD_MARKER)
    command.record_marker_command_attributes.marker_name = name
    return command


def complete_workflow() -> Command:
    command = Command(command_type=CommandType.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION)
    command.complete_workflow_execution_command_attributes.SetInParent()
    return command


def continue_as_new() -> Command:
    command = Command(command_type=CommandType.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION)
    command.continue_as_new_workflow_execution_command_attributes.workflow_type.name = "Type"
    command.continue_as_new_workflow_execution_command_attributes.task_queue.name = QUEUE
    return command


def answered(text: str) -> WorkflowQueryResult:
    return WorkflowQueryResult(result_type=QueryResultType.QUERY_RESULT_TYPE_ANSWERED, answer=payloads(text))


def query_failed(message: str) -> WorkflowQueryResult:
    result = WorkflowQueryResult(result_type=QueryResultType.QUERY_RESULT_TYPE_FAILED, error_message=message)
    result.failure.message = message
    return result


def shown(task: PollWorkflowTaskQueueResponse) -> list[str]:
    return [type_name(e) for e in task.history.events]


def of_type(events: Sequence[HistoryEvent], name: str) -> HistoryEvent:
    (found,) = [e for e in events if type_name(e) == name]
    return found


def cause_of(event: HistoryEvent) -> str:
    return Cause.Name(event.workflow_task_failed_event_attributes.cause)
