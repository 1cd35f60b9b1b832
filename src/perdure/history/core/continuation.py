"""How a run goes on as another run: continue-as-new, retry of a failed run, the next turn of a cron schedule.

The new run is created in the transaction that closes the old one.
"""

from __future__ import annotations

from temporalio.api.command.v1 import Command, ContinueAsNewWorkflowExecutionCommandAttributes
from temporalio.api.common.v1 import Callback, Payloads, RetryPolicy, SearchAttributes, WorkflowExecution
from temporalio.api.enums.v1 import CommandType, ContinueAsNewInitiator, EventType, RetryState, TimeoutType
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import WorkflowExecutionStartedEventAttributes

from perdure.clock import from_duration, to_duration
from perdure.config import dynamic
from perdure.errors import ServiceError
from perdure.history.api import ParentLink
from perdure.history.core import attributes, cron, lifecycle, retry
from perdure.history.core.completion import BadCommand, Completion, command
from perdure.history.core.lifecycle import StartParams
from perdure.history.core.state import State
from perdure.history.core.txn import Txn
from perdure.visibility import attributes as search_attributes

_BAD = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_CONTINUE_AS_NEW_ATTRIBUTES


# --- continue as new ---


@command(CommandType.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION)
def continue_as_new(completion: Completion, source: Command) -> None:
    completion.close()
    txn = completion.txn
    state = txn.state
    info = state.info
    a = source.continue_as_new_workflow_execution_command_attributes
    _validate(txn, a)
    run_timeout = from_duration(a.workflow_run_timeout) or info.run_timeout
    if info.execution_timeout:
        run_timeout = min(run_timeout or info.execution_timeout, info.execution_timeout)
    task_timeout = from_duration(a.workflow_task_timeout) or info.task_timeout
    task_timeout = min(task_timeout, txn.env.config.get(dynamic.MAX_WORKFLOW_TASK_TIMEOUT, txn.env.namespace))
    if run_timeout:
        task_timeout = min(task_timeout, run_timeout)
    backoff = _at_least_minimal(txn, from_duration(a.backoff_start_interval))
    params = _next(
        state,
        txn,
        workflow_type=a.workflow_type.name or info.workflow_type,
        task_queue=a.task_queue.name or info.task_queue,
        run_timeout=run_timeout,
        task_timeout=task_timeout,
        initiator=a.initiator or ContinueAsNewInitiator.CONTINUE_AS_NEW_INITIATOR_WORKFLOW,
    )
    params.input = a.input if a.HasField("input") else None
    params.header = a.header if a.HasField("header") else None
    params.memo = a.memo if a.HasField("memo") else None
    if a.HasField("search_attributes"):
        params.search_attributes = search_attributes.with_types(a.search_attributes, txn.env.search_attributes)
    params.retry_policy = retry.with_defaults(a.retry_policy) if a.HasField("retry_policy") else None
    params.cron_schedule = a.cron_schedule
    params.continued_failure = a.failure if a.HasField("failure") else None
    params.last_completion_result = a.last_completion_result if a.HasField("last_completion_result") else None
    params.first_backoff = backoff
    params.completion_callbacks = [Callback.FromString(c) for c in info.completion_callbacks_proto]
    started = completion.started
    if started is not None and started.HasField("priority"):
        params.priority = started.priority

    event = txn.event(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_CONTINUED_AS_NEW)
    e = event.workflow_execution_continued_as_new_event_attributes
    e.new_execution_run_id = params.run_id
    e.workflow_type.name = params.workflow_type
    e.task_queue.name = params.task_queue
    e.task_queue.kind = lifecycle.task_queue(state).kind
    for name in ("input", "header", "memo", "search_attributes", "failure", "last_completion_result"):
        if a.HasField(name):
            getattr(e, name).CopyFrom(getattr(a, name))
    e.workflow_run_timeout.CopyFrom(to_duration(run_timeout))
    e.workflow_task_timeout.CopyFrom(to_duration(task_timeout))
    # As the workflow asked; what the next run really waits is in its first event.
    e.backoff_start_interval.CopyFrom(a.backoff_start_interval)
    e.workflow_task_completed_event_id = completion.completed_event_id
    e.initiator = params.initiator
    if source.HasField("user_metadata"):
        event.user_metadata.CopyFrom(source.user_metadata)
    lifecycle.close_continued(txn, event)
    txn.new_run = lifecycle.begin(params, txn.now, txn.env)


