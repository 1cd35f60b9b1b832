"""Task queues and their workers; polls for Nexus tasks."""

from __future__ import annotations

from temporalio.api.enums.v1 import DescribeTaskQueueMode, TaskQueueKind, TaskQueueType
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueRequest,
    DescribeTaskQueueResponse,
    ListTaskQueuePartitionsRequest,
    ListTaskQueuePartitionsResponse,
    PollNexusTaskQueueRequest,
    ShutdownWorkerRequest,
    ShutdownWorkerResponse,
)

from perdure.config.dynamic import CANCEL_POLLS_ON_SHUTDOWN, MATCHING_LONG_POLL_EXPIRATION, MAX_ID_LENGTH
from perdure.errors import invalid_argument, unimplemented
from perdure.frontend import validation
from perdure.frontend.rpc import CallContext, Frontend, Handler
from perdure.frontend.workflow_tasks import check_poll

_WORKFLOW = TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW
_ACTIVITY = TaskQueueType.TASK_QUEUE_TYPE_ACTIVITY
_NEXUS = TaskQueueType.TASK_QUEUE_TYPE_NEXUS


async def describe_task_queue(
    frontend: Frontend, request: DescribeTaskQueueRequest, context: CallContext
) -> DescribeTaskQueueResponse:
    namespace = frontend.namespace(request.namespace)
    validation.check_enum(request.api_mode, DescribeTaskQueueMode, "DescribeTaskQueueMode")
    validation.check_enum(request.task_queue_type, TaskQueueType, "TaskQueueType")
    for kind in request.task_queue_types:
        validation.check_enum(kind, TaskQueueType, "TaskQueueType")
    enhanced = request.api_mode == DescribeTaskQueueMode.DESCRIBE_TASK_QUEUE_MODE_ENHANCED
    validation.check_task_queue(
        request.task_queue, request.HasField("task_queue"), frontend.config, partition_allowed=not enhanced
    )
    if enhanced and request.task_queue.kind == TaskQueueKind.TASK_QUEUE_KIND_STICKY:
        raise invalid_argument(
            "Enhanced DescribeTaskQueue is not valid for a sticky queue, use api_mode=UNSPECIFIED or a normal queue."
        )
    if request.report_task_reachability:
        raise unimplemented("ReportTaskReachability")
    if enhanced or request.task_queue_type == TaskQueueType.TASK_QUEUE_TYPE_UNSPECIFIED:
        request.task_queue_type = _WORKFLOW
    if not request.task_queue_types:
        request.task_queue_types.extend((_WORKFLOW, _ACTIVITY))
    return await frontend.matching.describe_task_queue(namespace.id, request)


async def list_task_queue_partitions(
    frontend: Frontend, request: ListTaskQueuePartitionsRequest, context: CallContext
) -> ListTaskQueuePartitionsResponse:
    namespace = frontend.namespace(request.namespace)
    validation.check_task_queue(request.task_queue, request.HasField("task_queue"), frontend.config)
    return await frontend.matching.list_task_queue_partitions(namespace.id, request)


async def poll_nexus_task_queue(frontend: Frontend, request: PollNexusTaskQueueRequest, context: CallContext) -> bytes:
    """Nothing makes Nexus tasks yet, but workers with Nexus handlers poll for them beside all else that they do."""
    config = frontend.config
    namespace = frontend.namespace(request.namespace)
    check_poll(request, config)
    at_most = config.get(MATCHING_LONG_POLL_EXPIRATION, namespace.name, request.task_queue.name)
    deadline = frontend.poll_deadline(context, at_most)
    if deadline is None:
        return b""
    return await frontend.matching.poll_nexus_task_queue(namespace.id, request, deadline)


async def shutdown_worker(
    frontend: Frontend, request: ShutdownWorkerRequest, context: CallContext
) -> ShutdownWorkerResponse:
    config = frontend.config
    namespace = frontend.namespace(request.namespace)
    limit = config.get(MAX_ID_LENGTH)
    validation.check_id(request.sticky_task_queue, limit, "StickyTaskQueue")
    validation.check_id(request.task_queue, limit, "TaskQueue")
    validation.check_id(request.worker_instance_key, limit, "WorkerInstanceKey")
    validation.check_id(request.identity, limit, "Identity")
    for kind in request.task_queue_types:
        validation.check_enum(kind, TaskQueueType, "TaskQueueType")
    if request.worker_instance_key and request.task_queue and config.get(CANCEL_POLLS_ON_SHUTDOWN, namespace.name):
        types = [int(t) for t in request.task_queue_types if t] or [int(_WORKFLOW), int(_ACTIVITY), int(_NEXUS)]
        await frontend.matching.cancel_polls(namespace.id, request.task_queue, types, request.worker_instance_key)
    if request.sticky_task_queue:
        await frontend.matching.force_unload(namespace.id, request.sticky_task_queue)
    return ShutdownWorkerResponse()


RPCS: dict[str, Handler] = {
    "DescribeTaskQueue": describe_task_queue,
    "ListTaskQueuePartitions": list_task_queue_partitions,
    "PollNexusTaskQueue": poll_nexus_task_queue,
    "ShutdownWorker": shutdown_worker,
}
