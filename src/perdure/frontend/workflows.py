"""Starting, signalling, cancelling, terminating and deleting workflows."""

from __future__ import annotations

from temporalio.api.enums.v1 import WorkflowIdConflictPolicy, WorkflowIdReusePolicy
from temporalio.api.workflowservice.v1 import (
    DeleteWorkflowExecutionRequest,
    DeleteWorkflowExecutionResponse,
    ExecuteMultiOperationRequest,
    ExecuteMultiOperationResponse,
    RequestCancelWorkflowExecutionRequest,
    RequestCancelWorkflowExecutionResponse,
    SignalWithStartWorkflowExecutionRequest,
    SignalWithStartWorkflowExecutionResponse,
    SignalWorkflowExecutionRequest,
    SignalWorkflowExecutionResponse,
    StartWorkflowExecutionRequest,
    StartWorkflowExecutionResponse,
    TerminateWorkflowExecutionRequest,
    TerminateWorkflowExecutionResponse,
)

from perdure.config.dynamic import (
    ENABLE_MULTI_OPERATION,
    LONG_POLL_EXPIRATION,
    MAX_ID_LENGTH,
    SA_KEYS_LIMIT,
    SA_TOTAL_SIZE_LIMIT,
    SA_VALUE_SIZE_LIMIT,
    DynamicConfig,
)
from perdure.errors import (
    Code,
    ServiceError,
    invalid_argument,
    multi_operation_failed,
    operation_aborted,
    permission_denied,
    unimplemented,
)
from perdure.frontend import validation
from perdure.frontend.queries_updates import prepare_update
from perdure.frontend.rpc import CallContext, Frontend, Handler
from perdure.history.core import cron
from perdure.namespaces import Namespace
from perdure.visibility import attributes

_MULTI_OPERATION_FAILED = "Update-with-Start could not be executed."
_ALLOW_DUPLICATE = WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_ALLOW_DUPLICATE
_REJECT_DUPLICATE = WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE
_TERMINATE_IF_RUNNING = WorkflowIdReusePolicy.WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING
_CONFLICT_UNSPECIFIED = WorkflowIdConflictPolicy.WORKFLOW_ID_CONFLICT_POLICY_UNSPECIFIED
_FAIL = WorkflowIdConflictPolicy.WORKFLOW_ID_CONFLICT_POLICY_FAIL
_USE_EXISTING = WorkflowIdConflictPolicy.WORKFLOW_ID_CONFLICT_POLICY_USE_EXISTING
_TERMINATE_EXISTING = WorkflowIdConflictPolicy.WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING

_NOT_START_AND_UPDATE = "Operations have to be exactly [Start, Update]."


async def start_workflow_execution(
    frontend: Frontend, request: StartWorkflowExecutionRequest, context: CallContext
) -> StartWorkflowExecutionResponse:
    namespace = frontend.namespace_for_start(request.namespace)
    prepare_start(request, namespace, frontend.config, frontend.clock.now())
    return await frontend.history.start_workflow_execution(namespace.id, request)


async def signal_with_start_workflow_execution(
    frontend: Frontend, request: SignalWithStartWorkflowExecutionRequest, context: CallContext
) -> SignalWithStartWorkflowExecutionResponse:
    config = frontend.config
    namespace = frontend.namespace_for_start(request.namespace)
    if not request.signal_name:
        raise invalid_argument("signal not set")
    validation.check_id(request.signal_name, config.get(MAX_ID_LENGTH), "SignalName")
    validation.check_payloads(request.signal_input, namespace.name, config)
    _check_new_workflow(request, namespace, config, frontend.clock.now())
    if request.workflow_id_conflict_policy == _FAIL:
        raise invalid_argument(
            "Invalid WorkflowIDConflictPolicy: WORKFLOW_ID_CONFLICT_POLICY_FAIL is not supported for this operation."
        )
    _default_id_policies(request, _USE_EXISTING)
    return await frontend.history.signal_with_start_workflow_execution(namespace.id, request)


