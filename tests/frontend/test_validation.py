"""What a start, an update and so on must be like, with Temporal's words."""

from __future__ import annotations

import math
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from temporalio.api.common.v1 import Link, Memo, Payload, Payloads, RetryPolicy, SearchAttributes, WorkflowType
from temporalio.api.enums.v1 import (
    TaskQueueKind,
    UpdateWorkflowExecutionLifecycleStage,
    WorkflowIdConflictPolicy,
    WorkflowIdReusePolicy,
)
from temporalio.api.errordetails.v1 import MultiOperationExecutionFailure
from temporalio.api.failure.v1 import MultiOperationExecutionAborted
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.update.v1 import Input, Meta, Request
from temporalio.api.workflow.v1 import OnConflictOptions
from temporalio.api.workflowservice.v1 import (
    ExecuteMultiOperationRequest,
    PollWorkflowTaskQueueRequest,
    RespondActivityTaskCompletedRequest,
    SignalWorkflowExecutionRequest,
    StartWorkflowExecutionRequest,
    UpdateWorkflowExecutionRequest,
)

from perdure import tokens
from perdure.config.dynamic import DynamicConfig
from perdure.errors import Code, ServiceError
from perdure.frontend import failures
from perdure.frontend.queries_updates import prepare_update
from perdure.frontend.workflows import prepare_start
from perdure.namespaces import Namespace

from .support import details, running

NAMESPACE = Namespace(id="1", name="default", search_attributes={"Color": 2})
REUSE, CONFLICT = WorkflowIdReusePolicy, WorkflowIdConflictPolicy


def start(**fields: Any) -> StartWorkflowExecutionRequest:
    request = StartWorkflowExecutionRequest(
        namespace="default", workflow_id="w", workflow_type=WorkflowType(name="t"), task_queue=TaskQueue(name="q")
    )
    request.MergeFrom(StartWorkflowExecutionRequest(**fields))
    return request


def prepared(request: StartWorkflowExecutionRequest) -> StartWorkflowExecutionRequest:
    prepare_start(request, NAMESPACE, DynamicConfig(), 0)
    return request


def test_defaults_are_filled_in():
    request = prepared(start(retry_policy=RetryPolicy(initial_interval=Duration(seconds=2))))
    assert request.task_queue.kind == TaskQueueKind.TASK_QUEUE_KIND_NORMAL
    assert request.workflow_id_reuse_policy == REUSE.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE
    assert request.workflow_id_conflict_policy == CONFLICT.WORKFLOW_ID_CONFLICT_POLICY_FAIL
    assert len(request.request_id) == 36
    assert request.retry_policy.backoff_coefficient == 2
    assert request.retry_policy.maximum_interval.seconds == 200


def test_a_retry_policy_of_one_attempt_may_say_anything_else():
    request = prepared(
        start(retry_policy=RetryPolicy(maximum_attempts=1, initial_interval=Duration(seconds=-(2**63), nanos=-1)))
    )
    assert request.retry_policy.maximum_interval == Duration()


def test_the_deprecated_reuse_policy_becomes_a_conflict_policy():
    request = prepared(start(workflow_id_reuse_policy=REUSE.WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING))
    assert request.workflow_id_conflict_policy == CONFLICT.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING
    assert request.workflow_id_reuse_policy == REUSE.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE


def test_a_long_timeout_is_cut():
    request = prepared(start(workflow_run_timeout=Duration(seconds=2**62)))
    assert request.workflow_run_timeout.seconds == 100 * 365 * 86400


