"""Whatever comes over the wire, the answer is a typed status, soon, and the server goes on and logs no traceback."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from temporalio.api.operatorservice.v1 import service_pb2 as operatorservice
from temporalio.api.workflowservice.v1 import RegisterNamespaceRequest
from temporalio.api.workflowservice.v1 import service_pb2 as workflowservice

from perdure import tokens

from .process import Target, server_process

METHODS = [
    method
    for file in (workflowservice, operatorservice)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]

NEVER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN, grpc.StatusCode.UNAVAILABLE}


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    with server_process(tmp_path_factory.mktemp("server") / "log") as target:
        target.workflows.RegisterNamespace(
            RegisterNamespaceRequest(
                namespace="disposable", workflow_execution_retention_period=Duration(seconds=86400)
            )
        )
        yield target


# --- requests --------------------------------------------------------------------------------------------------------

UUID = "0b5c2b8e-8f4b-4f53-9a39-6b3c2f6a7f10"
STRINGS = [
    "default", "default", "default", "temporal-system", "nowhere", "", "w", UUID, UUID.upper(), "not-a-uuid",
    "\0", "a\0b", "x" * 1001, "é" * 600, "x" * 30_000, "/_sys/q/1", "/_sys/q/x", "temporal-sys-per-ns-tq", "'; --",
    "*/5 * * * *", "@every 1s", "CRON_TZ=Nowhere/No * * * * *", "99 * * * *", "WorkflowId = 'x'", "((((", "\n", "💥",
    "TemporalTimeout:Nonsense", "ExecutionStatus = 'Running' GROUP BY ExecutionStatus",
]  # fmt: skip
INTS = [0, 0, 1, 1, 2, 3, -1, 1000, 10**9, 2**31 - 1, -(2**31)]
# Without these, most requests go no further than "is not set".
USUAL = {
    "namespace", "workflow_id", "workflow_type", "task_queue", "workflow_execution", "execution", "name", "signal_name",
    "request", "meta", "input", "update_ref", "update_id", "query", "query_type", "task_token", "activity_id",
    "start_workflow", "update_workflow", "operations", "application_failure_info",
}  # fmt: skip
LONGS = [*INTS, 2**63 - 1, -(2**63), 10**18]
FLOATS = [0.0, 1.0, 2.0, -1.0, 0.5, math.nan, math.inf, -math.inf, 1e300]


@dataclass
class Generator:
    """sanity: how often a value is one that could be meant, so that requests come past the first checks."""

    rng: random.Random
    namespace_id: str
    sanity: float
    density: float

    def token(self) -> bytes:
        rng = self.rng
        sane = rng.random() < self.sanity
        ids = [self.namespace_id, "w", UUID] if sane else rng.choices([UUID, "", "\0", "x" * 2000], k=3)
        number = 1 if sane else rng.choice([0, -1, 2**62])
        kinds: list[Any] = [
            tokens.WorkflowTaskToken(ids[0], ids[1], ids[2], number, number, number),
            tokens.ActivityTaskToken(ids[0], ids[1], ids[2], number, number, ids[1]),
            tokens.QueryTaskToken(ids[0], ids[1], ids[2]),
        ]
        return tokens.encode(rng.choice(kinds))

    def bytes(self, name: str) -> bytes:
        rng = self.rng
        if name == "task_token" and rng.random() < self.sanity:
            return self.token()
        choices = [
            b"",
            rng.randbytes(rng.choice([1, 10, 100])),
            rng.choice([b"null", b"[]", b'"x"', b"1", b"{", b'"\\u0000"', b"[" * 1500, b"1e999", b'"\\ud800"']),
            rng.choice([b"json/plain", b"binary/null", b"Keyword", b"Int"]),
            self.token(),
        ]
        return rng.choice(choices)

    def string(self, name: str) -> str:
        rng = self.rng
        if rng.random() >= self.sanity:
            return rng.choice(STRINGS)
        if name == "namespace":
            return "default"
        if name.endswith("run_id"):
            return rng.choice([UUID, ""])
        return "" if name in ("cron_schedule", "query", "id") else "w"

    def scalar(self, field: FieldDescriptor) -> Any:
        rng = self.rng
        sane = rng.random() < self.sanity
        match field.cpp_type:
            case FieldDescriptor.CPPTYPE_STRING:
                return self.bytes(field.name) if field.type == FieldDescriptor.TYPE_BYTES else self.string(field.name)
            case FieldDescriptor.CPPTYPE_BOOL:
                return rng.random() < 0.5
            case FieldDescriptor.CPPTYPE_INT64:
                return rng.choice([0, 1, 5] if sane else LONGS)
            case FieldDescriptor.CPPTYPE_INT32:
                return rng.choice([0, 1, 5] if sane else INTS)
            case FieldDescriptor.CPPTYPE_UINT32 | FieldDescriptor.CPPTYPE_UINT64:
                return abs(rng.choice(INTS))
            case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
                return rng.choice([1.0, 2.0] if sane else FLOATS)
            case FieldDescriptor.CPPTYPE_ENUM:
                return rng.choice([*field.enum_type.values_by_number] if sane else [99, -1])
            case _:
                raise AssertionError(field.cpp_type)

    def fill(self, message: Message, depth: int = 0) -> None:
        """Random values in some of the fields."""
        for field in message.DESCRIPTOR.fields:
            kind = field.message_type
            density = 0.97 if field.name in USUAL else self.density
            if self.rng.random() > density or (depth > 6 and kind is not None):
                continue
            value = getattr(message, field.name)
            if kind is not None and kind.GetOptions().map_entry:
                key = self.scalar(kind.fields_by_name["key"])
                target = kind.fields_by_name["value"]
                if target.message_type is not None:
                    self.fill(value[key], depth + 1)
                else:
                    value[key] = self.scalar(target)
            elif field.is_repeated:
                for _ in range(self.rng.choice([0, 1, 2, 2, 30] if depth == 0 else [0, 1, 2])):
                    if kind is not None:
                        self.fill(value.add(), depth + 1)
                    else:
                        value.append(self.scalar(field))
            elif kind is not None:
                value.SetInParent()
                self.fill(value, depth + 1)
            else:
                setattr(message, field.name, self.scalar(field))


def some_request(method: MethodDescriptor, rng: random.Random, namespace_id: str) -> bytes:
    message: Any = message_factory.GetMessageClass(method.input_type)()
    Generator(rng, namespace_id, rng.choice([0.3, 0.9, 0.98, 1]), rng.choice([0.3, 0.6, 0.95])).fill(message)
    if method.name in ("DeprecateNamespace", "UpdateNamespace", "DeleteNamespace") and message.namespace == "default":
        message.namespace = "disposable"  # the other tests need theirs
    data: bytes = message.SerializeToString()
    if rng.random() < 0.1 and data:
        # Damaged on the way.
        at = rng.randrange(len(data))
        data = data[:at] + rng.randbytes(rng.randrange(3)) + data[at + rng.randrange(3) :]
    return data


# --- answers ---------------------------------------------------------------------------------------------------------

# Long polls answer a second before their deadline; what is nearer is refused.
DEADLINE = 1.2


def check(target: Target, method: MethodDescriptor, requests: Sequence[bytes]) -> None:
    """Sends them all at once."""
    call = target.channel.unary_unary(f"/{method.containing_service.full_name}/{method.name}")
    answers: list[Any] = [call.future(data, timeout=DEADLINE) for data in requests]
    for data, answer in zip(requests, answers, strict=True):
        if (error := answer.exception(timeout=20)) is None:
            message_factory.GetMessageClass(method.output_type).FromString(answer.result())
        else:
            assert error.code() not in NEVER, f"{error.code()}: {error.details()} of {data!r}"
            assert error.details()
            # As of a caller that waits for what does not come: then it is our side that says so, or grpc at the caller.
            assert error.code() != grpc.StatusCode.DEADLINE_EXCEEDED or method.name in WAITING, data
    target.check()


WAITING = {
    "QueryWorkflow", "UpdateWorkflowExecution", "PollWorkflowExecutionUpdate", "ExecuteMultiOperation",
    "PollWorkflowTaskQueue", "PollActivityTaskQueue", "PollNexusTaskQueue", "GetWorkflowExecutionHistory",
}  # fmt: skip


def name_of(method: MethodDescriptor) -> str:
    return method.name


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_any_request_is_answered(target: Target, method: MethodDescriptor):
    check(target, method, [b""])
    rng = random.Random(method.name)
    for _ in range(3):
        check(target, method, [some_request(method, rng, target.namespace_id) for _ in range(50)])


@settings(max_examples=20, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(data=st.lists(st.binary(max_size=200), min_size=10, max_size=30), method=st.sampled_from(METHODS))
def test_any_bytes_are_answered(target: Target, method: MethodDescriptor, data: list[bytes]):
    check(target, method, data)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_any_of_many_requests_is_answered(target: Target):
    seed = random.randrange(2**63)
    print("seed:", seed)
    rng = random.Random(seed)
    for method in METHODS:
        check(target, method, [some_request(method, rng, target.namespace_id) for _ in range(100)])
