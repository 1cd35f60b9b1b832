"""Requests that are well-formed and come to the wrong state: runs that are closed, missing or of another namespace,
task tokens that are stale, forged or of another kind, page tokens of other calls."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Set
from typing import Any

import grpc
import msgspec
import pytest
from google.protobuf.duration_pb2 import Duration
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice import v1 as api

from perdure import tokens

from .process import Target, server_process
from .test_bad_answers import GOOD, PATIENCE, Worker, command
from .test_bad_input import NEVER, UUID

NOT_FOUND, INVALID = grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with server_process(tmp_path_factory.mktemp("server") / "log") as target:
        target.workflows.RegisterNamespace(
            api.RegisterNamespaceRequest(namespace="other", workflow_execution_retention_period=Duration(seconds=86400))
        )
        yield target
        target.check()


def call(target: Target, method: str, **fields: Any) -> Any:
    request = getattr(api, f"{method}Request")(**{"namespace": "default", **fields})
    return getattr(target.workflows, method)(request, timeout=PATIENCE)


def refused(target: Target, method: str, **fields: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.RpcError) as caught:
        call(target, method, **fields)
    code: grpc.StatusCode = caught.value.code()  # type: ignore[attr-defined]
    assert code not in NEVER, (method, caught.value)
    return code, caught.value.details() or ""  # type: ignore[attr-defined]


# --- runs ------------------------------------------------------------------------------------------------------------

# What each call needs beside the run that it is of.
NEED_OPEN: dict[str, dict[str, Any]] = {
    "SignalWorkflowExecution": {"signal_name": "s"},
    "RequestCancelWorkflowExecution": {},
    "TerminateWorkflowExecution": {},
    "UpdateWorkflowExecution": {
        "request": {"meta": {"update_id": "u"}, "input": {"name": "n"}},
        "wait_policy": {"lifecycle_stage": 3},
    },
}
NEED_ANY: dict[str, dict[str, Any]] = {
    "QueryWorkflow": {"query": {"query_type": "q"}},
    "DescribeWorkflowExecution": {},
    "GetWorkflowExecutionHistory": {},
    "GetWorkflowExecutionHistoryReverse": {},
    "ResetStickyTaskQueue": {},
    "DeleteWorkflowExecution": {},
}


def of_run(method: str, workflow_id: str, run_id: str = "") -> dict[str, Any]:
    kind = getattr(api, f"{method}Request").DESCRIPTOR
    name = next(f.name for f in kind.fields if f.name in ("execution", "workflow_execution"))
    return {name: WorkflowExecution(workflow_id=workflow_id, run_id=run_id)}


@pytest.mark.parametrize("method", [*NEED_OPEN, *NEED_ANY])
def test_a_run_that_is_not_there(target: Target, method: str):
    fields = {**NEED_OPEN, **NEED_ANY}[method]
    worker = Worker(target)
    for workflow_id, run_id in (("nowhere", ""), ("nowhere", UUID), (worker.name, UUID), ("nowhere", worker.run_id)):
        code, message = refused(target, method, **fields, **of_run(method, workflow_id, run_id))
        assert code is NOT_FOUND
        assert "not found" in message
    # Of another namespace.
    code, _ = refused(target, method, **{**fields, "namespace": "other"}, **of_run(method, worker.name, worker.run_id))
    assert code is NOT_FOUND
    worker.bring_to_its_end()


@pytest.mark.parametrize("method", NEED_OPEN)
def test_a_run_that_is_closed(target: Target, method: str):
    worker = Worker(target)
    worker.bring_to_its_end()
    if method == "RequestCancelWorkflowExecution":
        call(target, method, **of_run(method, worker.name))  # as good as canceled
        return
    for run_id in ("", worker.run_id):
        code, message = refused(target, method, **NEED_OPEN[method], **of_run(method, worker.name, run_id))
        assert (code, message) == (NOT_FOUND, "workflow execution already completed")


# --- task tokens -----------------------------------------------------------------------------------------------------

WORKFLOW_ANSWERS: dict[str, dict[str, Any]] = {
    "RespondWorkflowTaskCompleted": {},
    "RespondWorkflowTaskFailed": {"cause": 1},
}
ACTIVITY_ANSWERS: dict[str, dict[str, Any]] = {
    "RecordActivityTaskHeartbeat": {},
    "RespondActivityTaskCompleted": {},
    "RespondActivityTaskFailed": {"failure": {"message": "m", "application_failure_info": {}}},
    "RespondActivityTaskCanceled": {},
}


def others(token: msgspec.Struct, legitimate: Set[tuple[str, Any]] = frozenset()) -> Iterator[bytes]:
    """Tokens that are nearly the same, but differ in what tells tasks apart."""
    values = msgspec.structs.asdict(token)
    for name, value in values.items():
        wrong = [value + 1, 0, -1, 2**63 - 1] if isinstance(value, int) else ["", UUID, "x" * 2000, "a\0b"]
        for w in wrong:
            if w != value and (name, w) not in legitimate and name not in TOLD:
                yield msgspec.msgpack.encode([*{**values, name: w}.values()])
    encoded = msgspec.msgpack.encode(token)
    yield msgspec.msgpack.encode([*values.values()][:3])
    yield encoded[:-1]
    yield msgspec.msgpack.encode({"a": 1})
    yield b"\xff"


# Of activities: what a token says for the worker only, and ways to mean the current run, an
# activity by its id, or any start of an attempt.
TOLD = {"activity_id", "activity_type", "stamp"}
LEGITIMATE = {("run_id", ""), ("started_time", 0), ("scheduled_event_id", 0)}


def test_a_workflow_task_answered_with_another_token(target: Target):
    worker = Worker(target)
    first = worker.poll()
    token = tokens.decode(first.task_token, tokens.WorkflowTaskToken)
    for method, forged in itertools.product(WORKFLOW_ANSWERS, others(token)):
        code, _ = refused(target, method, **WORKFLOW_ANSWERS[method], task_token=forged)
        assert code in (NOT_FOUND, INVALID), (method, forged)
    for method in WORKFLOW_ANSWERS:
        code, _ = refused(
            target, method, **{**WORKFLOW_ANSWERS[method], "namespace": "other"}, task_token=first.task_token
        )
        assert code is INVALID
    for method in ACTIVITY_ANSWERS:
        code, _ = refused(target, method, **ACTIVITY_ANSWERS[method], task_token=first.task_token)
        assert code in (NOT_FOUND, INVALID)
    code, _ = refused(target, "RespondQueryTaskCompleted", task_token=first.task_token, completed_type=1)
    assert code in (NOT_FOUND, INVALID)
    worker.answer(first)
    for method in WORKFLOW_ANSWERS:
        code, message = refused(target, method, **WORKFLOW_ANSWERS[method], task_token=first.task_token)
        assert (code, message) == (NOT_FOUND, "Workflow task not found.")
    worker.bring_to_its_end()
    for method in WORKFLOW_ANSWERS:
        code, _ = refused(target, method, **WORKFLOW_ANSWERS[method], task_token=first.task_token)
        assert code is NOT_FOUND


def test_an_activity_answered_with_another_token(target: Target):
    worker = Worker(target)
    schedule = command(
        "schedule_activity_task", {**GOOD["schedule_activity_task"], "task_queue": {"name": worker.name}}
    )
    schedule.schedule_activity_task_command_attributes.start_to_close_timeout.seconds = 60
    worker.answer(worker.poll(), commands=[schedule])
    given = call(target, "PollActivityTaskQueue", task_queue={"name": worker.name})
    token = tokens.decode(given.task_token, tokens.ActivityTaskToken)
    for method, forged in itertools.product(ACTIVITY_ANSWERS, others(token, LEGITIMATE)):
        code, _ = refused(target, method, **ACTIVITY_ANSWERS[method], task_token=forged)
        assert code in (NOT_FOUND, INVALID), (method, forged)
    for method in WORKFLOW_ANSWERS:
        code, _ = refused(target, method, **WORKFLOW_ANSWERS[method], task_token=given.task_token)
        assert code in (NOT_FOUND, INVALID)
    call(target, "RespondActivityTaskCompleted", task_token=given.task_token)
    for method in ACTIVITY_ANSWERS:
        code, _ = refused(target, method, **ACTIVITY_ANSWERS[method], task_token=given.task_token)
        assert code is NOT_FOUND
    worker.bring_to_its_end()
    for method in ACTIVITY_ANSWERS:
        code, _ = refused(target, method, **ACTIVITY_ANSWERS[method], task_token=given.task_token)
        assert code is NOT_FOUND


# --- page tokens -----------------------------------------------------------------------------------------------------


def test_page_tokens_of_other_calls_and_forged_ones(target: Target):
    workers = [Worker(target) for _ in range(3)]
    for worker in workers:
        worker.bring_to_its_end()
    one, two = workers[0], workers[1]
    calls: dict[str, dict[str, Any]] = {
        "ListNamespaces": {"page_size": 1},
        "ListWorkflowExecutions": {"page_size": 1},
        "GetWorkflowExecutionHistory": {"maximum_page_size": 2, **of_run("GetWorkflowExecutionHistory", one.name)},
        "GetWorkflowExecutionHistoryReverse": {
            "maximum_page_size": 2,
            **of_run("GetWorkflowExecutionHistoryReverse", one.name),
        },
    }

    def ask(method: str, token: bytes, **fields: Any) -> Any:
        given = {**calls[method], "next_page_token": token, **fields}
        if method == "ListNamespaces":
            return target.workflows.ListNamespaces(api.ListNamespacesRequest(**given), timeout=PATIENCE)
        return call(target, method, **given)

    found = {method: ask(method, b"").next_page_token for method in calls}
    assert all(found.values()), found
    rng = random.Random("pages")
    forged = [rng.randbytes(n) for n in (1, 5, 30)]
    for token in found.values():
        forged += [token[:-1], token + b"x", bytes(b ^ rng.choice((0, 0, 0, 1, 128)) for b in token)]
    forged += [
        msgspec.msgpack.encode(value)
        for value in ([], {}, None, [one.run_id, -1, 0], [one.run_id, 2**62, 2**63 - 1], [UUID, 1, 0], ["a\0", 1, 0])
    ]
    for method, token in itertools.product(calls, [*found.values(), *forged]):
        try:
            ask(method, token)
        except grpc.RpcError as e:
            assert e.code() in (INVALID, NOT_FOUND), (method, token, e)  # type: ignore[attr-defined]
    # A token of one workflow does not read another.
    for method in ("GetWorkflowExecutionHistory", "GetWorkflowExecutionHistoryReverse"):
        code, _ = refused(
            target, method, **{**calls[method], **of_run(method, two.name), "next_page_token": found[method]}
        )
        assert code in (INVALID, NOT_FOUND)
    target.check()
