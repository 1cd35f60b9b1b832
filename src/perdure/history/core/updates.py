"""Updates of a workflow: asked for by a caller, accepted or rejected by the workflow, completed by it.

An update is admitted in memory only, so that a rejected one leaves nothing behind: its request goes to the worker as a
protocol message along with a workflow task, and the worker answers with messages. Acceptance and completion are events.
What is lost with the memory before it was accepted, its caller admits again.

`Registry` has what a run's updates are in memory: those not yet accepted, and those accepted that somebody waits for.
An answer's messages are worked through by `Answer`, whose results reach the registry when the answer is committed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any, NamedTuple

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from temporalio.api.command.v1 import Command
from temporalio.api.enums.v1 import CommandType, EventType, ResourceExhaustedCause
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause
from temporalio.api.failure.v1 import ApplicationFailureInfo, Failure
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.protocol.v1 import Message as ProtocolMessage
from temporalio.api.update.v1 import Acceptance, Outcome, Rejection, Request, Response
from temporalio.api.workflowservice.v1 import RespondWorkflowTaskCompletedRequest

from perdure import errors
from perdure.config import dynamic
from perdure.errors import ServiceError
from perdure.history.core.apply import applies
from perdure.history.core.completion import BadCommand, Completion, command
from perdure.history.core.state import Kind, RequestIdRecord, State, Update
from perdure.history.core.txn import Environment, Txn

MEMORY = "updates"
_BAD_MESSAGE = Cause.WORKFLOW_TASK_FAILED_CAUSE_BAD_UPDATE_WORKFLOW_EXECUTION_MESSAGE
_PACKAGE = "temporal.api.update.v1."
CLOSING_MESSAGE = "workflow update was aborted by closing workflow"


class Stage(IntEnum):
    ADMITTED = 1
    SENT = 2
    ACCEPTED = 3
    COMPLETED = 4  # rejected ones too


def _server_failure(message: str, type_: str) -> Failure:
    info = ApplicationFailureInfo(type=type_, non_retryable=True)
    return Failure(message=message, source="Server", application_failure_info=info)


def unprocessed() -> Outcome:
    return Outcome(
        failure=_server_failure(
            "Workflow Update is rejected because it wasn't processed by worker. Probably, Workflow Update is not "
            "supported by the worker.",
            "UnprocessedUpdate",
        )
    )


def run_completed_first() -> Outcome:
    """Of an update that was accepted, but not completed when its run closed."""
    return Outcome(
        failure=_server_failure(
            "Workflow Update failed because the Workflow completed before the Update completed.",
            "AcceptedUpdateCompletedWorkflow",
        )
    )


def aborted_by_server() -> ServiceError:
    return errors.unavailable("workflow update was aborted")


def aborted_by_closing() -> ServiceError:
    return errors.not_found(CLOSING_MESSAGE)


# --- in memory ---


class LiveUpdate:
    """An update in memory. request: None when a stored event has it. outcome: from COMPLETED on. error: why it will
    not get further. lost: begin again. waiters: how many callers wait; each leaves a function in `watchers` that is
    called once at the next change."""

    __slots__ = ("error", "lost", "outcome", "request", "stage", "update_id", "waiters", "watchers")

    def __init__(self, update_id: str, stage: Stage, request: Request | None) -> None:
        self.update_id = update_id
        self.stage = stage
        self.request = request
        self.outcome: Outcome | None = None
        self.error: ServiceError | None = None
        self.lost = False
        self.waiters = 0
        self.watchers: list[Callable[[], None]] = []

    def changed(self) -> None:
        watchers, self.watchers = self.watchers, []
        for watcher in watchers:
            watcher()

    def size(self) -> int:
        return len(self.update_id) + (self.request.ByteSize() if self.request is not None else 0)


class Registry:
    """memory: `RunContext.memory`, where it is while it holds anything."""

    __slots__ = ("_memory", "live")

    def __init__(self, memory: dict[str, Any]) -> None:
        self._memory = memory
        self.live: dict[str, LiveUpdate] = {}  # in the order of admission

    def add(self, update: LiveUpdate) -> LiveUpdate:
        self.live[update.update_id] = update
        self._memory[MEMORY] = self
        return update

    def tidy(self) -> None:
        """Drops what is over, and what nobody waits for and the state has."""
        for update in list(self.live.values()):
            over = update.stage == Stage.COMPLETED or update.error is not None or update.lost
            if over or (update.stage == Stage.ACCEPTED and not update.waiters):
                del self.live[update.update_id]
        if not self.live and self._memory.get(MEMORY) is self:
            del self._memory[MEMORY]

    def unaccepted(self) -> int:
        """How many the state does not have."""
        return sum(u.stage < Stage.ACCEPTED and u.request is not None for u in self.live.values())

    def closed(self, state: State) -> None:
        """The run closed. What it had accepted fails; the rest may be asked of the run that follows, if one does."""
        for update in list(self.live.values()):
            if update.stage == Stage.ACCEPTED:
                update.stage, update.outcome = Stage.COMPLETED, run_completed_first()
            elif state.info.new_run_id:
                update.error = errors.workflow_closing()
            else:
                update.error = aborted_by_closing()
            update.changed()
        self.tidy()

    def lost(self) -> None:
        for update in list(self.live.values()):
            update.lost = update.error is None
            update.changed()
        self.tidy()

    def answer_refused(self) -> None:
        """The worker's answer was not acceptable. What the worker has seen it would answer the same way again."""
        for update in list(self.live.values()):
            if update.stage == Stage.SENT:
                update.error = errors.workflow_not_ready(
                    "Unable to perform workflow execution update due to unexpected workflow task failure."
                )
                update.changed()
        self.tidy()


