"""What SDKs depend on without saying so, call by call."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from temporalio.api.common.v1 import MeteringMetadata, RetryPolicy, WorkerVersionStamp, WorkflowExecution, WorkflowType
from temporalio.api.deployment.v1 import WorkerDeploymentOptions, WorkerDeploymentVersion
from temporalio.api.enums.v1 import (
    VersioningBehavior,
    WorkerVersioningMode,
    WorkflowIdConflictPolicy,
    WorkflowTaskFailedCause,
)
from temporalio.api.query.v1 import WorkflowQueryResult
from temporalio.api.sdk.v1 import WorkflowTaskCompletedMetadata
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    PollWorkflowTaskQueueResponse,
    RecordActivityTaskHeartbeatRequest,
    RequestCancelWorkflowExecutionRequest,
    RespondQueryTaskCompletedRequest,
    SignalWithStartWorkflowExecutionRequest,
)
from tests import databases

from durability.wire import (
    COMPLETE,
    NAMESPACE,
    Channel,
    Run,
    accept,
    attributes,
    ids,
    protocol_message,
    reject,
    respond,
    schedule_activity,
    seconds,
    text,
    types,
)
from sdk.server import Server
from sdk.world import check_well_formed


@pytest.fixture(scope="module", params=databases.EACH_BACKEND)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    # With SQLite in memory, as developers start it.
    running = Server(folder, db="" if request.param == "sqlite" else databases.url(request.param, folder))
    running.start()
    yield running
    running.close()


@pytest.fixture(params=databases.EACH_BACKEND)
def durable(request: pytest.FixtureRequest, tmp_path: Path) -> Server:
    """One that the test starts, kills and closes."""
    return Server(tmp_path, db=databases.url(request.param, tmp_path))


@pytest.fixture
async def channel(server: Server) -> AsyncIterator[Channel]:
    channel = Channel(server.address)
    async with channel.channel:
        yield channel


async def idle(run: Run, sticky: float = 0) -> PollWorkflowTaskQueueResponse:
    """Does the first workflow task; the workflow waits."""
    if sticky:
        await run.show_itself()
    task = await run.poll()
    await run.complete(task, sticky=sticky)
    return task


def exactly(task: PollWorkflowTaskQueueResponse, first: int = 1) -> None:
    """The task's events are those from `first` on, and end with its WorkflowTaskStarted."""
    events = task.history.events
    assert ids(events) == list(range(first, task.started_event_id + 1))
    assert types(events)[-1] == "WorkflowTaskStarted"


# --- histories of workflow tasks ---


async def test_a_sticky_poll_has_only_what_is_new(channel: Channel) -> None:
    run = await channel.start()
    await run.show_itself()
    first = await run.poll()
    exactly(first)
    assert first.previous_started_event_id == 0
    await run.complete(first, sticky=10)
    await run.signal("a")
    second = await run.poll(sticky=True)
    assert second.previous_started_event_id == first.started_event_id
    exactly(second, first.started_event_id + 1)
    assert types(second.history.events) == [
        "WorkflowTaskCompleted",
        "WorkflowExecutionSignaled",
        "WorkflowTaskScheduled",
        "WorkflowTaskStarted",
    ]
    # A worker that lost it asks on the normal queue again, and says that it is not sticky any more.
    await run.complete(second)
    await run.signal("b")
    third = await run.poll()
    exactly(third)
    assert third.previous_started_event_id == second.started_event_id


async def test_a_sticky_task_that_nobody_takes_goes_to_any_worker(channel: Channel) -> None:
    run = await channel.start()
    await idle(run, sticky=0.5)
    await run.signal("a")
    task = await run.poll()
    exactly(task)
    await run.complete(task, COMPLETE)
    check_well_formed(await run.stored())


