"""A gRPC server that does nothing, as the ceiling of what a server on this transport can reach: bytes in, bytes out, on
the same event loop. Prints its address, and serves until it is killed."""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
import uvloop

REPLY = b"\n\x02ok"


async def call(request: bytes, context: object) -> bytes:
    return REPLY


async def main() -> None:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    handler = grpc.unary_unary_rpc_method_handler(call)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("perdure.bench.Noop", {"Call": handler}),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    print(f"Server: 127.0.0.1:{port}", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(main())