def registry(memory: dict[str, Any]) -> Registry | None:
    return memory.get(MEMORY)


def registry_for(memory: dict[str, Any]) -> Registry:
    """It enters `memory` with its first update."""
    return memory.get(MEMORY) or Registry(memory)


# --- admission ---


def _in_flight(state: State, live: Registry | None) -> int:
    run = state.run
    accepted = run.update_count - run.updates_completed
    return accepted + run.updates_admitted + (live.unaccepted() if live is not None else 0)


def check_limits(state: State, live: Registry, request: Request, env: Environment) -> None:
    """Raises ServiceError when the run may not have one more update."""
    config, namespace = env.config, env.namespace
    limit = config.get(dynamic.MAX_IN_FLIGHT_UPDATES, namespace)
    in_flight = _in_flight(state, live)
    concurrent = ResourceExhaustedCause.RESOURCE_EXHAUSTED_CAUSE_CONCURRENT_LIMIT
    if limit and in_flight >= limit:
        raise errors.resource_exhausted(
            f"limit on number of concurrent in-flight updates has been reached ({limit})", concurrent
        )
    limit = config.get(dynamic.MAX_TOTAL_UPDATES, namespace)
    if limit and in_flight + state.run.updates_completed >= limit:
        raise errors.failed_precondition(_total_reached(limit))
    limit = config.get(dynamic.MAX_IN_FLIGHT_UPDATE_PAYLOADS, namespace)
    if limit and sum(u.size() for u in live.live.values()) + request.ByteSize() >= limit:
        raise errors.resource_exhausted(
            f"limit on total payload size of in-flight updates has been reached ({limit} bytes)", concurrent
        )


def _total_reached(limit: int) -> str:
    return (
        f"The limit on the total number of distinct updates in this workflow has been reached ({limit}). Make sure any "
        "duplicate updates share an Update ID so the server can deduplicate them, and consider rejecting updates that "
        "you aren't going to process. You can also Continue-as-New to avoid this; we recommend you check "
        "Continue-as-New Suggested in your Workflow."
    )


def too_many(state: State, memory: dict[str, Any], env: Environment) -> bool:
    """The run should continue as new because of its many updates."""
    live = registry(memory)
    if live is None and not state.run.update_count:
        return False
    limit = env.config.get(dynamic.MAX_TOTAL_UPDATES, env.namespace)
    threshold = math.ceil(limit * env.config.get(dynamic.UPDATES_SUGGEST_CONTINUE_AS_NEW, env.namespace))
    return bool(threshold) and _in_flight(state, live) + state.run.updates_completed >= threshold


# --- to the worker ---


