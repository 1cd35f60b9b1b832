from __future__ import annotations

import asyncio
import logging

import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.api.workflowservice.v1 import (
    CreateScheduleRequest,
    DescribeNamespaceRequest,
    GetClusterInfoRequest,
    GetSystemInfoRequest,
)
from temporalio.client import Client

from perdure.frontend.server import serve

from .support import details, running


async def test_tells_what_it_can_do():
    async with running() as r:
        info = await r.workflows.GetSystemInfo(GetSystemInfoRequest())
        assert info.capabilities.eager_workflow_start
        assert not info.capabilities.nexus
        cluster = await r.workflows.GetClusterInfo(GetClusterInfoRequest())
        assert cluster.cluster_id == "cluster"
        assert cluster.server_version == info.server_version


async def test_an_official_client_connects():
    async with running() as r:
        client = await Client.connect(r.address)
        described = await client.workflow_service.describe_namespace(DescribeNamespaceRequest(namespace="default"))
        assert described.namespace_info.name == "default"
        assert await client.service_client.check_health()


async def test_an_error_has_its_typed_detail():
    async with running() as r:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await r.workflows.DescribeNamespace(DescribeNamespaceRequest(namespace="nowhere"))
        assert caught.value.code() is grpc.StatusCode.NOT_FOUND
        assert caught.value.details() == "Namespace nowhere is not found."
        assert details(caught.value, NamespaceNotFoundFailure).namespace == "nowhere"


async def test_what_is_not_built_says_so_by_name():
    async with running() as r:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await r.workflows.CreateSchedule(CreateScheduleRequest(namespace="default"))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        assert "CreateSchedule" in (caught.value.details() or "")


async def test_a_request_that_is_no_message_is_refused():
    async with running() as r:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await r.call("temporal.api.workflowservice.v1.WorkflowService", "DescribeNamespace", b"\xff\xff\xff")
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_request_that_is_too_large_is_refused_in_the_words_that_sdks_know():
    async with running() as r:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await r.workflows.DescribeNamespace(DescribeNamespaceRequest(namespace="x" * 5_000_000))
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert (caught.value.details() or "").startswith("grpc: received message larger than max")


async def test_a_fault_is_logged_and_told_without_a_traceback(caplog: pytest.LogCaptureFixture):
    async with running() as r:
        r.frontend.namespaces = None  # type: ignore[assignment]
        with caplog.at_level(logging.ERROR), pytest.raises(grpc.aio.AioRpcError) as caught:
            await r.workflows.DescribeNamespace(DescribeNamespaceRequest(namespace="default"))
        assert caught.value.code() is grpc.StatusCode.INTERNAL
        assert caught.value.details() == "internal error"
        assert r.frontend.internal_errors["DescribeNamespace"] == 1
        assert len(caplog.records) == 1
        assert "DescribeNamespace" in caplog.text and "namespace='default'" in caplog.text


async def test_health_and_reflection():
    async with running() as r:
        health = health_pb2_grpc.HealthStub(r.channel)
        for name in ("", "temporal.api.workflowservice.v1.WorkflowService"):
            answer = await health.Check(health_pb2.HealthCheckRequest(service=name))
            assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflection = reflection_pb2_grpc.ServerReflectionStub(r.channel)
        asked = reflection_pb2.ServerReflectionRequest(list_services="")
        async for answer in reflection.ServerReflectionInfo(iter([asked])):
            names = {s.name for s in answer.list_services_response.service}
            assert "temporal.api.workflowservice.v1.WorkflowService" in names
            break


async def test_a_used_port_is_a_clear_error():
    async with running() as r:
        host, port = r.address.split(":")
        with pytest.raises(OSError, match=f"cannot listen on {r.address}: Address already in use"):
            await serve(r.frontend, host, int(port))


async def test_frequent_pings_are_accepted_without_calls():
    """As SDKs send them to keep connections open, only faster. A server that minds answers GOAWAY."""
    ping, goaway = 6, 7
    async with running() as r:
        host, port = r.address.split(":")
        reader, writer = await asyncio.open_connection(host, int(port))
        writer.write(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000 04 00 00000000"))
        acknowledged = 0
        for sent in range(1, 21):
            writer.write(bytes.fromhex("000008 06 00 00000000") + sent.to_bytes(8, "big"))
            while acknowledged < sent:
                header = await asyncio.wait_for(reader.readexactly(9), 5)
                await reader.readexactly(int.from_bytes(header[:3], "big"))
                assert header[3] != goaway
                acknowledged += header[3] == ping and header[4] & 1
        writer.close()
