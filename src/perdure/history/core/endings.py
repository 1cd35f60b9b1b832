"""Commands with which a workflow ends: complete, fail, cancel."""

from __future__ import annotations

from google.protobuf.message import Message
from temporalio.api.command.v1 import Command
from temporalio.api.enums.v1 import CommandType
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause

from perdure.config import dynamic
from perdure.history.core import attributes, continuation, lifecycle
from perdure.history.core.completion import Completion, command
from perdure.history.core.txn import Txn


@command(CommandType.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION)
def _complete(completion: Completion, source: Command) -> None:
    completion.close()
    txn = completion.txn
    a = source.complete_workflow_execution_command_attributes
    cause = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_COMPLETE_WORKFLOW_EXECUTION_ATTRIBUTES
    if not source.HasField("complete_workflow_execution_command_attributes"):
        raise attributes.bad(
            cause, "CompleteWorkflowExecutionCommandAttributes is not set on CompleteWorkflowExecutionCommand."
        )
    _check_size(txn, cause, a.result, "CompleteWorkflowExecutionCommandAttributes.Result")
    result = a.result if a.HasField("result") else None
    new_run_id = continuation.after_completion(completion, result)
    lifecycle.complete(txn, result, completion.completed_event_id, new_run_id)


@command(CommandType.COMMAND_TYPE_FAIL_WORKFLOW_EXECUTION)
def _fail(completion: Completion, source: Command) -> None:
    completion.close()
    txn = completion.txn
    a = source.fail_workflow_execution_command_attributes
    cause = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_FAIL_WORKFLOW_EXECUTION_ATTRIBUTES
    if not a.HasField("failure"):
        raise attributes.bad(cause, "Failure is not set on FailWorkflowExecutionCommand.")
    _check_size(txn, cause, a.failure, "FailWorkflowExecutionCommandAttributes.Failure")
    retry_state, new_run_id = continuation.after_failure(txn, completion.started, a.failure)
    lifecycle.fail(txn, a.failure, retry_state, completion.completed_event_id, new_run_id)


@command(CommandType.COMMAND_TYPE_CANCEL_WORKFLOW_EXECUTION)
def _cancel(completion: Completion, source: Command) -> None:
    completion.close()
    a = source.cancel_workflow_execution_command_attributes
    if not source.HasField("cancel_workflow_execution_command_attributes"):
        raise attributes.bad(
            Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_CANCEL_WORKFLOW_EXECUTION_ATTRIBUTES,
            "CancelWorkflowExecutionCommandAttributes is not set on CancelWorkflowExecutionCommand.",
        )
    details = a.details if a.HasField("details") else None
    lifecycle.cancel(completion.txn, details, completion.completed_event_id)


def _check_size(txn: Txn, cause: Cause.ValueType, value: Message, name: str) -> None:
    if value.ByteSize() > txn.env.config.get(dynamic.BLOB_SIZE_ERROR, txn.env.namespace):
        raise attributes.bad(cause, f"{name} exceeds size limit.", terminate=True)
