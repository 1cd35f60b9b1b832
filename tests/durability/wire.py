"""A worker and a client made of bare calls: nothing between the test and the wire."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import grpc
import grpc.aio
from google.protobuf.duration_pb2 import Duration
from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import ActivityType, Payload, Payloads, WorkflowExecution, WorkflowType
from temporalio.api.enums.v1 import CommandType, EventType, TaskQueueKind
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.protocol.v1 import Message
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.taskqueue.v1 import StickyExecutionAttributes, TaskQueue
from temporalio.api.update.v1 import Acceptance, Input, Meta, Outcome, Rejection, Request, Response, WaitPolicy
from temporalio.api.workflowservice.v1 import (
    GetWorkflowExecutionHistoryRequest,
    GetWorkflowExecutionHistoryReverseRequest,
    PollActivityTaskQueueRequest,
    PollActivityTaskQueueResponse,
    PollWorkflowTaskQueueRequest,
    PollWorkflowTaskQueueResponse,
    QueryWorkflowRequest,
    QueryWorkflowResponse,
    RespondActivityTaskCompletedRequest,
    RespondActivityTaskFailedRequest,
    RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskCompletedResponse,
    RespondWorkflowTaskFailedRequest,
    SignalWorkflowExecutionRequest,
    StartWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest,
    UpdateWorkflowExecutionRequest,
    UpdateWorkflowExecutionResponse,
    WorkflowServiceStub,
)

NAMESPACE = "default"


def text(value: str | bytes) -> Payloads:
    data = value if isinstance(value, bytes) else value.encode()
    return Payloads(payloads=[Payload(metadata={"encoding": b"binary/plain"}, data=data)])


def seconds(value: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=value))
    return duration


def types(events: Sequence[HistoryEvent]) -> list[str]:
    return [EventType.Name(e.event_type).removeprefix("EVENT_TYPE_").title().replace("_", "") for e in events]


def ids(events: Sequence[HistoryEvent]) -> list[int]:
    return [e.event_id for e in events]


def attributes(event: HistoryEvent) -> Any:
    return getattr(event, event.WhichOneof("attributes") or "")


COMPLETE = Command(command_type=CommandType.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION)
COMPLETE.complete_workflow_execution_command_attributes.SetInParent()


def schedule_activity(queue: str, **fields: Any) -> Command:
    command = Command(command_type=CommandType.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK)
    command.schedule_activity_task_command_attributes.MergeFrom(
        type(command.schedule_activity_task_command_attributes)(
            activity_id="activity",
            activity_type=ActivityType(name="type"),
            task_queue=TaskQueue(name=queue),
            start_to_close_timeout=seconds(30),
            **fields,
        )
    )
    return command


def accept(message: Message) -> Message:
    """The answer to a request message: the update is accepted."""
    body = Acceptance(
        accepted_request_message_id=message.id,
        accepted_request_sequencing_event_id=message.event_id,
        accepted_request=Request.FromString(message.body.value),
    )
    return _answer(message, "accept", body)


def respond(message: Message, result: str) -> Message:
    request = Request.FromString(message.body.value)
    return _answer(message, "respond", Response(meta=request.meta, outcome=Outcome(success=text(result))))


def reject(message: Message, why: str) -> Message:
    body = Rejection(
        rejected_request_message_id=message.id,
        rejected_request_sequencing_event_id=message.event_id,
        rejected_request=Request.FromString(message.body.value),
    )
    body.failure.message = why
    body.failure.application_failure_info.type = "Rejected"
    return _answer(message, "reject", body)


def _answer(message: Message, kind: str, body: Any) -> Message:
    answer = Message(id=f"{message.protocol_instance_id}/{kind}", protocol_instance_id=message.protocol_instance_id)
    answer.body.Pack(body)
    return answer


def protocol_message(message: Message) -> Command:
    """The place of a message among the commands."""
    command = Command(command_type=CommandType.COMMAND_TYPE_PROTOCOL_MESSAGE)
    command.protocol_message_command_attributes.message_id = message.id
    return command


class Channel:
    """Calls to one server."""

    def __init__(self, address: str) -> None:
        self.channel = grpc.aio.insecure_channel(address)
        self.stub: Any = WorkflowServiceStub(self.channel)

    async def start(self, *, task_timeout: float = 10, **fields: Any) -> Run:
        key = uuid.uuid4().hex
        request = StartWorkflowExecutionRequest(
            namespace=NAMESPACE,
            workflow_id=fields.pop("workflow_id", f"w-{key}"),
            workflow_type=WorkflowType(name="type"),
            task_queue=TaskQueue(name=f"tq-{key}"),
            workflow_task_timeout=seconds(task_timeout),
            request_id=fields.pop("request_id", key),
            **fields,
        )
        response = await self.stub.StartWorkflowExecution(request)
        return Run(self.stub, request.workflow_id, response.run_id, request.task_queue.name)


@dataclass
class Run:
    """A workflow of a task queue of its own, and its worker. sticky: the worker's sticky queue."""

    stub: Any
    workflow_id: str
    run_id: str
    queue: str

    @property
    def execution(self) -> WorkflowExecution:
        return WorkflowExecution(workflow_id=self.workflow_id, run_id=self.run_id)

    @property
    def sticky(self) -> str:
        return f"sticky-{self.queue}"

    async def poll(self, *, sticky: bool = False, timeout: float = 10) -> PollWorkflowTaskQueueResponse:
        """The next workflow task; raises AssertionError when none comes."""
        queue = TaskQueue(name=self.queue)
        if sticky:
            queue = TaskQueue(name=self.sticky, kind=TaskQueueKind.TASK_QUEUE_KIND_STICKY, normal_name=self.queue)
        try:
            task = await self.stub.PollWorkflowTaskQueue(
                PollWorkflowTaskQueueRequest(namespace=NAMESPACE, task_queue=queue, identity="worker"), timeout=timeout
            )
        except grpc.aio.AioRpcError as e:
            assert e.code() == grpc.StatusCode.DEADLINE_EXCEEDED, e
            raise AssertionError("no workflow task came") from None
        assert task.task_token, "no workflow task came"
        return task

    async def show_itself(self) -> None:
        """Polls the sticky queue for a moment: a task goes there only if somebody has lately asked for one."""
        poll = asyncio.create_task(self.poll(sticky=True))
        await asyncio.sleep(0.1)
        poll.cancel()
        await asyncio.wait([poll])
        assert poll.cancelled()

    async def complete(
        self, task: PollWorkflowTaskQueueResponse, *commands: Command, sticky: float = 0, **fields: Any
    ) -> RespondWorkflowTaskCompletedResponse:
        """sticky: schedule-to-start timeout of the sticky queue, seconds; 0: not sticky."""
        request = RespondWorkflowTaskCompletedRequest(
            namespace=NAMESPACE, task_token=task.task_token, commands=commands, identity="worker", **fields
        )
        if sticky:
            request.sticky_attributes.MergeFrom(
                StickyExecutionAttributes(
                    worker_task_queue=TaskQueue(
                        name=self.sticky, kind=TaskQueueKind.TASK_QUEUE_KIND_STICKY, normal_name=self.queue
                    ),
                    schedule_to_start_timeout=seconds(sticky),
                )
            )
        return await self.stub.RespondWorkflowTaskCompleted(request)

    async def fail(self, task: PollWorkflowTaskQueueResponse) -> None:
        await self.stub.RespondWorkflowTaskFailed(
            RespondWorkflowTaskFailedRequest(namespace=NAMESPACE, task_token=task.task_token, identity="worker")
        )

    async def poll_activity(self) -> PollActivityTaskQueueResponse:
        task = await self.stub.PollActivityTaskQueue(
            PollActivityTaskQueueRequest(namespace=NAMESPACE, task_queue=TaskQueue(name=self.queue), identity="worker"),
            timeout=10,
        )
        assert task.task_token, "no activity task came"
        return task

    async def complete_activity(self, task: PollActivityTaskQueueResponse, result: str = "") -> None:
        await self.stub.RespondActivityTaskCompleted(
            RespondActivityTaskCompletedRequest(
                namespace=NAMESPACE, task_token=task.task_token, result=text(result), identity="worker"
            )
        )

    async def fail_activity(self, task: PollActivityTaskQueueResponse, message: str) -> None:
        request = RespondActivityTaskFailedRequest(namespace=NAMESPACE, task_token=task.task_token, identity="worker")
        request.failure.message = message
        request.failure.application_failure_info.type = "Failed"
        await self.stub.RespondActivityTaskFailed(request)

    async def signal(self, name: str, data: str | bytes = b"", request_id: str = "") -> None:
        await self.stub.SignalWorkflowExecution(
            SignalWorkflowExecutionRequest(
                namespace=NAMESPACE,
                workflow_execution=self.execution,
                signal_name=name,
                input=text(data),
                request_id=request_id or uuid.uuid4().hex,
            )
        )

    async def terminate(self) -> None:
        await self.stub.TerminateWorkflowExecution(
            TerminateWorkflowExecutionRequest(namespace=NAMESPACE, workflow_execution=self.execution)
        )

    def query(self) -> asyncio.Task[QueryWorkflowResponse]:
        async def ask() -> QueryWorkflowResponse:
            return await self.stub.QueryWorkflow(
                QueryWorkflowRequest(
                    namespace=NAMESPACE, execution=self.execution, query=WorkflowQuery(query_type="state")
                ),
                timeout=10,
            )

        return asyncio.create_task(ask())

    def update(self, update_id: str, stage: int = 3) -> asyncio.Task[UpdateWorkflowExecutionResponse]:
        """stage: what to wait for; completed."""

        async def ask() -> UpdateWorkflowExecutionResponse:
            request = UpdateWorkflowExecutionRequest(
                namespace=NAMESPACE,
                workflow_execution=self.execution,
                wait_policy=WaitPolicy(lifecycle_stage=stage),  # type: ignore[arg-type]
                request=Request(meta=Meta(update_id=update_id), input=Input(name="update")),
            )
            return await self.stub.UpdateWorkflowExecution(request, timeout=20)

        return asyncio.create_task(ask())

    async def history(self, token: bytes = b"") -> list[HistoryEvent]:
        """All pages, from that of the token on."""
        events: list[HistoryEvent] = []
        request = GetWorkflowExecutionHistoryRequest(
            namespace=NAMESPACE, execution=self.execution, next_page_token=token
        )
        while True:
            page = await self.stub.GetWorkflowExecutionHistory(request)
            events += page.history.events
            if not page.next_page_token:
                return events
            request.next_page_token = page.next_page_token

    async def stored(self) -> list[HistoryEvent]:
        """Only what is stored: read backwards, a history has no events of a task under way."""
        events: list[HistoryEvent] = []
        request = GetWorkflowExecutionHistoryReverseRequest(namespace=NAMESPACE, execution=self.execution)
        while True:
            page = await self.stub.GetWorkflowExecutionHistoryReverse(request)
            events += page.history.events
            if not page.next_page_token:
                return events[::-1]
            request.next_page_token = page.next_page_token
