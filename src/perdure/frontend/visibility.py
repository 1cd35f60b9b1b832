"""Listing and counting workflows."""

from __future__ import annotations

from temporalio.api.common.v1 import Payload, WorkflowExecution, WorkflowType
from temporalio.api.enums.v1 import IndexedValueType, WorkflowExecutionStatus
from temporalio.api.filter.v1 import StartTimeFilter
from temporalio.api.workflow.v1 import WorkflowExecutionInfo
from temporalio.api.workflowservice.v1 import (
    CountWorkflowExecutionsRequest,
    CountWorkflowExecutionsResponse,
    GetSearchAttributesRequest,
    GetSearchAttributesResponse,
    ListArchivedWorkflowExecutionsRequest,
    ListClosedWorkflowExecutionsRequest,
    ListClosedWorkflowExecutionsResponse,
    ListOpenWorkflowExecutionsRequest,
    ListOpenWorkflowExecutionsResponse,
    ListWorkflowExecutionsRequest,
    ListWorkflowExecutionsResponse,
    ScanWorkflowExecutionsRequest,
    ScanWorkflowExecutionsResponse,
)

from perdure.clock import to_duration, to_timestamp
from perdure.config.dynamic import VISIBILITY_PAGE_SIZE
from perdure.errors import invalid_argument
from perdure.frontend import validation
from perdure.frontend.rpc import CallContext, Frontend, Handler
from perdure.namespaces import Namespace
from perdure.visibility import attributes
from perdure.visibility.api import VisibilityRecord

_NEVER = 0


async def list_workflow_executions(
    frontend: Frontend, request: ListWorkflowExecutionsRequest, context: CallContext
) -> ListWorkflowExecutionsResponse:
    namespace = frontend.namespace(request.namespace)
    found, token = await _page(frontend, namespace, request.query, request.page_size, request.next_page_token)
    return ListWorkflowExecutionsResponse(executions=found, next_page_token=token)


async def scan_workflow_executions(
    frontend: Frontend, request: ScanWorkflowExecutionsRequest, context: CallContext
) -> ScanWorkflowExecutionsResponse:
    namespace = frontend.namespace(request.namespace)
    found, token = await _page(frontend, namespace, request.query, request.page_size, request.next_page_token)
    return ScanWorkflowExecutionsResponse(executions=found, next_page_token=token)


async def list_open_workflow_executions(
    frontend: Frontend, request: ListOpenWorkflowExecutionsRequest, context: CallContext
) -> ListOpenWorkflowExecutionsResponse:
    namespace = frontend.namespace(request.namespace)
    terms = ["ExecutionStatus = 'Running'", *_between("StartTime", request.start_time_filter), *_by_id_or_type(request)]
    found, token = await _page(
        frontend, namespace, " AND ".join(terms), request.maximum_page_size, request.next_page_token
    )
    return ListOpenWorkflowExecutionsResponse(executions=found, next_page_token=token)


async def list_closed_workflow_executions(
    frontend: Frontend, request: ListClosedWorkflowExecutionsRequest, context: CallContext
) -> ListClosedWorkflowExecutionsResponse:
    namespace = frontend.namespace(request.namespace)
    terms = ["ExecutionStatus != 'Running'", *_between("CloseTime", request.start_time_filter)]
    if request.HasField("status_filter"):
        status = request.status_filter.status
        validation.check_enum(status, WorkflowExecutionStatus, "WorkflowExecutionStatus")
        if status in (
            WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_UNSPECIFIED,
            WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING,
        ):
            raise invalid_argument("StatusFilter must be specified and must be not Running.")
        terms.append(f"ExecutionStatus = '{attributes.STATUS_NAMES[status]}'")
    else:
        terms += _by_id_or_type(request)
    found, token = await _page(
        frontend, namespace, " AND ".join(terms), request.maximum_page_size, request.next_page_token
    )
    return ListClosedWorkflowExecutionsResponse(executions=found, next_page_token=token)


async def list_archived_workflow_executions(
    frontend: Frontend, request: ListArchivedWorkflowExecutionsRequest, context: CallContext
) -> bytes:
    frontend.namespace(request.namespace)
    raise invalid_argument("Cluster is not configured for visibility archival.")