def to_send(memory: dict[str, Any], *, again: bool = True) -> bool:
    """There are updates for the worker. again: those that were sent with an earlier task count too."""
    live = registry(memory)
    last = Stage.SENT if again else Stage.ADMITTED
    return live is not None and any(u.stage <= last for u in live.live.values())


def messages(memory: dict[str, Any], started_event_id: int, *, again: bool) -> list[ProtocolMessage]:
    """The requests that go along with a started workflow task. again: those that were sent before and not answered
    too: the task that they went with is gone (not so after a heartbeat: there the worker still has them)."""
    live = registry(memory)
    if live is None:
        return []
    found: list[ProtocolMessage] = []
    last = Stage.SENT if again else Stage.ADMITTED
    for update in live.live.values():
        if update.stage > last:
            continue
        update.stage = Stage.SENT
        if update.request is None:
            continue  # the worker has it from WorkflowExecutionUpdateAdmitted
        message = ProtocolMessage(
            id=_request_message_id(update.update_id),
            protocol_instance_id=update.update_id,
            event_id=started_event_id - 1,
        )
        message.body.Pack(update.request)
        found.append(message)
    return found


def _request_message_id(update_id: str) -> str:
    return f"{update_id}/request"


# --- the worker's answer ---


def discardable(txn: Txn, request: RespondWorkflowTaskCompletedRequest) -> bool:
    """The answer to a speculative task has nothing but rejections, and the worker can go back to what it knew before.

    A worker that does not understand to be shown the same events twice cannot when the task showed it any; and many of
    them are better shown only once."""
    if request.commands or request.force_create_new_workflow_task:
        return False
    run = txn.state.run
    if not run.last_started_event_id:
        return False  # there is nothing to go back to
    shown = run.next_event_id - (run.last_started_event_id + 2)
    if shown > 0:
        if not request.capabilities.discard_speculative_workflow_task_with_events:
            return False
        if shown > txn.env.config.get(dynamic.DISCARD_SPECULATIVE_MAX_EVENTS):
            return False
    return all(_type_of(m.body) == "Rejection" for m in request.messages)


class _Change(NamedTuple):
    stage: Stage
    outcome: Outcome | None = None


