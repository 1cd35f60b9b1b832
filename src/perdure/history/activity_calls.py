"""Activities: on their way to workers, answered by them, retried and timed out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from temporalio.api.common.v1 import Payloads, WorkerVersionStamp
from temporalio.api.deployment.v1 import WorkerDeploymentOptions
from temporalio.api.enums.v1 import TaskQueueKind, WorkerVersioningMode
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    PollActivityTaskQueueResponse,
    RecordActivityTaskHeartbeatByIdRequest,
    RecordActivityTaskHeartbeatRequest,
    RecordActivityTaskHeartbeatResponse,
    RespondActivityTaskCanceledByIdRequest,
    RespondActivityTaskCanceledRequest,
    RespondActivityTaskCompletedByIdRequest,
    RespondActivityTaskCompletedRequest,
    RespondActivityTaskFailedByIdRequest,
    RespondActivityTaskFailedRequest,
    RespondActivityTaskFailedResponse,
)

from perdure import errors, tokens
from perdure.clock import SECOND
from perdure.errors import ServiceError
from perdure.history.api import Poller
from perdure.history.calls import open_run
from perdure.history.core import activities
from perdure.history.core.attributes import merged_priority
from perdure.history.core.state import Activity, State
from perdure.history.core.tasks import ActivityRetry, ActivityTimeout, DispatchActivity
from perdure.history.executors import executes
from perdure.history.shard import RunContext, Shard
from perdure.matching.api import TaskRef
from perdure.tokens import ActivityTaskToken

if TYPE_CHECKING:
    from perdure.history.engine import HistoryService

_ById = (
    RecordActivityTaskHeartbeatByIdRequest
    | RespondActivityTaskCompletedByIdRequest
    | RespondActivityTaskFailedByIdRequest
    | RespondActivityTaskCanceledByIdRequest
)


# --- on its way to a worker ---


@executes(DispatchActivity)
async def dispatch(engine: HistoryService, shard: Shard, task: DispatchActivity) -> None:
    await _dispatch(engine, shard, task)


@executes(ActivityRetry)
async def retry(engine: HistoryService, shard: Shard, task: ActivityRetry) -> None:
    """The backoff of the next attempt is over."""
    await _dispatch(engine, shard, task)


async def _dispatch(engine: HistoryService, shard: Shard, task: DispatchActivity | ActivityRetry) -> None:
    key = (task.namespace_id, task.workflow_id, task.run_id)
    context = shard.cached(key)
    state = context.state if context is not None else None
    activity = None if state is None else activities.waiting(state, task.scheduled_event_id, task.stamp)
    if state is None or activity is None:
        # What is in memory may be a step that is not committed yet, and never will be: look again when it is over.
        try:
            async with shard.run(*key) as context:
                state = context.loaded
                activity = activities.waiting(state, task.scheduled_event_id, task.stamp)
        except ServiceError as e:
            if e.code == errors.Code.NOT_FOUND:
                return
            raise
        if activity is None:
            return
    expires = activity.scheduled_time + activity.schedule_to_start if activity.schedule_to_start else 0
    reference = TaskRef(
        *key,
        activity.scheduled_event_id,
        activity.stamp,
        shard.clock.now(),
        expires,
        merged_priority(state.info.priority_proto, activity.priority_proto),
    )
    queue = TaskQueue(name=activity.task_queue, kind=TaskQueueKind.TASK_QUEUE_KIND_NORMAL)
    await engine.matching.add_activity_task(queue, reference)


async def record_started(engine: HistoryService, shard: Shard, task: TaskRef, poller: Poller) -> bytes:
    """Matching hands the task to a worker. See HistoryClient.record_activity_task_started."""
    async with shard.run(task.namespace_id, task.workflow_id, task.run_id) as context:
        state = context.loaded
        if not state.open:
            raise errors.execution_completed()
        activity = state.activities.get(task.scheduled_event_id)
        if activity is None:
            raise _not_found()
        if activity.started_time:
            if activity.request_id != poller.request_id:
                raise ServiceError(errors.Code.ALREADY_EXISTS, "Activity task already started.")
        else:
            if activity.stamp != task.stamp or activity.paused:
                raise errors.not_found(f"Activity task with this stamp not found: {task.stamp}")
            txn = shard.begin(context)
            activities.start(txn, activity, poller.request_id, poller.identity, _version_of(poller))
            await shard.commit(context, txn)
        return await reply(engine, shard, context, task.scheduled_event_id)


def _version_of(poller: Poller) -> WorkerVersionStamp | None:
    if not poller.deployment_options:
        return None
    options = WorkerDeploymentOptions.FromString(poller.deployment_options)
    if not options.build_id:
        return None
    versioned = options.worker_versioning_mode == WorkerVersioningMode.WORKER_VERSIONING_MODE_VERSIONED
    return WorkerVersionStamp(build_id=options.build_id, use_versioning=versioned)


async def reply(engine: HistoryService, shard: Shard, context: RunContext, scheduled_event_id: int) -> bytes:
    """The serialized PollActivityTaskQueueResponse of a started activity."""
    state = context.loaded
    activity = state.activities[scheduled_event_id]
    scheduled_event = state.scheduled_events.get(scheduled_event_id)
    if scheduled_event is None:
        scheduled_event = await shard.event(context, scheduled_event_id)
    scheduled = scheduled_event.activity_task_scheduled_event_attributes
    info = state.info
    token = ActivityTaskToken(
        info.namespace_id,
        info.workflow_id,
        info.run_id,
        scheduled_event_id,
        activity.attempt,
        activity.activity_id,
        activity.activity_type,
        activity.started_time,
        activity.stamp,
    )
    response = PollActivityTaskQueueResponse(
        task_token=tokens.encode(token),
        workflow_namespace=engine.environment(info.namespace_id).namespace,
        activity_type=scheduled.activity_type,
        activity_id=activity.activity_id,
        attempt=activity.attempt,
    )
    response.workflow_type.name = info.workflow_type
    response.workflow_execution.workflow_id = info.workflow_id
    response.workflow_execution.run_id = info.run_id
    if scheduled.HasField("header"):
        response.header.CopyFrom(scheduled.header)
    if scheduled.HasField("input"):
        response.input.CopyFrom(scheduled.input)
    if activity.heartbeat_details_proto:
        response.heartbeat_details.ParseFromString(activity.heartbeat_details_proto)
    if activity.retry_policy_proto:
        response.retry_policy.ParseFromString(activity.retry_policy_proto)
    priority = merged_priority(info.priority_proto, activity.priority_proto)
    if priority:
        response.priority.ParseFromString(priority)
    for field, value in (
        (response.scheduled_time, activity.first_scheduled_time),
        (response.current_attempt_scheduled_time, activity.scheduled_time),
        (response.started_time, activity.started_time),
        (response.schedule_to_close_timeout, activity.schedule_to_close),
        (response.start_to_close_timeout, activity.start_to_close),
        (response.heartbeat_timeout, activity.heartbeat),
    ):
        field.SetInParent()
        field.seconds, field.nanos = divmod(value, SECOND)
    return response.SerializeToString()


# --- which activity is meant ---


def _not_found() -> ServiceError:
    return errors.not_found("invalid activityID or activity already timed out or invoking workflow is completed")


def _token(namespace_id: str, task_token: bytes) -> ActivityTaskToken:
    token = tokens.decode(task_token, ActivityTaskToken)
    if token.namespace_id != namespace_id:
        raise errors.invalid_argument("Task token is of another namespace.")
    return token


def _token_by_id(namespace_id: str, request: _ById) -> ActivityTaskToken:
    return ActivityTaskToken(namespace_id, request.workflow_id, request.run_id, 0, 0, request.activity_id)


def _meant(state: State, token: ActivityTaskToken, *, completes: bool = False) -> Activity:
    """The started attempt that the token is of. completes: by its id even one that no worker has started is meant.
    Raises ServiceError."""
    by_id = token.scheduled_event_id == 0
    scheduled_event_id = token.scheduled_event_id
    if by_id:
        if not token.activity_id:
            raise errors.invalid_argument("activityID cannot be empty")
        scheduled_event_id = state.activity_ids.get(token.activity_id, 0)
        if not scheduled_event_id:
            raise errors.not_found(
                f"cannot find pending activity with ActivityID {token.activity_id}, "
                "check workflow execution history for more details"
            )
    activity = state.activities.get(scheduled_event_id)
    if activity is None or not (activity.started_time or (by_id and completes)):
        raise _not_found()
    if not by_id and (
        token.attempt != activity.attempt or (token.started_time and token.started_time != activity.started_time)
    ):
        raise _not_found()
    return activity


# --- answers ---


async def record_heartbeat(
    engine: HistoryService, namespace_id: str, request: RecordActivityTaskHeartbeatRequest
) -> RecordActivityTaskHeartbeatResponse:
    token = _token(namespace_id, request.task_token)
    details = request.details if request.HasField("details") else None
    return await _heartbeat(engine, token, details, request.identity)


async def record_heartbeat_by_id(
    engine: HistoryService, namespace_id: str, request: RecordActivityTaskHeartbeatByIdRequest
) -> RecordActivityTaskHeartbeatResponse:
    token = _token_by_id(namespace_id, request)
    details = request.details if request.HasField("details") else None
    return await _heartbeat(engine, token, details, request.identity)


async def _heartbeat(
    engine: HistoryService, token: ActivityTaskToken, details: Payloads | None, identity: str
) -> RecordActivityTaskHeartbeatResponse:
    shard = engine.shard(token.namespace_id, token.workflow_id)
    async with open_run(shard, token.namespace_id, token.workflow_id, token.run_id) as context:
        activity = _meant(context.loaded, token)
        txn = shard.begin(context)
        activities.record_heartbeat(txn, activity, details, identity)
        await shard.commit(context, txn)
        return RecordActivityTaskHeartbeatResponse(
            cancel_requested=activity.cancel_requested, activity_paused=activity.paused
        )


async def respond_completed(
    engine: HistoryService, namespace_id: str, request: RespondActivityTaskCompletedRequest
) -> None:
    await _complete(engine, _token(namespace_id, request.task_token), request)


async def respond_completed_by_id(
    engine: HistoryService, namespace_id: str, request: RespondActivityTaskCompletedByIdRequest
) -> None:
    await _complete(engine, _token_by_id(namespace_id, request), request)


async def _complete(
    engine: HistoryService,
    token: ActivityTaskToken,
    request: RespondActivityTaskCompletedRequest | RespondActivityTaskCompletedByIdRequest,
) -> None:
    shard = engine.shard(token.namespace_id, token.workflow_id)
    async with open_run(shard, token.namespace_id, token.workflow_id, token.run_id) as context:
        activity = _meant(context.loaded, token, completes=True)
        txn = shard.begin(context)
        result = request.result if request.HasField("result") else None
        activities.complete(txn, activity, result, request.identity, _version_stamp(request))
        await shard.commit(context, txn)


def _version_stamp(
    request: RespondActivityTaskCompletedRequest
    | RespondActivityTaskCompletedByIdRequest
    | RespondActivityTaskFailedRequest
    | RespondActivityTaskFailedByIdRequest,
) -> WorkerVersionStamp | None:
    if isinstance(request, RespondActivityTaskCompletedRequest | RespondActivityTaskFailedRequest) and request.HasField(
        "worker_version"
    ):
        return request.worker_version
    return None


async def respond_failed(
    engine: HistoryService, namespace_id: str, request: RespondActivityTaskFailedRequest
) -> RespondActivityTaskFailedResponse:
    return await _fail(engine, _token(namespace_id, request.task_token), request)


async def respond_failed_by_id(
    engine: HistoryService, namespace_id: str, request: RespondActivityTaskFailedByIdRequest
) -> RespondActivityTaskFailedResponse:
    return await _fail(engine, _token_by_id(namespace_id, request), request)


async def _fail(
    engine: HistoryService,
    token: ActivityTaskToken,
    request: RespondActivityTaskFailedRequest | RespondActivityTaskFailedByIdRequest,
) -> RespondActivityTaskFailedResponse:
    shard = engine.shard(token.namespace_id, token.workflow_id)
    async with open_run(shard, token.namespace_id, token.workflow_id, token.run_id) as context:
        activity = _meant(context.loaded, token)
        txn = shard.begin(context)
        if request.HasField("last_heartbeat_details"):
            activities.record_heartbeat(txn, activity, request.last_heartbeat_details, request.identity)
        failure = request.failure if request.HasField("failure") else None
        activities.fail(txn, activity, failure, request.identity, _version_stamp(request))
        await shard.commit(context, txn)
    return RespondActivityTaskFailedResponse()


async def respond_canceled(
    engine: HistoryService, namespace_id: str, request: RespondActivityTaskCanceledRequest
) -> None:
    await _cancel(engine, _token(namespace_id, request.task_token), request)


async def respond_canceled_by_id(
    engine: HistoryService, namespace_id: str, request: RespondActivityTaskCanceledByIdRequest
) -> None:
    await _cancel(engine, _token_by_id(namespace_id, request), request)


async def _cancel(
    engine: HistoryService,
    token: ActivityTaskToken,
    request: RespondActivityTaskCanceledRequest | RespondActivityTaskCanceledByIdRequest,
) -> None:
    shard = engine.shard(token.namespace_id, token.workflow_id)
    async with open_run(shard, token.namespace_id, token.workflow_id, token.run_id) as context:
        activity = _meant(context.loaded, token)
        if not activity.cancel_requested:
            raise errors.invalid_argument(
                "unable to mark activity as canceled without activity being request canceled first"
            )
        txn = shard.begin(context)
        details = request.details if request.HasField("details") else None
        activities.cancel(txn, activity, details, request.identity)
        await shard.commit(context, txn)


# --- time ---


@executes(ActivityTimeout)
async def time_out(engine: HistoryService, shard: Shard, task: ActivityTimeout) -> None:
    del engine
    try:
        async with shard.run(task.namespace_id, task.workflow_id, task.run_id) as context:
            txn = shard.begin(context)
            activities.time_out(txn, task)
            await shard.commit(context, txn)
    except ServiceError as e:
        if e.code != errors.Code.NOT_FOUND:
            raise