def _validate(txn: Txn, a: ContinueAsNewWorkflowExecutionCommandAttributes) -> None:
    config, namespace = txn.env.config, txn.env.namespace
    limit = config.get(dynamic.MAX_ID_LENGTH, namespace)
    where = "on ContinueAsNewWorkflowExecutionCommand"
    if wrong := attributes.invalid_id(a.workflow_type.name, limit):
        raise attributes.bad(_BAD, f"WorkflowType {where} {wrong}")
    if wrong := attributes.invalid_task_queue(a.task_queue.name, limit):
        raise attributes.bad(_BAD, f"error validating ContinueAsNewWorkflowExecutionCommand TaskQueue: {wrong}")
    for name, duration in (
        ("WorkflowRunTimeout", a.workflow_run_timeout),
        ("WorkflowTaskTimeout", a.workflow_task_timeout),
        ("BackoffStartInterval", a.backoff_start_interval),
    ):
        if wrong := attributes.invalid_duration(duration):
            raise attributes.bad(_BAD, f"Invalid {name} {where}: {wrong}")
    if a.HasField("retry_policy") and (wrong := retry.invalid(a.retry_policy)):
        raise attributes.bad(_BAD, f"invalid WorkflowRetryPolicy {where}: {wrong}")
    if a.cron_schedule:
        try:
            cron.validate(a.cron_schedule, txn.now)
        except cron.InvalidCron as error:
            raise attributes.bad(_BAD, f"invalid CronSchedule {where}: {error}") from None
    for name, value, key in (
        ("Input", a.input, dynamic.BLOB_SIZE_ERROR),
        ("Memo", a.memo, dynamic.MEMO_SIZE_ERROR),
    ):
        if value.ByteSize() > config.get(key, namespace):
            why = f"ContinueAsNewWorkflowExecutionCommandAttributes. {name} exceeds size limit."
            raise attributes.bad(_BAD, why, terminate=True)
    if a.HasField("search_attributes"):
        check_search_attributes(txn, a.search_attributes, where)


def check_search_attributes(txn: Txn, given: SearchAttributes, where: str) -> None:
    """Raises BadCommand with BAD_SEARCH_ATTRIBUTES."""
    env = txn.env
    config, namespace = env.config, env.namespace
    try:
        search_attributes.validate(
            given,
            env.search_attributes,
            namespace,
            config.get(dynamic.SA_KEYS_LIMIT, namespace),
            config.get(dynamic.SA_VALUE_SIZE_LIMIT, namespace),
            config.get(dynamic.SA_TOTAL_SIZE_LIMIT, namespace),
        )
    except ServiceError as error:
        raise BadCommand(
            Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_SEARCH_ATTRIBUTES, f"invalid SearchAttributes {where}: {error.message}"
        ) from None


# --- retry and cron ---


def after_completion(completion: Completion, result: Payloads | None) -> str:
    """A run with a cron schedule has completed: begins its next turn. Its run id, "" when there is none. Called before
    the closing event is recorded."""
    txn = completion.txn
    started = completion.started
    if started is None or not txn.state.info.cron_schedule:
        return ""
    wait = _cron_wait(txn)
    if wait is None:
        return ""
    return _begin_cron(txn, started, wait, None, result)


def after_failure(
    txn: Txn, started: WorkflowExecutionStartedEventAttributes | None, failure: Failure | None
) -> tuple[RetryState.ValueType, str]:
    """A run has failed (or timed out, with a timeout failure): begins its retry or the next turn of its schedule. What
    the closing event says of it, and the new run's id, "" when there is none. started: needed for both, may be None
    for a run that has neither."""
    info = txn.state.info
    retry_state = RetryState.RETRY_STATE_RETRY_POLICY_NOT_SET
    if info.retry_policy_proto and started is not None:
        policy = retry.with_defaults(RetryPolicy.FromString(info.retry_policy_proto))
        wait, retry_state = retry.decide(policy, info.attempt, txn.now, info.execution_expiration, failure)
        if wait is not None:
            params = _same_again(txn, started, ContinueAsNewInitiator.CONTINUE_AS_NEW_INITIATOR_RETRY)
            params.attempt = info.attempt + 1
            params.first_backoff = _at_least_minimal(txn, wait)
            params.continued_failure = failure
            params.completion_callbacks = [Callback.FromString(c) for c in info.completion_callbacks_proto]
            if started.HasField("last_completion_result"):
                params.last_completion_result = started.last_completion_result
            txn.new_run = lifecycle.begin(params, txn.now, txn.env)
            return retry_state, params.run_id
    if info.cron_schedule and started is not None:
        wait = _cron_wait(txn)
        if wait is not None:
            last = started.last_completion_result if started.HasField("last_completion_result") else None
            return retry_state, _begin_cron(txn, started, wait, failure, last)
    return retry_state, ""


