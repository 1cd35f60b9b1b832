"""Updates as their callers see them: admitted, waited for, looked up; and together with the start of a workflow."""

from __future__ import annotations

import asyncio
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import EventType
from temporalio.api.enums.v1 import UpdateWorkflowExecutionLifecycleStage as Lifecycle
from temporalio.api.enums.v1 import WorkflowExecutionStatus as Status
from temporalio.api.enums.v1 import WorkflowIdConflictPolicy as Conflict
from temporalio.api.update.v1 import Outcome, UpdateRef
from temporalio.api.workflowservice.v1 import (
    ExecuteMultiOperationRequest,
    ExecuteMultiOperationResponse,
    PollWorkflowExecutionUpdateRequest,
    PollWorkflowExecutionUpdateResponse,
    StartWorkflowExecutionRequest,
    StartWorkflowExecutionResponse,
    UpdateWorkflowExecutionRequest,
    UpdateWorkflowExecutionResponse,
)

from perdure import errors
from perdure.clock import MILLISECOND, SECOND
from perdure.config import dynamic
from perdure.errors import ServiceError
from perdure.history import starts
from perdure.history.core import updates, workflow_tasks
from perdure.history.core.state import PAUSED, State
from perdure.history.core.updates import LiveUpdate, Registry, Stage
from perdure.history.shard import RunContext, RunKey, Shard

if TYPE_CHECKING:
    from perdure.history.engine import HistoryService

_ADMITTED = Lifecycle.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ADMITTED
_ACCEPTED = Lifecycle.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_ACCEPTED
_COMPLETED = Lifecycle.UPDATE_WORKFLOW_EXECUTION_LIFECYCLE_STAGE_COMPLETED

# A workflow task that keeps failing: an update comes after the events that make it fail.
_FAILING_ATTEMPT = 3
# Less than this short of the longest wait is not a caller's own, shorter, deadline.
_DEADLINE_TOLERANCE = 200 * MILLISECOND


class _Lost(Exception):
    """The update's memory was lost."""


class _Reached(NamedTuple):
    """How far an update came."""

    stage: Lifecycle.ValueType
    outcome: Outcome | None = None


class _Watched(NamedTuple):
    """An update that is waited for. Its `waiters` counts this one: leave with `_watching`."""

    key: RunKey
    update: LiveUpdate
    registry: Registry


# --- the calls ---


async def update_workflow(
    engine: HistoryService, namespace_id: str, request: UpdateWorkflowExecutionRequest, deadline: int
) -> UpdateWorkflowExecutionResponse:
    """Admits the update, or finds the one of the same id, and waits until it has come as far as asked for. deadline:
    nanoseconds; when it is the server's own limit on a long wait, the answer tells how far the update came."""
    shard = engine.shard(namespace_id, request.workflow_execution.workflow_id)
    hard = _is_callers(engine, namespace_id, deadline)
    while True:
        watched = await _admit_to_current(engine, shard, namespace_id, request)
        try:
            return await _finished(engine, watched, request, deadline, hard)
        except _Lost:
            if engine.clock.now() >= deadline:
                raise updates.aborted_by_server() from None


async def poll_update(
    engine: HistoryService, namespace_id: str, request: PollWorkflowExecutionUpdateRequest, deadline: int
) -> PollWorkflowExecutionUpdateResponse:
    ref = request.update_ref
    workflow_id = ref.workflow_execution.workflow_id
    shard = engine.shard(namespace_id, workflow_id)
    hard = _is_callers(engine, namespace_id, deadline)
    key = (namespace_id, workflow_id, await shard.run_id_of(namespace_id, workflow_id, ref.workflow_execution.run_id))
    while True:
        async with shard.run(*key) as context:
            update = await _find(shard, context, ref.update_id)
            if update is None:
                raise errors.not_found(f'update "{ref.update_id}" not found')
            watched = _watch(context, update)
        try:
            with _watching(watched):
                reached = await _reach(engine, update, request.wait_policy.lifecycle_stage, deadline, hard)
        except _Lost:
            if update.stage < Stage.ACCEPTED or engine.clock.now() >= deadline:
                raise updates.aborted_by_server() from None
            continue
        response = PollWorkflowExecutionUpdateResponse(stage=reached.stage, update_ref=_ref(key, ref.update_id))
        if reached.outcome is not None:
            response.outcome.CopyFrom(reached.outcome)
        return response


