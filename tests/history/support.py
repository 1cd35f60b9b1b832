"""One run of the core, by plain calls: no store, no event loop, a clock that is a number.

`Run` does what a shard does with what comes out of a step: it keeps the events, the timers and the tasks. After each
step the state is compared with one rebuilt from the events.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

from temporalio.api.command.v1 import Command
from temporalio.api.common.v1 import Payload, Payloads
from temporalio.api.enums.v1 import CommandType, EventType
from temporalio.api.failure.v1 import Failure
from temporalio.api.history.v1 import HistoryEvent
from temporalio.api.workflowservice.v1 import RespondWorkflowTaskCompletedRequest

from perdure.clock import SECOND, to_duration
from perdure.config.dynamic import DynamicConfig
from perdure.history.core import activities, closing, lifecycle, timers, workflow_tasks
from perdure.history.core import completion as commands
from perdure.history.core.apply import replay
from perdure.history.core.completion import Completion
from perdure.history.core.lifecycle import StartParams
from perdure.history.core.state import Activity, RunInfo, RunState, State
from perdure.history.core.tasks import ActivityRetry, ActivityTimeout, DispatchActivity, Task, UserTimer
from perdure.history.core.txn import Environment, Txn

START = 1_700_000_000 * SECOND


class Run:
    """now: nanoseconds. events: the history. tasks: transfer tasks of all steps. timers: those that are live, by key.
    handed_out: (scheduled event id, stamp) of activities that matching would have got. fired: timers that have fired.
    """

    def __init__(self, settings: dict[str, Any] | None = None, **start: Any) -> None:
        config = DynamicConfig()
        for name, value in (settings or {}).items():
            config.set(name, value)
        ids = itertools.count(1)
        self.env = Environment("default", config, lambda: f"id-{next(ids)}", lambda name: f"id of {name}")
        self.now = START
        self.events: list[HistoryEvent] = []
        self.tasks: list[Task] = []
        self.timers: dict[Any, tuple[int, Task]] = {}
        self.handed_out: list[tuple[int, int]] = []
        self.fired: list[Task] = []
        params = StartParams(
            **{
                "namespace_id": "namespace",
                "workflow_id": "workflow",
                "run_id": "run",
                "request_id": "start",
                "workflow_type": "Type",
                "task_queue": "queue",
                **start,
            }
        )
        txn = lifecycle.begin(params, self.now, self.env)
        self.state = txn.state
        self.commit(txn)

    # --- steps

    def step(self) -> Txn:
        return Txn(self.state, self.now, self.env)

    def commit(self, txn: Txn) -> Txn:
        closing.finish(txn)
        self.events.extend(txn.events)
        for key in txn.canceled_timers:
            self.timers.pop(key, None)
        for request in txn.timers:
            self.timers[request.key] = (request.fire_time, request.task)
        self.tasks.extend(txn.tasks)
        for task in txn.tasks:
            if isinstance(task, DispatchActivity):
                self._hand_out(task)
        self.state.rows()  # every row can be written
        self.state.saved()
        self._check_rebuilt()
        return txn

    def do(self, action: Callable[[Txn], Any]) -> Any:
        txn = self.step()
        result = action(txn)
        self.commit(txn)
        return result

    def _hand_out(self, task: DispatchActivity | ActivityRetry) -> None:
        if activities.waiting(self.state, task.scheduled_event_id, task.stamp) is not None:
            self.handed_out.append((task.scheduled_event_id, task.stamp))

    def _check_rebuilt(self) -> None:
        """What the events say is what the state has."""
        if self.state.buffered or not self.state.open:
            return
        rebuilt = State(RunInfo(), RunState())
        replay(rebuilt, [HistoryEvent.FromString(e.SerializeToString()) for e in self.events])
        assert rebuilt.timers == self.state.timers
        assert rebuilt.activity_ids == self.state.activity_ids
        for scheduled_event_id, activity in rebuilt.activities.items():
            live = self.state.activities[scheduled_event_id]
            assert (activity.activity_id, activity.cancel_requested, activity.cancel_request_id) == (
                live.activity_id,
                live.cancel_requested,
                live.cancel_request_id,
            )

    # --- time

    def advance(self, seconds: float) -> None:
        """Time goes on; timers fire as they come due."""
        end = self.now + round(seconds * SECOND)
        while True:
            due = sorted((time, str(key), key) for key, (time, _) in self.timers.items() if time <= end)
            if not due:
                break
            time, _, key = due[0]
            self.now = max(self.now, time)
            _, task = self.timers.pop(key)
            self.fire(task)
        self.now = end

    def fire(self, task: Task) -> None:
        self.fired.append(task)
        if isinstance(task, UserTimer):
            self.do(lambda txn: timers.fire(txn, task.timer_id, task.started_event_id))
        elif isinstance(task, ActivityTimeout):
            self.do(lambda txn: activities.time_out(txn, task))
        elif isinstance(task, ActivityRetry):
            self._hand_out(task)

    # --- the worker

    def start_workflow_task(self) -> None:
        self.do(lambda txn: workflow_tasks.start(txn, "poll", "worker"))

    def complete_workflow_task(self, *answer: Command) -> Completion:
        """The worker's answer to the started workflow task. Raises BadCommand; the run is of no use then."""
        txn = self.step()
        task = self.state.run.workflow_task
        assert task is not None
        request = RespondWorkflowTaskCompletedRequest(identity="worker", commands=answer)
        had_buffered = self.state.run.buffered_count > 0
        event = workflow_tasks.complete(txn, task, request)
        completion = Completion(txn, request, event.event_id, had_buffered=had_buffered)
        commands.run_commands(completion, request.commands)
        if self.state.open and (
            completion.had_buffered or completion.needs_workflow_task or self.state.run.buffered_count
        ):
            workflow_tasks.schedule(txn)
        self.commit(txn)
        return completion

    def answer(self, *answer: Command) -> Completion:
        """Starts the scheduled workflow task and answers it."""
        self.start_workflow_task()
        return self.complete_workflow_task(*answer)

    def activity(self, activity_id: str = "a") -> Activity:
        return self.state.activities[self.state.activity_ids[activity_id]]

    def start_activity(self, activity_id: str = "a", request_id: str = "poll") -> None:
        activity = self.activity(activity_id)
        assert (activity.scheduled_event_id, activity.stamp) in self.handed_out
        self.do(lambda txn: activities.start(txn, activity, request_id, "worker"))

    # --- what came out

    def types(self) -> list[str]:
        """Of the events, as "WorkflowTaskScheduled"."""
        return [type_name(e) for e in self.events]

    def last(self, name: str) -> Any:
        """Attributes of the last event of this type."""
        for event in reversed(self.events):
            if type_name(event) == name:
                return getattr(event, event.WhichOneof("attributes") or "")
        raise AssertionError(f"no {name} in {self.types()}")


