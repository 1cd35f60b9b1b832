"""The history service: owns shards, and answers `HistoryClient` by handing each call to the room that knows it."""

from __future__ import annotations

import asyncio
import logging
import os
import time
import uuid
from collections import Counter
from collections.abc import Callable

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    DescribeWorkflowExecutionResponse,
    ExecuteMultiOperationRequest,
    ExecuteMultiOperationResponse,
    GetWorkflowExecutionHistoryRequest,
    PollWorkflowExecutionUpdateRequest,
    PollWorkflowExecutionUpdateResponse,
    QueryWorkflowRequest,
    QueryWorkflowResponse,
    RecordActivityTaskHeartbeatByIdRequest,
    RecordActivityTaskHeartbeatRequest,
    RecordActivityTaskHeartbeatResponse,
    RequestCancelWorkflowExecutionRequest,
    RespondActivityTaskCanceledByIdRequest,
    RespondActivityTaskCanceledRequest,
    RespondActivityTaskCompletedByIdRequest,
    RespondActivityTaskCompletedRequest,
    RespondActivityTaskFailedByIdRequest,
    RespondActivityTaskFailedRequest,
    RespondActivityTaskFailedResponse,
    RespondWorkflowTaskCompletedRequest,
    RespondWorkflowTaskFailedRequest,
    SignalWithStartWorkflowExecutionRequest,
    SignalWithStartWorkflowExecutionResponse,
    SignalWorkflowExecutionRequest,
    SignalWorkflowExecutionResponse,
    StartWorkflowExecutionRequest,
    StartWorkflowExecutionResponse,
    TerminateWorkflowExecutionRequest,
    UpdateWorkflowExecutionRequest,
    UpdateWorkflowExecutionResponse,
)

from perdure.clock import SECOND, Clock
from perdure.cluster.shardmap import shard_of
from perdure.config.dynamic import DynamicConfig
from perdure.errors import NotOwned, ServiceError
from perdure.history import (
    activity_calls,
    child_calls,
    executors,
    external_calls,
    query_calls,
    reads,
    removal,
    run_timeouts,
    signal_calls,
    starts,
    timer_calls,
    update_calls,
    visibility_tasks,
    workflow_task_calls,
)
from perdure.history.api import ChildOutcome, HistoryClient, ParentLink, Poller
from perdure.history.core.tasks import Task
from perdure.history.core.txn import Environment
from perdure.history.ownership import Shards
from perdure.history.queries import Queries
from perdure.history.shard import RunContext, Services, Shard
from perdure.matching.api import MatchingClient, TaskRef
from perdure.namespaces import Namespace, NamespaceRegistry
from perdure.persistence.api import Store, StoreError
from perdure.visibility.api import VisibilityStore

log = logging.getLogger("perdure.history")

_TASK_ROOMS = (
    child_calls,
    external_calls,
    removal,
    run_timeouts,
    timer_calls,
    visibility_tasks,
    workflow_task_calls,
)  # imported for the tasks that they register


def new_uuid() -> str:
    """Version 7: ids made later sort later, which keeps the indexes that they are in compact."""
    milliseconds = time.time_ns() // 1_000_000
    return str(uuid.UUID(int=milliseconds << 80 | 7 << 76 | 2 << 62 | _RANDOM_MASK & int.from_bytes(os.urandom(10))))


_RANDOM_MASK = ((1 << 12) - 1) << 64 | (1 << 62) - 1