@pytest.mark.parametrize("how", ["fails", "times out"])
async def test_a_task_that_went_wrong_goes_to_any_worker(channel: Channel, how: str) -> None:
    run = await channel.start(task_timeout=1)
    await idle(run, sticky=10)
    await run.signal("a")
    task = await run.poll(sticky=True)
    if how == "fails":
        await run.fail(task)
    task = await run.poll()
    assert task.attempt == 1  # the worker's cache may have been at fault, which does not count
    exactly(task)
    await run.complete(task, COMPLETE)
    check_well_formed(await run.stored())


LARGE = b"x" * 400_000


@pytest.mark.parametrize("meanwhile", ["nothing", "completes", "fails", "times out", "is terminated", "continues"])
async def test_pages_of_a_task_end_with_its_start(channel: Channel, meanwhile: str) -> None:
    run = await channel.start(task_timeout=1)
    for _ in range(9):
        await run.signal("large", LARGE)
    task = await run.poll()
    assert task.next_page_token, "the history was to have pages"
    await happens(run, task, meanwhile)
    events = [*task.history.events, *await run.history(task.next_page_token)]
    assert ids(events) == list(range(1, task.started_event_id + 1))
    assert types(events) == [
        "WorkflowExecutionStarted",
        "WorkflowTaskScheduled",
        *["WorkflowExecutionSignaled"] * 9,
        "WorkflowTaskStarted",
    ]


@pytest.mark.parametrize("meanwhile", ["nothing", "completes", "fails", "times out", "is terminated"])
async def test_pages_of_a_transient_task_end_with_its_start(channel: Channel, meanwhile: str) -> None:
    run = await channel.start(task_timeout=1)
    for _ in range(9):
        await run.signal("large", LARGE)
    await run.fail(await run.poll())
    task = await run.poll()
    assert task.attempt == 2
    assert task.next_page_token, "the history was to have pages"
    await happens(run, task, meanwhile)
    events = [*task.history.events, *await run.history(task.next_page_token)]
    assert ids(events) == list(range(1, task.started_event_id + 1))
    assert types(events)[-3:] == ["WorkflowTaskFailed", "WorkflowTaskScheduled", "WorkflowTaskStarted"]


async def happens(run: Run, task: PollWorkflowTaskQueueResponse, meanwhile: str) -> None:
    if meanwhile == "completes":
        await run.complete(task, COMPLETE)
    elif meanwhile == "continues":
        await run.complete(task)
        await run.signal("more")
        await run.poll()
    elif meanwhile == "fails":
        await run.fail(task)
    elif meanwhile == "times out":
        for _ in range(100):
            if types(await run.stored())[-1] == "WorkflowTaskTimedOut" or (await attempt(run)) > task.attempt:
                return
            await asyncio.sleep(0.05)
        raise AssertionError("it did not time out")
    elif meanwhile == "is terminated":
        await run.terminate()


async def attempt(run: Run) -> int:
    from temporalio.api.workflowservice.v1 import DescribeWorkflowExecutionRequest

    described = await run.stub.DescribeWorkflowExecution(
        DescribeWorkflowExecutionRequest(namespace=NAMESPACE, execution=run.execution)
    )
    return described.pending_workflow_task.attempt


@pytest.mark.parametrize("sticky", [False, True], ids=["normal", "sticky"])
async def test_the_task_of_a_direct_query(channel: Channel, sticky: bool) -> None:
    run = await channel.start()
    first = await idle(run, sticky=10 if sticky else 0)
    asked = run.query()
    task = await run.poll(sticky=sticky)
    assert task.query.query_type == "state"
    assert task.started_event_id == 0
    assert not task.queries
    if sticky:
        assert first.started_event_id not in ids(task.history.events)
    else:
        assert ids(task.history.events) == ids(await run.stored())
    await run.stub.RespondQueryTaskCompleted(
        RespondQueryTaskCompletedRequest(
            namespace=NAMESPACE, task_token=task.task_token, completed_type=1, query_result=text("answer")
        )
    )
    assert (await asked).query_result == text("answer")
    assert types(await run.stored())[-1] == "WorkflowTaskCompleted"


