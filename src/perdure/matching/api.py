"""What the other services ask of matching. Arguments and results are structs, protobufs or plain values, so that the
same protocol works by direct call and across processes."""

from __future__ import annotations

from typing import Protocol

import msgspec
from temporalio.api.common.v1 import Priority
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueRequest,
    DescribeTaskQueueResponse,
    ListTaskQueuePartitionsRequest,
    ListTaskQueuePartitionsResponse,
    PollActivityTaskQueueRequest,
    PollNexusTaskQueueRequest,
    PollWorkflowTaskQueueRequest,
    RespondQueryTaskCompletedRequest,
)


class TaskRef(msgspec.Struct, array_like=True):
    """A workflow or activity task on its way to a worker. It names the task; what the worker gets is made by history
    when the task is handed out.

    stamp: tells an activity's retries and re-schedulings apart; history refuses a stale one. 0 of a workflow task.
    created: nanoseconds. expires: nanoseconds, 0 never: a task past it is dropped (its timeout is history's affair).
    priority: a serialized temporal.api.common.v1.Priority, b"" for none."""

    namespace_id: str
    workflow_id: str
    run_id: str
    scheduled_event_id: int
    stamp: int
    created: int
    expires: int = 0
    priority: bytes = b""


class QueryOutcome(msgspec.Struct, array_like=True):
    """A worker's answer to a direct query: the serialized RespondQueryTaskCompletedRequest."""

    response: bytes


class NoPoller(Exception):
    """No worker has polled this (sticky) task queue lately: the caller should use the normal one."""


class MatchingClient(Protocol):
    async def add_workflow_task(self, task_queue: TaskQueue, task: TaskRef) -> None:
        """Matched with a waiting poller at once, or durable in the backlog when it returns. Raises NoPoller for a
        sticky task queue that no worker polled in the last 10 s; ServiceError RESOURCE_EXHAUSTED or UNAVAILABLE: try
        again later."""
        ...

    async def add_activity_task(self, task_queue: TaskQueue, task: TaskRef) -> None: ...

    async def query_workflow(
        self, task_queue: TaskQueue, task: TaskRef, query: WorkflowQuery, deadline: int
    ) -> QueryOutcome:
        """Hands a direct query to a poller and waits for its answer. deadline: nanoseconds. Raises NoPoller;
        ServiceError DEADLINE_EXCEEDED when no worker took or answered it in time."""
        ...

    async def respond_query_task_completed(self, namespace_id: str, request: RespondQueryTaskCompletedRequest) -> None:
        """Raises ServiceError NOT_FOUND when nobody waits for this answer any more."""
        ...

    async def poll_workflow_task_queue(
        self, namespace_id: str, request: PollWorkflowTaskQueueRequest, deadline: int
    ) -> bytes:
        """A serialized PollWorkflowTaskQueueResponse; b"" (the empty response) when none came until `deadline`
        (nanoseconds). Cancelling the call gives a task that is not yet started to another poller."""
        ...

    async def poll_activity_task_queue(
        self, namespace_id: str, request: PollActivityTaskQueueRequest, deadline: int
    ) -> bytes: ...

    async def poll_nexus_task_queue(
        self, namespace_id: str, request: PollNexusTaskQueueRequest, deadline: int
    ) -> bytes:
        """As the other polls; nothing makes Nexus tasks yet, so it answers empty."""
        ...

    async def describe_task_queue(
        self, namespace_id: str, request: DescribeTaskQueueRequest
    ) -> DescribeTaskQueueResponse: ...

    async def list_task_queue_partitions(
        self, namespace_id: str, request: ListTaskQueuePartitionsRequest
    ) -> ListTaskQueuePartitionsResponse: ...

    async def cancel_polls(
        self,
        namespace_id: str,
        task_queue: str,
        types: list[int],
        worker_instance_key: str,
    ) -> None:
        """ShutdownWorker: the outstanding polls of that worker answer empty at once, and later ones of it too."""
        ...

    async def force_unload(self, namespace_id: str, sticky_task_queue: str) -> None:
        """ShutdownWorker: the sticky task queue has no worker any more; NoPoller from now on, until it is polled."""
        ...


def priority_of(task: TaskRef) -> Priority:
    return Priority.FromString(task.priority)
