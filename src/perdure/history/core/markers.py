"""Commands that only write down: markers, search attributes, memo."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import Memo, Payload, SearchAttributes
from temporalio.api.enums.v1 import CommandType, EventType
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause
from temporalio.api.history.v1 import HistoryEvent

from perdure.config import dynamic
from perdure.history.core import attributes
from perdure.history.core.apply import applies
from perdure.history.core.completion import Completion, command
from perdure.history.core.continuation import check_search_attributes
from perdure.history.core.state import State
from perdure.history.core.tasks import UpsertVisibility
from perdure.history.core.txn import Txn
from perdure.visibility import attributes as search_attributes

_UNSET = (b"", b"null", b"[]")  # data of a payload that removes what it is merged over


@command(CommandType.COMMAND_TYPE_RECORD_MARKER)
def _record_marker(completion: Completion, source: Command) -> None:
    txn = completion.txn
    a = source.record_marker_command_attributes
    cause = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_RECORD_MARKER_ATTRIBUTES
    if not a.marker_name:
        raise attributes.bad(cause, "MarkerName is not set on RecordMarkerCommand.")
    wrong = attributes.invalid_id(a.marker_name, txn.env.config.get(dynamic.MAX_ID_LENGTH))
    if wrong:
        raise attributes.bad(cause, f"MarkerName on RecordMarkerCommand {wrong}")
    size = sum(attributes.size_of(name) + details.ByteSize() for name, details in a.details.items())
    if size > _blob_limit(txn):
        raise attributes.bad(cause, "RecordMarkerCommandAttributes.Details exceeds size limit.", terminate=True)
    event = txn.event(EventType.EVENT_TYPE_MARKER_RECORDED)
    e = event.marker_recorded_event_attributes
    e.marker_name = a.marker_name
    for name, details in a.details.items():
        e.details[name].CopyFrom(details)
    e.workflow_task_completed_event_id = completion.completed_event_id
    if a.HasField("header"):
        e.header.CopyFrom(a.header)
    if a.HasField("failure"):
        e.failure.CopyFrom(a.failure)
    completion.add(event, source)


@command(CommandType.COMMAND_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES)
def _upsert_search_attributes(completion: Completion, source: Command) -> None:
    txn = completion.txn
    env = txn.env
    given = source.upsert_workflow_search_attributes_command_attributes.search_attributes
    cause = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_SEARCH_ATTRIBUTES
    if not given.indexed_fields:
        raise attributes.bad(cause, "IndexedFields is not set on UpsertWorkflowSearchAttributesCommand.")
    check_search_attributes(txn, given, "on UpsertWorkflowSearchAttributesCommand")
    if _size(given.indexed_fields) > _blob_limit(txn):
        raise attributes.bad(
            cause, "UpsertWorkflowSearchAttributesCommandAttributes exceeds size limit.", terminate=True
        )
    merged = SearchAttributes.FromString(txn.state.info.search_attributes_proto)
    _merge(merged.indexed_fields, given.indexed_fields)
    total, limit = merged.ByteSize(), env.config.get(dynamic.SA_TOTAL_SIZE_LIMIT, env.namespace)
    if total > limit:
        raise attributes.bad(
            cause, f"total size of search attributes {total} exceeds size limit {limit}", terminate=True
        )
    event = txn.event(EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES)
    e = event.upsert_workflow_search_attributes_event_attributes
    e.workflow_task_completed_event_id = completion.completed_event_id
    e.search_attributes.CopyFrom(search_attributes.with_types(given, env.search_attributes))
    completion.add(event, source)
    txn.task(UpsertVisibility())


@applies(EventType.EVENT_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES)
def _search_attributes_upserted(state: State, event: HistoryEvent) -> None:
    merged = SearchAttributes.FromString(state.info.search_attributes_proto)
    upserted = event.upsert_workflow_search_attributes_event_attributes.search_attributes
    _merge(merged.indexed_fields, upserted.indexed_fields)
    state.info.search_attributes_proto = merged.SerializeToString()
    state.put_info()


@command(CommandType.COMMAND_TYPE_MODIFY_WORKFLOW_PROPERTIES)
def _modify_properties(completion: Completion, source: Command) -> None:
    txn = completion.txn
    env = txn.env
    given = source.modify_workflow_properties_command_attributes.upserted_memo
    cause = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_MODIFY_WORKFLOW_PROPERTIES_ATTRIBUTES
    if not given.fields:
        raise attributes.bad(cause, "UpsertedMemo.Fields is not set on ModifyWorkflowPropertiesCommand.")
    if _size(given.fields) > _blob_limit(txn):
        raise attributes.bad(cause, "ModifyWorkflowPropertiesCommandAttributes exceeds size limit.", terminate=True)
    merged = Memo.FromString(txn.state.info.memo_proto)
    _merge(merged.fields, given.fields)
    if merged.ByteSize() > env.config.get(dynamic.MEMO_SIZE_ERROR, env.namespace):
        raise attributes.bad(
            cause, "ModifyWorkflowPropertiesCommandAttributes. Memo exceeds size limit.", terminate=True
        )
    event = txn.event(EventType.EVENT_TYPE_WORKFLOW_PROPERTIES_MODIFIED)
    e = event.workflow_properties_modified_event_attributes
    e.workflow_task_completed_event_id = completion.completed_event_id
    e.upserted_memo.CopyFrom(given)
    completion.add(event, source)
    txn.task(UpsertVisibility())


@applies(EventType.EVENT_TYPE_WORKFLOW_PROPERTIES_MODIFIED)
def _properties_modified(state: State, event: HistoryEvent) -> None:
    merged = Memo.FromString(state.info.memo_proto)
    _merge(merged.fields, event.workflow_properties_modified_event_attributes.upserted_memo.fields)
    state.info.memo_proto = merged.SerializeToString()
    state.put_info()


def _merge(target: Any, changes: Mapping[str, Payload]) -> None:
    """target: a protobuf map of payloads, changed in place."""
    for name, payload in changes.items():
        if payload.data in _UNSET:
            target.pop(name, None)
        else:
            target[name].CopyFrom(payload)


def _size(fields: Mapping[str, Payload]) -> int:
    return sum(attributes.size_of(name) + len(payload.data) for name, payload in fields.items())


def _blob_limit(txn: Txn) -> int:
    return txn.env.config.get(dynamic.BLOB_SIZE_ERROR, txn.env.namespace)
