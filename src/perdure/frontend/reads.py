"""Reading one workflow: its history, forwards and backwards, and its description."""

from __future__ import annotations

from temporalio.api.enums.v1 import HistoryEventFilterType
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    DescribeWorkflowExecutionResponse,
    GetWorkflowExecutionHistoryRequest,
    GetWorkflowExecutionHistoryReverseRequest,
)

from perdure.config.dynamic import HISTORY_PAGE_EVENTS, LONG_POLL_EXPIRATION
from perdure.frontend import validation
from perdure.frontend.rpc import POLL_MARGIN, CallContext, Frontend, Handler

# No page holds more events, whatever the configuration says.
_MAX_PAGE = 1000
_UNSPECIFIED = HistoryEventFilterType.HISTORY_EVENT_FILTER_TYPE_UNSPECIFIED
_ALL_EVENT = HistoryEventFilterType.HISTORY_EVENT_FILTER_TYPE_ALL_EVENT


async def get_workflow_execution_history(
    frontend: Frontend, request: GetWorkflowExecutionHistoryRequest, context: CallContext
) -> bytes:
    config = frontend.config
    namespace = frontend.namespace(request.namespace)
    validation.check_execution(request.execution, request.HasField("execution"), config)
    if not 0 < request.maximum_page_size <= _MAX_PAGE:
        request.maximum_page_size = min(config.get(HISTORY_PAGE_EVENTS, namespace.name), _MAX_PAGE)
    filter_type = request.history_event_filter_type
    if filter_type == _UNSPECIFIED:
        request.history_event_filter_type = _ALL_EVENT
    else:
        validation.check_enum(filter_type, HistoryEventFilterType, "HistoryEventFilterType")
    deadline = frontend.deadline(context, config.get(LONG_POLL_EXPIRATION, namespace.name), POLL_MARGIN)
    return await frontend.history.get_workflow_execution_history(namespace.id, request, deadline)


async def get_workflow_execution_history_reverse(
    frontend: Frontend, request: GetWorkflowExecutionHistoryReverseRequest, context: CallContext
) -> bytes:
    namespace = frontend.namespace(request.namespace)
    validation.check_execution(request.execution, request.HasField("execution"), frontend.config)
    most = min(frontend.config.get(HISTORY_PAGE_EVENTS, namespace.name), _MAX_PAGE)
    size = validation.page_size(request.maximum_page_size, most)
    return await frontend.history.get_workflow_execution_history_reverse(
        namespace.id, request.execution, size, request.next_page_token
    )


async def describe_workflow_execution(
    frontend: Frontend, request: DescribeWorkflowExecutionRequest, context: CallContext
) -> DescribeWorkflowExecutionResponse:
    namespace = frontend.namespace(request.namespace)
    validation.check_execution(request.execution, request.HasField("execution"), frontend.config)
    return await frontend.history.describe_workflow_execution(namespace.id, request)


RPCS: dict[str, Handler] = {
    "GetWorkflowExecutionHistory": get_workflow_execution_history,
    "GetWorkflowExecutionHistoryReverse": get_workflow_execution_history_reverse,
    "DescribeWorkflowExecution": describe_workflow_execution,
}
