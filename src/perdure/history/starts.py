"""Starting runs: the id policies, deduplication by request id, signal-with-start."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio.api.workflowservice.v1 import StartWorkflowExecutionRequest, StartWorkflowExecutionResponse

from perdure import errors
from perdure.clock import SECOND, from_duration
from perdure.config import dynamic
from perdure.history.core import lifecycle
from perdure.history.core.lifecycle import StartParams
from perdure.history.core.state import RUNNING
from perdure.history.core.txn import Environment
from perdure.history.shard import summary_of

if TYPE_CHECKING:
    from perdure.history.engine import HistoryService


def start_params(
    namespace_id: str, request: StartWorkflowExecutionRequest, run_id: str, env: Environment
) -> StartParams:
    timeout = from_duration(request.workflow_task_timeout)
    if not timeout:
        timeout = env.config.get(dynamic.DEFAULT_WORKFLOW_TASK_TIMEOUT, env.namespace)
    return StartParams(
        namespace_id=namespace_id,
        workflow_id=request.workflow_id,
        run_id=run_id,
        request_id=request.request_id,
        workflow_type=request.workflow_type.name,
        task_queue=request.task_queue.name,
        identity=request.identity,
        input=request.input if request.HasField("input") else None,
        header=request.header if request.HasField("header") else None,
        memo=request.memo if request.HasField("memo") else None,
        search_attributes=request.search_attributes if request.HasField("search_attributes") else None,
        execution_timeout=from_duration(request.workflow_execution_timeout),
        run_timeout=from_duration(request.workflow_run_timeout),
        task_timeout=min(timeout, 120 * SECOND),
        retry_policy=request.retry_policy if request.HasField("retry_policy") else None,
        cron_schedule=request.cron_schedule,
        first_backoff=from_duration(request.workflow_start_delay),
        user_metadata=request.user_metadata if request.HasField("user_metadata") else None,
        links=request.links,
        completion_callbacks=request.completion_callbacks,
        priority=request.priority if request.HasField("priority") else None,
    )


async def start(
    engine: HistoryService, namespace_id: str, request: StartWorkflowExecutionRequest
) -> StartWorkflowExecutionResponse:
    shard = engine.shard(namespace_id, request.workflow_id)
    env = engine.environment(namespace_id)
    async with shard.starting(namespace_id, request.workflow_id):
        current = await shard.current(namespace_id, request.workflow_id)
        if current is not None and current.status == RUNNING:
            summary = summary_of(current)
            if summary.start_request_id == request.request_id:
                return StartWorkflowExecutionResponse(run_id=current.run_id, started=True)
            raise errors.already_started(
                f"Workflow execution is already running. WorkflowId: {request.workflow_id}, RunId: {current.run_id}.",
                summary.start_request_id,
                current.run_id,
                summary.first_run_id,
            )
        params = start_params(namespace_id, request, engine.new_id(), env)
        txn = lifecycle.begin(params, shard.clock.now(), env)
        await shard.commit(shard.context_for(txn), txn, expected_current=current.run_id if current is not None else "")
        return StartWorkflowExecutionResponse(run_id=params.run_id, started=True, status=RUNNING)