class Answer:
    """The update messages of one answer. changes: what they make of updates once the answer is committed."""

    __slots__ = ("_live", "_memory", "_messages", "_work", "changes")

    def __init__(self, memory: dict[str, Any], work: Completion, messages: Iterable[ProtocolMessage]) -> None:
        self._memory = memory
        self._live = registry_for(memory)
        self._work = work
        self._messages = {m.id: m for m in messages}
        self.changes: dict[str, _Change] = {}
        work.txn.on_commit.append(self._committed)

    def take(self, message_id: str) -> None:
        """A command says that it is the turn of this message. Raises BadCommand."""
        message = self._messages.pop(message_id, None)
        if message is None:
            raise _absent(message_id)
        self._handle(message)

    def finish(self, started_event_id: int, *, heartbeat: bool) -> None:
        """After the commands: the messages that none of them named, then the updates that the worker was given and
        did not answer. Raises BadCommand."""
        rest, self._messages = list(self._messages.values()), {}
        for message in rest:
            self._handle(message)
        if heartbeat or not self._work.txn.state.open:
            return
        for update in self._live.live.values():
            if update.stage == Stage.SENT and update.update_id not in self.changes:
                self._reject(update.update_id, unprocessed())
        if self._work.txn.state.run.updates_admitted:
            self._reject_admitted_rows(started_event_id)

    def _reject_admitted_rows(self, started_event_id: int) -> None:
        for update in list(self._work.txn.state.updates.values()):
            known = update.accepted_event_id or update.update_id in self.changes
            if not known and update.admitted_event_id <= started_event_id:
                self._reject(update.update_id, unprocessed())

    def waiting(self) -> bool:
        """There are updates that the worker has not answered."""
        return any(u.stage < Stage.ACCEPTED and u.update_id not in self.changes for u in self._live.live.values())

    def _committed(self) -> None:
        live = self._live
        changed: list[LiveUpdate] = []
        for update_id, change in self.changes.items():
            update = live.live.get(update_id)
            if update is None:
                continue
            update.stage, update.outcome = change.stage, change.outcome
            if change.stage >= Stage.ACCEPTED:
                update.request = None
            changed.append(update)
        for update in changed:
            # One that is closed with its run in the same step is told so before its callers look.
            update.changed()
        live.tidy()

    # --- messages

    def _handle(self, message: ProtocolMessage) -> None:
        body = _parse(message)
        txn, update_id = self._work.txn, message.protocol_instance_id
        size = message.body.ByteSize()
        if size > txn.env.config.get(dynamic.BLOB_SIZE_ERROR, txn.env.namespace):
            raise BadCommand(
                _BAD_MESSAGE,
                f"BadUpdateWorkflowExecutionMessage: Message type {_type_of(message.body)} exceeds size limit.",
                terminate=True,
            )
        stage = self._stage(update_id)
        if stage is None:
            stage = self._resurrect(update_id, body)
        if not txn.state.open and not isinstance(body, Rejection):
            return  # the run's end decides what becomes of the update
        if isinstance(body, Acceptance):
            self._expect(update_id, body, stage, Stage.ADMITTED, Stage.SENT)
            self._accept(update_id, body)
        elif isinstance(body, Rejection):
            self._expect(update_id, body, stage, Stage.ADMITTED, Stage.SENT)
            outcome = Outcome()
            outcome.failure.CopyFrom(body.failure)
            self._reject(update_id, outcome)
        else:
            self._expect(update_id, body, stage, Stage.ACCEPTED)
            self._complete(update_id, body)

    def _stage(self, update_id: str) -> Stage | None:
        change = self.changes.get(update_id)
        if change is not None:
            return change.stage
        update = self._live.live.get(update_id)
        if update is not None:
            return update.stage
        row = self._work.txn.state.updates.get(update_id)
        if row is None:
            return None
        if row.completed_event_id:
            return Stage.COMPLETED
        return Stage.ACCEPTED if row.accepted_event_id else Stage.ADMITTED

    def _resurrect(self, update_id: str, body: Acceptance | Rejection | Response) -> Stage:
        """The memory of the update was lost while the worker had it, but the worker sent the request back."""
        request: Request | None = None
        if isinstance(body, Acceptance) and body.HasField("accepted_request"):
            request = body.accepted_request
        elif isinstance(body, Rejection) and body.HasField("rejected_request"):
            request = body.rejected_request
        if request is None:
            raise _bad(
                f"update {update_id} wasn't found on the server. This is most likely a transient error which will be "
                "resolved automatically by retries"
            )
        txn = self._work.txn
        limit = txn.env.config.get(dynamic.MAX_TOTAL_UPDATES, txn.env.namespace)
        if limit and _in_flight(txn.state, self._live) + txn.state.run.updates_completed >= limit:
            raise _bad(_total_reached(limit))
        self._live.add(LiveUpdate(update_id, Stage.ADMITTED, request))
        return Stage.ADMITTED

    @staticmethod
    def _expect(update_id: str, body: Message, stage: Stage, *allowed: Stage) -> None:
        if stage not in allowed:
            raise _bad(
                f"invalid state transition attempted for Update {update_id}: received *update.{body.DESCRIPTOR.name} "
                f"message while in state {stage.name.capitalize()}"
            )

    def _accept(self, update_id: str, body: Acceptance) -> None:
        if not body.accepted_request_sequencing_event_id:
            raise _bad("invalid *update.Acceptance: accepted_request_sequencing_event_id is not set")
        if not body.accepted_request_message_id:
            raise _bad("invalid *update.Acceptance: accepted_request_message_id is not set")
        txn = self._work.txn
        event = txn.event(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED)
        a = event.workflow_execution_update_accepted_event_attributes
        a.protocol_instance_id = update_id
        a.accepted_request_message_id = _request_message_id(update_id)
        a.accepted_request_sequencing_event_id = body.accepted_request_sequencing_event_id
        update = self._live.live.get(update_id)
        if update is not None and update.request is not None:
            a.accepted_request.CopyFrom(update.request)
        txn.record(event)
        self.changes[update_id] = _Change(Stage.ACCEPTED)

    def _complete(self, update_id: str, body: Response) -> None:
        if not body.HasField("meta"):
            raise _bad("invalid *update.Response: meta is not set")
        if not body.meta.update_id:
            raise _bad("invalid *update.Response: meta.update_id is not set")
        if body.meta.update_id != update_id:
            raise _bad(f"invalid *update.Response: meta.update_id != {update_id}")
        if not body.HasField("outcome"):
            raise _bad("invalid *update.Response: outcome is not set")
        txn = self._work.txn
        event = txn.event(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED)
        a = event.workflow_execution_update_completed_event_attributes
        a.meta.CopyFrom(body.meta)
        a.outcome.CopyFrom(body.outcome)
        a.accepted_event_id = txn.state.updates[update_id].accepted_event_id
        txn.record(event)
        self.changes[update_id] = _Change(Stage.COMPLETED, body.outcome)

    def _reject(self, update_id: str, outcome: Outcome) -> None:
        self.changes[update_id] = _Change(Stage.COMPLETED, outcome)
        txn = self._work.txn
        if update_id in txn.state.updates:  # it was admitted by an event: forgotten without one
            txn.state.remove(Kind.UPDATE, update_id)
            txn.state.run.updates_admitted -= 1
            txn.touch()