def test_search_attributes_get_their_types():
    colour = Payload(metadata={"encoding": b"json/plain"}, data=b'"red"')
    request = prepared(start(search_attributes=SearchAttributes(indexed_fields={"Color": colour})))
    assert request.search_attributes.indexed_fields["Color"].metadata["type"] == b"Keyword"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"workflow_id": "é" * 501}, "WorkflowId exceeds maximum allowed length (1002/1000)"),
        ({"workflow_id": "a\0b"}, "WorkflowId must not contain the character U+0000."),
        ({"workflow_type": WorkflowType(name="x" * 1001)}, "WorkflowType length exceeds limit."),
        ({"request_id": "x" * 1001}, "RequestId length exceeds limit."),
        ({"task_queue": TaskQueue(name="/_sys/q")}, "task queue name cannot start with reserved prefix /_sys/"),
        ({"task_queue": TaskQueue(name="x" * 1001)}, "taskQueue length exceeds limit"),
        ({"task_queue": TaskQueue(name="a\0")}, "taskQueue must not contain the character U+0000."),
        (
            {"task_queue": TaskQueue(name="temporal-sys-per-ns-tq")},
            "cannot use internal per-namespace task queue:temporal-sys-per-ns-tq",
        ),
        (
            {"workflow_run_timeout": Duration(seconds=-1)},
            "An invalid WorkflowRunTimeoutSeconds is set on request. cause: negative duration",
        ),
        (
            {"workflow_task_timeout": Duration(seconds=1, nanos=-1)},
            "An invalid WorkflowTaskTimeoutSeconds is set on request. cause: seconds and nanoseconds have different "
            "signs",
        ),
        (
            {"workflow_start_delay": Duration(nanos=2**31 - 1)},
            "An invalid WorkflowStartDelaySeconds is set on request. cause: nanoseconds out of range",
        ),
        (
            {"cron_schedule": "* * * * *", "workflow_start_delay": Duration(seconds=1)},
            "CronSchedule and WorkflowStartDelay may not be used together.",
        ),
        ({"cron_schedule": "every day"}, "invalid CronSchedule."),
        ({"cron_schedule": f"@every {'9' * 400}h"}, "invalid CronSchedule."),
        (
            {"cron_schedule": "0 0 30 2 *"},
            "invalid CronSchedule, no time can be found to satisfy the schedule",
        ),
        (
            {"cron_schedule": "@every 999999999h"},
            "invalid CronSchedule, no time can be found to satisfy the schedule",
        ),
        (
            {"retry_policy": RetryPolicy(backoff_coefficient=0.5)},
            "BackoffCoefficient cannot be less than 1 on retry policy.",
        ),
        (
            {"retry_policy": RetryPolicy(backoff_coefficient=math.nan)},
            "BackoffCoefficient cannot be less than 1 on retry policy.",
        ),
        (
            {"retry_policy": RetryPolicy(initial_interval=Duration(seconds=5), maximum_interval=Duration(seconds=1))},
            "MaximumInterval cannot be less than InitialInterval on retry policy.",
        ),
        ({"retry_policy": RetryPolicy(maximum_attempts=-1)}, "MaximumAttempts cannot be negative on retry policy."),
        (
            {"retry_policy": RetryPolicy(non_retryable_error_types=["TemporalTimeout:Never"])},
            "Invalid timeout type value: Never.",
        ),
        (
            {
                "workflow_id_reuse_policy": REUSE.WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING,
                "workflow_id_conflict_policy": CONFLICT.WORKFLOW_ID_CONFLICT_POLICY_FAIL,
            },
            "Invalid WorkflowIDReusePolicy: WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING cannot be used together "
            "with a WorkflowIDConflictPolicy",
        ),
        (
            {
                "workflow_id_reuse_policy": REUSE.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE,
                "workflow_id_conflict_policy": CONFLICT.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING,
            },
            "Invalid WorkflowIDReusePolicy: WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE cannot be used together with "
            "WorkflowIdConflictPolicy WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING",
        ),
        (
            {"on_conflict_options": OnConflictOptions(attach_completion_callbacks=True)},
            "attaching request ID is required for attaching completion callbacks",
        ),
        ({"input": Payloads(payloads=[Payload(data=bytes(2**21))])}, "Blob data size exceeds limit."),
        ({"memo": Memo(fields={"k": Payload(data=bytes(2**21))})}, "Memo size exceeds limit."),
        ({"links": [Link()]}, "unsupported link variant"),
        (
            {"links": [Link(batch_job=Link.BatchJob(job_id="x"))] * 11},
            "cannot attach more than 10 links per request, got 11",
        ),
        ({"links": [Link(batch_job=Link.BatchJob())]}, "batch job link must not have an empty job ID"),
    ],
)
def test_what_a_start_must_not_be(fields: dict[str, Any], message: str):
    with pytest.raises(ServiceError) as caught:
        prepared(start(**fields))
    assert caught.value.code is Code.INVALID_ARGUMENT
    assert caught.value.message == message


@pytest.mark.parametrize("value", [b"[" * 1500, b'"a\\u0000b"', b"1", b'["a", "b"', b"\xff"])
def test_a_search_attribute_fits_its_type(value: bytes):
    payload = Payload(metadata={"encoding": b"json/plain"}, data=value)
    with pytest.raises(ServiceError, match="invalid value for search attribute Color of type Keyword"):
        prepared(start(search_attributes=SearchAttributes(indexed_fields={"Color": payload})))


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("workflow_id", "WorkflowId is not set on request."),
        ("workflow_type", "WorkflowType is not set on request."),
        ("task_queue", "taskQueue is not set"),
    ],
)
def test_what_a_start_must_have(field: str, message: str):
    request = start()
    request.ClearField(field)  # type: ignore[arg-type]
    with pytest.raises(ServiceError, match=message):
        prepared(request)