async def test_a_query_waits_for_what_was_before_it(channel: Channel) -> None:
    """It comes with the pending task, so that its answer knows the signal."""
    run = await channel.start()
    await idle(run)
    await run.signal("a")
    asked = run.query()
    await query_arrived(run)
    task = await run.poll()
    exactly(task)
    ((query_id, query),) = task.queries.items()
    assert query.query_type == "state"
    await run.complete(task, query_results={query_id: WorkflowQueryResult(result_type=1, answer=text("answer"))})
    assert (await asked).query_result == text("answer")
    assert types(await run.stored())[-1] == "WorkflowTaskCompleted"


async def query_arrived(run: Run) -> None:
    """No call tells that a query waits; calls on one workflow are done in turn, so another one gives it the time."""
    for _ in range(10):
        await attempt(run)


# --- tasks that are in no store ---


async def test_a_transient_task_is_not_stored(channel: Channel) -> None:
    run = await channel.start()
    await run.fail(await run.poll())
    before = await run.stored()
    assert types(before)[-1] == "WorkflowTaskFailed"
    task = await run.poll()
    assert task.attempt == 2
    exactly(task)
    assert types(task.history.events)[-2:] == ["WorkflowTaskScheduled", "WorkflowTaskStarted"]
    assert await run.stored() == before
    await run.fail(task)
    assert await run.stored() == before  # further failures are not written either
    task = await run.poll()
    assert task.attempt == 3
    exactly(task)
    await run.complete(task, COMPLETE)
    after = await run.stored()
    assert types(after)[len(before) :] == [
        "WorkflowTaskScheduled",
        "WorkflowTaskStarted",
        "WorkflowTaskCompleted",
        "WorkflowExecutionCompleted",
    ]
    assert attributes(after[len(before)]).attempt == 3
    check_well_formed(after)


@pytest.mark.parametrize("sticky", [False, True], ids=["normal", "sticky"])
async def test_a_speculative_task_whose_update_is_rejected_leaves_nothing(channel: Channel, sticky: bool) -> None:
    run = await channel.start()
    first = await idle(run, sticky=10 if sticky else 0)
    before = await run.stored()
    for i in range(2):
        update = run.update(f"no-{i}")
        task = await run.poll(sticky=sticky)
        assert task.started_event_id == len(before) + 2
        exactly(task, first.started_event_id + 1 if sticky else 1)
        assert types(task.history.events)[-2:] == ["WorkflowTaskScheduled", "WorkflowTaskStarted"]
        (message,) = task.messages
        assert message.protocol_instance_id == f"no-{i}"
        assert message.event_id == task.started_event_id - 1
        assert await run.stored() == before
        answer = await run.complete(task, messages=[reject(message, "no")], sticky=10 if sticky else 0)
        assert answer.reset_history_event_id == first.started_event_id
        assert (await update).outcome.failure.message == "no"
        assert await run.stored() == before
    await run.signal("a")
    task = await run.poll(sticky=sticky)
    exactly(task, first.started_event_id + 1 if sticky else 1)
    await run.complete(task, COMPLETE)
    check_well_formed(await run.stored())


async def test_a_speculative_task_whose_update_is_accepted_is_written(channel: Channel) -> None:
    run = await channel.start()
    await idle(run)
    before = await run.stored()
    update = run.update("yes")
    task = await run.poll()
    (message,) = task.messages
    accepted, responded = accept(message), respond(message, "done")
    answer = await run.complete(
        task,
        protocol_message(accepted),
        protocol_message(responded),
        messages=[accepted, responded],
    )
    assert answer.reset_history_event_id == 0
    assert (await update).outcome.success == text("done")
    after = await run.stored()
    assert types(after)[len(before) :] == [
        "WorkflowTaskScheduled",
        "WorkflowTaskStarted",
        "WorkflowTaskCompleted",
        "WorkflowExecutionUpdateAccepted",
        "WorkflowExecutionUpdateCompleted",
    ]
    check_well_formed(after)


