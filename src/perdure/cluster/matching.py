"""The whole matching service, as one client: each call goes to the owner of its partition. Which partition of a task
queue a task or a poll goes to is chosen here."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Callable
from typing import Any

from temporalio.api.enums.v1 import DescribeTaskQueueMode, TaskQueueKind, TaskQueueType
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.taskqueue.v1 import TaskQueue, TaskQueuePartitionMetadata
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

from perdure import tokens
from perdure.clock import MILLISECOND, Clock
from perdure.cluster.codec import methods
from perdure.cluster.membership import Membership
from perdure.cluster.routing import Router
from perdure.cluster.rpc import MATCHING, Lost, NotReached, Peers, Target
from perdure.config import static
from perdure.config.dynamic import DynamicConfig
from perdure.errors import NotOwned, not_found, unavailable
from perdure.history.api import Poller
from perdure.matching import settings
from perdure.matching.api import QueryOutcome, TaskRef
from perdure.matching.engine import MatchingEngine
from perdure.matching.forwarder import PartitionClient
from perdure.matching.names import parse_partition, partition_name

METHODS = methods(PartitionClient)

WORKFLOW = int(TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW)
ACTIVITY = int(TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY)
NEXUS = int(TaskQueueType.TASK_QUEUE_TYPE_NEXUS)
STICKY = TaskQueueKind.TASK_QUEUE_KIND_STICKY
ENHANCED = DescribeTaskQueueMode.DESCRIBE_TASK_QUEUE_MODE_ENHANCED

_BROADCAST = 2.0  # seconds that other members have to answer
_WORTH_IT = 500 * MILLISECOND  # with less time left a poll does not begin anew

Queue = tuple[str, str, int]  # namespace id, name of the partition, type


def _poll_of(kind: int) -> Callable[[Any], Queue]:
    def queue(args: Any) -> Queue:
        return args[0], args[1].task_queue.name, kind

    return queue


def _named(args: Any) -> Queue:
    return args[0], args[1], args[2]


def _described(args: Any) -> Queue:
    request = args[1]
    # Of all types the root of the workflow type's answers, which asks the others.
    kind = WORKFLOW if request.api_mode == ENHANCED else int(request.task_queue_type) or WORKFLOW
    return args[0], request.task_queue.name, kind


# The partition of a call, for the member that is asked: it checks that it is the owner. The others are not about one.
QUEUES: dict[str, Callable[[Any], Queue]] = {
    "add_workflow_task": lambda args: (args[1].namespace_id, args[0].name, WORKFLOW),
    "add_activity_task": lambda args: (args[1].namespace_id, args[0].name, ACTIVITY),
    "query_workflow": lambda args: (args[1].namespace_id, args[0].name, WORKFLOW),
    "poll_workflow_task_queue": _poll_of(WORKFLOW),
    "poll_activity_task_queue": _poll_of(ACTIVITY),
    "poll_nexus_task_queue": _poll_of(NEXUS),
    "describe_task_queue": _described,
    "force_unload": lambda args: (args[0], args[1], WORKFLOW),
    "offer_task": _named,
    "forward_poll": _named,
    "load_partition": _named,
    "describe_partition": _named,
}


class RoutedMatching:
    """Fulfils PartitionClient. local: None for a member that does not run matching; it is set once it is made."""

    def __init__(
        self,
        membership: Membership,
        peers: Peers,
        clock: Clock,
        config: DynamicConfig,
        namespace_name: Callable[[str], str],
    ) -> None:
        self.membership = membership
        self.local: MatchingEngine | None = None
        self._clock = clock
        self._config = config
        self._namespace_name = namespace_name
        self._router = Router(membership, peers, clock, MATCHING, METHODS)
        self._me = membership.me.id
        self._polls: Counter[Queue] = Counter()  # those that came through here and wait
        self._remote: set[asyncio.Future[Any]] = set()
        self._ending = False

    # --- who owns what

    def owner(self, queue: Queue) -> str | None:
        return self.membership.ring(static.MATCHING).owner(f"{queue[0]}/{queue[1]}/{queue[2]}")

    def owned(self, namespace_id: str, name: str, task_queue_type: int) -> bool:
        """Whether this member is to have the partition."""
        return self.membership.valid and self.owner((namespace_id, name, task_queue_type)) == self._me

    def target(self, name: str) -> Target:
        """Answers a call of another member."""
        queue_of = QUEUES.get(name)

        async def answer(args: list[Any], kwargs: dict[str, Any]) -> Any:
            if self.local is None or (queue_of is not None and not self.owned(*queue_of(args))):
                raise NotOwned(f"what {name} is about")
            return await getattr(self.local, name)(*args, **kwargs)

        return answer

    async def _send(self, name: str, queue: Queue, args: tuple[Any, ...], repeatable: bool = True) -> Any:
        local = getattr(self.local, name) if self.local is not None else None
        return await self._router.send(name, lambda: self.owner(queue), local, args, {}, repeatable)

    # --- tasks

    def _to_write(self, namespace_id: str, task_queue: TaskQueue) -> TaskQueue:
        name = task_queue.name
        if task_queue.kind == STICKY or parse_partition(name)[1]:
            return task_queue
        _, write = settings.partition_counts(self._config, self._namespace_name(namespace_id), name)
        index = random.randrange(write)
        if not index:
            return task_queue
        return TaskQueue(name=partition_name(name, index), kind=task_queue.kind)

    async def add_workflow_task(self, task_queue: TaskQueue, task: TaskRef) -> None:
        partition = self._to_write(task.namespace_id, task_queue)
        await self._send("add_workflow_task", (task.namespace_id, partition.name, WORKFLOW), (partition, task))

    async def add_activity_task(self, task_queue: TaskQueue, task: TaskRef) -> None:
        partition = self._to_write(task.namespace_id, task_queue)
        await self._send("add_activity_task", (task.namespace_id, partition.name, ACTIVITY), (partition, task))

    async def offer_task(
        self, namespace_id: str, name: str, task_queue_type: int, task: TaskRef, deadline: int
    ) -> bool:
        queue = (namespace_id, name, task_queue_type)
        return await self._send("offer_task", queue, (*queue, task, deadline))

    # --- polls

    async def poll_workflow_task_queue(
        self, namespace_id: str, request: PollWorkflowTaskQueueRequest, deadline: int
    ) -> bytes:
        return await self._poll("poll_workflow_task_queue", WORKFLOW, namespace_id, request, deadline)

    async def poll_activity_task_queue(
        self, namespace_id: str, request: PollActivityTaskQueueRequest, deadline: int
    ) -> bytes:
        return await self._poll("poll_activity_task_queue", ACTIVITY, namespace_id, request, deadline)

    async def poll_nexus_task_queue(
        self, namespace_id: str, request: PollNexusTaskQueueRequest, deadline: int
    ) -> bytes:
        return await self._poll("poll_nexus_task_queue", NEXUS, namespace_id, request, deadline)

    async def _poll(self, name: str, kind: int, namespace_id: str, request: Any, deadline: int) -> bytes:
        asked = request.task_queue.name
        while not self._ending:
            queue = (namespace_id, self._to_poll(namespace_id, asked, request.task_queue.kind, kind), kind)
            request.task_queue.name = queue[1]
            owner = self.owner(queue)
            self._polls[queue] += 1
            sending = asyncio.ensure_future(self._send(name, queue, (namespace_id, request, deadline)))
            self._remote.add(sending)
            try:
                response = await sending
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if not self._ending or (task is not None and task.cancelling()):
                    raise
                return b""
            finally:
                self._remote.discard(sending)
                self._polls[queue] -= 1
                if not self._polls[queue]:
                    del self._polls[queue]
            if response or owner == self.owner(queue) or deadline - self._clock.now() < _WORTH_IT:
                return response
            # The partition has gone to another member: the poll follows it.
        return b""

    def _to_poll(self, namespace_id: str, name: str, queue_kind: int, kind: int) -> str:
        """The partition that the fewest polls went to from here."""
        if queue_kind == STICKY or kind == NEXUS:
            return name
        base, index = parse_partition(name)
        if index:
            return name
        read, _ = settings.partition_counts(self._config, self._namespace_name(namespace_id), base)
        if read == 1:
            return name
        names = [partition_name(base, i) for i in range(read)]
        random.shuffle(names)
        return min(names, key=lambda n: self._polls[namespace_id, n, kind])

    async def forward_poll(
        self, namespace_id: str, name: str, task_queue_type: int, poller: Poller, deadline: int, rate: float | None
    ) -> bytes:
        queue = (namespace_id, name, task_queue_type)
        return await self._send("forward_poll", queue, (*queue, poller, deadline, rate))

    def end_polls(self) -> None:
        """Those that came through here answer empty, and later ones too: this member stops."""
        self._ending = True
        for poll in list(self._remote):
            poll.cancel()

    # --- queries

    async def query_workflow(
        self, task_queue: TaskQueue, task: TaskRef, query: WorkflowQuery, deadline: int
    ) -> QueryOutcome:
        if task_queue.kind != STICKY:
            task_queue = TaskQueue(name=parse_partition(task_queue.name)[0], kind=task_queue.kind)
        queue = (task.namespace_id, task_queue.name, WORKFLOW)
        return await self._send("query_workflow", queue, (task_queue, task, query, deadline))

    async def respond_query_task_completed(self, namespace_id: str, request: RespondQueryTaskCompletedRequest) -> None:
        """To the member that waits for the answer: it is in the token."""
        token = tokens.decode(request.task_token, tokens.QueryTaskToken)
        if token.owner == self._me and self.local is not None:
            return await self.local.respond_query_task_completed(namespace_id, request)
        member = self.membership.members.get(token.owner)
        if member is None:
            raise not_found("query task not found, or already expired")
        try:
            await self._router.to(member, "respond_query_task_completed", (namespace_id, request), {})
        except (Lost, NotReached) as e:
            raise unavailable(f"the member that waits for the answer is not reached: {e}") from None

    # --- description

    async def describe_task_queue(
        self, namespace_id: str, request: DescribeTaskQueueRequest
    ) -> DescribeTaskQueueResponse:
        args = (namespace_id, request)
        return await self._send("describe_task_queue", _described(args), args)

    async def describe_partition(self, namespace_id: str, name: str, task_queue_type: int) -> DescribeTaskQueueResponse:
        queue = (namespace_id, name, task_queue_type)
        return await self._send("describe_partition", queue, queue)

    async def list_task_queue_partitions(
        self, namespace_id: str, request: ListTaskQueuePartitionsRequest
    ) -> ListTaskQueuePartitionsResponse:
        base, _ = parse_partition(request.task_queue.name)
        read, write = settings.partition_counts(self._config, self._namespace_name(namespace_id), base)
        response = ListTaskQueuePartitionsResponse()
        for kind, of_kind in (
            (ACTIVITY, response.activity_task_queue_partitions),
            (WORKFLOW, response.workflow_task_queue_partitions),
        ):
            for i in range(max(read, write)):
                name = partition_name(base, i)
                owner = self.membership.members.get(self.owner((namespace_id, name, kind)) or "")
                of_kind.append(
                    TaskQueuePartitionMetadata(key=name, owner_host_name=owner.address if owner is not None else "")
                )
        return response

    # --- partitions, and workers that shut down

    async def load_partition(self, namespace_id: str, name: str, task_queue_type: int) -> None:
        queue = (namespace_id, name, task_queue_type)
        await self._send("load_partition", queue, queue)

    async def cancel_polls(
        self, namespace_id: str, task_queue: str, types: list[int], worker_instance_key: str
    ) -> None:
        args = (namespace_id, task_queue, types, worker_instance_key)
        if self.local is not None:
            await self.local.cancel_polls(*args)
        await self._router.broadcast(static.MATCHING, "cancel_polls", args, _BROADCAST)

    async def force_unload(self, namespace_id: str, sticky_task_queue: str) -> None:
        queue = (namespace_id, sticky_task_queue, WORKFLOW)
        await self._send("force_unload", queue, (namespace_id, sticky_task_queue))
