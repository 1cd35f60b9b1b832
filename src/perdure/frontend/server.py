"""The gRPC server of the public API.

Every method of WorkflowService and OperatorService is registered, from the descriptors; what is not built answers
UNIMPLEMENTED. Requests and responses cross grpc as bytes, so that a request that does not parse, or is too large, is
answered by us, and a response that is bytes already is not touched.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import DecodeError, Message
from google.rpc.status_pb2 import Status
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1._async import HealthServicer
from grpc_health.v1.health import SERVICE_NAME as HEALTH_SERVICE_NAME
from grpc_reflection.v1alpha import reflection
from temporalio.api.errordetails.v1 import NamespaceNotFoundFailure
from temporalio.api.operatorservice.v1 import service_pb2 as operatorservice
from temporalio.api.workflowservice.v1 import service_pb2 as workflowservice

from perdure import errors
from perdure.errors import ServiceError
from perdure.frontend import (
    activities,
    namespaces,
    operator,
    queries_updates,
    reads,
    system,
    task_queues,
    visibility,
    workflow_tasks,
    workflows,
)
from perdure.frontend.rpc import ClusterInfo, Frontend, Handler
from perdure.persistence import api as persistence

__all__ = ["ClusterInfo", "Frontend", "Listener", "serve"]

logger = logging.getLogger("perdure.frontend")

WORKFLOW_SERVICE: ServiceDescriptor = workflowservice.DESCRIPTOR.services_by_name["WorkflowService"]
OPERATOR_SERVICE: ServiceDescriptor = operatorservice.DESCRIPTOR.services_by_name["OperatorService"]

# By full name of the service, then by method.
IMPLEMENTED: dict[str, dict[str, Handler]] = {
    WORKFLOW_SERVICE.full_name: {
        **system.RPCS,
        **namespaces.RPCS,
        **workflows.RPCS,
        **workflow_tasks.RPCS,
        **activities.RPCS,
        **queries_updates.RPCS,
        **reads.RPCS,
        **visibility.RPCS,
        **task_queues.RPCS,
    },
    OPERATOR_SERVICE.full_name: operator.RPCS,
}

MAX_REQUEST_BYTES = 4 * 1024 * 1024
_LAST_WORD = 0.5  # seconds that calls have to answer that they were ended
_QUIET = 0.05  # seconds: clients that were refused wait twice as long before they ask again
_WAITING = {"GetWorkflowExecutionHistory", "PollWorkflowExecutionUpdate"}
MAX_ERROR_MESSAGE = 2000  # characters: headers have a limit in most clients

_OPTIONS: list[tuple[str, int]] = [
    # SDKs ping every 10 s, also while nothing runs; a server that minds closes their connection.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    # Finds clients that are gone, so that their polls end.
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # What is above our own limit must arrive to be answered in the words that SDKs look for.
    ("grpc.max_receive_message_length", 128 * 1024 * 1024),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_metadata_size", 64 * 1024),
]


class _Calls:
    """Those under way, by task. stopping: no more are taken. refused: when the last one was not, by the loop's time."""

    __slots__ = ("refused", "running", "stopping")

    def __init__(self) -> None:
        self.stopping = False
        self.refused = 0.0
        self.running: dict[asyncio.Task[Any], str] = {}

    def refuse(self) -> NoReturn:
        self.refused = asyncio.get_running_loop().time()
        raise _stopping()

    async def stop(self, grace: float) -> None:
        """From now on all answer UNAVAILABLE: those that wait for what may be long in coming at once, others if they
        take more than so many seconds. Returns when clients have heard it, and no more come for a moment."""
        time = asyncio.get_running_loop().time
        self.stopping = True
        self.refused = time()
        until = self.refused + grace
        for call, name in list(self.running.items()):
            if name in _WAITING:
                call.cancel()
        while (self.running or time() - self.refused < _QUIET) and time() < until:  # noqa: ASYNC110
            await asyncio.sleep(_QUIET / 10)
        calls = list(self.running)
        for call in calls:
            call.cancel()
        if calls:
            await asyncio.wait(calls, timeout=_LAST_WORD)


@dataclass(slots=True)
class Listener:
    """A server that takes calls. port: the one that is bound."""

    server: grpc.aio.Server
    health: HealthServicer
    host: str
    port: int
    calls: _Calls

    async def stop(self, grace: float = 0) -> None:
        """Health turns NOT_SERVING; no new calls; those under way have `grace` seconds.

        All is answered before gRPC stops: to calls that come while it does, it says CANCELLED
        (https://github.com/grpc/grpc/issues/41785), which clients take for their own doing and do not ask again."""
        await self.health.enter_graceful_shutdown()
        await self.calls.stop(grace)
        await self.server.stop(None)