def timeout_failure() -> Failure:
    failure = Failure(message="workflow timeout", source="Server")
    failure.timeout_failure_info.timeout_type = TimeoutType.TIMEOUT_TYPE_START_TO_CLOSE
    return failure


def _cron_wait(txn: Txn) -> int | None:
    info = txn.state.info
    wait = cron.next_wait(info.cron_schedule, info.execution_time, txn.now)
    if wait is None or (info.execution_expiration and txn.now + wait > info.execution_expiration):
        return None
    return wait


def _begin_cron(
    txn: Txn,
    started: WorkflowExecutionStartedEventAttributes,
    wait: int,
    failure: Failure | None,
    last_result: Payloads | None,
) -> str:
    params = _same_again(txn, started, ContinueAsNewInitiator.CONTINUE_AS_NEW_INITIATOR_CRON_SCHEDULE)
    params.first_backoff = _at_least_minimal(txn, wait)
    params.continued_failure = failure
    params.last_completion_result = last_result
    txn.new_run = lifecycle.begin(params, txn.now, txn.env)
    return params.run_id


def _same_again(
    txn: Txn, started: WorkflowExecutionStartedEventAttributes, initiator: ContinueAsNewInitiator.ValueType
) -> StartParams:
    state = txn.state
    info = state.info
    params = _next(
        state,
        txn,
        workflow_type=info.workflow_type,
        task_queue=info.task_queue,
        run_timeout=info.run_timeout,
        task_timeout=info.task_timeout,
        initiator=initiator,
    )
    params.input = started.input if started.HasField("input") else None
    params.header = started.header if started.HasField("header") else None
    params.memo = started.memo if started.HasField("memo") else None
    params.search_attributes = started.search_attributes if started.HasField("search_attributes") else None
    params.retry_policy = started.retry_policy if started.HasField("retry_policy") else None
    params.cron_schedule = info.cron_schedule
    params.priority = started.priority if started.HasField("priority") else None
    params.versioning_override = started.versioning_override if started.HasField("versioning_override") else None
    return params


def _next(
    state: State,
    txn: Txn,
    *,
    workflow_type: str,
    task_queue: str,
    run_timeout: int,
    task_timeout: int,
    initiator: ContinueAsNewInitiator.ValueType,
) -> StartParams:
    info = state.info
    params = StartParams(
        namespace_id=info.namespace_id,
        workflow_id=info.workflow_id,
        run_id=txn.env.new_id(),
        request_id=txn.env.new_id(),
        workflow_type=workflow_type,
        task_queue=task_queue,
        execution_timeout=info.execution_timeout,
        execution_expiration=info.execution_expiration,
        run_timeout=run_timeout,
        task_timeout=task_timeout,
        initiator=initiator,
        continued_from_run_id=info.run_id,
        first_run_id=info.first_run_id,
        prev_reset_points=info.reset_points_proto,
    )
    if info.parent_workflow_id:
        params.parent = ParentLink(
            info.parent_namespace_id,
            info.parent_namespace,
            info.parent_workflow_id,
            info.parent_run_id,
            info.parent_initiated_event_id,
            info.root_workflow_id,
            info.root_run_id,
        )
        params.root = WorkflowExecution(workflow_id=info.root_workflow_id, run_id=info.root_run_id)
    return params


def _at_least_minimal(txn: Txn, backoff: int) -> int:
    """A chain of very short runs is slowed down, or it would spin."""
    lifetime = txn.now - txn.state.info.execution_time
    minimal = txn.env.config.get(dynamic.WORKFLOW_ID_REUSE_MIN_INTERVAL, txn.env.namespace)
    return max(backoff, minimal - lifetime) if lifetime + backoff < minimal else backoff