def update(**fields: Any) -> UpdateWorkflowExecutionRequest:
    request = UpdateWorkflowExecutionRequest(request=Request(meta=Meta(update_id="u"), input=Input(name="n")))
    request.workflow_execution.workflow_id = "w"
    request.MergeFrom(UpdateWorkflowExecutionRequest(**fields))
    return request


def test_an_update_waits_for_its_end_unless_told_otherwise():
    request = update()
    request.request.meta.update_id = ""
    prepare_update(request, NAMESPACE, DynamicConfig())
    stages = UpdateWorkflowExecutionLifecycleStage
    assert request.wait_policy.lifecycle_stage == stages.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_COMPLETED
    assert request.request.meta.update_id


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (UpdateWorkflowExecutionRequest(), "Execution is not set on request."),
        (update(workflow_execution={"run_id": "x"}), "Invalid RunId."),
        (update(request=Request(input=Input(name="\0"))), "Update name must not contain the character U+0000."),
        (update(request=Request(meta=Meta(update_id="x" * 1001))), "UpdateId length exceeds limit."),
    ],
)
def test_what_an_update_must_not_be(request_: UpdateWorkflowExecutionRequest, message: str):
    with pytest.raises(ServiceError) as caught:
        prepare_update(request_, NAMESPACE, DynamicConfig())
    assert caught.value.message == message


async def test_update_with_start_tells_which_operation_is_wrong():
    operation = ExecuteMultiOperationRequest.Operation
    async with running() as r:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await r.workflows.ExecuteMultiOperation(
                ExecuteMultiOperationRequest(
                    namespace="default",
                    operations=[
                        operation(start_workflow=start()),
                        operation(update_workflow=update(workflow_execution={"workflow_id": "other"})),
                    ],
                )
            )
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        first, second = details(caught.value, MultiOperationExecutionFailure).statuses
        assert first.code == grpc.StatusCode.ABORTED.value[0]
        assert first.details[0].Is(MultiOperationExecutionAborted.DESCRIPTOR)
        assert second.message == "WorkflowId is not consistent with previous operation(s)."


async def test_a_worker_poll_needs_a_deadline_and_time():
    async with running() as r:
        poll = PollWorkflowTaskQueueRequest(namespace="default", task_queue=TaskQueue(name="q"))
        for timeout, code in ((None, grpc.StatusCode.INVALID_ARGUMENT), (0.9, grpc.StatusCode.FAILED_PRECONDITION)):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await r.workflows.PollWorkflowTaskQueue(poll, timeout=timeout)
            assert caught.value.code() is code


@pytest.mark.parametrize("token", [b"", b"\xff", b"\x90", tokens.encode(tokens.QueryTaskToken("n", "q", "i"))])
async def test_a_token_that_is_none_is_refused(token: bytes):
    async with running() as r:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await r.workflows.RespondActivityTaskCompleted(RespondActivityTaskCompletedRequest(task_token=token))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_token_belongs_to_its_namespace():
    async with running() as r:
        system = r.frontend.namespaces.by_name("temporal-system").id
        token = tokens.encode(tokens.ActivityTaskToken(system, "w", "", 5, 1))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await r.workflows.RespondActivityTaskCompleted(
                RespondActivityTaskCompletedRequest(task_token=token, namespace="default")
            )
        assert caught.value.details() == "Operation requested with a token from a different namespace."


async def test_a_signal_needs_a_name():
    async with running() as r:
        request = SignalWorkflowExecutionRequest(namespace="default", workflow_execution={"workflow_id": "w"})  # type: ignore[arg-type]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await r.workflows.SignalWorkflowExecution(request)
        assert caught.value.details() == "SignalName is not set on request."


def test_a_large_failure_keeps_its_kind_and_the_start_of_its_message():
    failure = failures.server_failure("é" * 10_000)
    failure.ClearField("server_failure_info")
    failure.application_failure_info.type = "Broken"
    failure.cause.message = "inner"
    short = failures.truncated(failure, 1000)
    assert short.ByteSize() < 1000
    assert short.message == "é" * 125
    assert short.application_failure_info.type == "Broken"