@pytest.mark.parametrize("when", ["before it is handed out", "after it is handed out"])
async def test_another_event_makes_a_speculative_task_a_normal_one(channel: Channel, when: str) -> None:
    run = await channel.start()
    await idle(run)
    before = len(await run.stored())
    update = run.update("no")
    if when == "before it is handed out":
        await admitted(run)
        await run.signal("a")
        assert types(await run.stored())[before:] == ["WorkflowTaskScheduled", "WorkflowExecutionSignaled"]
        task = await run.poll()
    else:
        task = await run.poll()
        await run.signal("a")
    exactly(task)
    answer = await run.complete(task, messages=[reject(task.messages[0], "no")])
    assert answer.reset_history_event_id == 0
    assert (await update).outcome.failure.message == "no"
    after = await run.stored()
    assert "WorkflowTaskCompleted" in types(after)[before:]
    assert "WorkflowExecutionSignaled" in types(after)[before:]
    check_well_formed(after)


async def admitted(run: Run) -> None:
    """Waits until the update has its workflow task."""
    for _ in range(100):
        if await attempt(run):
            return
        await asyncio.sleep(0.02)
    raise AssertionError("no workflow task is pending")


async def test_a_task_with_an_accepted_and_a_rejected_update(channel: Channel) -> None:
    run = await channel.start()
    await idle(run)
    yes, no = run.update("yes"), run.update("no")
    seen: list[str] = []
    while len(seen) < 2:  # together or one after the other, as they arrived
        task = await run.poll()
        exactly(task)
        answers = []
        for message in task.messages:
            seen.append(message.protocol_instance_id)
            if seen[-1] == "yes":
                answers += [accept(message), respond(message, "done")]
            else:
                answers.append(reject(message, "no"))
        commands = [protocol_message(a) for a in answers if not a.id.endswith("reject")]
        await run.complete(task, *commands, messages=answers)
    assert sorted(seen) == ["no", "yes"]
    assert (await yes).outcome.success == text("done")
    assert (await no).outcome.failure.message == "no"
    after = types(await run.stored())
    assert after.count("WorkflowExecutionUpdateAccepted") == after.count("WorkflowExecutionUpdateCompleted") == 1
    check_well_formed(await run.stored())


async def test_an_update_that_comes_while_a_task_is_at_work_gets_the_next_one(channel: Channel) -> None:
    run = await channel.start()
    task = await run.poll()
    update = run.update("late")
    await query_arrived(run)
    await run.complete(task)
    task = await run.poll()
    exactly(task)
    (message,) = task.messages
    answers = [accept(message), respond(message, "done")]
    await run.complete(task, *map(protocol_message, answers), COMPLETE, messages=answers)
    assert (await update).outcome.success == text("done")
    assert types(await run.stored())[-1] == "WorkflowExecutionCompleted"


async def test_an_update_outlives_the_worker_that_had_it(channel: Channel) -> None:
    run = await channel.start(task_timeout=1)
    await idle(run)
    update = run.update("again")
    lost = await run.poll()
    assert [m.protocol_instance_id for m in lost.messages] == ["again"]
    task = await run.poll()
    exactly(task)
    (message,) = task.messages
    answers = [accept(message), respond(message, "done")]
    await run.complete(task, *map(protocol_message, answers), messages=answers)
    assert (await update).outcome.success == text("done")
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await run.complete(lost)
    assert late.value.code() == grpc.StatusCode.NOT_FOUND
    check_well_formed(await run.stored())


# --- events that come while a task is at work ---


