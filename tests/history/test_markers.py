"""Markers, search attributes and the memo of a running workflow; the attributes of commands that end it."""

from __future__ import annotations

from typing import Any

import pytest
from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import Memo, Payload, SearchAttributes
from temporalio.api.enums.v1 import CommandType, IndexedValueType
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause
from tests.history.live import marker
from tests.history.support import Run, complete_workflow, payloads

from perdure.history import engine
from perdure.history.core.completion import BadCommand
from perdure.history.core.tasks import UpsertVisibility

_COMMANDS = (engine,)  # imported for the commands that the rooms register


def json(text: str) -> Payload:
    return Payload(metadata={"encoding": b"json/plain"}, data=text.encode())


def upsert(**values: str) -> Command:
    command = Command(command_type=CommandType.COMMAND_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES)
    fields = command.upsert_workflow_search_attributes_command_attributes.search_attributes.indexed_fields
    for name, value in values.items():
        fields[name].CopyFrom(json(value))
    return command


def modify_memo(**values: str) -> Command:
    command = Command(command_type=CommandType.COMMAND_TYPE_MODIFY_WORKFLOW_PROPERTIES)
    fields = command.modify_workflow_properties_command_attributes.upserted_memo.fields
    for name, value in values.items():
        fields[name].CopyFrom(json(value))
    return command


def run(settings: dict[str, Any] | None = None, **start: Any) -> Run:
    run = Run(settings, **start)
    run.env.search_attributes = {
        "Word": IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD,
        "Number": IndexedValueType.INDEXED_VALUE_TYPE_INT,
    }
    return run


def refused(run: Run, *commands: Command) -> BadCommand:
    with pytest.raises(BadCommand) as caught:
        run.answer(*commands)
    return caught.value


def test_a_marker_is_written_as_it_is_given() -> None:
    r = run()
    command = marker("name")
    a = command.record_marker_command_attributes
    a.details["d"].CopyFrom(payloads("x"))
    a.header.fields["h"].data = b"1"
    a.failure.message = "failed"
    command.user_metadata.summary.data = b"summary"
    completion = r.answer(command)
    event = r.events[-1]
    e = event.marker_recorded_event_attributes
    assert (e.marker_name, e.details["d"], e.header, e.failure) == ("name", payloads("x"), a.header, a.failure)
    assert e.workflow_task_completed_event_id == completion.completed_event_id
    assert event.user_metadata.summary.data == b"summary"


def test_a_marker_needs_a_name() -> None:
    bad = refused(run(), marker(""))
    assert bad.cause == Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_RECORD_MARKER_ATTRIBUTES
    assert bad.message == "BadRecordMarkerAttributes: MarkerName is not set on RecordMarkerCommand."


def test_details_of_a_marker_that_are_too_large_end_the_workflow() -> None:
    command = marker()
    command.record_marker_command_attributes.details["d"].CopyFrom(payloads("x" * 200))
    assert refused(run({"limit.blobSize.error": 100}), command).terminate


def test_search_attributes_are_merged_and_null_unsets() -> None:
    r = run(search_attributes=SearchAttributes(indexed_fields={"Word": json('"a"')}))
    r.tasks.clear()
    r.answer(upsert(Number="1"))
    r.do(lambda txn: None)
    fields = SearchAttributes.FromString(r.state.info.search_attributes_proto).indexed_fields
    assert {name: payload.data for name, payload in fields.items()} == {"Word": b'"a"', "Number": b"1"}
    assert fields["Number"].metadata["type"] == b"Int"
    assert any(isinstance(task, UpsertVisibility) for task in r.tasks)
    event = r.events[-1].upsert_workflow_search_attributes_event_attributes
    assert event.search_attributes.indexed_fields["Number"].metadata["type"] == b"Int"
    other = run(search_attributes=SearchAttributes(indexed_fields={"Word": json('"a"'), "Number": json("1")}))
    other.answer(upsert(Word="null"))
    assert list(SearchAttributes.FromString(other.state.info.search_attributes_proto).indexed_fields) == ["Number"]


@pytest.mark.parametrize(
    "command", [upsert(), upsert(Unknown='"a"'), upsert(Number='"a"'), upsert(WorkflowId='"a"')], ids=str
)
def test_search_attributes_that_cannot_be_set_fail_the_task(command: Command) -> None:
    bad = refused(run(), command)
    assert bad.cause == Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_SEARCH_ATTRIBUTES
    assert not bad.terminate


def test_a_memo_is_merged_and_null_unsets() -> None:
    r = run(memo=Memo(fields={"a": json("1"), "b": json("2")}))
    r.answer(modify_memo(a="null", c="3"))
    fields = Memo.FromString(r.state.info.memo_proto).fields
    assert {name: payload.data for name, payload in fields.items()} == {"b": b"2", "c": b"3"}


def test_a_memo_that_grows_too_large_ends_the_workflow() -> None:
    r = run({"limit.memoSize.error": 100}, memo=Memo(fields={"a": json("1" * 60)}))
    assert refused(r, modify_memo(b="2" * 60)).terminate


def test_an_empty_change_of_the_memo_fails_the_task() -> None:
    bad = refused(run(), modify_memo())
    assert bad.cause == Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_MODIFY_WORKFLOW_PROPERTIES_ATTRIBUTES


def test_a_result_that_is_too_large_ends_the_workflow() -> None:
    command = complete_workflow()
    command.complete_workflow_execution_command_attributes.result.CopyFrom(payloads("x" * 200))
    bad = refused(run({"limit.blobSize.error": 100}), command)
    assert bad.cause == Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_COMPLETE_WORKFLOW_EXECUTION_ATTRIBUTES
    assert bad.terminate


def test_a_failure_needs_to_be_said() -> None:
    command = Command(command_type=CommandType.COMMAND_TYPE_FAIL_WORKFLOW_EXECUTION)
    bad = refused(run(), command)
    assert bad.message == "BadFailWorkflowExecutionAttributes: Failure is not set on FailWorkflowExecutionCommand."