# --- finding and admitting; with the run locked ---


async def _find(shard: Shard, context: RunContext, update_id: str) -> LiveUpdate | None:
    live = updates.registry(context.memory)
    if live is not None and update_id in live.live:
        return live.live[update_id]
    state = context.loaded
    row = state.updates.get(update_id)
    if row is None:
        return None
    if row.completed_event_id:
        event = await shard.event(context, row.completed_event_id)
        update = LiveUpdate(update_id, Stage.COMPLETED, None)
        update.outcome = event.workflow_execution_update_completed_event_attributes.outcome
        return update
    if state.open:
        stage = Stage.ACCEPTED if row.accepted_event_id else Stage.ADMITTED
        return updates.registry_for(context.memory).add(LiveUpdate(update_id, stage, None))
    if not row.accepted_event_id:
        return None
    update = LiveUpdate(update_id, Stage.COMPLETED, None)
    update.outcome = updates.run_completed_first()
    return update


def _watch(context: RunContext, update: LiveUpdate) -> _Watched:
    update.waiters += 1
    return _Watched(context.key, update, updates.registry_for(context.memory))


async def _admit_to_current(
    engine: HistoryService, shard: Shard, namespace_id: str, request: UpdateWorkflowExecutionRequest
) -> _Watched:
    execution = request.workflow_execution
    while True:
        target = await shard.run_id_of(namespace_id, execution.workflow_id, execution.run_id)
        async with shard.run(namespace_id, execution.workflow_id, target) as context:
            if not context.loaded.open and not execution.run_id:
                current = await shard.current(namespace_id, execution.workflow_id)
                if current is not None and current.run_id != target:
                    continue  # it went on as another run while its lock was waited for
            return await _admit(engine, shard, context, request)


async def _admit(
    engine: HistoryService, shard: Shard, context: RunContext, request: UpdateWorkflowExecutionRequest
) -> _Watched:
    """Raises ServiceError."""
    state = context.loaded
    asked = request.request
    first_run_id = request.first_execution_run_id
    if first_run_id and state.info.first_run_id != first_run_id:
        raise errors.not_found("workflow execution not found")
    if not state.open:
        update = await _find(shard, context, asked.meta.update_id)
        if update is None:
            raise errors.execution_completed()
        return _watch(context, update)
    _check_ready(state)
    update = await _find(shard, context, asked.meta.update_id)
    if update is not None:
        return _watch(context, update)
    live = updates.registry_for(context.memory)
    updates.check_limits(state, live, asked, engine.environment(context.key[0]))
    watched = _watch(context, live.add(LiveUpdate(asked.meta.update_id, Stage.ADMITTED, asked)))
    if state.run.workflow_task is None:
        await _schedule(shard, context)
    return watched


def _check_ready(state: State) -> None:
    if state.run.status == PAUSED:
        raise errors.failed_precondition("Workflow is paused. Cannot update the workflow.")
    if state.run.workflow_task_attempt >= _FAILING_ATTEMPT:
        raise errors.workflow_not_ready(
            "Unable to perform workflow execution update due to Workflow Task in failed state."
        )
    if state.closing:
        raise errors.workflow_closing()


async def _schedule(shard: Shard, context: RunContext) -> None:
    """A workflow task for a new update. A pending one takes it along; while one is started, the next one does."""
    state = context.loaded
    txn = shard.begin(context)
    if state.run.had_workflow_task:
        workflow_tasks.schedule(txn, speculative=True)
    elif state.info.first_backoff and not state.info.cron_schedule and not state.info.continued_from_run_id:
        # A start delay ends with the first thing that the workflow is told.
        workflow_tasks.schedule(txn)
    else:
        return  # the first workflow task is still to come, and takes the update along
    await shard.commit(context, txn)