async def serve(frontend: Frontend, host: str, port: int, *, share_port: bool = False) -> Listener:
    """Binds, starts and reports healthy. port 0: a free one. share_port: other processes of this user may listen on it
    too, and the kernel spreads connections. Raises OSError when the address cannot be bound."""
    if not share_port:
        _check_bindable(host, port)
    calls = _Calls()
    server = grpc.aio.server(options=[*_OPTIONS, ("grpc.so_reuseport", int(share_port))])
    for service in (WORKFLOW_SERVICE, OPERATOR_SERVICE):
        built = IMPLEMENTED[service.full_name]
        handlers = {
            method.name: grpc.unary_unary_rpc_method_handler(_wrap(frontend, calls, method, built.get(method.name)))
            for method in service.methods
        }
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service.full_name, handlers),))
    health_servicer = HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_servicer, server)
    served = [WORKFLOW_SERVICE.full_name, OPERATOR_SERVICE.full_name]
    names = [*served, HEALTH_SERVICE_NAME, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server)
    try:
        bound = server.add_insecure_port(f"[{host}]:{port}" if ":" in host else f"{host}:{port}")
    except RuntimeError as e:
        raise OSError(f"cannot listen on {host}:{port}: {e}") from None
    # With port 0 it is known only now.
    frontend.cluster = replace(frontend.cluster, address=f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}")
    await server.start()
    for name in ["", *served]:
        await health_servicer.set(name, health_pb2.HealthCheckResponse.SERVING)
    return Listener(server, health_servicer, host, bound, calls)


def _check_bindable(host: str, port: int) -> None:
    """grpc says only that binding failed; the socket says why."""
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as e:
        raise OSError(e.errno, f"cannot listen on {host}:{port}: {e.strerror}") from None
    for family, kind, proto, _, address in found:
        with contextlib.closing(socket.socket(family, kind, proto)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as e:
                raise OSError(e.errno, f"cannot listen on {host}:{port}: {e.strerror}") from None
        return


def _wrap(
    frontend: Frontend, calls: _Calls, method: MethodDescriptor, handler: Handler | None
) -> Callable[[bytes, Any], Awaitable[bytes]]:
    """The coroutine that answers one method."""
    name = method.name
    if handler is None:

        async def unimplemented(data: bytes, context: Any) -> NoReturn:
            return await _abort(context, errors.unimplemented(name))

        return unimplemented

    parse: Callable[[bytes], Message] = message_factory.GetMessageClass(method.input_type).FromString

    async def call(data: bytes, context: Any) -> bytes:
        request: Message | None = None
        task = asyncio.current_task()
        assert task is not None
        calls.running[task] = name
        try:
            if calls.stopping:
                calls.refuse()
            if len(data) > MAX_REQUEST_BYTES:
                raise _too_large(len(data))
            request = parse(data)
            response = await handler(frontend, request, context)
            return response if type(response) is bytes else response.SerializeToString()  # type: ignore[union-attr]
        except ServiceError as e:
            error = e
            if type(e.detail) is NamespaceNotFoundFailure and await frontend.namespaces.missed():
                # It may have been registered through another process.
                try:
                    response = await handler(frontend, parse(data), context)
                    return response if type(response) is bytes else response.SerializeToString()  # type: ignore[union-attr]
                except ServiceError as again:
                    error = again
        except DecodeError:
            if request is not None:  # of something inside it, which is the handler's affair
                error = _unexpected(frontend, name, request)
            else:
                error = errors.invalid_argument(f"The request is not a valid {method.input_type.name}.")
        except (persistence.Unavailable, persistence.ShardFenced) as e:
            logger.warning("%s: %s: %s", name, type(e).__name__, e)
            error = errors.unavailable("The server's storage is not available at the moment.")
        except asyncio.CancelledError:
            if not calls.stopping or context.cancelled():
                raise
            task.uncancel()
            error = _stopping()
        except Exception:
            error = _unexpected(frontend, name, request)
        finally:
            calls.running.pop(task, None)
        return await _abort(context, error)

    return call


async def _abort(context: Any, error: ServiceError) -> NoReturn:
    message = error.message
    if len(message) > MAX_ERROR_MESSAGE:
        message = message[:MAX_ERROR_MESSAGE] + "…"
    if error.detail is None:
        await context.abort(error.code, message)
        raise AssertionError("abort returns never")
    status = Status(code=error.code.value[0], message=message)
    status.details.add().Pack(error.detail)
    await context.abort(error.code, message, (("grpc-status-details-bin", status.SerializeToString()),))
    raise AssertionError("abort returns never")


def _stopping() -> ServiceError:
    return errors.unavailable("The server is shutting down.")


def _too_large(size: int) -> ServiceError:
    # SDKs tell by these words that repeating the request is of no use.
    return ServiceError(
        errors.Code.RESOURCE_EXHAUSTED, f"grpc: received message larger than max ({size} vs. {MAX_REQUEST_BYTES})"
    )


def _unexpected(frontend: Frontend, method: str, request: Any) -> ServiceError:
    """A fault of ours: the caller learns that it happened, the log what."""
    frontend.internal_errors[method] += 1
    logger.exception("%s failed unexpectedly (%s)", method, _identify(request))
    return errors.internal("internal error")


def _identify(request: Any) -> str:
    """Namespace and ids of a request, for the log; never its payloads."""
    if request is None:
        return "no request"
    found: list[str] = []
    fields = request.DESCRIPTOR.fields_by_name
    for name in ("namespace", "workflow_id", "run_id", "activity_id", "identity"):
        if name in fields and (value := getattr(request, name)):
            found.append(f"{name}={value[:200]!r}")
    for name in ("workflow_execution", "execution"):
        if name in fields and request.HasField(name):
            execution = getattr(request, name)
            found.append(f"workflow_id={execution.workflow_id[:200]!r} run_id={execution.run_id[:200]!r}")
    return " ".join(found)