async def test_buffered_events_and_their_order(channel: Channel) -> None:
    run = await channel.start()
    await run.complete(await run.poll(), schedule_activity(run.queue))
    activity = await run.poll_activity()
    await run.signal("wake")
    task = await run.poll()
    before = await run.stored()
    await run.signal("a")
    await run.complete_activity(activity, "result")
    await run.signal("b")
    assert await run.stored() == before
    await run.complete(task)
    after = (await run.stored())[len(before) :]
    assert types(after) == [
        "WorkflowTaskCompleted",
        "WorkflowExecutionSignaled",
        "ActivityTaskStarted",
        "WorkflowExecutionSignaled",
        "ActivityTaskCompleted",  # what ends an activity comes last
        "WorkflowTaskScheduled",
    ]
    assert [attributes(after[i]).signal_name for i in (1, 3)] == ["a", "b"]
    task = await run.poll()
    exactly(task)
    await run.complete(task, COMPLETE)
    check_well_formed(await run.stored())


async def test_a_failed_task_flushes_what_was_buffered(channel: Channel) -> None:
    run = await channel.start()
    task = await run.poll()
    await run.signal("a")
    await run.fail(task)
    task = await run.poll()
    exactly(task)
    assert types(task.history.events)[3:5] == ["WorkflowTaskFailed", "WorkflowExecutionSignaled"]
    await run.complete(task, COMPLETE)
    check_well_formed(await run.stored())


async def test_a_timed_out_task_flushes_what_was_buffered(channel: Channel) -> None:
    run = await channel.start(task_timeout=1)
    await run.poll()
    await run.signal("a")
    task = await run.poll()
    exactly(task)
    assert types(task.history.events)[3:5] == ["WorkflowTaskTimedOut", "WorkflowExecutionSignaled"]
    await run.complete(task, COMPLETE)
    check_well_formed(await run.stored())


async def test_a_terminated_workflow_keeps_what_was_buffered(channel: Channel) -> None:
    run = await channel.start()
    task = await run.poll()
    await run.signal("a")
    await run.terminate()
    assert types(await run.stored())[3:] == [
        "WorkflowTaskFailed",
        "WorkflowExecutionSignaled",
        "WorkflowExecutionTerminated",
    ]
    with pytest.raises(grpc.aio.AioRpcError) as late:
        await run.complete(task)
    assert late.value.code() == grpc.StatusCode.NOT_FOUND


async def test_an_end_that_meets_buffered_events_is_refused(channel: Channel) -> None:
    run = await channel.start()
    task = await run.poll()
    await run.signal("unseen")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await run.complete(task, COMPLETE)
    assert refused.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert "UnhandledCommand" in (refused.value.details() or "")
    task = await run.poll()
    exactly(task)
    failed = task.history.events[3]
    assert attributes(failed).cause == WorkflowTaskFailedCause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND
    assert types(task.history.events)[3:] == [
        "WorkflowTaskFailed",
        "WorkflowExecutionSignaled",
        "WorkflowTaskScheduled",
        "WorkflowTaskStarted",
    ]
    await run.complete(task, COMPLETE)
    assert types(await run.stored())[-1] == "WorkflowExecutionCompleted"


# --- what is written, and when ---


async def test_an_activitys_start_is_written_with_its_end(channel: Channel) -> None:
    run = await channel.start()
    retry = RetryPolicy(initial_interval=seconds(0.01), maximum_attempts=5)
    await run.complete(await run.poll(), schedule_activity(run.queue, retry_policy=retry))
    before = await run.stored()
    for i in range(1, 3):
        task = await run.poll_activity()
        assert task.attempt == i
        assert await run.stored() == before
        await run.fail_activity(task, f"failure {i}")
        assert await run.stored() == before
    task = await run.poll_activity()
    await run.complete_activity(task, "result")
    after = (await run.stored())[len(before) :]
    assert types(after)[:2] == ["ActivityTaskStarted", "ActivityTaskCompleted"]
    started = attributes(after[0])
    assert started.attempt == 3
    assert started.identity == "worker"
    assert started.last_failure.message == "failure 2"


