"""Whatever comes over the wire, the answer is a typed status, soon, and the server goes on and logs no traceback."""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import message_factory
from google.protobuf.descriptor import FieldDescriptor, MethodDescriptor
from google.protobuf.message import Message
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from temporalio.api.operatorservice.v1 import service_pb2 as operatorservice
from temporalio.api.workflowservice.v1 import GetSystemInfoRequest, WorkflowServiceStub
from temporalio.api.workflowservice.v1 import service_pb2 as workflowservice

from perdure import tokens

METHODS = [
    method
    for file in (workflowservice, operatorservice)
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]

NEVER = {grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN}


@dataclass
class Target:
    """A server to test. log: where it writes."""

    channel: grpc.Channel
    log: Path


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Target]:
    """A server in a process of its own. PERDURE_TEST_COMMAND starts another one: it must print its address as its
    first line, log to standard error, and end when its input does."""
    command = os.environ.get("PERDURE_TEST_COMMAND")
    argv = command.split() if command else [sys.executable, "-m", "tests.frontend.standalone"]
    log = tmp_path_factory.mktemp("server") / "log"
    root = Path(__file__).parents[2]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            argv, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True
        )
    try:
        assert process.stdout and process.stdin
        address = process.stdout.readline().strip()
        assert address, log.read_text()
        with grpc.insecure_channel(address) as channel:
            yield Target(channel, log)
        process.stdin.close()
        assert process.wait(10) == 0
    finally:
        process.kill()
        process.wait()


# --- requests --------------------------------------------------------------------------------------------------------

UUID = "0b5c2b8e-8f4b-4f53-9a39-6b3c2f6a7f10"
STRINGS = [
    "default", "default", "default", "temporal-system", "nowhere", "", "w", UUID, UUID.upper(), "not-a-uuid",
    "\0", "a\0b", "x" * 1001, "é" * 600, "x" * 30_000, "/_sys/q/1", "/_sys/q/x", "temporal-sys-per-ns-tq", "'; --",
    "*/5 * * * *", "@every 1s", "CRON_TZ=Nowhere/No * * * * *", "99 * * * *", "WorkflowId = 'x'", "((((", "\n", "💥",
    "TemporalTimeout:Nonsense", "ExecutionStatus = 'Running' GROUP BY ExecutionStatus",
]  # fmt: skip
INTS = [0, 0, 1, 1, 2, 3, -1, 1000, 10**9, 2**31 - 1, -(2**31)]
LONGS = [*INTS, 2**63 - 1, -(2**63), 10**18]
FLOATS = [0.0, 1.0, 2.0, -1.0, 0.5, math.nan, math.inf, -math.inf, 1e300]


def some_token(rng: random.Random) -> bytes:
    ids = [rng.choice([UUID, "", "\0", "x" * 2000]) for _ in range(3)]
    number = rng.choice([0, 1, -1, 2**62])
    kinds: list[Any] = [
        tokens.WorkflowTaskToken(ids[0], ids[1], ids[2], number, number, number),
        tokens.ActivityTaskToken(ids[0], ids[1], ids[2], number, number, ids[1]),
        tokens.QueryTaskToken(ids[0], ids[1], ids[2]),
    ]
    return tokens.encode(rng.choice(kinds))


def some_bytes(rng: random.Random) -> bytes:
    choice = rng.randrange(6)
    if choice == 0:
        return b""
    if choice == 1:
        return rng.randbytes(rng.choice([1, 10, 100]))
    if choice == 2:
        return rng.choice([b"null", b"[]", b'"x"', b"1", b"{", b'"\\u0000"', b"[" * 1500, b"1e999", b'"\\ud800"'])
    if choice == 3:
        return rng.choice([b"json/plain", b"binary/null", b"Keyword", b"Int"])
    return some_token(rng)


