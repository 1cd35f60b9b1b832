"""The frontend on a real gRPC server, over a real store in memory, and callers for it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc.aio
from google.protobuf.message import Message
from temporalio.api.operatorservice.v1 import OperatorServiceStub
from temporalio.api.workflowservice.v1 import WorkflowServiceStub

from perdure.clock import RealClock
from perdure.config.dynamic import DynamicConfig
from perdure.frontend.rpc import ClusterInfo
from perdure.frontend.server import Frontend, serve
from perdure.namespaces import DEV_RETENTION, NamespaceRegistry
from perdure.persistence.sqlite.store import open_store


@dataclass
class Running:
    """A frontend that answers. address: host:port."""

    address: str
    frontend: Frontend
    channel: grpc.aio.Channel
    workflows: WorkflowServiceStub
    operator: OperatorServiceStub

    async def call(self, service: str, method: str, data: bytes, timeout: float | None = 10) -> bytes:
        return await self.channel.unary_unary(f"/{service}/{method}")(data, timeout=timeout)


class Absent:
    """Stands where a service is not part of a test: any use of it is an error."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} is not part of this test")


@asynccontextmanager
async def running(**parts: Any) -> AsyncIterator[Running]:
    clock = RealClock()
    store = await open_store(None)
    namespaces = NamespaceRegistry(store, clock)
    await namespaces.load()
    await namespaces.ensure(["default"], DEV_RETENTION)
    frontend = Frontend(
        history=parts.pop("history", Absent()),
        matching=parts.pop("matching", Absent()),
        visibility=parts.pop("visibility", Absent()),
        namespaces=namespaces,
        clock=clock,
        config=parts.pop("config", DynamicConfig()),
        cluster=ClusterInfo(id="cluster", **parts),
    )
    listener = await serve(frontend, "127.0.0.1", 0)
    address = f"127.0.0.1:{listener.port}"
    async with grpc.aio.insecure_channel(address) as channel:
        try:
            yield Running(address, frontend, channel, WorkflowServiceStub(channel), OperatorServiceStub(channel))
        finally:
            await listener.stop()
            await store.close()


def details(error: grpc.aio.AioRpcError, kind: type[Message]) -> Any:
    """The typed detail of a status."""
    from google.rpc.status_pb2 import Status

    found = dict(error.trailing_metadata() or ())["grpc-status-details-bin"]
    status = Status.FromString(found)
    assert status.code == error.code().value[0]
    assert status.message == error.details()
    detail = kind()
    assert status.details[0].Unpack(detail)
    return detail