async def test_what_a_completion_says_of_its_worker_is_written_verbatim(channel: Channel) -> None:
    run = await channel.start()
    metadata = WorkflowTaskCompletedMetadata(
        core_used_flags=[1, 2, 9999], lang_used_flags=[3, 7], sdk_name="an sdk", sdk_version="1.2.3"
    )
    metering = MeteringMetadata(nonfirst_local_activity_execution_attempts=4)
    version = WorkerVersionStamp(build_id="build")
    await run.complete(
        await run.poll(), sdk_metadata=metadata, metering_metadata=metering, worker_version_stamp=version
    )
    completed = attributes((await run.stored())[-1])
    assert completed.sdk_metadata == metadata
    assert completed.metering_metadata == metering
    assert completed.worker_version == version
    assert completed.identity == "worker"


async def test_the_deployment_of_a_completion_is_written(channel: Channel) -> None:
    run = await channel.start()
    await run.complete(
        await run.poll(),
        versioning_behavior=VersioningBehavior.VERSIONING_BEHAVIOR_AUTO_UPGRADE,
        deployment_options=WorkerDeploymentOptions(
            deployment_name="deployment",
            build_id="build",
            worker_versioning_mode=WorkerVersioningMode.WORKER_VERSIONING_MODE_VERSIONED,
        ),
    )
    completed = attributes((await run.stored())[-1])
    assert completed.versioning_behavior == VersioningBehavior.VERSIONING_BEHAVIOR_AUTO_UPGRADE
    assert completed.deployment_version == WorkerDeploymentVersion(deployment_name="deployment", build_id="build")
    assert completed.worker_deployment_name == "deployment"


async def test_a_heartbeat_gets_the_next_task_with_the_answer(channel: Channel) -> None:
    run = await channel.start()
    task = await run.poll()
    for _ in range(3):
        answer = await run.complete(task, sticky=10, force_create_new_workflow_task=True, return_new_workflow_task=True)
        new = answer.workflow_task
        assert new.previous_started_event_id == task.started_event_id
        exactly(new, task.started_event_id + 1)
        task = new
    await run.complete(task, COMPLETE)
    check_well_formed(await run.stored())


# --- across restarts ---


async def test_repeated_requests_are_known_after_a_kill(durable: Server) -> None:
    durable.start()
    try:
        channel = Channel(durable.address)
        run = await start_once(channel)
        first = await signals_and_cancels(run)
        pending = run.update("admitted only")
        await admitted(run)
        stored = await run.stored()
        durable.kill()
        durable.start()
        with pytest.raises(grpc.aio.AioRpcError):
            await pending
        await channel.channel.close()

        channel = Channel(durable.address)
        again = await start_once(channel)
        assert again.run_id == run.run_id
        assert await signals_and_cancels(again) == first
        assert await again.stored() == stored
        assert types(stored) == [
            "WorkflowExecutionStarted",
            "WorkflowTaskScheduled",
            "WorkflowExecutionSignaled",
            "WorkflowExecutionSignaled",
            "WorkflowExecutionCancelRequested",
        ]
        again.queue = run.queue
        task = await again.poll()
        exactly(task)
        await again.complete(task, COMPLETE)
        await channel.channel.close()
    finally:
        durable.close()


async def start_once(channel: Channel) -> Run:
    return await channel.start(
        workflow_id="w",
        request_id="start",
        workflow_id_conflict_policy=WorkflowIdConflictPolicy.WORKFLOW_ID_CONFLICT_POLICY_FAIL,
    )


async def signals_and_cancels(run: Run) -> str:
    await run.signal("a", request_id="signal")
    answer = await run.stub.SignalWithStartWorkflowExecution(
        SignalWithStartWorkflowExecutionRequest(
            namespace=NAMESPACE,
            workflow_id="w",
            workflow_type=WorkflowType(name="type"),
            task_queue=TaskQueue(name="tq"),
            signal_name="b",
            request_id="signal with start",
        )
    )
    await run.stub.RequestCancelWorkflowExecution(
        RequestCancelWorkflowExecutionRequest(
            namespace=NAMESPACE, workflow_execution=WorkflowExecution(workflow_id="w"), request_id="cancel"
        )
    )
    return answer.run_id