# --- waiting ---


def _is_callers(engine: HistoryService, namespace_id: str, deadline: int) -> bool:
    longest = engine.config.get(dynamic.LONG_POLL_EXPIRATION, engine.environment(namespace_id).namespace)
    return deadline < engine.clock.now() + longest - _DEADLINE_TOLERANCE


@contextmanager
def _watching(watched: _Watched) -> Generator[None]:
    try:
        yield
    finally:
        watched.update.waiters -= 1
        watched.registry.tidy()


async def _reach(
    engine: HistoryService, update: LiveUpdate, stage: Lifecycle.ValueType, deadline: int, hard: bool
) -> _Reached:
    """Waits until the update is at the stage. Raises _Lost; ServiceError DEADLINE_EXCEEDED if the deadline is hard."""
    while True:
        if update.error is not None:
            raise update.error
        if update.outcome is not None:
            return _Reached(_COMPLETED, update.outcome)
        if update.lost:
            raise _Lost
        reached = _Reached(_ACCEPTED if update.stage == Stage.ACCEPTED else _ADMITTED)
        if reached.stage >= stage:
            return reached
        changed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def wake(changed: asyncio.Future[None] = changed) -> None:
            if not changed.done():
                changed.set_result(None)

        update.watchers.append(wake)
        try:
            async with asyncio.timeout(max(0, deadline - engine.clock.now()) / SECOND):
                await changed
        except TimeoutError:
            if hard:
                raise errors.deadline_exceeded("context deadline exceeded") from None
            return reached
        finally:
            if wake in update.watchers:
                update.watchers.remove(wake)


async def _finished(
    engine: HistoryService, watched: _Watched, request: UpdateWorkflowExecutionRequest, deadline: int, hard: bool
) -> UpdateWorkflowExecutionResponse:
    with _watching(watched):
        reached = await _reach(engine, watched.update, request.wait_policy.lifecycle_stage, deadline, hard)
    return _response(request, watched.key, reached)


def _ref(key: RunKey, update_id: str) -> UpdateRef:
    return UpdateRef(workflow_execution=WorkflowExecution(workflow_id=key[1], run_id=key[2]), update_id=update_id)


def _response(
    request: UpdateWorkflowExecutionRequest, key: RunKey, reached: _Reached
) -> UpdateWorkflowExecutionResponse:
    response = UpdateWorkflowExecutionResponse(
        update_ref=_ref(key, request.request.meta.update_id), stage=reached.stage
    )
    if reached.outcome is not None:
        response.outcome.CopyFrom(reached.outcome)
    if reached.stage == _COMPLETED and response.outcome.HasField("failure"):
        rejected = response.link.workflow
        rejected.namespace, rejected.workflow_id, rejected.run_id = request.namespace, key[1], key[2]
        rejected.reason = "Update rejected"
    elif reached.stage >= _ACCEPTED:
        accepted = response.link.workflow_event
        accepted.namespace, accepted.workflow_id, accepted.run_id = request.namespace, key[1], key[2]
        accepted.request_id_ref.request_id = request.request.request_id
        accepted.request_id_ref.event_type = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED
    return response


# --- update with start ---


class _UpdateFailed(Exception):
    """started: the start half of the operation was done."""

    def __init__(self, error: ServiceError, started: bool) -> None:
        super().__init__(error.message)
        self.error = error
        self.started = started