async def count_workflow_executions(
    frontend: Frontend, request: CountWorkflowExecutionsRequest, context: CallContext
) -> CountWorkflowExecutionsResponse:
    namespace = frontend.namespace(request.namespace)
    counted = await frontend.visibility.count(namespace.id, request.query, namespace.search_attributes)
    return CountWorkflowExecutionsResponse(
        count=counted.count,
        groups=[
            CountWorkflowExecutionsResponse.AggregationGroup(
                group_values=[_group_value(value) for value in group.values], count=group.count
            )
            for group in counted.groups
        ],
    )


async def get_search_attributes(
    frontend: Frontend, request: GetSearchAttributesRequest, context: CallContext
) -> GetSearchAttributesResponse:
    """Of all namespaces together, since the request names none."""
    keys = {**attributes.SYSTEM, **attributes.PREDEFINED}
    for name in frontend.namespaces.names():
        keys.update(frontend.namespaces.by_name(name).search_attributes)
    return GetSearchAttributesResponse(keys={k: IndexedValueType.ValueType(v) for k, v in keys.items()})


async def _page(
    frontend: Frontend, namespace: Namespace, query: str, size: int, token: bytes
) -> tuple[list[WorkflowExecutionInfo], bytes]:
    size = validation.page_size(size, frontend.config.get(VISIBILITY_PAGE_SIZE, namespace.name))
    page = await frontend.visibility.list(namespace.id, query, namespace.search_attributes, size, token)
    return [_info(record) for record in page.records], page.next_page_token


def _between(attribute: str, times: StartTimeFilter) -> list[str]:
    earliest = validation.check_timestamp(times.earliest_time, "EarliestTime in StartTimeFilter")
    latest = validation.check_timestamp(times.latest_time, "LatestTime in StartTimeFilter")
    if earliest and latest and earliest > latest:
        raise invalid_argument("EarliestTime in StartTimeFilter should not be larger than LatestTime.")
    terms: list[str] = []
    if earliest:
        terms.append(f"{attribute} >= '{attributes.format_datetime(earliest)}'")
    if latest:
        terms.append(f"{attribute} <= '{attributes.format_datetime(latest)}'")
    return terms


def _by_id_or_type(request: ListOpenWorkflowExecutionsRequest | ListClosedWorkflowExecutionsRequest) -> list[str]:
    if request.HasField("execution_filter"):
        return [f"WorkflowId = {_quoted(request.execution_filter.workflow_id)}"]
    if request.HasField("type_filter"):
        return [f"WorkflowType = {_quoted(request.type_filter.name)}"]
    return []


def _quoted(value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _group_value(value: object) -> Payload:
    if isinstance(value, Payload):
        return value
    assert value is None or isinstance(value, str)
    return attributes.encode_value(value, attributes.KEYWORD)


def _info(record: VisibilityRecord) -> WorkflowExecutionInfo:
    info = WorkflowExecutionInfo(
        execution=WorkflowExecution(workflow_id=record.workflow_id, run_id=record.run_id),
        type=WorkflowType(name=record.workflow_type),
        status=WorkflowExecutionStatus.ValueType(record.status),
        start_time=to_timestamp(record.start_time),
        execution_time=to_timestamp(record.execution_time or record.start_time),
        task_queue=record.task_queue,
        history_length=record.history_length,
        history_size_bytes=record.history_size_bytes,
        state_transition_count=record.state_transition_count,
    )
    if record.close_time != _NEVER:
        info.close_time.CopyFrom(to_timestamp(record.close_time))
        info.execution_duration.CopyFrom(
            to_duration(max(0, record.close_time - (record.execution_time or record.start_time)))
        )
    if record.memo:
        info.memo.MergeFromString(record.memo)
    if record.search_attributes:
        info.search_attributes.MergeFromString(record.search_attributes)
    if record.parent_workflow_id:
        info.parent_execution.workflow_id = record.parent_workflow_id
        info.parent_execution.run_id = record.parent_run_id
    info.root_execution.workflow_id = record.root_workflow_id or record.workflow_id
    info.root_execution.run_id = record.root_run_id or record.run_id
    return info


RPCS: dict[str, Handler] = {
    "ListWorkflowExecutions": list_workflow_executions,
    "ScanWorkflowExecutions": scan_workflow_executions,
    "ListOpenWorkflowExecutions": list_open_workflow_executions,
    "ListClosedWorkflowExecutions": list_closed_workflow_executions,
    "ListArchivedWorkflowExecutions": list_archived_workflow_executions,
    "CountWorkflowExecutions": count_workflow_executions,
    "GetSearchAttributes": get_search_attributes,
}