async def execute_multi_operation(
    frontend: Frontend, request: ExecuteMultiOperationRequest, context: CallContext
) -> ExecuteMultiOperationResponse:
    config = frontend.config
    namespace = frontend.namespace(request.namespace)
    if not config.get(ENABLE_MULTI_OPERATION, namespace.name):
        raise permission_denied("ExecuteMultiOperation API is disabled on this namespace.")
    operations = request.operations
    if len(operations) != 2 or [o.WhichOneof("operation") for o in operations] != ["start_workflow", "update_workflow"]:
        raise invalid_argument(_NOT_START_AND_UPDATE)
    start, update = operations[0].start_workflow, operations[1].update_workflow
    failures = [operation_aborted(), operation_aborted()]
    failed = False
    try:
        _check_operation_namespace(start.namespace, namespace)
        start.namespace = namespace.name
        frontend.namespace_for_start(namespace.name)
        prepare_start(start, namespace, config, frontend.clock.now())
        if start.cron_schedule:
            raise invalid_argument("CronSchedule is not allowed.")
        if start.request_eager_execution:
            raise invalid_argument("RequestEagerExecution is not supported.")
        if start.workflow_start_delay.seconds or start.workflow_start_delay.nanos:
            raise invalid_argument("WorkflowStartDelay is not supported.")
    except ServiceError as e:
        failures[0], failed = e, True
    try:
        _check_operation_namespace(update.namespace, namespace)
        update.namespace = namespace.name
        prepare_update(update, namespace, config)
        if update.first_execution_run_id:
            raise invalid_argument("FirstExecutionRunId is not allowed.")
        if update.workflow_execution.run_id:
            raise invalid_argument("RunId is not allowed.")
        if not failed and start.workflow_id != update.workflow_execution.workflow_id:
            raise invalid_argument("WorkflowId is not consistent with previous operation(s).")
    except ServiceError as e:
        failures[1], failed = e, True
    if failed:
        raise multi_operation_failed(_MULTI_OPERATION_FAILED, failures)
    deadline = frontend.deadline(context, config.get(LONG_POLL_EXPIRATION, namespace.name))
    return await frontend.history.execute_multi_operation(namespace.id, request, deadline)


async def signal_workflow_execution(
    frontend: Frontend, request: SignalWorkflowExecutionRequest, context: CallContext
) -> SignalWorkflowExecutionResponse:
    config = frontend.config
    namespace = frontend.namespace(request.namespace)
    validation.check_execution(request.workflow_execution, request.HasField("workflow_execution"), config)
    limit = config.get(MAX_ID_LENGTH)
    validation.require_id(request.signal_name, limit, "SignalName")
    validation.check_id(request.request_id, limit, "RequestId")
    validation.check_id(request.identity, limit, "Identity")
    if request.links:
        validation.check_links(request.links, namespace.name, config)
    validation.check_payloads(request.input, namespace.name, config)
    return await frontend.history.signal_workflow_execution(namespace.id, request)


async def request_cancel_workflow_execution(
    frontend: Frontend, request: RequestCancelWorkflowExecutionRequest, context: CallContext
) -> RequestCancelWorkflowExecutionResponse:
    config = frontend.config
    namespace = frontend.namespace(request.namespace)
    validation.check_execution(request.workflow_execution, request.HasField("workflow_execution"), config)
    limit = config.get(MAX_ID_LENGTH)
    validation.check_id(request.request_id, limit, "RequestId")
    validation.check_id(request.identity, limit, "Identity")
    validation.check_run_id(request.first_execution_run_id)
    if request.links:
        validation.check_links(request.links, namespace.name, config)
    await frontend.history.request_cancel_workflow_execution(namespace.id, request)
    return RequestCancelWorkflowExecutionResponse()


async def terminate_workflow_execution(
    frontend: Frontend, request: TerminateWorkflowExecutionRequest, context: CallContext
) -> TerminateWorkflowExecutionResponse:
    config = frontend.config
    namespace = frontend.namespace(request.namespace)
    validation.check_execution(request.workflow_execution, request.HasField("workflow_execution"), config)
    validation.check_id(request.identity, config.get(MAX_ID_LENGTH), "Identity")
    validation.check_run_id(request.first_execution_run_id)
    if request.links:
        validation.check_links(request.links, namespace.name, config)
    validation.check_payloads(request.details, namespace.name, config)
    # Tells a termination that a user asked for from one that the server made.
    request.reason = request.reason or "terminated by user via frontend"
    request.identity = request.identity or "frontend-service"
    await frontend.history.terminate_workflow_execution(namespace.id, request)
    return TerminateWorkflowExecutionResponse()