def _bad(message: str) -> BadCommand:
    return BadCommand(_BAD_MESSAGE, f"BadUpdateWorkflowExecutionMessage: {message}")


def _absent(message_id: str) -> BadCommand:
    return _bad(f"ProtocolMessageCommand referenced absent message ID {message_id}")


def _type_of(body: AnyMessage) -> str:
    """Acceptance, Rejection, Response, or something else."""
    return body.type_url.rpartition("/")[2].removeprefix(_PACKAGE)


def _parse(message: ProtocolMessage) -> Acceptance | Rejection | Response:
    if not message.HasField("body"):
        raise _bad(f"Update {message.protocol_instance_id} received message with nil body")
    kind = _type_of(message.body)
    for type_ in (Acceptance, Rejection, Response):
        if kind == type_.DESCRIPTOR.name:
            try:
                return type_.FromString(message.body.value)
            except DecodeError:
                raise _bad(f"unable to unmarshal request: {kind}") from None
    raise _bad(f"Message type {kind} not supported")


@command(CommandType.COMMAND_TYPE_PROTOCOL_MESSAGE)
def _protocol_message(work: Completion, source: Command) -> None:
    message_id = source.protocol_message_command_attributes.message_id
    if not message_id:
        raise _bad("MessageID is not set on ProtocolMessageCommand.")
    answer: Answer | None = work.updates
    if answer is None:  # the worker sent no messages at all
        raise _absent(message_id)
    answer.take(message_id)


# --- events ---


@applies(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ADMITTED)
def _admitted(state: State, event: HistoryEvent) -> None:
    """Only a reset makes it, of an update that the run it came from had accepted."""
    request = event.workflow_execution_update_admitted_event_attributes.request
    update_id = request.meta.update_id
    if update_id not in state.updates:
        state.run.updates_admitted += 1
        row = Update(update_id, request_id=request.request_id, admitted_event_id=event.event_id)
        state.put(Kind.UPDATE, update_id, row)


@applies(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_ACCEPTED)
def _accepted(state: State, event: HistoryEvent) -> None:
    a = event.workflow_execution_update_accepted_event_attributes
    update_id = a.protocol_instance_id
    row = state.updates.get(update_id)
    if row is None:
        row = Update(update_id)
    else:
        state.run.updates_admitted -= 1
    row.accepted_event_id = event.event_id
    state.run.update_count += 1
    request_id = a.accepted_request.request_id
    if request_id:
        row.request_id = request_id
        state.put(Kind.REQUEST_ID, request_id, RequestIdRecord(event.event_type, event.event_id))
    state.put(Kind.UPDATE, update_id, row)


@applies(EventType.EVENT_TYPE_WORKFLOW_EXECUTION_UPDATE_COMPLETED)
def _completed(state: State, event: HistoryEvent) -> None:
    update_id = event.workflow_execution_update_completed_event_attributes.meta.update_id
    row = state.updates[update_id]
    row.completed_event_id = event.event_id
    state.run.updates_completed += 1
    state.put(Kind.UPDATE, update_id, row)
