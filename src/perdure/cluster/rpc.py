"""The internal gRPC: what the members of a cluster call of each other.

A method of service `perdure.internal.History` (`Matching`, `Members`) takes and gives bytes (see `codec`). Whatever a
call raised is in the response, so that any other status than OK says that the call may or may not have been done.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

from perdure.clock import SECOND, Clock
from perdure.cluster.codec import Method, failure
from perdure.errors import ServiceError
from perdure.matching.api import NoPoller
from perdure.persistence.api import StoreError

log = logging.getLogger("perdure.cluster")

HISTORY, MATCHING, MEMBERS = "perdure.internal.History", "perdure.internal.Matching", "perdure.internal.Members"

_CLUSTER = "perdure-cluster"
# For calls that have no deadline of their own: seconds.
_PATIENCE = 20.0
# So long after its deadline a call's answer may still come.
_MARGIN = 5.0

_CHANNEL_OPTIONS: list[tuple[str, int]] = [
    # A member that is there but does nothing is found out after ten seconds.
    ("grpc.keepalive_time_ms", 5_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.enable_retries", 0),
    # Each its own connection, or members in one process would share them.
    ("grpc.use_local_subchannel_pool", 1),
]
_SERVER_OPTIONS: list[tuple[str, int]] = [
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
]

Target = Callable[[list[Any], dict[str, Any]], Awaitable[Any]]


class Lost(Exception):
    """The call was sent, and no answer came: nobody knows whether it was done."""


class NotReached(Exception):
    """The call was not sent: there is no connection to that member."""


class Peers:
    """Connections to other members, by address."""

    def __init__(self, cluster_id: str, clock: Clock) -> None:
        self._metadata = ((_CLUSTER, cluster_id),)
        self._clock = clock
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._calls: dict[tuple[str, str, str], Any] = {}
        self._closing: set[asyncio.Task[None]] = set()

    async def call(self, address: str, service: str, method: Method, args: tuple[Any, ...], kwargs: Any) -> Any:
        """Raises what the call raises there; Lost, NotReached."""
        key = (address, service, method.name)
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = self._channel(address).unary_unary(f"/{service}/{method.name}")
        timeout = _PATIENCE
        if method.deadline is not None and (deadline := args[method.deadline]):
            timeout = max(0, deadline - self._clock.now()) / SECOND + _MARGIN
        try:
            response = await call(method.request(args, kwargs, self._clock), timeout=timeout, metadata=self._metadata)
        except grpc.aio.AioRpcError as e:
            details = e.details() or ""
            if e.code() is grpc.StatusCode.UNAVAILABLE and "failed to connect" in details:
                raise NotReached(f"{address}: {details}") from None
            raise Lost(f"{address}: {e.code().name}: {details}") from None
        except grpc.aio.UsageError as e:
            raise NotReached(f"{address}: {e}") from None
        except asyncio.CancelledError:
            if _is_cancelled():
                raise
            raise Lost(f"{address}: the member is gone") from None  # its connection was closed by `keep`
        return method.result(response)

    def _channel(self, address: str) -> grpc.aio.Channel:
        channel = self._channels.get(address)
        if channel is None:
            channel = self._channels[address] = grpc.aio.insecure_channel(address, options=_CHANNEL_OPTIONS)
        return channel

    def keep(self, addresses: set[str]) -> None:
        """Closes the connections to all others; calls under way to these end as Lost."""
        for address in self._channels.keys() - addresses:
            self._drop(address)

    def _drop(self, address: str) -> None:
        channel = self._channels.pop(address)
        for key in [k for k in self._calls if k[0] == address]:
            del self._calls[key]
        closing = asyncio.get_running_loop().create_task(channel.close())
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        self.keep(set())
        await asyncio.gather(*self._closing)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


class InternalServer:
    """Answers other members. `offer` services, then `start`; port is known before that."""

    def __init__(self, cluster_id: str, clock: Clock, host: str, port: int) -> None:
        """Raises OSError when the address cannot be bound."""
        self._cluster_id = cluster_id
        self._clock = clock
        self._running: set[asyncio.Future[Any]] = set()
        self._server = grpc.aio.server(options=_SERVER_OPTIONS)
        where = f"[{host}]" if ":" in host else host
        try:
            self.port = self._server.add_insecure_port(f"{where}:{port}")
        except RuntimeError as e:
            raise OSError(f"cannot listen on {where}:{port}: {e}") from None
        self.address = f"{where}:{self.port}"

    def offer(self, service: str, methods: dict[str, Method], target: Callable[[str], Target]) -> None:
        """target: what answers a method of this name."""
        handlers = {
            name: grpc.unary_unary_rpc_method_handler(self._handler(method, target(name)))
            for name, method in methods.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, handlers),))

    def _handler(self, method: Method, target: Target) -> Callable[[bytes, Any], Awaitable[bytes]]:
        mine = (_CLUSTER, self._cluster_id)

        async def handle(data: bytes, context: Any) -> bytes:
            if mine not in context.invocation_metadata():
                await context.abort(grpc.StatusCode.UNAUTHENTICATED, "not a member of this cluster")
            try:
                args, kwargs = method.arguments(data, self._clock)
                if method.deadline is not None:
                    return method.response(await target(args, kwargs))
                # What does not wait is not interrupted in the middle by a caller that gives up.
                return method.response(await asyncio.shield(self._run(target(args, kwargs))))
            except (ServiceError, NoPoller) as e:
                return failure(e)
            except StoreError as e:
                log.warning("%s: %s: %s", method.name, type(e).__name__, e)
                return failure(ServiceError(grpc.StatusCode.UNAVAILABLE, "the database does not answer"))
            except Exception as e:
                log.exception("%s failed unexpectedly", method.name)
                return failure(e)

        return handle

    def _run(self, call: Awaitable[Any]) -> asyncio.Future[Any]:
        running = asyncio.ensure_future(call)
        self._running.add(running)
        running.add_done_callback(self._ended)
        return running

    def _ended(self, running: asyncio.Future[Any]) -> None:
        self._running.discard(running)
        if not running.cancelled():
            running.exception()  # its caller has it, or has gone

    async def start(self) -> None:
        await self._server.start()

    async def stop(self, grace: float) -> None:
        await self._server.stop(grace)