def scalar(field: FieldDescriptor, rng: random.Random) -> Any:
    match field.cpp_type:
        case FieldDescriptor.CPPTYPE_STRING:
            if field.type == FieldDescriptor.TYPE_BYTES:
                return some_bytes(rng)
            if field.name == "namespace" and rng.random() < 0.8:
                return "default"
            if field.name.endswith("run_id") and rng.random() < 0.6:
                return rng.choice([UUID, ""])
            return rng.choice(STRINGS)
        case FieldDescriptor.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case FieldDescriptor.CPPTYPE_INT64:
            return rng.choice(LONGS)
        case FieldDescriptor.CPPTYPE_INT32:
            return rng.choice(INTS)
        case FieldDescriptor.CPPTYPE_UINT32 | FieldDescriptor.CPPTYPE_UINT64:
            return abs(rng.choice(INTS))
        case FieldDescriptor.CPPTYPE_DOUBLE | FieldDescriptor.CPPTYPE_FLOAT:
            return rng.choice(FLOATS)
        case FieldDescriptor.CPPTYPE_ENUM:
            return rng.choice([*field.enum_type.values_by_number, 99, -1])
        case _:
            raise AssertionError(field.cpp_type)


def fill(message: Message, rng: random.Random, density: float, depth: int = 0) -> None:
    """Random values in some of the fields: sensible ones often enough to come past the first checks."""
    for field in message.DESCRIPTOR.fields:
        if rng.random() > density or (depth > 6 and field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE):
            continue
        value = getattr(message, field.name)
        entry = field.message_type
        if entry is not None and entry.GetOptions().map_entry:
            key = scalar(entry.fields_by_name["key"], rng)
            kind = entry.fields_by_name["value"]
            if kind.message_type is not None:
                fill(value[key], rng, density, depth + 1)
            else:
                value[key] = scalar(kind, rng)
        elif field.is_repeated:
            for _ in range(rng.choice([0, 1, 1, 2, 30] if depth == 0 else [0, 1, 2])):
                if entry is not None:
                    fill(value.add(), rng, density, depth + 1)
                else:
                    value.append(scalar(field, rng))
        elif entry is not None:
            value.SetInParent()
            fill(value, rng, density, depth + 1)
        else:
            setattr(message, field.name, scalar(field, rng))


def some_request(method: MethodDescriptor, rng: random.Random) -> bytes:
    message = message_factory.GetMessageClass(method.input_type)()
    fill(message, rng, rng.choice([0.3, 0.6, 0.95]))
    data = message.SerializeToString()
    if rng.random() < 0.1 and data:
        # Damaged on the way.
        at = rng.randrange(len(data))
        data = data[:at] + rng.randbytes(rng.randrange(3)) + data[at + rng.randrange(3) :]
    return data


# --- answers ---------------------------------------------------------------------------------------------------------


def check(target: Target, method: MethodDescriptor, data: bytes) -> None:
    path = f"/{method.containing_service.full_name}/{method.name}"
    try:
        answer: bytes = target.channel.unary_unary(path)(data, timeout=2.5)
    except grpc.RpcError as e:
        code, message = e.code(), e.details()  # type: ignore[attr-defined]
        assert code not in NEVER, f"{code}: {message}"
        assert message
    else:
        message_factory.GetMessageClass(method.output_type).FromString(answer)


def check_alive(target: Target) -> None:
    WorkflowServiceStub(target.channel).GetSystemInfo(GetSystemInfoRequest(), timeout=5)
    assert "Traceback" not in target.log.read_text()


def name_of(method: MethodDescriptor) -> str:
    return method.name


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_an_empty_request_is_answered(target: Target, method: MethodDescriptor):
    check(target, method, b"")
    check_alive(target)


@pytest.mark.parametrize("method", METHODS, ids=name_of)
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(rng=st.randoms(use_true_random=False))
def test_any_request_is_answered(target: Target, method: MethodDescriptor, rng: random.Random):
    check(target, method, some_request(method, rng))
    check_alive(target)


@given(data=st.binary(max_size=200), method=st.sampled_from(METHODS))
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), database=None)
def test_any_bytes_are_answered(target: Target, method: MethodDescriptor, data: bytes):
    check(target, method, data)
    check_alive(target)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("method", METHODS, ids=name_of)
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(seed=st.integers(0, 2**63))
def test_any_of_many_requests_is_answered(target: Target, method: MethodDescriptor, seed: int):
    check(target, method, some_request(method, random.Random(seed)))
    check_alive(target)