async def delete_workflow_execution(
    frontend: Frontend, request: DeleteWorkflowExecutionRequest, context: CallContext
) -> DeleteWorkflowExecutionResponse:
    namespace = frontend.namespace(request.namespace)
    validation.check_execution(request.workflow_execution, request.HasField("workflow_execution"), frontend.config)
    await frontend.history.delete_workflow_execution(namespace.id, request.workflow_execution)
    return DeleteWorkflowExecutionResponse()


# --- the checks that all starts share --------------------------------------------------------------------------------


def prepare_start(
    request: StartWorkflowExecutionRequest, namespace: Namespace, config: DynamicConfig, now: int
) -> None:
    """Checks a start and fills in what the frontend defaults. Raises ServiceError."""
    _check_new_workflow(request, namespace, config, now)
    _default_id_policies(request, _FAIL)
    if request.completion_callbacks:
        raise unimplemented("CompletionCallbacks")
    options = request.on_conflict_options
    if options.attach_completion_callbacks and not options.attach_request_id:
        raise invalid_argument("attaching request ID is required for attaching completion callbacks")
    validation.check_payloads(request.last_completion_result, namespace.name, config)
    if request.continued_failure.ByteSize() > config.get(validation.BLOB_SIZE_ERROR, namespace.name):
        raise validation.blob_too_large()


def _check_new_workflow(
    request: StartWorkflowExecutionRequest | SignalWithStartWorkflowExecutionRequest,
    namespace: Namespace,
    config: DynamicConfig,
    now: int,
) -> None:
    limit = config.get(MAX_ID_LENGTH)
    if not request.workflow_id:
        raise invalid_argument("WorkflowId is not set on request.")
    if validation.longer_than(request.workflow_id, limit):
        raise invalid_argument(
            f"WorkflowId exceeds maximum allowed length ({len(request.workflow_id.encode())}/{limit})"
        )
    validation.check_id(request.workflow_id, limit, "WorkflowId")
    if request.HasField("retry_policy"):
        validation.retry_policy(request.retry_policy)
    if request.HasField("workflow_start_delay"):
        if request.cron_schedule:
            raise invalid_argument("CronSchedule and WorkflowStartDelay may not be used together.")
        validation.check_duration(
            request.workflow_start_delay, "An invalid WorkflowStartDelaySeconds is set on request."
        )
    if request.cron_schedule:
        _check_cron(request.cron_schedule, now)
    validation.require_id(request.workflow_type.name, limit, "WorkflowType")
    validation.check_user_task_queue(request.task_queue, request.HasField("task_queue"), config)
    validation.check_duration(
        request.workflow_execution_timeout, "An invalid WorkflowExecutionTimeoutSeconds is set on request."
    )
    validation.check_duration(request.workflow_run_timeout, "An invalid WorkflowRunTimeoutSeconds is set on request.")
    validation.check_duration(request.workflow_task_timeout, "An invalid WorkflowTaskTimeoutSeconds is set on request.")
    request.request_id = validation.request_id(request.request_id, config)
    validation.check_id(request.identity, limit, "Identity")
    validation.check_enum(request.workflow_id_reuse_policy, WorkflowIdReusePolicy, "WorkflowIdReusePolicy")
    validation.check_enum(request.workflow_id_conflict_policy, WorkflowIdConflictPolicy, "WorkflowIdConflictPolicy")
    if request.HasField("search_attributes"):
        _check_search_attributes(request, namespace, config)
    if request.HasField("priority"):
        validation.check_priority(request.priority)
    if request.links:
        validation.check_links(request.links, namespace.name, config)
    if request.HasField("user_metadata"):
        validation.check_user_metadata(request.user_metadata, namespace.name, config)
    validation.check_payloads(request.input, namespace.name, config)
    if request.HasField("memo"):
        validation.check_memo_size(request.memo.ByteSize(), namespace.name, config)
    if request.header.ByteSize() > config.get(validation.BLOB_SIZE_ERROR, namespace.name):
        raise validation.blob_too_large()
    # Ignoring these would not be what the caller asked for.
    if request.HasField("versioning_override"):
        raise unimplemented("VersioningOverride")
    if request.HasField("time_skipping_config"):
        raise ServiceError(Code.UNIMPLEMENTED, "The Time-Skipping feature is not enabled for namespace.")


