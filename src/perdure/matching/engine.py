"""Matching of one process: finds the partition of a task queue that a call is for, and keeps what spans partitions
(direct queries that wait for their answer, workers that shut down)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import random
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
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
from perdure.clock import MINUTE, SECOND, Clock, TimerHandle
from perdure.config.dynamic import (
    MATCHING_LONG_POLL_EXPIRATION,
    DynamicConfig,
)
from perdure.errors import (
    ServiceError,
    deadline_exceeded,
    failed_precondition,
    invalid_argument,
    not_found,
    unavailable,
)
from perdure.history.api import HistoryClient, Poller
from perdure.matching import describe, settings
from perdure.matching.api import NoPoller, QueryOutcome, TaskRef
from perdure.matching.forwarder import Forwarder, LocalForwarder, PartitionClient, RemoteForwarder, parent_of
from perdure.matching.names import parse_partition, partition_name
from perdure.matching.partition import Counters, Env, Partition
from perdure.persistence.api import TaskQueueKey, TaskQueueStore

log = logging.getLogger(__name__)

WORKFLOW = int(TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW)
ACTIVITY = int(TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY)
NEXUS = int(TaskQueueType.TASK_QUEUE_TYPE_NEXUS)
STICKY = TaskQueueKind.TASK_QUEUE_KIND_STICKY

_SHUT_DOWN_MEMORY = MINUTE  # how long polls of a worker that shut down are refused
_SHUT_DOWN_WORKERS = 10_000
# So long before its deadline a query that met no poller is told why.
_NO_POLLER_BUDGET = SECOND


class MatchingEngine:
    """Implements `MatchingClient`, and `PartitionClient`.

    namespace_name: of a namespace id, for settings that a namespace has of its own. physical_partitions: how many
    partitions every task queue has; None: as dynamic configuration says. host: this process, as callers see it.
    instance: unique, and in the tokens of queries. others: the partitions of all members, of which this process has
    some; None: it has all. With others, callers choose the partition, and the name of a task queue means its root."""

    def __init__(
        self,
        store: TaskQueueStore,
        history: HistoryClient,
        clock: Clock,
        config: DynamicConfig,
        namespace_name: Callable[[str], str],
        *,
        physical_partitions: int | None = None,
        host: str = "",
        instance: str = "",
        others: PartitionClient | None = None,
    ) -> None:
        self._clock = clock
        self._config = config
        self._namespace_name = namespace_name
        self._physical_partitions = physical_partitions
        self.host = host
        self._others = others
        self.counters = Counters()
        self._env = Env(store, history, clock, config, self._spawn, instance or os.urandom(8).hex(), self.counters)
        self._partitions: dict[tuple[str, str, int], Partition] = {}
        self._running: set[asyncio.Task[Any]] = set()
        self._queries: dict[str, asyncio.Future[bytes]] = {}
        self._shut_down: dict[str, int] = {}  # worker instance key -> when that is forgotten
        self._sweep_timer: TimerHandle | None = None
        self._stopped = False

    # --- life

    async def start(self) -> None:
        self._sweep_later()

    async def stop(self) -> None:
        """All polls answer empty at once; the state of the backlogs is written."""
        self._stopped = True
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        for answer in self._queries.values():
            if not answer.done():
                answer.set_exception(unavailable("matching is shutting down"))
        partitions = list(self._partitions.values())
        self._partitions.clear()
        for partition in partitions:
            partition.stop()
        # What history is about to record is let finish: the response may still reach its worker.
        if self._running:
            _, late = await asyncio.wait(self._running, timeout=5)
            for task in late:
                task.cancel()
        await asyncio.gather(*(p.close() for p in partitions))

    def _spawn(self, coro: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(coro)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            error = task.exception()
            # A service error was given to whoever waited for the task.
            if error is not None and not isinstance(error, ServiceError):
                self.counters.errors += 1
                log.error("unexpected error in matching", exc_info=error)

    def _sweep_later(self) -> None:
        if not self._stopped:
            self._sweep_timer = self._clock.call_at(self._clock.now() + MINUTE, self._sweep)

    def _sweep(self) -> None:
        """Unloads task queues that nobody uses."""
        now = self._clock.now()
        earliest = now - self._config.get(settings.MAX_TASK_QUEUE_IDLE_TIME)
        history_ttl = self._config.get(settings.POLLER_HISTORY_TTL)
        families: dict[tuple[str, str, int], list[Partition]] = {}
        for partition in self._partitions.values():
            key = partition.key
            families.setdefault((key.namespace_id, partition.base_name, key.type), []).append(partition)
            partition.pollers.forget_before(now - history_ttl)
        for family in families.values():
            # A child's backlog is drained through the root: they go together.
            if all(p.idle_since(earliest) for p in family):
                for partition in family:
                    del self._partitions[partition.key]
                    self._spawn(partition.close())
        self._shut_down = {k: until for k, until in self._shut_down.items() if until > now}
        self._sweep_later()

    # --- partitions

    def _counts(self, namespace: str, task_queue: str) -> tuple[int, int]:
        """How many partitions are read, and written."""
        if self._physical_partitions is not None:
            return self._physical_partitions, self._physical_partitions
        return settings.partition_counts(self._config, namespace, task_queue)

    def _sticky(self, namespace_id: str, name: str) -> Partition:
        key = TaskQueueKey(namespace_id, name, WORKFLOW)
        partition = self._partitions.get(key)
        if partition is None:
            partition = Partition(self._env, key, self._namespace_name(namespace_id), name, sticky=True)
            self._partitions[key] = partition
        return partition

    def _nexus(self, namespace_id: str, name: str) -> Partition:
        """Nexus tasks are requests that somebody waits for: there is no backlog of them."""
        base, _ = parse_partition(name)
        key = TaskQueueKey(namespace_id, base, NEXUS)
        partition = self._partitions.get(key)
        if partition is None:
            partition = Partition(self._env, key, self._namespace_name(namespace_id), base, sticky=True)
            self._partitions[key] = partition
        return partition

    def _partition(self, namespace_id: str, base: str, index: int, task_queue_type: int) -> Partition:
        """Of a normal task queue. The first use of the root loads all of them: a backlog of a child is drained through
        it. So does that of a child, when all are here."""
        partition = self._partitions.get((namespace_id, partition_name(base, index), task_queue_type))
        if partition is not None:
            return partition
        if self._stopped:
            raise unavailable("matching is shutting down")
        namespace = self._namespace_name(namespace_id)
        read, _ = self._counts(namespace, base)
        for i in range(max(read, index + 1)) if self._others is None else (index,):
            key = TaskQueueKey(namespace_id, partition_name(base, i), task_queue_type)
            if key in self._partitions:
                continue
            forwarder: Forwarder | None = None
            if i:
                parent = parent_of(i, self._config.get(settings.FORWARDER_MAX_CHILDREN, namespace, base))
                if self._others is None:
                    forwarder = LocalForwarder(
                        lambda parent=parent: self._partition(namespace_id, base, parent, task_queue_type)
                    )
                else:
                    name = partition_name(base, parent)
                    forwarder = RemoteForwarder(self._others, namespace_id, name, task_queue_type)
            self._partitions[key] = new = Partition(
                self._env, key, namespace, base, sticky=False, forwarder=forwarder, read_partitions=read
            )
            new.load_soon()
        if self._others is not None and not index:
            for i in range(1, read):
                self._spawn(self._load_elsewhere(self._others, namespace_id, partition_name(base, i), task_queue_type))
        return self._partitions[namespace_id, partition_name(base, index), task_queue_type]

    @staticmethod
    async def _load_elsewhere(others: PartitionClient, namespace_id: str, name: str, task_queue_type: int) -> None:
        try:
            await others.load_partition(namespace_id, name, task_queue_type)
        except ServiceError as e:
            log.warning("partition %s is loaded when it is next used: %s", name, e)

    def unload(self, keep: Callable[[str, str, int], bool]) -> None:
        """Gives up all partitions but these (namespace id, name, type): their polls answer empty, what is being handed
        out may finish."""
        for key, partition in list(self._partitions.items()):
            if not keep(*key):
                del self._partitions[key]
                if self._others is not None and partition.sticky and partition.key.type == WORKFLOW:
                    partition.pass_on = partial(self._pass_on, self._others, partition.key.name, partition.normal_name)
                partition.stop()
                self._spawn(partition.close())

    def _pass_on(self, others: PartitionClient, name: str, normal: str, task: TaskRef) -> None:
        """A task that waited for a sticky task queue's worker: the queue's next owner may know it, else any worker may
        have the task."""

        async def add() -> None:
            sticky = TaskQueue(name=name, kind=STICKY, normal_name=normal)
            try:
                await others.add_workflow_task(sticky, task)
            except NoPoller:
                if normal:
                    await others.add_workflow_task(TaskQueue(name=normal), task)

        self._spawn(add())

    def _all_partitions(self, namespace_id: str, base: str, task_queue_type: int) -> list[Partition]:
        self._partition(namespace_id, base, 0, task_queue_type)
        read, _ = self._counts(self._namespace_name(namespace_id), base)
        return [self._partition(namespace_id, base, i, task_queue_type) for i in range(read)]

    def _to_write(self, namespace_id: str, name: str, task_queue_type: int) -> Partition:
        if self._physical_partitions == 1:
            partition = self._partitions.get((namespace_id, name, task_queue_type))
            if partition is not None:
                return partition
        base, index = parse_partition(name)
        if not index and self._others is None:
            _, write = self._counts(self._namespace_name(namespace_id), base)
            index = random.randrange(write) if write > 1 else 0
        return self._partition(namespace_id, base, index, task_queue_type)

    def _to_poll(self, namespace_id: str, name: str, task_queue_type: int) -> Partition:
        """The partition with the fewest polls (the root's include those that its children forwarded)."""
        if self._physical_partitions == 1:
            partition = self._partitions.get((namespace_id, name, task_queue_type))
            if partition is not None:
                return partition
        base, index = parse_partition(name)
        if index or self._others is not None:
            return self._partition(namespace_id, base, index, task_queue_type)
        partitions = self._all_partitions(namespace_id, base, task_queue_type)
        if len(partitions) == 1:
            return partitions[0]
        random.shuffle(partitions)
        return min(partitions, key=lambda p: p.open_polls)

    def _live_sticky(self, namespace_id: str, name: str) -> Partition:
        """Raises NoPoller."""
        partition = self._partitions.get((namespace_id, name, WORKFLOW))
        if partition is None or not partition.polled_since(self._clock.now() - settings.STICKY_POLLER_WINDOW):
            raise NoPoller
        return partition

    # --- tasks

    async def add_workflow_task(self, task_queue: TaskQueue, task: TaskRef) -> None:
        if task_queue.kind == STICKY:
            await self._live_sticky(task.namespace_id, task_queue.name).add(task)
        else:
            await self._to_write(task.namespace_id, task_queue.name, WORKFLOW).add(task)

    async def add_activity_task(self, task_queue: TaskQueue, task: TaskRef) -> None:
        await self._to_write(task.namespace_id, task_queue.name, ACTIVITY).add(task)

    async def poll_workflow_task_queue(
        self, namespace_id: str, request: PollWorkflowTaskQueueRequest, deadline: int
    ) -> bytes:
        if self._stopped or self._is_shut_down(request.worker_instance_key):
            return b""
        task_queue = request.task_queue
        name = task_queue.name
        if task_queue.kind == STICKY:
            partition = self._sticky(namespace_id, name)
            normal, sticky = task_queue.normal_name or name, name
        else:
            partition = self._to_poll(namespace_id, name, WORKFLOW)
            normal, sticky = partition.base_name, ""
        poller = _poller(request, normal, sticky)
        poller.binary_checksum = request.binary_checksum
        return await partition.poll(poller, self._bounded(deadline, partition), None)

    async def poll_activity_task_queue(
        self, namespace_id: str, request: PollActivityTaskQueueRequest, deadline: int
    ) -> bytes:
        if self._stopped or self._is_shut_down(request.worker_instance_key):
            return b""
        partition = self._to_poll(namespace_id, request.task_queue.name, ACTIVITY)
        metadata = request.task_queue_metadata
        rate = metadata.max_tasks_per_second.value if metadata.HasField("max_tasks_per_second") else None
        poller = _poller(request, partition.base_name, "")
        return await partition.poll(poller, self._bounded(deadline, partition), rate)

    async def poll_nexus_task_queue(
        self, namespace_id: str, request: PollNexusTaskQueueRequest, deadline: int
    ) -> bytes:
        if self._stopped or self._is_shut_down(request.worker_instance_key):
            return b""
        partition = self._nexus(namespace_id, request.task_queue.name)
        poller = _poller(request, partition.base_name, "")
        return await partition.poll(poller, self._bounded(deadline, partition), None)

    def _bounded(self, deadline: int, partition: Partition) -> int:
        longest = self._config.get(MATCHING_LONG_POLL_EXPIRATION, partition.namespace, partition.base_name)
        return min(deadline, self._clock.now() + longest)

    def _is_shut_down(self, worker_instance_key: str) -> bool:
        return bool(self._shut_down) and self._shut_down.get(worker_instance_key, 0) > self._clock.now()

    # --- direct queries

    async def query_workflow(
        self, task_queue: TaskQueue, task: TaskRef, query: WorkflowQuery, deadline: int
    ) -> QueryOutcome:
        if self._stopped:
            raise unavailable("matching is shutting down")
        namespace_id = task.namespace_id
        if task_queue.kind == STICKY:
            partition = self._live_sticky(namespace_id, task_queue.name)
        else:
            # A child's polls wait at the root too, so the root is where a task that is not kept finds one soonest.
            partition = self._partition(namespace_id, parse_partition(task_queue.name)[0], 0, WORKFLOW)
        query_id = os.urandom(12).hex()
        token = tokens.encode(tokens.QueryTaskToken(namespace_id, partition.base_name, query_id, self._env.instance))
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

        def no_poller() -> None:
            window = self._config.get(settings.QUERY_POLLER_UNAVAILABLE_WINDOW)
            if not answer.done() and not partition.polled_since(self._clock.now() - window):
                answer.set_exception(failed_precondition("no poller seen for task queue recently, worker may be down"))

        def expired() -> None:
            if not answer.done():
                answer.set_exception(deadline_exceeded("context deadline exceeded"))

        timers = [
            self._clock.call_at(deadline - _NO_POLLER_BUDGET, no_poller),
            self._clock.call_at(deadline, expired),
        ]
        self._queries[query_id] = answer
        take_back = partition.query(task, query, token, answer)
        try:
            return QueryOutcome(await answer)
        finally:
            del self._queries[query_id]
            take_back()
            for timer in timers:
                timer.cancel()

    async def respond_query_task_completed(self, namespace_id: str, request: RespondQueryTaskCompletedRequest) -> None:
        token = tokens.decode(request.task_token, tokens.QueryTaskToken)
        if token.namespace_id != namespace_id:
            raise invalid_argument("Operation requested with a token from a different namespace.")
        answer = self._queries.get(token.query_id)
        if answer is None or answer.done():
            raise not_found("query task not found, or already expired")
        answer.set_result(request.SerializeToString())

    # --- description

    async def describe_task_queue(
        self, namespace_id: str, request: DescribeTaskQueueRequest
    ) -> DescribeTaskQueueResponse:
        name = request.task_queue.name
        if request.api_mode == DescribeTaskQueueMode.DESCRIBE_TASK_QUEUE_MODE_ENHANCED:
            base, index = parse_partition(name)
            if index or request.task_queue.kind == STICKY:
                raise invalid_argument(
                    "DescribeTaskQueue must be called on the root partition of workflow task queue if api mode is "
                    "DESCRIBE_TASK_QUEUE_MODE_ENHANCED"
                )
            by_type: dict[int, Sequence[DescribeTaskQueueResponse]] = {
                t: await self._describe_all(namespace_id, base, t)
                for t in (request.task_queue_types or (WORKFLOW, ACTIVITY))
                if t in (WORKFLOW, ACTIVITY)
            }
            return describe.enhanced_mode(request, by_type)
        if request.task_queue.kind == STICKY:
            return describe.default_mode(request, [self._describe(self._sticky(namespace_id, name))])
        task_queue_type = int(request.task_queue_type) or WORKFLOW
        base, index = parse_partition(name)
        if index and request.report_stats:
            raise invalid_argument("DescribeTaskQueue stats are only supported for the root partition")
        if index:
            parts = [await self.describe_partition(namespace_id, name, task_queue_type)]
        else:
            parts = await self._describe_all(namespace_id, base, task_queue_type)
        return describe.default_mode(request, parts)

    async def _describe_all(
        self, namespace_id: str, base: str, task_queue_type: int
    ) -> list[DescribeTaskQueueResponse]:
        client = self if self._others is None else self._others
        read, _ = self._counts(self._namespace_name(namespace_id), base)
        return [
            await client.describe_partition(namespace_id, partition_name(base, i), task_queue_type) for i in range(read)
        ]

    def _describe(self, partition: Partition) -> DescribeTaskQueueResponse:
        return describe.of_partition(partition, self._clock.now(), self._pollers_since())

    def _pollers_since(self) -> int:
        return self._clock.now() - self._config.get(settings.POLLER_HISTORY_TTL)

    async def list_task_queue_partitions(
        self, namespace_id: str, request: ListTaskQueuePartitionsRequest
    ) -> ListTaskQueuePartitionsResponse:
        base, _ = parse_partition(request.task_queue.name)
        read, write = self._counts(self._namespace_name(namespace_id), base)
        partitions = [
            TaskQueuePartitionMetadata(key=partition_name(base, i), owner_host_name=self.host)
            for i in range(max(read, write))
        ]
        return ListTaskQueuePartitionsResponse(
            activity_task_queue_partitions=partitions, workflow_task_queue_partitions=partitions
        )

    # --- for other members

    async def offer_task(
        self, namespace_id: str, name: str, task_queue_type: int, task: TaskRef, deadline: int
    ) -> bool:
        return await self._named(namespace_id, name, task_queue_type).offer(task, deadline)

    async def forward_poll(
        self, namespace_id: str, name: str, task_queue_type: int, poller: Poller, deadline: int, rate: float | None
    ) -> bytes:
        return await self._named(namespace_id, name, task_queue_type).poll(poller, deadline, rate)

    async def load_partition(self, namespace_id: str, name: str, task_queue_type: int) -> None:
        self._named(namespace_id, name, task_queue_type)

    async def describe_partition(self, namespace_id: str, name: str, task_queue_type: int) -> DescribeTaskQueueResponse:
        partition = self._named(namespace_id, name, task_queue_type)
        if partition.backlog is not None:
            await partition.backlog.load()
        return self._describe(partition)

    def _named(self, namespace_id: str, name: str, task_queue_type: int) -> Partition:
        return self._partition(namespace_id, *parse_partition(name), task_queue_type)

    # --- workers that shut down

    async def cancel_polls(
        self, namespace_id: str, task_queue: str, types: list[int], worker_instance_key: str
    ) -> None:
        if not worker_instance_key:
            return
        if len(self._shut_down) >= _SHUT_DOWN_WORKERS:
            del self._shut_down[next(iter(self._shut_down))]
        self._shut_down[worker_instance_key] = self._clock.now() + _SHUT_DOWN_MEMORY
        for partition in list(self._partitions.values()):
            key = partition.key
            if key.namespace_id != namespace_id:
                continue
            if partition.sticky or (partition.base_name == task_queue and key.type in types):
                partition.cancel_polls(worker_instance_key)

    async def force_unload(self, namespace_id: str, sticky_task_queue: str) -> None:
        partition = self._partitions.get((namespace_id, sticky_task_queue, WORKFLOW))
        if partition is not None and partition.sticky:
            del self._partitions[partition.key]
            with contextlib.suppress(ServiceError):
                await partition.close()


def _poller(
    request: PollWorkflowTaskQueueRequest | PollActivityTaskQueueRequest | PollNexusTaskQueueRequest,
    normal: str,
    sticky: str,
) -> Poller:
    version = deployment = b""
    if request.HasField("worker_version_capabilities"):
        version = request.worker_version_capabilities.SerializeToString()
    if request.HasField("deployment_options"):
        deployment = request.deployment_options.SerializeToString()
    return Poller(
        identity=request.identity,
        request_id="",
        task_queue=normal,
        sticky_queue=sticky,
        worker_version=version,
        deployment_options=deployment,
        worker_instance_key=request.worker_instance_key,
    )
