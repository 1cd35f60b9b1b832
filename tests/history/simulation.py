"""A run of the core that lives through whatever can happen to it, in an order that chance decides: workers that answer
well or badly, signals, timers early and late, crashes. No server, no event loop; time is a number.

After every step the state must be what the events say, and what the store would give back.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from random import Random
from typing import Any

from msgspec.structs import replace
from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import Callback, Payload, Priority, RetryPolicy, SearchAttributes, WorkflowExecution
from temporalio.api.enums.v1 import CommandType as C
from temporalio.api.enums.v1 import EventType as E
from temporalio.api.enums.v1 import IndexedValueType, ParentClosePolicy
from temporalio.api.enums.v1 import StartChildWorkflowExecutionFailedCause as StartChildFailed
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause
from temporalio.api.history.v1 import History, HistoryEvent
from temporalio.api.protocol.v1 import Message
from temporalio.api.sdk.v1 import UserMetadata
from temporalio.api.update.v1 import Acceptance, Rejection, Request, Response
from temporalio.api.workflowservice.v1 import (
    RequestCancelWorkflowExecutionRequest,
    RespondWorkflowTaskCompletedRequest,
    SignalWorkflowExecutionRequest,
)
from tests.history.audit import Audit
from tests.history.support import START, application_failure, payloads

from perdure.clock import HOUR, MILLISECOND, MINUTE, SECOND, to_duration
from perdure.config.dynamic import DynamicConfig
from perdure.history import engine, workflow_task_calls
from perdure.history.api import ChildOutcome, ParentLink
from perdure.history.core import (
    activities,
    attachments,
    cancellation,
    children,
    closing,
    continuation,
    externals,
    lifecycle,
    signals,
    timers,
    updates,
    workflow_tasks,
)
from perdure.history.core import completion as commands
from perdure.history.core import state as core_state
from perdure.history.core.completion import BadCommand
from perdure.history.core.lifecycle import StartParams
from perdure.history.core.rebuild import comparable, rebuild
from perdure.history.core.state import RUNNING, Activity, State, WorkflowTask
from perdure.history.core.tasks import (
    ActivityRetry,
    ActivityTimeout,
    CancelExternal,
    DispatchActivity,
    DispatchWorkflowTask,
    FirstWorkflowTask,
    RunTimeout,
    SignalExternal,
    StartChild,
    Task,
    TimeoutKind,
    UserTimer,
    WorkflowTaskTimeout,
)
from perdure.history.core.txn import Environment, Txn
from perdure.history.core.updates import LiveUpdate, Stage
from perdure.history.shard import RunContext
from perdure.persistence.api import PendingRow

_COMMANDS = (engine,)  # imported for the commands that the rooms register
_NAMES = "abc"
_SETTINGS = {
    "history.maximumBufferedEventsBatch": 6,
    "limit.historyCount.suggestContinueAsNew": 40,
    "limit.numPendingActivities.error": 6,
    "history.maxInFlightUpdates": 3,
    "history.workflowTaskHeartbeatTimeout": "3m",
}
_CHILD_ENDS = (
    E.EVENT_TYPE_WORKFLOW_EXECUTION_COMPLETED,
    E.EVENT_TYPE_WORKFLOW_EXECUTION_FAILED,
    E.EVENT_TYPE_WORKFLOW_EXECUTION_CANCELED,
    E.EVENT_TYPE_WORKFLOW_EXECUTION_TIMED_OUT,
    E.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED,
)
_FAILED = (
    Cause.WORKFLOW_TASK_FAILED_CAUSE_WORKFLOW_WORKER_UNHANDLED_FAILURE,
    Cause.WORKFLOW_TASK_FAILED_CAUSE_NON_DETERMINISTIC_ERROR,
    Cause.WORKFLOW_TASK_FAILED_CAUSE_RESET_WORKFLOW,
)


class Simulation:
    """steps: what was done, for the reader of a failure."""

    def __init__(self, random: Random) -> None:
        self.random = random
        config = DynamicConfig()
        for name, value in _SETTINGS.items():
            config.set(name, value)
        ids = itertools.count(1)
        self.env = Environment(
            "default",
            config,
            lambda: f"id-{next(ids)}",
            lambda name: f"id of {name}",
            search_attributes={f"Custom{name}": IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD for name in _NAMES},
        )
        self.now = START
        self.steps: list[str] = []
        self._actions = self._all_actions()
        self._begin(self._start_params())

    # --- a run

    def _begin(self, params: StartParams) -> None:
        schedule = self.chance(9, 10)
        txn = lifecycle.begin(params, self.now, self.env, schedule=schedule)
        if not schedule:
            # A child: its parent is told of it, and then lets it go on.
            txn.timer(None, self.now + SECOND, FirstWorkflowTask())
        self._enter(txn)

    def _enter(self, txn: Txn) -> None:
        self.audit = Audit()
        self.events: list[HistoryEvent] = []
        self.rows: dict[tuple[int, str], PendingRow] = {}
        self.row = b""
        self.timers: list[tuple[int, Task]] = []
        self.dispatched: set[tuple[Any, ...]] = set()
        self.context = RunContext(("namespace", "workflow", txn.state.info.run_id))
        self.context.state = txn.state
        self.commit(txn)

    def _start_params(self) -> StartParams:
        params = StartParams(
            namespace_id="namespace",
            workflow_id="workflow",
            run_id=self.env.new_id(),
            request_id="start",
            workflow_type="Type",
            task_queue="queue",
            identity="starter",
        )
        if self.chance(1, 4):
            params.execution_timeout = self.pick((MINUTE, HOUR))
        if self.chance(1, 4):
            params.run_timeout = self.pick((30 * SECOND, 10 * MINUTE))
        if self.chance(1, 4):
            params.retry_policy = RetryPolicy(
                initial_interval=to_duration(SECOND),
                backoff_coefficient=2,
                maximum_interval=to_duration(100 * SECOND),
                maximum_attempts=self.pick((0, 2)),
            )
        if self.chance(1, 6):
            params.cron_schedule = "* * * * *"
        if self.chance(1, 5):
            params.first_backoff = self.pick((SECOND, MINUTE))
        if self.chance(1, 5):
            params.parent = ParentLink("namespace", "default", "parent", "parent run", 7, "root", "root run")
            params.root = WorkflowExecution(workflow_id="root", run_id="root run")
        if self.chance(1, 5):
            params.priority = Priority(priority_key=2, fairness_key="key")
            params.user_metadata = UserMetadata(summary=payloads("summary").payloads[0])
            params.completion_callbacks = [Callback(nexus=Callback.Nexus(url="http://localhost"))]
            params.search_attributes = SearchAttributes(indexed_fields={"Customa": payloads("v").payloads[0]})
        if self.chance(1, 5):
            params.memo = lifecycle.Memo(fields={"k": payloads("v").payloads[0]})
        return params

    @property
    def state(self) -> State:
        return self.context.loaded

    # --- chance

    def chance(self, of: int, all_: int) -> bool:
        return self.random.randrange(all_) < of

    def pick(self, choices: Any) -> Any:
        return choices[self.random.randrange(len(choices))]

    # --- steps

    def step(self) -> None:
        """One thing that can happen now."""
        self.now += self.pick((MILLISECOND, MILLISECOND, SECOND, 11 * SECOND))
        possible = [(name, act, weight) for name, act, weight, can in self._actions if can()]
        total = sum(weight for _, _, weight in possible)
        at = self.random.randrange(total)
        for name, act, weight in possible:
            at -= weight
            if at < 0:
                self.steps.append(name)
                act()
                return

    def _all_actions(self) -> list[tuple[str, Callable[[], None], int, Callable[[], bool]]]:
        def is_open() -> bool:
            return self.state.open

        def scheduled() -> bool:
            task = self.state.run.workflow_task
            return self.state.open and task is not None and not task.started_event_id

        def started() -> bool:
            task = self.state.run.workflow_task
            return self.state.open and task is not None and bool(task.started_event_id)

        def some_activity() -> bool:
            return self.state.open and bool(self.state.activities)

        return [
            ("start workflow task", self._start_workflow_task, 40, scheduled),
            ("answer", self._answer, 40, started),
            ("fail workflow task", self._fail_workflow_task, 4, started),
            ("timer", self._timer, 12, lambda: bool(self.timers)),
            ("signal", self._signal, 8, is_open),
            ("request cancel", self._request_cancel, 1, is_open),
            ("attach", self._attach, 3, is_open),
            ("update", self._update, 8, is_open),
            ("activity", self._activity, 30, some_activity),
            ("child", self._child, 20, lambda: bool(self.state.children)),
            ("external", self._external, 15, lambda: self.state.open and self._some_external()),
            ("reset sticky", self._reset_sticky, 1, is_open),
            ("terminate", self._terminate, 1, lambda: self.state.open and self.chance(1, 3)),
            ("crash", self._crash, 3, lambda: True),
        ]

    def txn(self) -> Txn:
        return Txn(self.state, self.now, self.env)

    def do(self, action: Callable[[Txn], Any]) -> Txn:
        txn = self.txn()
        action(txn)
        self.commit(txn)
        return txn

    def commit(self, txn: Txn) -> None:
        """What Shard.commit does, without a store."""
        closing.finish(txn)
        state = txn.state
        if not txn.dirty:
            assert not txn.events
            assert not state.changed
            self._after(txn)
            self._check_updates()
            return
        blob = History(events=txn.events).SerializeToString()
        events = History.FromString(blob).events
        self.events.extend(events)
        self.audit.add(events)
        run = state.run
        run.transition_count += 1
        run.history_size += len(blob)
        self.row, put, removed = state.rows()
        for row in put:
            self.rows[row.kind, row.key] = row
        for key in removed:
            self.rows.pop(key, None)
        state.saved()
        self.audit.state(state)
        self._after(txn)
        self.check()
        if txn.new_run is not None:
            self._enter(txn.new_run)

    def _after(self, txn: Txn) -> None:
        for request in txn.timers:
            self.timers.append((request.fire_time, request.task))
        for task in itertools.chain(txn.tasks, txn.memory_dispatches):
            if isinstance(task, DispatchWorkflowTask):
                self.dispatched.add(("workflow task", task.scheduled_event_id))
            elif isinstance(task, DispatchActivity):
                self.dispatched.add((task.scheduled_event_id, task.stamp))
            elif isinstance(task, StartChild | SignalExternal | CancelExternal):
                self.dispatched.add(("other", task.initiated_event_id))
        for effect in txn.on_commit:
            effect()
        if not txn.state.open:
            for room in list(self.context.memory.values()):
                room.closed(txn.state)

    # --- what must hold

    def check(self) -> None:
        live = self.state
        self._check_updates()
        rebuilt = rebuild(
            "namespace",
            self.context.key[2],
            self.events,
            start_request_id=live.info.start_request_id,
            buffered=core_state.buffered_events(live),
        )
        wanted, found = comparable(live), comparable(rebuilt)
        for part, value in wanted.items():
            assert found[part] == value, part
        assert rebuilt.activity_ids == live.activity_ids or not live.open
        self._check_stored(self.load())
        if live.open:
            self._check_outbox()

    def _check_updates(self) -> None:
        """No update waits for a worker without a workflow task that brings it there."""
        live = updates.registry(self.context.memory)
        run = self.state.run
        if live is not None and live.unaccepted() and self.state.open and run.had_workflow_task:
            assert run.workflow_task is not None

    def load(self) -> State:
        return core_state.load(self.state.version, self.row, list(self.rows.values()))

    def _check_stored(self, stored: State) -> None:
        live = self.state
        run = live.run
        if run.workflow_task is not None and run.workflow_task.speculative:
            run = replace(run, workflow_task=None)
        assert stored.run == run
        for part in (
            "info",
            "activities",
            "activity_ids",
            "timers",
            "children",
            "external_cancels",
            "external_signals",
            "updates",
            "signal_requests",
            "request_ids",
        ):
            assert getattr(stored, part) == getattr(live, part), part
        assert list(stored.buffered.items()) == list(live.buffered.items())

    def _check_outbox(self) -> None:
        """What waits for something has a task or timer that brings it on."""
        timers = {_identity(task) for _, task in self.timers}
        state = self.state
        task = state.run.workflow_task
        if task is not None and not task.started_event_id:
            assert ("workflow task", task.scheduled_event_id) in self.dispatched
        elif task is not None:
            assert ("workflow task", task.scheduled_event_id, task.attempt) in timers
        elif not state.run.had_workflow_task:
            assert "first workflow task" in timers
        for timer in state.timers.values():
            assert ("timer", timer.timer_id, timer.started_event_id) in timers
        for activity in state.activities.values():
            if activity.started_time:
                if activity.start_to_close or activity.schedule_to_close:
                    assert any(
                        ("activity", activity.scheduled_event_id, kind, attempt) in timers
                        for kind, attempt in (
                            (TimeoutKind.START_TO_CLOSE, activity.attempt),
                            (TimeoutKind.SCHEDULE_TO_CLOSE, 1),
                        )
                    )
            else:
                key = (activity.scheduled_event_id, activity.stamp)
                assert key in self.dispatched or ("retry", *key) in timers
        for initiated_event_id in (*state.children, *state.external_signals, *state.external_cancels):
            assert ("other", initiated_event_id) in self.dispatched
        if state.info.run_expiration:
            assert "run timeout" in timers

    # --- the worker

    def _start_workflow_task(self) -> None:
        too_many = updates.too_many(self.state, self.context.memory, self.env)
        self.do(lambda txn: workflow_tasks.start(txn, self.env.new_id(), self.pick(_NAMES), too_many))
        self._give_updates(again=True)

    def _give_updates(self, *, again: bool) -> None:
        task = self.state.run.workflow_task
        assert task is not None
        updates.messages(self.context.memory, task.started_event_id, again=again)

    def _answer(self) -> None:
        """As the call does it: an answer that cannot be accepted fails the task, on the state as it was before."""
        task = self.state.run.workflow_task
        assert task is not None
        request = self._random_answer()
        txn = self.txn()
        started = None
        if commands.needs_started(txn, request.commands):
            started = self.events[0].workflow_execution_started_event_attributes
        before = replace(task)
        try:
            answer = workflow_task_calls._apply(None, self.context, txn, task, request, started)  # type: ignore
        except BadCommand as bad:
            self.steps.append(f"bad: {bad.message}")
            self._refuse(request, bad, before)
            return
        self.commit(txn)
        if answer.new_task is not None and self.state.run.workflow_task is answer.new_task:
            self._give_updates(again=not request.force_create_new_workflow_task)

    def _refuse(self, request: RespondWorkflowTaskCompletedRequest, bad: BadCommand, task: WorkflowTask) -> None:
        live = updates.registry(self.context.memory)
        if live is not None:
            live.answer_refused()
        self._crash()
        if task.attempt > 1 and bad.cause != Cause.WORKFLOW_TASK_FAILED_CAUSE_UNHANDLED_COMMAND:
            return
        if task.speculative:
            self.state.run.workflow_task = task

        def fail(txn: Txn) -> None:
            workflow_tasks.fail(txn, bad.cause, application_failure(bad.message), request.identity)
            if bad.terminate:
                lifecycle.terminate(txn, bad.message, None, "history-service")
            else:
                workflow_tasks.schedule(txn)

        self.do(fail)

    def _fail_workflow_task(self) -> None:
        def fail(txn: Txn) -> None:
            workflow_tasks.fail(txn, self.pick(_FAILED), application_failure(), "worker")
            workflow_tasks.schedule(txn)

        self.do(fail)

    def _random_answer(self) -> RespondWorkflowTaskCompletedRequest:
        request = RespondWorkflowTaskCompletedRequest(identity="worker", binary_checksum=self.pick(("", "build")))
        if self.chance(1, 2):
            request.sticky_attributes.worker_task_queue.name = "sticky"
            request.sticky_attributes.schedule_to_start_timeout.CopyFrom(to_duration(5 * SECOND))
        request.return_new_workflow_task = self.chance(1, 2)
        request.force_create_new_workflow_task = self.chance(1, 8)
        request.capabilities.discard_speculative_workflow_task_with_events = self.chance(1, 2)
        if self.chance(1, 10):
            return request  # a heartbeat, or nothing to do
        for _ in range(self.random.randrange(4)):
            request.commands.append(self._random_command())
        self._answer_updates(request)
        if self.chance(1, 12):
            request.commands.append(self._random_end())
        return request

    def _random_command(self) -> Command:
        make = self.pick(
            (
                self._schedule_activity,
                self._schedule_activity,
                self._schedule_activity,
                self._cancel_activity,
                self._cancel_activity,
                self._start_timer,
                self._start_timer,
                self._cancel_timer,
                self._start_child,
                self._start_child,
                self._signal_external,
                self._cancel_external,
                self._write_down,
            )
        )
        command = make()
        if self.chance(1, 8):
            command.user_metadata.summary.CopyFrom(payloads("summary").payloads[0])
        return command

    def _name(self, taken: Any) -> str:
        """Mostly one that is free."""
        free = [name for name in _NAMES if name not in taken]
        return self.pick(free if free and self.chance(19, 20) else _NAMES)

    def _buffered(self, type_: E.ValueType) -> list[HistoryEvent]:
        return [e for e in core_state.buffered_events(self.state) if e.event_type == type_]

    def _schedule_activity(self) -> Command:
        command = Command(command_type=C.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK)
        a = command.schedule_activity_task_command_attributes
        a.activity_id = self._name(self.state.activity_ids)
        a.activity_type.name = "Activity"
        a.task_queue.name = "queue"
        a.request_eager_execution = self.chance(1, 4)
        a.start_to_close_timeout.CopyFrom(to_duration(self.pick((10 * SECOND, MINUTE))))
        if self.chance(1, 3):
            a.schedule_to_close_timeout.CopyFrom(to_duration(self.pick((20 * SECOND, HOUR))))
        if self.chance(1, 3):
            a.schedule_to_start_timeout.CopyFrom(to_duration(5 * SECOND))
        if self.chance(1, 3):
            a.heartbeat_timeout.CopyFrom(to_duration(5 * SECOND))
        if self.chance(1, 2):
            a.retry_policy.maximum_attempts = self.pick((1, 3))
        return command

    def _cancel_activity(self) -> Command:
        """One that the worker may believe to be pending."""
        ended = self._buffered(E.EVENT_TYPE_ACTIVITY_TASK_COMPLETED)
        known = [a.scheduled_event_id for a in self.state.activities.values() if not a.cancel_requested]
        known += [e.activity_task_completed_event_attributes.scheduled_event_id for e in ended]
        if not known and self.chance(9, 10):
            return self._schedule_activity()
        command = Command(command_type=C.COMMAND_TYPE_REQUEST_CANCEL_ACTIVITY_TASK)
        command.request_cancel_activity_task_command_attributes.scheduled_event_id = self.pick(known or (3,))
        return command

    def _start_timer(self) -> Command:
        command = Command(command_type=C.COMMAND_TYPE_START_TIMER)
        a = command.start_timer_command_attributes
        a.timer_id = self._name(self.state.timers)
        a.start_to_fire_timeout.CopyFrom(to_duration(self.pick((0, SECOND, MINUTE))))
        return command

    def _cancel_timer(self) -> Command:
        fired = self._buffered(E.EVENT_TYPE_TIMER_FIRED)
        known = [*self.state.timers, *(e.timer_fired_event_attributes.timer_id for e in fired)]
        if not known and self.chance(9, 10):
            return self._start_timer()
        command = Command(command_type=C.COMMAND_TYPE_CANCEL_TIMER)
        command.cancel_timer_command_attributes.timer_id = self.pick(known or _NAMES)
        return command

    def _start_child(self) -> Command:
        command = Command(command_type=C.COMMAND_TYPE_START_CHILD_WORKFLOW_EXECUTION)
        a = command.start_child_workflow_execution_command_attributes
        a.workflow_id = f"child-{self.pick(_NAMES)}"
        a.workflow_type.name = "Child"
        a.parent_close_policy = self.random.randrange(4)
        return command

    def _signal_external(self) -> Command:
        command = Command(command_type=C.COMMAND_TYPE_SIGNAL_EXTERNAL_WORKFLOW_EXECUTION)
        a = command.signal_external_workflow_execution_command_attributes
        a.execution.workflow_id = "other"
        a.signal_name = "signal"
        return command

    def _cancel_external(self) -> Command:
        command = Command(command_type=C.COMMAND_TYPE_REQUEST_CANCEL_EXTERNAL_WORKFLOW_EXECUTION)
        a = command.request_cancel_external_workflow_execution_command_attributes
        a.workflow_id = "other"
        return command

    def _write_down(self) -> Command:
        payload = self.pick((payloads("value").payloads[0], Payload()))
        choose = self.random.randrange(3)
        if choose == 0:
            command = Command(command_type=C.COMMAND_TYPE_RECORD_MARKER)
            command.record_marker_command_attributes.marker_name = "marker"
        elif choose == 1:
            command = Command(command_type=C.COMMAND_TYPE_MODIFY_WORKFLOW_PROPERTIES)
            memo = command.modify_workflow_properties_command_attributes.upserted_memo
            memo.fields[self.pick(_NAMES)].CopyFrom(payload)
        else:
            command = Command(command_type=C.COMMAND_TYPE_UPSERT_WORKFLOW_SEARCH_ATTRIBUTES)
            upserted = command.upsert_workflow_search_attributes_command_attributes.search_attributes
            upserted.indexed_fields[f"Custom{self.pick(_NAMES)}"].CopyFrom(payload)
        return command

    def _random_end(self) -> Command:
        type_ = self.pick(
            (
                C.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION,
                C.COMMAND_TYPE_FAIL_WORKFLOW_EXECUTION,
                C.COMMAND_TYPE_CANCEL_WORKFLOW_EXECUTION,
                C.COMMAND_TYPE_CONTINUE_AS_NEW_WORKFLOW_EXECUTION,
            )
        )
        command = Command(command_type=type_)
        if type_ == C.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION:
            command.complete_workflow_execution_command_attributes.result.CopyFrom(payloads("result"))
        elif type_ == C.COMMAND_TYPE_FAIL_WORKFLOW_EXECUTION:
            failure = application_failure(non_retryable=self.chance(1, 2))
            command.fail_workflow_execution_command_attributes.failure.CopyFrom(failure)
        elif type_ == C.COMMAND_TYPE_CANCEL_WORKFLOW_EXECUTION:
            command.cancel_workflow_execution_command_attributes.SetInParent()
        else:
            a = command.continue_as_new_workflow_execution_command_attributes
            a.workflow_type.name = "Type"
            a.task_queue.name = "queue"
            if self.chance(1, 2):
                a.memo.fields["k"].CopyFrom(payloads("v").payloads[0])
        return command

    # --- updates

    def _update(self) -> None:
        """As the call admits one."""
        state, memory = self.state, self.context.memory
        update_id = f"update-{self.random.randrange(6)}"
        live = updates.registry_for(memory)
        if update_id in live.live or update_id in state.updates or state.run.workflow_task_attempt > 2:
            return
        if len(live.live) >= 3:
            return
        request = Request()
        request.meta.update_id = update_id
        request.request_id = self.pick(("", self.env.new_id()))
        live.add(LiveUpdate(update_id, Stage.ADMITTED, request))
        if state.run.workflow_task is None and state.run.had_workflow_task:
            self.do(lambda txn: workflow_tasks.schedule(txn, speculative=True))

    def _answer_updates(self, request: RespondWorkflowTaskCompletedRequest) -> None:
        live = updates.registry(self.context.memory)
        sent = [] if live is None else [u for u in live.live.values() if u.stage == Stage.SENT]
        accepted = [u.update_id for u in self.state.updates.values() if not u.completed_event_id]
        only_reject = self.chance(1, 3)
        if only_reject:
            del request.commands[:]
        for update in sent:
            if only_reject or self.chance(1, 3):
                rejection = Rejection(rejected_request_message_id=f"{update.update_id}/request")
                rejection.failure.CopyFrom(application_failure("rejected"))
                self._message(request, update.update_id, rejection, named=False)
            elif self.chance(9, 10):
                acceptance = Acceptance(
                    accepted_request_message_id=f"{update.update_id}/request", accepted_request_sequencing_event_id=1
                )
                self._message(request, update.update_id, acceptance, named=self.chance(1, 2))
                if self.chance(1, 2):
                    accepted.append(update.update_id)
        if not only_reject:
            for update_id in accepted:
                if self.chance(1, 2):
                    response = Response()
                    response.meta.update_id = update_id
                    response.outcome.success.CopyFrom(payloads("done"))
                    self._message(request, update_id, response, named=self.chance(1, 2))

    @staticmethod
    def _message(request: RespondWorkflowTaskCompletedRequest, update_id: str, body: Any, *, named: bool) -> None:
        """named: by a command, which says when it is its turn."""
        message = Message(id=f"{update_id}/{type(body).__name__}", protocol_instance_id=update_id)
        message.body.Pack(body)
        request.messages.append(message)
        if named:
            command = request.commands.add(command_type=C.COMMAND_TYPE_PROTOCOL_MESSAGE)
            command.protocol_message_command_attributes.message_id = message.id

    # --- activities

    def _activity(self) -> None:
        activity = self.state.activities[self.pick(sorted(self.state.activities))]
        if not activity.started_time:
            if self.chance(4, 5):
                key = (activity.scheduled_event_id, activity.stamp)
                if key in self.dispatched:
                    self.do(lambda txn: activities.start(txn, activity, self.env.new_id(), "worker"))
            else:
                self.do(lambda txn: activities.complete(txn, activity, None, "by id"))
            return
        self._started_activity(activity)

    def _started_activity(self, activity: Activity) -> None:
        choose = self.random.randrange(8)
        if choose < 3:
            self.do(lambda txn: activities.complete(txn, activity, payloads("result"), "worker"))
        elif choose < 5:
            failure = application_failure(non_retryable=self.chance(1, 4))
            self.do(lambda txn: activities.fail(txn, activity, failure, "worker"))
        elif choose == 5 and activity.cancel_requested:
            self.do(lambda txn: activities.cancel(txn, activity, payloads("details"), "worker"))
        else:
            self.do(lambda txn: activities.record_heartbeat(txn, activity, payloads("beat"), "worker"))

    # --- other workflows

    def _child(self) -> None:
        """A child has started, could not, or has ended; after its parent's end, too."""
        child = self.state.children[self.pick(sorted(self.state.children))]
        initiated = self.events[child.initiated_event_id - 1]
        if not self.state.open:
            if not child.run_id and child.parent_close_policy == ParentClosePolicy.PARENT_CLOSE_POLICY_ABANDON:
                self.do(lambda txn: children.note_started_after_close(txn, child, "child run"))
            return
        if not child.run_id and self.chance(1, 5):
            cause = StartChildFailed.START_CHILD_WORKFLOW_EXECUTION_FAILED_CAUSE_WORKFLOW_ALREADY_EXISTS
            self.do(lambda txn: children.record_start_failed(txn, child, initiated, cause))
        elif not child.run_id and self.chance(4, 5):
            self.do(lambda txn: children.record_started(txn, child, "child run", None))
        else:

            def end(txn: Txn) -> None:
                """As the call does it, whose child may have been faster than the news of its start."""
                if not child.run_id:
                    children.record_started(txn, child, "child run", None)
                close = HistoryEvent(event_type=self.pick(_CHILD_ENDS))
                outcome = ChildOutcome(
                    child.initiated_event_id,
                    child.namespace,
                    child.workflow_id,
                    "child run",
                    "Child",
                    close.SerializeToString(),
                )
                children.record_closed(txn, child, outcome)

            self.do(end)

    def _some_external(self) -> bool:
        return bool(self.state.external_signals or self.state.external_cancels)

    def _external(self) -> None:
        state = self.state
        is_signal = bool(state.external_signals) and (not state.external_cancels or self.chance(1, 2))
        event_id = self.pick(sorted(state.external_signals if is_signal else state.external_cancels))
        initiated = self.events[event_id - 1]
        failed = self.chance(1, 3)
        if is_signal:
            signaled = initiated.signal_external_workflow_execution_initiated_event_attributes
            if failed:
                self.do(lambda txn: externals.signal_failed(txn, event_id, signaled, 1))  # type: ignore
            else:
                self.do(lambda txn: externals.signal_delivered(txn, event_id, signaled))
            return
        canceled = initiated.request_cancel_external_workflow_execution_initiated_event_attributes
        if failed:
            self.do(lambda txn: externals.cancel_failed(txn, event_id, canceled, 1))  # type: ignore
        else:
            self.do(lambda txn: externals.cancel_delivered(txn, event_id, canceled))

    # --- time

    def _timer(self) -> None:
        """One of the timers, in any order: they may be late, and run twice."""
        at = self.random.randrange(len(self.timers))
        fire_time, task = self.timers[at]
        if fire_time > self.now + 2 * MINUTE and self.chance(9, 10):
            return
        self.steps[-1] = f"timer: {task}"
        self.now = max(self.now, fire_time)
        state = self.state
        # Before it is over it stays in the store.
        self._fire(task)
        if state is self.state and self.chance(3, 4):
            del self.timers[at]
        if isinstance(task, ActivityRetry):
            self.dispatched.add((task.scheduled_event_id, task.stamp))

    def _fire(self, task: Task) -> None:
        state = self.state
        if isinstance(task, WorkflowTaskTimeout):
            pending = state.run.workflow_task
            if (
                state.open
                and pending is not None
                and pending.scheduled_event_id == task.scheduled_event_id
                and pending.attempt == task.attempt
                and bool(pending.started_event_id) == (task.kind == TimeoutKind.START_TO_CLOSE)
            ):

                def time_out(txn: Txn) -> None:
                    workflow_tasks.time_out(txn, TimeoutKind(task.kind))
                    workflow_tasks.schedule(txn)

                self.do(time_out)
        elif isinstance(task, FirstWorkflowTask) and state.open:
            self.do(lifecycle.first_workflow_task_due)
        elif isinstance(task, UserTimer):
            self.do(lambda txn: timers.fire(txn, task.timer_id, task.started_event_id))
        elif isinstance(task, ActivityTimeout):
            self.do(lambda txn: activities.time_out(txn, task))
        elif isinstance(task, RunTimeout) and state.open and self.now >= state.info.run_expiration:

            def run_out(txn: Txn) -> None:
                started = self.events[0].workflow_execution_started_event_attributes
                retry_state, new_run_id = continuation.after_failure(txn, started, continuation.timeout_failure())
                lifecycle.time_out(txn, retry_state, new_run_id)

            self.do(run_out)

    # --- from outside

    def _signal(self) -> None:
        request = SignalWorkflowExecutionRequest(
            signal_name="signal",
            identity="sender",
            request_id=self.pick(("", f"signal-{self.random.randrange(5)}")),
            input=payloads("input"),
        )
        sender = WorkflowExecution(workflow_id="sender", run_id="run") if self.chance(1, 3) else None
        if not signals.known(self.state, request.request_id):
            self.do(lambda txn: signals.receive(txn, request, sender))

    def _request_cancel(self) -> None:
        request = RequestCancelWorkflowExecutionRequest(reason="reason", identity="canceler")
        self.do(lambda txn: cancellation.request(txn, request))

    def _attach(self) -> None:
        request_id = self.pick(("", f"attach-{self.random.randrange(4)}"))
        if request_id in self.state.request_ids:
            return
        callback = Callback()
        callback.nexus.url = "http://localhost"
        callbacks = [callback] if self.chance(1, 2) else []
        self.do(lambda txn: attachments.attach(txn, request_id=request_id, callbacks=callbacks))

    def _reset_sticky(self) -> None:
        self.do(workflow_tasks.clear_sticky)

    def _terminate(self) -> None:
        self.do(lambda txn: lifecycle.terminate(txn, "reason", payloads("details"), "terminator"))

    def _crash(self) -> None:
        """What was only in memory is gone."""
        stored = self.load()
        self.context.forget()
        self.context.state = stored
        if stored.open:
            assert stored.run.status == RUNNING


def _identity(task: Task) -> Any:
    if isinstance(task, WorkflowTaskTimeout):
        return ("workflow task", task.scheduled_event_id, task.attempt)
    if isinstance(task, UserTimer):
        return ("timer", task.timer_id, task.started_event_id)
    if isinstance(task, ActivityTimeout):
        return ("activity", task.scheduled_event_id, task.kind, task.attempt)
    if isinstance(task, ActivityRetry):
        return ("retry", task.scheduled_event_id, task.stamp)
    if isinstance(task, FirstWorkflowTask):
        return "first workflow task"
    if isinstance(task, RunTimeout):
        return "run timeout"
    return None


def simulate(random: Random, steps: int) -> Simulation:
    """Raises AssertionError with what was done, when something does not hold."""
    simulation = Simulation(random)
    ends = 0  # steps after the end: what comes late must do no harm
    for _ in range(steps):
        try:
            simulation.step()
        except Exception as error:
            error.add_note("\n".join(simulation.steps))
            raise
        if not simulation.state.open:
            ends += 1
            if ends > 5:
                break
    return simulation
