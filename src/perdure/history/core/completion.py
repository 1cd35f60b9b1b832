"""A worker's answer to a workflow task: its commands, each turned into events by the room that knows it.

A room registers its commands with `@command`. A handler raises `BadCommand` when the answer cannot be accepted; then
nothing of the answer holds, and the workflow task fails with that cause.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from temporalio.api.command.v1 import Command
from temporalio.api.enums.v1 import CommandType
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause
from temporalio.api.history.v1 import HistoryEvent, WorkflowExecutionStartedEventAttributes
from temporalio.api.workflowservice.v1 import RespondWorkflowTaskCompletedRequest

from perdure.history.core.txn import Txn


class BadCommand(Exception):
    """cause: of the WorkflowTaskFailed event. message: its failure's. terminate: the run is closed as well, since it
    would fail for ever (it is over a limit of its size)."""

    def __init__(self, cause: Cause.ValueType, message: str, *, terminate: bool = False) -> None:
        super().__init__(message)
        self.cause = cause
        self.message = message
        self.terminate = terminate


@dataclass(slots=True)
class Completion:
    """The answer that is being worked through. completed_event_id: of its WorkflowTaskCompleted. started: attributes
    of the run's first event, loaded when a command needs them (see `needs_started`), None otherwise. eager: scheduled
    event ids of activities that the answer's worker wants at once, already started. had_buffered: events came in
    while the task was started. after: to do once all commands are through. closed: a command closed the run."""

    txn: Txn
    request: RespondWorkflowTaskCompletedRequest
    completed_event_id: int
    started: WorkflowExecutionStartedEventAttributes | None = None
    had_buffered: bool = False
    closed: bool = False
    needs_workflow_task: bool = False
    eager: list[int] = field(default_factory=list[int])
    after: list[Callable[[], object]] = field(default_factory=list[Callable[[], object]])
    updates: Any = None  # the update room's part of this answer

    def close(self) -> None:
        """For a command that closes the run: it must have seen everything, and nothing may follow it."""
        if self.had_buffered:
            raise BadCommand(Cause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND, "UnhandledCommand")
        self.closed = True

    def add(self, event: HistoryEvent, source: Command) -> HistoryEvent:
        """Records a command's event, with the user metadata and links of the command."""
        if source.HasField("user_metadata"):
            event.user_metadata.CopyFrom(source.user_metadata)
        return self.txn.record(event)


Handler = Callable[[Completion, Command], None]
_handlers: dict[int, Handler] = {}
_NEEDS_STARTED = frozenset(
    (
        CommandType.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION,
        CommandType.COMMAND_TYPE_FAIL_WORKFLOW_EXECUTION,
        CommandType.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION,
    )
)


def command(command_type: CommandType.ValueType) -> Callable[[Handler], Handler]:
    def register(function: Handler) -> Handler:
        assert command_type not in _handlers, CommandType.Name(command_type)
        _handlers[command_type] = function
        return function

    return register


def needs_started(txn: Txn, commands: Sequence[Command]) -> bool:
    """A command starts a next run, or may do so: that run takes over from the first event of this one."""
    info = txn.state.info
    for c in commands:
        kind = c.command_type
        if kind in _NEEDS_STARTED and (
            kind == CommandType.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION
            or info.cron_schedule
            or (info.retry_policy_proto and kind == CommandType.COMMAND_TYPE_FAIL_WORKFLOW_EXECUTION)
        ):
            return True
    return False


def run_commands(completion: Completion, commands: Sequence[Command]) -> None:
    """Raises BadCommand."""
    for c in commands:
        if completion.closed:
            break  # nothing after the end counts
        handler = _handlers.get(c.command_type)
        if handler is None:
            raise BadCommand(
                Cause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND, f"Unknown command type: {c.command_type}"
            )
        handler(completion, c)
    for action in completion.after:
        action()