class HistoryService:
    """One process's part of the history service.

    shards: those that it has, all unless told otherwise before it starts. others: the whole service, for what
    executions ask of each other."""

    matching: MatchingClient

    def __init__(
        self,
        store: Store,
        visibility: VisibilityStore,
        clock: Clock,
        config: DynamicConfig,
        namespaces: NamespaceRegistry,
        shards: int = 4,
        owner: str = "",
        new_id: Callable[[], str] = new_uuid,
    ) -> None:
        self.store = store
        self.visibility = visibility
        self.clock = clock
        self.config = config
        self.namespaces = namespaces
        self.new_id = new_id
        self.queries = Queries(config)
        self.failures: Counter[str] = Counter()
        self._environments: dict[str, tuple[Namespace, Environment]] = {}
        self.owner = owner or new_id()
        self.others: HistoryClient = self
        self.shards = Shards(shards, self._make_shard, clock)
        self._owned = self.shards.owned
        self._services = Services(
            store,
            clock,
            new_id,
            self.environment,
            self._execute,
            self._execute,
            self._execute,
            self.shards.lost,
            self.failures,
        )
        self._maintenance: asyncio.Task[None] | None = None

    def set_matching(self, matching: MatchingClient) -> None:
        self.matching = matching

    def _make_shard(self, shard_id: int) -> Shard:
        return Shard(shard_id, self.owner, self._services)

    async def start(self) -> None:
        """Acquires all shards and takes up what was left undone. Matching must be set."""
        await self.shards.take_all()
        self.start_maintenance()

    def start_maintenance(self) -> None:
        """Instead of `start`, for a process that is given its shards later."""
        self._maintenance = asyncio.create_task(self._maintain())

    async def stop(self, grace: float = 1.0) -> None:
        if self._maintenance is not None:
            self._maintenance.cancel()
            await asyncio.gather(self._maintenance, return_exceptions=True)
        await self.shards.stop(grace)

    async def _maintain(self) -> None:
        while True:
            await self.clock.sleep(SECOND)
            self.shards.reconcile()
            for shard in self.shards.live():
                try:
                    await shard.maintain()
                except StoreError as e:
                    log.warning("maintenance of shard %d is tried again: %s", shard.shard_id, e)
                except Exception:
                    log.exception("maintenance of shard %d failed; tried again", shard.shard_id)

    def shard(self, namespace_id: str, workflow_id: str) -> Shard:
        """Raises NotOwned."""
        shard_id = shard_of(namespace_id, workflow_id, len(self._owned))
        shard = self._owned[shard_id - 1]
        if shard is None:
            raise NotOwned(f"shard {shard_id}")
        return shard

    def environment(self, namespace_id: str) -> Environment:
        """Of a namespace, for the core. Raises ServiceError NOT_FOUND."""
        namespace = self.namespaces.by_id(namespace_id)
        known = self._environments.get(namespace_id)
        if known is not None and known[0] is namespace:
            return known[1]
        env = Environment(
            namespace.name,
            self.config,
            self.new_id,
            self._namespace_id,
            namespace.retention,
            namespace.search_attributes,
        )
        self._environments[namespace_id] = (namespace, env)
        return env

    def _namespace_id(self, name: str) -> str | None:
        try:
            return self.namespaces.by_name(name).id
        except ServiceError:
            return None

    async def _execute(self, shard: Shard, task: Task) -> None:
        await executors.execute(self, shard, task)

    # --- lifecycle

    async def start_workflow_execution(
        self, namespace_id: str, request: StartWorkflowExecutionRequest
    ) -> StartWorkflowExecutionResponse:
        return await starts.start(self, namespace_id, request)

    async def signal_with_start_workflow_execution(
        self, namespace_id: str, request: SignalWithStartWorkflowExecutionRequest
    ) -> SignalWithStartWorkflowExecutionResponse:
        return await starts.signal_with_start(self, namespace_id, request)

    async def start_child_workflow(
        self, namespace_id: str, request: StartWorkflowExecutionRequest, parent: ParentLink
    ) -> str:
        return await starts.start_child(self, namespace_id, request, parent)

    async def schedule_first_workflow_task(self, namespace_id: str, execution: WorkflowExecution) -> None:
        await starts.schedule_first_workflow_task(self, namespace_id, execution.workflow_id, execution.run_id)

    async def record_child_closed(self, namespace_id: str, parent: WorkflowExecution, outcome: ChildOutcome) -> None:
        await child_calls.record_closed(self, namespace_id, parent, outcome)

    async def signal_workflow_execution(
        self,
        namespace_id: str,
        request: SignalWorkflowExecutionRequest,
        *,
        child_only_of: WorkflowExecution | None = None,
        external_initiated: WorkflowExecution | None = None,
    ) -> SignalWorkflowExecutionResponse:
        return await signal_calls.signal(self, namespace_id, request, child_only_of, external_initiated)

    async def request_cancel_workflow_execution(
        self,
        namespace_id: str,
        request: RequestCancelWorkflowExecutionRequest,
        *,
        child_only_of: WorkflowExecution | None = None,
        external_initiated: WorkflowExecution | None = None,
        external_initiated_event_id: int = 0,
    ) -> None:
        await signal_calls.request_cancel(
            self, namespace_id, request, child_only_of, external_initiated, external_initiated_event_id
        )

    async def terminate_workflow_execution(
        self,
        namespace_id: str,
        request: TerminateWorkflowExecutionRequest,
        *,
        child_only_of: WorkflowExecution | None = None,
    ) -> None:
        await signal_calls.terminate(self, namespace_id, request, child_only_of)

    async def delete_workflow_execution(self, namespace_id: str, execution: WorkflowExecution) -> None:
        await removal.delete(self, namespace_id, execution)

    # --- reads

    async def describe_workflow_execution(
        self, namespace_id: str, request: DescribeWorkflowExecutionRequest
    ) -> DescribeWorkflowExecutionResponse:
        from perdure.history import describe

        return await describe.describe(self, namespace_id, request)

    async def get_workflow_execution_history(
        self, namespace_id: str, request: GetWorkflowExecutionHistoryRequest, deadline: int
    ) -> bytes:
        return await reads.history(self, namespace_id, request, deadline)

    async def get_workflow_execution_history_reverse(
        self, namespace_id: str, execution: WorkflowExecution, page_size: int, token: bytes
    ) -> bytes:
        return await reads.history_reverse(self, namespace_id, execution, page_size, token)

    # --- queries and updates

    async def query_workflow(
        self, namespace_id: str, request: QueryWorkflowRequest, deadline: int
    ) -> QueryWorkflowResponse:
        return await query_calls.query_workflow(self, namespace_id, request, deadline)

    async def update_workflow_execution(
        self, namespace_id: str, request: UpdateWorkflowExecutionRequest, deadline: int
    ) -> UpdateWorkflowExecutionResponse:
        return await update_calls.update_workflow(self, namespace_id, request, deadline)

    async def poll_workflow_execution_update(
        self, namespace_id: str, request: PollWorkflowExecutionUpdateRequest, deadline: int
    ) -> PollWorkflowExecutionUpdateResponse:
        return await update_calls.poll_update(self, namespace_id, request, deadline)

    async def execute_multi_operation(
        self, namespace_id: str, request: ExecuteMultiOperationRequest, deadline: int
    ) -> ExecuteMultiOperationResponse:
        return await update_calls.execute_multi_operation(self, namespace_id, request, deadline)

    # --- workflow tasks

    async def make_query_task(self, task: TaskRef, poller: Poller, query: WorkflowQuery, query_token: bytes) -> bytes:
        shard = self.shard(task.namespace_id, task.workflow_id)
        return await query_calls.make_query_task(shard, task, poller, query, query_token)

    async def record_workflow_task_started(self, task: TaskRef, poller: Poller) -> bytes:
        shard = self.shard(task.namespace_id, task.workflow_id)
        return await workflow_task_calls.record_started(self, shard, task, poller)

    async def respond_workflow_task_completed(
        self, namespace_id: str, request: RespondWorkflowTaskCompletedRequest
    ) -> bytes:
        return await workflow_task_calls.respond_completed(self, namespace_id, request)

    async def respond_workflow_task_failed(self, namespace_id: str, request: RespondWorkflowTaskFailedRequest) -> None:
        await workflow_task_calls.respond_failed(self, namespace_id, request)

    async def reset_sticky_task_queue(self, namespace_id: str, execution: WorkflowExecution) -> None:
        await workflow_task_calls.reset_sticky(self, namespace_id, execution.workflow_id, execution.run_id)

    # --- activities

    async def activity_reply(self, shard: Shard, context: RunContext, scheduled_event_id: int) -> bytes:
        """The serialized PollActivityTaskQueueResponse of a started activity."""
        return await activity_calls.reply(self, shard, context, scheduled_event_id)

    async def record_activity_task_started(self, task: TaskRef, poller: Poller) -> bytes:
        shard = self.shard(task.namespace_id, task.workflow_id)
        return await activity_calls.record_started(self, shard, task, poller)

    async def record_activity_task_heartbeat(
        self, namespace_id: str, request: RecordActivityTaskHeartbeatRequest
    ) -> RecordActivityTaskHeartbeatResponse:
        return await activity_calls.record_heartbeat(self, namespace_id, request)

    async def record_activity_task_heartbeat_by_id(
        self, namespace_id: str, request: RecordActivityTaskHeartbeatByIdRequest
    ) -> RecordActivityTaskHeartbeatResponse:
        return await activity_calls.record_heartbeat_by_id(self, namespace_id, request)

    async def respond_activity_task_completed(
        self, namespace_id: str, request: RespondActivityTaskCompletedRequest
    ) -> None:
        await activity_calls.respond_completed(self, namespace_id, request)

    async def respond_activity_task_completed_by_id(
        self, namespace_id: str, request: RespondActivityTaskCompletedByIdRequest
    ) -> None:
        await activity_calls.respond_completed_by_id(self, namespace_id, request)

    async def respond_activity_task_failed(
        self, namespace_id: str, request: RespondActivityTaskFailedRequest
    ) -> RespondActivityTaskFailedResponse:
        return await activity_calls.respond_failed(self, namespace_id, request)

    async def respond_activity_task_failed_by_id(
        self, namespace_id: str, request: RespondActivityTaskFailedByIdRequest
    ) -> RespondActivityTaskFailedResponse:
        return await activity_calls.respond_failed_by_id(self, namespace_id, request)

    async def respond_activity_task_canceled(
        self, namespace_id: str, request: RespondActivityTaskCanceledRequest
    ) -> None:
        await activity_calls.respond_canceled(self, namespace_id, request)

    async def respond_activity_task_canceled_by_id(
        self, namespace_id: str, request: RespondActivityTaskCanceledByIdRequest
    ) -> None:
        await activity_calls.respond_canceled_by_id(self, namespace_id, request)