async def execute_multi_operation(
    engine: HistoryService, namespace_id: str, request: ExecuteMultiOperationRequest, deadline: int
) -> ExecuteMultiOperationResponse:
    """Starts a workflow (or finds it running) and updates it. Raises ServiceError with one status for each half."""
    start = request.operations[0].start_workflow
    update = request.operations[1].update_workflow
    hard = _is_callers(engine, namespace_id, deadline)
    closed_before = False
    while True:
        try:
            return await _start_and_update(engine, namespace_id, start, update, deadline, hard)
        except _Lost:
            if engine.clock.now() >= deadline:
                raise _failed(errors.operation_aborted(), updates.aborted_by_server()) from None
        except _UpdateFailed as failed:
            error = failed.error
            if failed.started or error.message != updates.CLOSING_MESSAGE:
                raise _failed(None if failed.started else errors.operation_aborted(), error) from None
            # The run that was to be updated closed: the update is for the one that is started now.
            if closed_before:
                error = ServiceError(errors.Code.ABORTED, error.message)
                raise _failed(errors.operation_aborted(), error) from None
            closed_before = True


def _failed(start: ServiceError | None, update: ServiceError) -> ServiceError:
    message = f"MultiOperation could not be executed: Update failed: {update.message}"
    return errors.multi_operation_failed(message, [start, update])


def _start_failed(error: ServiceError) -> ServiceError:
    message = f"MultiOperation could not be executed: Start failed: {error.message}"
    return errors.multi_operation_failed(message, [error, errors.operation_aborted()])


async def _start_and_update(
    engine: HistoryService,
    namespace_id: str,
    start: StartWorkflowExecutionRequest,
    update: UpdateWorkflowExecutionRequest,
    deadline: int,
    hard: bool,
) -> ExecuteMultiOperationResponse:
    """Raises _UpdateFailed, _Lost, ServiceError (ready for the caller)."""
    shard = engine.shard(namespace_id, start.workflow_id)
    watched: _Watched | None = None
    started = False
    try:
        current = await shard.current(namespace_id, start.workflow_id)
    except ServiceError as error:
        raise _start_failed(error) from None
    status = Status.WORKFLOW_EXECUTION_STATUS_RUNNING
    if current is not None:
        async with shard.run(namespace_id, start.workflow_id, current.run_id) as context:
            state = context.loaded
            known = state.updates.get(update.request.meta.update_id)
            if (known is not None and known.completed_event_id) or (
                state.open
                and (
                    state.info.start_request_id == start.request_id
                    or await _find(shard, context, update.request.meta.update_id) is not None
                    or start.workflow_id_conflict_policy == Conflict.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING
                )
            ):
                status = Status.ValueType(state.run.status)
                try:
                    watched = await _admit(engine, shard, context, update)
                except ServiceError as error:
                    raise _UpdateFailed(error, False) from None
    if watched is None:
        try:
            outcome = await starts.start_run(engine, namespace_id, start)
        except ServiceError as error:
            raise _start_failed(error) from None
        if not outcome.fresh:
            # It was started by another in between: the caller begins again, and finds it.
            raise _start_failed(errors.unavailable("Workflow was not started: it exists already"))
        started = True
        try:
            # Nothing ran since the commit: the first workflow task takes the update along.
            async with shard.run(namespace_id, start.workflow_id, outcome.run_id) as context:
                watched = await _admit(engine, shard, context, update)
        except ServiceError as error:
            raise _UpdateFailed(error, True) from None
    try:
        updated = await _finished(engine, watched, update, deadline, hard)
    except ServiceError as error:
        raise _UpdateFailed(error, started) from None
    response = ExecuteMultiOperationResponse()
    response.responses.add().start_workflow.CopyFrom(_started_response(start, watched.key, started, status))
    response.responses.add().update_workflow.CopyFrom(updated)
    return response


def _started_response(
    start: StartWorkflowExecutionRequest, key: RunKey, started: bool, status: Status.ValueType
) -> StartWorkflowExecutionResponse:
    response = StartWorkflowExecutionResponse(run_id=key[2], started=started, status=status)
    event = response.link.workflow_event
    event.namespace, event.workflow_id, event.run_id = start.namespace, key[1], key[2]
    event.event_ref.event_id = 1
    event.event_ref.event_type = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_STARTED
    return response