async def test_a_task_at_work_outlives_the_server(durable: Server) -> None:
    """A worker need not notice that the server was killed and started again while it worked."""
    durable.start()
    try:
        channel = Channel(durable.address)
        run = await channel.start()
        task = await run.poll()
        await run.signal("buffered")
        durable.kill()
        durable.start()
        await channel.channel.close()
        channel = Channel(durable.address)
        run.stub = channel.stub
        await run.complete(task, schedule_activity(run.queue))
        activity = await run.poll_activity()
        durable.kill()
        durable.start()
        await channel.channel.close()
        channel = Channel(durable.address)
        run.stub = channel.stub
        await run.complete_activity(activity, "result")
        task = await run.poll()
        exactly(task)
        assert types(task.history.events)[3:] == [
            "WorkflowTaskCompleted",
            "ActivityTaskScheduled",
            "WorkflowExecutionSignaled",
            "WorkflowTaskScheduled",
            "ActivityTaskStarted",
            "ActivityTaskCompleted",
            "WorkflowTaskStarted",
        ]
        await run.complete(task, COMPLETE)
        await channel.channel.close()
    finally:
        durable.close()


async def test_an_activitys_attempt_and_heartbeat_outlive_the_server(durable: Server) -> None:
    """Neither has an event."""
    durable.start()
    try:
        channel = Channel(durable.address)
        run = await channel.start()
        retry = RetryPolicy(initial_interval=seconds(0.01))
        command = schedule_activity(run.queue, retry_policy=retry, heartbeat_timeout=seconds(2))
        await run.complete(await run.poll(), command)
        await run.fail_activity(await run.poll_activity(), "the first")
        task = await run.poll_activity()
        beat = RecordActivityTaskHeartbeatRequest(
            namespace=NAMESPACE, task_token=task.task_token, details=text("half"), identity="worker"
        )
        await run.stub.RecordActivityTaskHeartbeat(beat)
        durable.kill()
        durable.start()
        await channel.channel.close()
        channel = Channel(durable.address)
        run.stub = channel.stub
        task = await run.poll_activity()  # after the heartbeat timeout
        assert task.attempt == 3
        assert task.heartbeat_details == text("half")
        await run.complete_activity(task, "result")
        started = next(e for e in await run.stored() if types([e]) == ["ActivityTaskStarted"])
        assert attributes(started).attempt == 3
        assert attributes(started).last_failure.HasField("timeout_failure_info")
        await channel.channel.close()
    finally:
        durable.close()


# --- keepalive ---

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS, PING, GOAWAY = 4, 6, 7


def frame(kind: int, payload: bytes = b"", flags: int = 0) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + bytes(4) + payload


@pytest.mark.parametrize(
    "every",
    [
        pytest.param(0.05, id="more often than anyone does"),
        pytest.param(10, id="as SDKs do", marks=[pytest.mark.slow]),
    ],
)
async def test_pings_without_calls_are_accepted(server: Server, every: float) -> None:
    """On the bare connection: a client would hide that it had to connect again."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port, family=socket.AF_INET)
    writer.write(PREFACE + frame(SETTINGS))
    acknowledged = 0

    async def read() -> None:
        nonlocal acknowledged
        while True:
            head = await reader.readexactly(9)
            payload = await reader.readexactly(int.from_bytes(head[:3]))
            assert head[3] != GOAWAY, payload
            if head[3] == SETTINGS and not head[4] & 1:
                writer.write(frame(SETTINGS, flags=1))
            acknowledged += head[3] == PING and bool(head[4] & 1)

    reading = asyncio.create_task(read())
    for i in range(6):
        writer.write(frame(PING, struct.pack(">Q", i)))
        await asyncio.sleep(every)
    for _ in range(100):
        if acknowledged == 6 or reading.done():
            break
        await asyncio.sleep(0.02)
    assert not reading.done(), reading.exception()
    assert acknowledged == 6
    reading.cancel()
    writer.close()
