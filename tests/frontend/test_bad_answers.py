"""Workers that answer a workflow task with anything at all: the task fails with a cause, or the call with a typed
error, and a good worker can still bring the run to its end."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from temporalio.api.command.v1 import Command
from temporalio.api.enums.v1 import CommandType, EventType, WorkflowExecutionStatus
from temporalio.api.enums.v1 import WorkflowTaskFailedCause as Cause
from temporalio.api.protocol.v1 import Message as ProtocolMessage
from temporalio.api.update.v1 import Acceptance, Rejection, Response
from temporalio.api.workflowservice.v1 import (
    DescribeWorkflowExecutionRequest,
    GetWorkflowExecutionHistoryRequest,
    PollWorkflowTaskQueueRequest,
    PollWorkflowTaskQueueResponse,
    RespondWorkflowTaskCompletedRequest,
    SignalWorkflowExecutionRequest,
    StartWorkflowExecutionRequest,
    TerminateWorkflowExecutionRequest,
    UpdateWorkflowExecutionRequest,
)
from temporalio.api.workflowservice.v1 import (
    SignalWithStartWorkflowExecutionRequest as SignalWithStartRequest,
)

from .process import Target, server_process
from .test_bad_input import NEVER, UUID, Generator

RUNNING = WorkflowExecutionStatus.WORKFLOW_EXECUTION_STATUS_RUNNING
FAILED = EventType.EVENT_TYPE_WORKFLOW_TASK_FAILED
TERMINATED = EventType.EVENT_TYPE_WORKFLOW_EXECUTION_TERMINATED
PATIENCE = 20

# Of each command, the field of its attributes. The order of the enum and of the fields differ.
ATTRIBUTES = {
    number: "_".join(name.removeprefix("COMMAND_TYPE_").lower().split("_")) + "_command_attributes"
    for name, number in CommandType.items()
    if number
}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with server_process(tmp_path_factory.mktemp("server") / "log") as target:
        yield target


_numbers = itertools.count()


class Worker:
    """One run on a task queue of its own."""

    def __init__(self, target: Target, **start: Any) -> None:
        self.stub = target.workflows
        self.name = f"run-{next(_numbers)}"
        self.run_id = self.stub.StartWorkflowExecution(
            StartWorkflowExecutionRequest(
                **{
                    "namespace": "default",
                    "workflow_id": self.name,
                    "workflow_type": {"name": "Type"},
                    "task_queue": {"name": self.name},
                    "request_id": self.name,
                    "workflow_task_timeout": {"seconds": 2},
                    **start,
                }
            ),
            timeout=PATIENCE,
        ).run_id

    def poll(self) -> PollWorkflowTaskQueueResponse:
        request = PollWorkflowTaskQueueRequest(namespace="default", task_queue={"name": self.name})  # type: ignore[arg-type]
        return self.stub.PollWorkflowTaskQueue(request, timeout=PATIENCE)

    def answer(self, task: PollWorkflowTaskQueueResponse, **fields: Any) -> None:
        self.stub.RespondWorkflowTaskCompleted(
            RespondWorkflowTaskCompletedRequest(namespace="default", task_token=task.task_token, **fields),
            timeout=PATIENCE,
        )

    def execution(self) -> dict[str, str]:
        return {"workflow_id": self.name, "run_id": self.run_id}

    def status(self) -> int:
        request = DescribeWorkflowExecutionRequest(namespace="default", execution=self.execution())  # type: ignore[arg-type]
        return self.stub.DescribeWorkflowExecution(request, timeout=PATIENCE).workflow_execution_info.status

    def events(self) -> list[Any]:
        request = GetWorkflowExecutionHistoryRequest(namespace="default", execution=self.execution())  # type: ignore[arg-type]
        return list(self.stub.GetWorkflowExecutionHistory(request, timeout=PATIENCE).history.events)

    def signal(self) -> None:
        self.stub.SignalWorkflowExecution(
            SignalWorkflowExecutionRequest(
                namespace="default",
                workflow_execution=self.execution(),  # type: ignore[arg-type]
                signal_name="wake",
            ),
            timeout=PATIENCE,
        )

    def bring_to_its_end(self, given: PollWorkflowTaskQueueResponse | None = None) -> None:
        """As a good worker does. A run that is closed is at its end already. given: a workflow task that it has."""
        complete = Command(command_type=CommandType.COMMAND_TYPE_COMPLETE_WORKFLOW_EXECUTION)
        complete.complete_workflow_execution_command_attributes.SetInParent()
        for _ in range(5):
            if self.status() != RUNNING:
                return
            if given is None or not given.task_token:
                try:
                    self.signal()  # so that there is a workflow task
                except grpc.RpcError:
                    continue  # it has ended meanwhile
                given = self.poll()
                assert given.task_token, "no workflow task came"
            task, given = given, None
            try:
                self.answer(task, commands=[complete])
            except grpc.RpcError as e:
                # Something came in meanwhile, which must be looked at first.
                assert e.details() in ("UnhandledCommand", "Workflow task not found."), e  # type: ignore[attr-defined]
        raise AssertionError(f"stuck: {[EventType.Name(e.event_type) for e in self.events()]}")


def try_answer(target: Target, request: RespondWorkflowTaskCompletedRequest, **start: Any) -> tuple[str, list[Any]]:
    """What became of it: "" or the error, and the events. The run goes to its end afterwards."""
    worker = Worker(target, **start)
    task = worker.poll()
    request.namespace = "default"
    request.task_token = task.task_token
    error, given = "", None
    try:
        given = worker.stub.RespondWorkflowTaskCompleted(request, timeout=PATIENCE).workflow_task
    except grpc.RpcError as e:
        code, error = e.code(), e.details() or ""  # type: ignore[attr-defined]
        assert code not in NEVER, f"{code}: {error}: {str(request)[:3000]}"
        assert code is grpc.StatusCode.INVALID_ARGUMENT, f"{code}: {error}"
        assert error
    events = worker.events()
    try:
        worker.bring_to_its_end(given)
    except (grpc.RpcError, AssertionError) as e:
        raise AssertionError(f"{e} after {str(request)[:3000]}") from e
    return error, events


# --- each command, in every way wrong --------------------------------------------------------------------------------

LONG = "x" * 2000
DURATION_FIELDS = [{"seconds": -1}, {"nanos": -5}, {"seconds": 1, "nanos": -5}, {"nanos": 2**31 - 1}]
HUGE = [{"seconds": 2**63 - 1}, {"seconds": 315_576_000_000}, {"seconds": 2**63 - 1, "nanos": 999_999_999}]
RETRY = [
    {"backoff_coefficient": math.nan},
    {"backoff_coefficient": -math.inf},
    {"backoff_coefficient": 0.5},
    {"initial_interval": {"seconds": -1}},
    {"maximum_interval": {"seconds": -1}},
    {"initial_interval": {"seconds": 2}, "maximum_interval": {"seconds": 1}},
    {"maximum_attempts": -1},
    {"non_retryable_error_types": ["TemporalTimeout:Nonsense"]},
]
EXECUTION = {"workflow_id": "other"}
GOOD: dict[str, dict[str, Any]] = {
    "schedule_activity_task": {
        "activity_id": "a",
        "activity_type": {"name": "A"},
        "task_queue": {"name": "q"},
        "start_to_close_timeout": {"seconds": 5},
    },
    "start_timer": {"timer_id": "t", "start_to_fire_timeout": {"seconds": 100}},
    "request_cancel_activity_task": {"scheduled_event_id": 1},
    "cancel_timer": {"timer_id": "t"},
    "fail_workflow_execution": {"failure": {"message": "m"}},
    "complete_workflow_execution": {},
    "cancel_workflow_execution": {},
    "request_cancel_external_workflow_execution": {"workflow_id": "other"},
    "record_marker": {"marker_name": "m"},
    "continue_as_new_workflow_execution": {"workflow_type": {"name": "Type"}},
    "start_child_workflow_execution": {"workflow_id": "child", "workflow_type": {"name": "Child"}},
    "signal_external_workflow_execution": {"execution": EXECUTION, "signal_name": "s"},
    "upsert_workflow_search_attributes": {"search_attributes": {"indexed_fields": {"CustomKeyword": {"data": b'"x"'}}}},
    "modify_workflow_properties": {"upserted_memo": {"fields": {"k": {"data": b"1"}}}},
    "protocol_message": {"message_id": "m"},
    "schedule_nexus_operation": {"endpoint": "e", "service": "s", "operation": "o"},
    "request_cancel_nexus_operation": {"scheduled_event_id": 1},
}


NOTHING_REQUIRED = {"complete_workflow_execution", "cancel_workflow_execution", "continue_as_new_workflow_execution"}


def wrongs() -> Iterator[tuple[str, dict[str, Any]]]:
    """Name of a command, and attributes of it that must be refused."""
    for name in GOOD:
        if name not in NOTHING_REQUIRED:
            yield name, {}
    for name, fields in {
        "schedule_activity_task": ["activity_id", "activity_type.name", "task_queue.name"],
        "start_timer": ["timer_id"],
        "cancel_timer": ["timer_id"],
        "request_cancel_external_workflow_execution": ["workflow_id", "run_id", "namespace"],
        "record_marker": ["marker_name"],
        "continue_as_new_workflow_execution": ["workflow_type.name", "task_queue.name", "cron_schedule"],
        "start_child_workflow_execution": [
            "workflow_id", "workflow_type.name", "task_queue.name", "namespace", "cron_schedule",
        ],
        "signal_external_workflow_execution": ["execution.workflow_id", "execution.run_id", "signal_name", "namespace"],
    }.items():  # fmt: skip
        for field, value in itertools.product(fields, (LONG, "a\0b")):
            yield name, with_field(GOOD[name], field, value)
    for name, fields in {
        "schedule_activity_task": [
            "schedule_to_close_timeout", "schedule_to_start_timeout", "start_to_close_timeout", "heartbeat_timeout",
        ],
        "start_timer": ["start_to_fire_timeout"],
        "continue_as_new_workflow_execution": [
            "workflow_run_timeout", "workflow_task_timeout", "backoff_start_interval",
        ],
        "start_child_workflow_execution": [
            "workflow_execution_timeout", "workflow_run_timeout", "workflow_task_timeout",
        ],
    }.items():  # fmt: skip
        for field, value in itertools.product(fields, DURATION_FIELDS):
            yield name, with_field(GOOD[name], field, value)
    for name, value in itertools.product(
        ("schedule_activity_task", "continue_as_new_workflow_execution", "start_child_workflow_execution"), RETRY
    ):
        yield name, with_field(GOOD[name], "retry_policy", value)
    priorities = ({"priority_key": -1}, {"fairness_key": LONG}, {"fairness_key": "\0"}, {"fairness_weight": math.nan})
    for name, priority in itertools.product(("schedule_activity_task", "start_child_workflow_execution"), priorities):
        yield name, with_field(GOOD[name], "priority", priority)
    for value in (-1, 2**62):
        yield "request_cancel_activity_task", {"scheduled_event_id": value}
    for indexed in ({"Nowhere": {"data": b'"x"'}}, {"WorkflowId": {"data": b'"x"'}}, {"a\0": {"data": b"1"}}):
        yield "upsert_workflow_search_attributes", {"search_attributes": {"indexed_fields": indexed}}


def with_field(base: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    first, _, rest = path.partition(".")
    return {**base, first: with_field(base.get(first, {}), rest, value) if rest else value}


def command(name: str, attributes: dict[str, Any]) -> Command:
    c = Command(command_type=CommandType.Value(f"COMMAND_TYPE_{name.upper()}"))
    c.MergeFrom(Command(**{f"{name}_command_attributes": attributes}))
    getattr(c, f"{name}_command_attributes").SetInParent()
    return c


def in_parallel(cases: list[Callable[[], None]]) -> None:
    with ThreadPoolExecutor(16) as pool:
        errors = [e for done in [pool.submit(case) for case in cases] if (e := done.exception())]
    if errors:
        raise ExceptionGroup(f"{len(errors)} of {len(cases)} cases", errors)  # type: ignore[type-var]


def cause_of(events: list[Any]) -> str:
    failures = [e for e in events if e.event_type == FAILED]
    assert len(failures) == 1, [EventType.Name(e.event_type) for e in events]
    return Cause.Name(failures[0].workflow_task_failed_event_attributes.cause).removeprefix(
        "WORKFLOW_TASK_FAILED_CAUSE_"
    )


def test_a_wrong_command_fails_its_workflow_task_for_a_cause(target: Target):
    def case(name: str, attributes: dict[str, Any]) -> Callable[[], None]:
        def run() -> None:
            c = command(name, attributes)
            error, events = try_answer(target, RespondWorkflowTaskCompletedRequest(commands=[c]))
            assert error, f"{name} {attributes!r:.300} was accepted"
            cause = cause_of(events)
            assert cause.startswith("BAD_") or cause in ("UNHANDLED_COMMAND", "FEATURE_DISABLED"), cause

        return run

    in_parallel([case(*wrong) for wrong in wrongs()])
    target.check()


def test_durations_beyond_all_measure_do_no_harm(target: Target):
    """Temporal cuts them to a hundred years."""
    cases: list[Callable[[], None]] = []
    for name, field in (
        ("schedule_activity_task", "schedule_to_close_timeout"),
        ("schedule_activity_task", "schedule_to_start_timeout"),
        ("schedule_activity_task", "start_to_close_timeout"),
        ("schedule_activity_task", "heartbeat_timeout"),
        ("start_timer", "start_to_fire_timeout"),
        ("continue_as_new_workflow_execution", "workflow_run_timeout"),
        ("continue_as_new_workflow_execution", "workflow_task_timeout"),
        ("continue_as_new_workflow_execution", "backoff_start_interval"),
        ("start_child_workflow_execution", "workflow_execution_timeout"),
        ("start_child_workflow_execution", "workflow_run_timeout"),
        ("start_child_workflow_execution", "workflow_task_timeout"),
    ):
        for value in HUGE:

            def run(name: str = name, field: str = field, value: Any = value) -> None:
                c = command(name, with_field(GOOD[name], field, value))
                error, _ = try_answer(target, RespondWorkflowTaskCompletedRequest(commands=[c]))
                assert not error

            cases.append(run)
    for name in ("schedule_activity_task", "continue_as_new_workflow_execution", "start_child_workflow_execution"):
        for policy in (
            {"backoff_coefficient": 1e300},
            {"backoff_coefficient": math.inf},
            {"initial_interval": {"seconds": 2**63 - 1}},
            {"maximum_interval": {"seconds": 2**63 - 1}},
            {"initial_interval": {"seconds": 2**62}, "maximum_interval": {"seconds": 2**63 - 1}},
        ):

            def run_policy(name: str = name, policy: Any = policy) -> None:
                c = command(name, with_field(GOOD[name], "retry_policy", policy))
                try_answer(target, RespondWorkflowTaskCompletedRequest(commands=[c]))

            cases.append(run_policy)
    for value in [*HUGE, {"seconds": 0}]:

        def run_sticky(value: Any = value) -> None:
            request = RespondWorkflowTaskCompletedRequest(force_create_new_workflow_task=True)
            request.sticky_attributes.worker_task_queue.name = "sticky"
            request.sticky_attributes.MergeFrom(type(request.sticky_attributes)(schedule_to_start_timeout=value))
            error, _ = try_answer(target, request)
            assert not error

        cases.append(run_sticky)
    in_parallel(cases)
    target.check()


def test_a_command_without_or_with_other_attributes_or_of_no_known_type(target: Target):
    cases: list[Callable[[], None]] = []
    for number in [0, 99, -1, 2**31 - 1, *ATTRIBUTES]:
        others = [Command(command_type=number)]  # type: ignore[arg-type]
        for name in ("start_timer", "complete_workflow_execution", "record_marker"):
            other = command(name, GOOD[name])
            other.command_type = number  # type: ignore[assignment]
            others.append(other)
        for other in others:

            def run(other: Command = other) -> None:
                error, events = try_answer(target, RespondWorkflowTaskCompletedRequest(commands=[other]))
                if error and not any(e.event_type == TERMINATED for e in events):
                    assert cause_of(events)

            cases.append(run)
    in_parallel(cases)
    target.check()


def test_what_is_too_large_ends_the_run_and_says_why(target: Target):
    """As Temporal does: the worker would only send it again."""
    large = {"payloads": [{"data": b"x" * (2 * 1024 * 1024 + 1)}]}

    def case(name: str, attributes: dict[str, Any]) -> Callable[[], None]:
        def run() -> None:
            c = command(name, {**GOOD[name], **attributes})
            error, events = try_answer(target, RespondWorkflowTaskCompletedRequest(commands=[c]))
            assert "exceeds size limit" in error
            assert events[-2].event_type == FAILED, name
            assert events[-1].event_type == TERMINATED, name
            assert "exceeds size limit" in events[-1].workflow_execution_terminated_event_attributes.reason

        return run

    payload = large["payloads"][0]
    in_parallel(
        [
            case("schedule_activity_task", {"input": large}),
            case("start_child_workflow_execution", {"input": large}),
            case("signal_external_workflow_execution", {"input": large}),
            case("continue_as_new_workflow_execution", {"input": large}),
            case("complete_workflow_execution", {"result": large}),
            case("fail_workflow_execution", {"failure": {"message": "x" * (2 * 1024 * 1024)}}),
            case("record_marker", {"details": {"k": large}}),
            case("modify_workflow_properties", {"upserted_memo": {"fields": {"k": payload}}}),
        ]
    )
    target.check()


# --- protocol messages and query results -----------------------------------------------------------------------------


def test_messages_that_nobody_asked_for_or_that_are_none(target: Target):
    def message(body: Any = None, **fields: Any) -> ProtocolMessage:
        m = ProtocolMessage(id="m", protocol_instance_id="u", **fields)
        if body is not None:
            m.body.Pack(body)
        return m

    garbage = message()
    garbage.body.type_url = "type.googleapis.com/temporal.api.update.v1.Acceptance"
    garbage.body.value = b"\xff\xff\xff"
    unknown = message()
    unknown.body.type_url = "type.googleapis.com/temporal.api.update.v1.Nonsense"
    other = message()
    other.body.type_url = "not a url"
    requests: list[RespondWorkflowTaskCompletedRequest] = []
    for m in [
        ProtocolMessage(), message(), garbage, unknown, other, message(Acceptance()), message(Rejection()),
        message(Response()), message(Acceptance(accepted_request_message_id=LONG)), message(Acceptance(), event_id=-1),
        message(Acceptance(accepted_request={}), command_index=2**62),  # type: ignore[arg-type]
        message(Acceptance(accepted_request={"meta": {"update_id": "a\0b"}, "input": {"name": "n"}})),  # type: ignore[arg-type]
        message(Rejection(rejected_request={"meta": {"update_id": "u"}})),  # type: ignore[arg-type]
    ]:  # fmt: skip
        named = command("protocol_message", {"message_id": m.id})
        requests += [
            RespondWorkflowTaskCompletedRequest(messages=[m]),
            RespondWorkflowTaskCompletedRequest(messages=[m, m]),
            RespondWorkflowTaskCompletedRequest(messages=[m], commands=[named]),
            RespondWorkflowTaskCompletedRequest(messages=[m], commands=[named, named]),
        ]
    in_parallel([lambda request=request: try_answer(target, request) and None for request in requests])
    target.check()


def test_an_update_answered_by_nonsense_fails_and_the_run_goes_on(target: Target):
    def case(kind: Any) -> Callable[[], None]:
        def run() -> None:
            worker = Worker(target)
            worker.answer(worker.poll())
            update = UpdateWorkflowExecutionRequest(
                namespace="default",
                workflow_execution=worker.execution(),  # type: ignore[arg-type]
                request={"meta": {"update_id": "u"}, "input": {"name": "handler"}},  # type: ignore[arg-type]
                wait_policy={"lifecycle_stage": 3},  # type: ignore[arg-type]
            )
            asked = worker.stub.UpdateWorkflowExecution.future(update, timeout=PATIENCE)  # type: ignore[attr-defined]
            task = worker.poll()
            (given,) = task.messages
            m = ProtocolMessage(id="m", protocol_instance_id=given.protocol_instance_id)
            if kind is None:
                m.body.type_url, m.body.value = "type.googleapis.com/temporal.api.update.v1.Acceptance", b"\xff"
            else:
                m.body.Pack(kind)
            with pytest.raises(grpc.RpcError) as caught:
                worker.answer(task, messages=[m])
            assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
            error = asked.exception(PATIENCE)
            assert error.code() not in NEVER
            assert cause_of(worker.events()) == "BAD_UPDATE_WORKFLOW_EXECUTION_MESSAGE"
            worker.bring_to_its_end()

        return run

    in_parallel([case(None), case(Response()), case(Acceptance(accepted_request={"meta": {"update_id": "other"}}))])  # type: ignore[arg-type]
    target.check()


def test_results_of_queries_that_nobody_asked_are_passed_over(target: Target):
    results: dict[str, Any] = {
        "": {"result_type": 99},
        LONG: {"result_type": 1},
        "a\0b": {"result_type": 2, "error_message": LONG},
        "q": {"answer": {"payloads": [{"data": b"x" * 3_000_000}]}},
    }
    error, _ = try_answer(target, RespondWorkflowTaskCompletedRequest(query_results=results))
    assert not error
    target.check()


# --- anything --------------------------------------------------------------------------------------------------------


def some_answer(rng: random.Random, namespace_id: str) -> RespondWorkflowTaskCompletedRequest:
    generator = Generator(rng, namespace_id, rng.choice([0.5, 0.9, 0.98, 1]), rng.choice([0.3, 0.6, 0.95]))
    request = RespondWorkflowTaskCompletedRequest(
        return_new_workflow_task=rng.random() < 0.2, force_create_new_workflow_task=rng.random() < 0.2
    )
    for name in ("sticky_attributes", "sdk_metadata", "metering_metadata", "worker_version_stamp", "query_results"):
        if rng.random() < 0.15:
            part = RespondWorkflowTaskCompletedRequest()
            field: FieldDescriptor = part.DESCRIPTOR.fields_by_name[name]
            if field.is_repeated:
                for _ in range(2):
                    generator.fill(part.query_results[rng.choice(["q", UUID, LONG])])
            else:
                getattr(part, name).SetInParent()
                generator.fill(getattr(part, name))
            request.MergeFrom(part)
    for _ in range(rng.choice([0, 1, 1, 2, 5])):
        number = rng.choice(list(ATTRIBUTES))
        c = request.commands.add(command_type=number)  # type: ignore[arg-type]
        attributes = getattr(c, ATTRIBUTES[number])
        attributes.SetInParent()
        name = ATTRIBUTES[number].removesuffix("_command_attributes")
        if rng.random() < 0.7:
            attributes.MergeFrom(type(attributes)(**GOOD[name]))
        generator.fill(attributes)
        if rng.random() < 0.1:
            generator.fill(c.user_metadata)
    if rng.random() < 0.15:
        m = request.messages.add(id=rng.choice(["m", ""]), protocol_instance_id=rng.choice(["u", "", LONG]))
        body = rng.choice([Acceptance, Rejection, Response])()
        generator.fill(body)
        m.body.Pack(body)
    return request


def some_answers(target: Target, rng: random.Random, count: int) -> None:
    def case(request: RespondWorkflowTaskCompletedRequest) -> Callable[[], None]:
        def run() -> None:
            try_answer(target, request)

        return run

    in_parallel([case(some_answer(rng, target.namespace_id)) for _ in range(count)])
    target.check()


def test_any_answer_leaves_a_run_that_can_go_on(target: Target):
    some_answers(target, random.Random("answers"), 300)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_any_of_many_answers_leaves_a_run_that_can_go_on(target: Target):
    seed = random.randrange(2**63)
    print("seed:", seed)
    rng = random.Random(seed)
    for _ in range(10):
        some_answers(target, rng, 200)


def test_a_worker_that_answers_wrongly_again_and_again(target: Target):
    """Its second wrong answer is told to the worker only: the task is tried again when its time is over."""
    worker = Worker(target)
    wrong = command("start_timer", {})
    for attempt in (1, 2, 3):
        task = worker.poll()
        assert task.attempt == attempt
        with pytest.raises(grpc.RpcError) as caught:
            worker.answer(task, commands=[wrong])
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT  # type: ignore[attr-defined]
    assert cause_of(worker.events()) == "BAD_START_TIMER_ATTRIBUTES"
    worker.bring_to_its_end()
    target.check()


def some_start(rng: random.Random, namespace_id: str) -> StartWorkflowExecutionRequest | SignalWithStartRequest:
    generator = Generator(rng, namespace_id, rng.choice([0.9, 0.98, 1]), rng.choice([0.1, 0.3, 0.6]))
    request = rng.choice([StartWorkflowExecutionRequest, SignalWithStartRequest])()
    generator.fill(request)
    request.namespace = "default"
    request.workflow_id = f"start-{next(_numbers)}"
    request.ClearField("workflow_id_conflict_policy")
    request.ClearField("workflow_id_reuse_policy")
    for name in (
        "completion_callbacks",
        "links",
        "versioning_override",
        "request_eager_execution",
        "time_skipping_config",
    ):
        if name in request.DESCRIPTOR.fields_by_name and rng.random() < 0.9:
            request.ClearField(name)
    return request


def some_starts(target: Target, rng: random.Random, count: int) -> int:
    """How many were accepted. Each of those can be read, and ended."""

    def case(request: Any) -> bool:
        try:
            if isinstance(request, StartWorkflowExecutionRequest):
                run_id = target.workflows.StartWorkflowExecution(request, timeout=PATIENCE).run_id
            else:
                run_id = target.workflows.SignalWithStartWorkflowExecution(request, timeout=PATIENCE).run_id
        except grpc.RpcError as e:
            assert e.code() not in NEVER, f"{e.code()} {e.details()}: {request}"  # type: ignore[attr-defined]
            return False
        worker = Worker.__new__(Worker)
        worker.stub, worker.name, worker.run_id = target.workflows, request.workflow_id, run_id
        if worker.status() == RUNNING:
            worker.stub.TerminateWorkflowExecution(
                TerminateWorkflowExecutionRequest(namespace="default", workflow_execution=worker.execution()),  # type: ignore[arg-type]
                timeout=PATIENCE,
            )
        assert worker.status() != RUNNING
        assert worker.events()
        return True

    with ThreadPoolExecutor(16) as pool:
        accepted = sum(pool.map(case, [some_start(rng, target.namespace_id) for _ in range(count)]))
    target.check()
    return accepted


def test_whatever_is_started_can_be_read_and_ended(target: Target):
    assert some_starts(target, random.Random("starts"), 300) > 30


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_whatever_of_much_is_started_can_be_read_and_ended(target: Target):
    seed = random.randrange(2**63)
    print("seed:", seed)
    rng = random.Random(seed)
    for _ in range(30):
        some_starts(target, rng, 300)