def _check_cron(spec: str, now: int) -> None:
    try:
        wait = cron.next_wait(spec, now, now)
    except (cron.InvalidCron, OverflowError):
        raise invalid_argument("invalid CronSchedule.") from None
    if wait is None or wait > validation.MAX_DURATION:
        raise invalid_argument("invalid CronSchedule, no time can be found to satisfy the schedule")


def _check_search_attributes(
    request: StartWorkflowExecutionRequest | SignalWithStartWorkflowExecutionRequest,
    namespace: Namespace,
    config: DynamicConfig,
) -> None:
    """Also writes their types into the payloads, which is how they are told apart from here on."""
    name = namespace.name
    custom = namespace.search_attributes
    given = request.search_attributes
    attributes.validate(
        given,
        custom,
        name,
        keys_limit=config.get(SA_KEYS_LIMIT, name),
        value_size_limit=config.get(SA_VALUE_SIZE_LIMIT, name),
        total_size_limit=config.get(SA_TOTAL_SIZE_LIMIT, name),
    )
    for attribute, payload in given.indexed_fields.items():
        kind = attributes.SETTABLE.get(attribute) or custom[attribute]
        payload.metadata["type"] = attributes.TYPE_NAMES[kind].encode()


def _default_id_policies(
    request: StartWorkflowExecutionRequest | SignalWithStartWorkflowExecutionRequest,
    conflict: WorkflowIdConflictPolicy.ValueType,
) -> None:
    """Sets both policies; TERMINATE_IF_RUNNING, which is deprecated, becomes the conflict policy that replaced it."""
    if request.workflow_id_conflict_policy == _CONFLICT_UNSPECIFIED:
        if request.workflow_id_reuse_policy == _TERMINATE_IF_RUNNING:
            request.workflow_id_conflict_policy = _TERMINATE_EXISTING
            request.workflow_id_reuse_policy = _ALLOW_DUPLICATE
        else:
            request.workflow_id_conflict_policy = conflict
    elif request.workflow_id_reuse_policy == _TERMINATE_IF_RUNNING:
        raise invalid_argument(
            "Invalid WorkflowIDReusePolicy: WORKFLOW_ID_REUSE_POLICY_TERMINATE_IF_RUNNING cannot be used together "
            "with a WorkflowIDConflictPolicy"
        )
    elif (
        request.workflow_id_conflict_policy == _TERMINATE_EXISTING
        and request.workflow_id_reuse_policy == _REJECT_DUPLICATE
    ):
        raise invalid_argument(
            "Invalid WorkflowIDReusePolicy: WORKFLOW_ID_REUSE_POLICY_REJECT_DUPLICATE cannot be used together with "
            "WorkflowIdConflictPolicy WORKFLOW_ID_CONFLICT_POLICY_TERMINATE_EXISTING"
        )
    if not request.workflow_id_reuse_policy:
        request.workflow_id_reuse_policy = _ALLOW_DUPLICATE


def _check_operation_namespace(name: str, namespace: Namespace) -> None:
    if name and name != namespace.name:
        raise invalid_argument("Operation namespace did not match request's namespace.")


RPCS: dict[str, Handler] = {
    "StartWorkflowExecution": start_workflow_execution,
    "SignalWithStartWorkflowExecution": signal_with_start_workflow_execution,
    "ExecuteMultiOperation": execute_multi_operation,
    "SignalWorkflowExecution": signal_workflow_execution,
    "RequestCancelWorkflowExecution": request_cancel_workflow_execution,
    "TerminateWorkflowExecution": terminate_workflow_execution,
    "DeleteWorkflowExecution": delete_workflow_execution,
}