def type_name(event: HistoryEvent) -> str:
    name = EventType.Name(event.event_type).removeprefix("EVENT_TYPE_")
    return "".join(map(str.capitalize, name.split("_")))


# --- commands ---


def schedule_activity(activity_id: str = "a", queue: str = "queue", eager: bool = False, **seconds: float) -> Command:
    """seconds: timeouts by their name without "_timeout"; by default a start_to_close of 10."""
    command = Command(command_type=CommandType.COMMAND_TYPE_SCHEDULE_ACTIVITY_TASK)
    a = command.schedule_activity_task_command_attributes
    a.activity_id = activity_id
    a.activity_type.name = "Activity"
    a.task_queue.name = queue
    a.input.CopyFrom(payloads("input"))
    a.request_eager_execution = eager
    for name, value in (seconds or {"start_to_close": 10}).items():
        getattr(a, f"{name}_timeout").CopyFrom(to_duration(round(value * SECOND)))
    return command


def cancel_activity(scheduled_event_id: int) -> Command:
    command = Command(command_type=CommandType.COMMAND_TYPE_REQUEST_CANCEL_ACTIVITY_TASK)
    command.request_cancel_activity_task_command_attributes.scheduled_event_id = scheduled_event_id
    return command


def start_timer(timer_id: str, seconds: float) -> Command:
    command = Command(command_type=CommandType.COMMAND_TYPE_START_TIMER)
    command.start_timer_command_attributes.timer_id = timer_id
    command.start_timer_command_attributes.start_to_fire_timeout.CopyFrom(to_duration(round(seconds * SECOND)))
    return command


def cancel_timer(timer_id: str) -> Command:
    command = Command(command_type=CommandType.COMMAND_TYPE_CANCEL_TIMER)
    command.cancel_timer_command_attributes.timer_id = timer_id
    return command


def complete_workflow() -> Command:
    command = Command(command_type=CommandType.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION)
    command.complete_workflow_execution_command_attributes.SetInParent()
    return command


def fail_workflow(**info: Any) -> Command:
    """info: of the application failure."""
    command = Command(command_type=CommandType.COMMAND_TYPE_FAIL_WORKFLOW_EXECUTION)
    command.fail_workflow_execution_command_attributes.failure.CopyFrom(application_failure(**info))
    return command


def payloads(text: str) -> Payloads:
    return Payloads(payloads=[Payload(metadata={"encoding": b"json/plain"}, data=f'"{text}"'.encode())])


def application_failure(message: str = "failed", **info: Any) -> Failure:
    failure = Failure(message=message, source="worker")
    failure.application_failure_info.SetInParent()
    for name, value in info.items():
        setattr(failure.application_failure_info, name, value)
    return failure
