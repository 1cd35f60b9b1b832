"""Limits of a run, each at a value that a test can reach. Others are tested where the thing is that they limit."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from temporalio.api.command.v1 import Command
from temporalio.api.enums.v1 import CommandType
from temporalio.api.enums.v1 import WorkflowExecutionStatus as Status
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause
from temporalio.api.failure.v1 import Failure
from temporalio.api.workflowservice.v1 import RespondWorkflowTaskCompletedRequest, SignalWorkflowExecutionRequest
from tests.history.live import Live, complete_workflow, live, marker
from tests.history.service import service
from tests.history.support import Run, application_failure, payloads, schedule_activity, start_timer, type_name

from perdure.errors import Code, ServiceError
from perdure.history.core import activities, workflow_tasks
from perdure.history.core.completion import BadCommand


async def signal(w: Live, size: int = 1) -> None:
    request = SignalWorkflowExecutionRequest(signal_name="s", input=payloads("x" * size))
    request.workflow_execution.workflow_id = "workflow"
    await w.history.signal_workflow_execution(w.namespace_id, request)


async def status_of(w: Live) -> int:
    run_id = await w.history.shard(w.namespace_id, "workflow").run_id_of(w.namespace_id, "workflow", "")
    return w.context(run_id).loaded.run.status


def reason_of(events: list[Any]) -> str:
    assert type_name(events[-1]) == "WorkflowExecutionTerminated"
    assert events[-1].workflow_execution_terminated_event_attributes.identity == "history-service"
    return events[-1].workflow_execution_terminated_event_attributes.reason


async def test_a_history_of_too_many_events_ends_the_run() -> None:
    async with live(limit__historyCount__error=8) as w:
        await w.idle()  # 4 events
        await signal(w)  # and a workflow task scheduled
        task = await w.poll()
        with pytest.raises(ServiceError) as caught:
            await w.complete(task, marker())
        assert (caught.value.code, caught.value.message) == (
            Code.INVALID_ARGUMENT,
            "Workflow history count exceeds limit.",
        )
        assert await status_of(w) == Status.WORKFLOW_EXECUTION_STATUS_TERMINATED
        events = await w.events()
        assert reason_of(events) == "Workflow history count exceeds limit."
        # The answer that went too far is not in it, what the server had before is.
        assert [type_name(e) for e in events][4:] == [
            "WorkflowExecutionSignaled",
            "WorkflowTaskScheduled",
            "WorkflowTaskStarted",
            "WorkflowTaskFailed",
            "WorkflowExecutionTerminated",
        ]
        with pytest.raises(ServiceError) as caught:
            await signal(w)
        assert caught.value.code is Code.NOT_FOUND


async def test_a_history_of_too_many_bytes_ends_the_run() -> None:
    async with live(limit__historySize__error=3000) as w:
        await w.idle()
        await signal(w, 3000)
        with pytest.raises(ServiceError) as caught:
            await signal(w)
        assert caught.value.message == "Workflow history size exceeds limit."
        assert reason_of(await w.events()) == "Workflow history size exceeds limit."


async def test_a_run_that_comes_to_its_limit_as_it_ends_ends_as_it_wants() -> None:
    async with live(limit__historyCount__error=3) as w:
        await w.start()
        await w.complete(await w.poll(), complete_workflow())
        assert await status_of(w) == Status.WORKFLOW_EXECUTION_STATUS_COMPLETED


async def test_a_timer_that_fires_into_a_history_at_its_limit_ends_the_run_without_a_complaint(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with service(limit__historyCount__error=5) as w:
        await w.start()
        await w.complete(await w.poll(), start_timer("t", 10))
        await w.advance(12)
        await w.until_last("WorkflowExecutionTerminated")
        await w.quiet()
        assert not w.history.failures or set(w.history.failures) == {"timer:passing"}
    assert not [r for r in caplog.records if r.levelno >= logging.ERROR]


async def test_a_long_history_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    async with live(limit__historyCount__warn=5, limit__historySize__warn=2000) as w:
        await w.idle()
        await signal(w)
        await signal(w)
        await signal(w, 2000)
        await signal(w)
    warnings = [r.getMessage().split(" exceeds")[0] for r in caplog.records if "warn limit" in r.getMessage()]
    assert warnings == ["history count", "history size"]


async def test_too_many_signals_are_refused() -> None:
    async with live(history__maximumSignalsPerExecution=2) as w:
        await w.idle()
        await signal(w)
        await signal(w)
        with pytest.raises(ServiceError) as caught:
            await signal(w)
        assert caught.value.message == "exceeded workflow execution limit for signal events"


async def test_a_worker_that_is_too_slow_for_what_comes_in_loses_its_task() -> None:
    async with live(history__maximumBufferedEventsBatch=3) as w:
        await w.start()
        task = await w.poll()
        for _ in range(4):
            await signal(w)
        assert "WorkflowTaskFailed" in [type_name(e) for e in await w.events()]
        with pytest.raises(ServiceError) as caught:
            await w.history.respond_workflow_task_completed(
                w.namespace_id, RespondWorkflowTaskCompletedRequest(task_token=task.task_token)
            )
        assert caught.value.code is Code.NOT_FOUND
        await w.complete(await w.poll())


async def test_a_workflow_task_that_keeps_failing_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    async with live(history__workflowTaskCriticalAttempt=3) as w:
        await w.start()
        for _ in range(3):
            await w.fail(await w.poll())
    assert [r.getMessage().split(":")[0] for r in caplog.records if r.levelno == logging.WARNING] == [
        "workflow task of Type keeps failing"
    ]


async def test_a_state_of_too_many_bytes_ends_the_run() -> None:
    async with live(limit__mutableStateSize__error=50_000) as w:
        run_id = await w.idle(memo={"fields": {"k": {"data": b"x" * 45_000}}})
        await signal(w)
        await w.complete(await w.poll(), *(schedule_activity(f"a{i}") for i in range(3)))  # small ones do not count
        state = w.context(run_id).loaded
        assert len(state.activities) == 3
        assert 45_000 < state.large_bytes() < 46_000
        await w.restart()
        # As it is read back, so it was written.
        await signal(w)
        assert w.context(run_id).loaded.large_bytes() == state.large_bytes()
        task = await w.poll()
        change = Command(command_type=CommandType.COMMAND_TYPE_MODIFY_WORKFLOW_PROPERTIES)
        change.modify_workflow_properties_command_attributes.upserted_memo.fields["l"].data = b"x" * 6_000
        await w.complete(task, change)
        with pytest.raises(ServiceError) as caught:
            await signal(w)
        assert caught.value.message == "Workflow mutable state size exceeds limit."
        assert reason_of(await w.events()) == "Workflow mutable state size exceeds limit."


# --- of commands ---


@pytest.mark.parametrize(
    ("name", "limit", "cause"),
    [
        ("signal_external_workflow_execution", "numPendingSignals", "PENDING_SIGNALS_LIMIT_EXCEEDED"),
        (
            "request_cancel_external_workflow_execution",
            "numPendingCancelRequests",
            "PENDING_REQUEST_CANCEL_LIMIT_EXCEEDED",
        ),
    ],
)
def test_too_many_that_are_pending_fail_the_workflow_task(name: str, limit: str, cause: str) -> None:
    run = Run({f"limit.{limit}.error": 2})
    commands: list[Command] = []
    for i in range(3):
        c = Command(command_type=CommandType.Value(f"COMMAND_TYPE_{name.upper()}"))
        a = getattr(c, f"{name}_command_attributes")
        (a.execution if name.startswith("signal") else a).workflow_id = f"other-{i}"
        if name.startswith("signal"):
            a.signal_name = "s"
        commands.append(c)
    with pytest.raises(BadCommand) as caught:
        run.answer(*commands)
    assert Cause.Name(caught.value.cause) == f"WORKFLOW_TASK_FAILED_CAUSE_{cause}"
    assert "has reached the per-workflow limit of 2" in caught.value.message
    assert not caught.value.terminate


def test_the_failure_that_an_activity_keeps_is_cut() -> None:
    run = Run({"limit.mutableStateActivityFailureSize.error": 200})
    run.answer(schedule_activity("a"))
    run.start_activity("a")
    run.do(lambda txn: activities.fail(txn, run.activity("a"), application_failure("x" * 1000), "worker"))
    kept = Failure.FromString(run.activity("a").last_failure_proto)
    assert kept.message == "Failure exceeds size limit."
    assert kept.cause.message == "x" * len(kept.cause.message)
    assert 100 < kept.cause.ByteSize() <= 200


def test_search_attributes_that_grow_too_large_end_the_run() -> None:
    run = Run({"frontend.searchAttributesTotalSizeLimit": 100})
    run.env.search_attributes = {"Color": 2, "Shape": 2}

    def upsert(name: str, value: str) -> Command:
        c = Command(command_type=CommandType.COMMAND_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES)
        fields = c.upsert_workflow_search_attributes_command_attributes.search_attributes.indexed_fields
        fields[name].data = f'"{value}"'.encode()
        fields[name].metadata["encoding"] = b"json/plain"
        return c

    run.answer(upsert("Color", "x" * 30))
    run.do(workflow_tasks.ensure_scheduled)
    with pytest.raises(BadCommand) as caught:
        run.answer(upsert("Shape", "x" * 30))
    assert caught.value.terminate
    assert "exceeds size limit 100" in caught.value.message
