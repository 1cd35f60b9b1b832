"""`python -m tests.frontend.whole [KEY=JSON_VALUE]…`: a whole server, in memory. Prints its address, serves until its
input ends, and logs to standard error; at the end what has failed in it, if anything."""

from __future__ import annotations

import asyncio
import logging
import sys

import uvloop

from perdure.config.dynamic import DynamicConfig, parse_assignment
from perdure.server import Server, ServerConfig


async def main() -> None:
    dynamic = DynamicConfig()
    for text in sys.argv[1:]:
        dynamic.set(*parse_assignment(text))
    server = Server(ServerConfig(port=0, dynamic=dynamic))
    await server.start()
    print(server.address, flush=True)
    await asyncio.to_thread(sys.stdin.read)
    # A task that was tried again for a passing reason (a limit, a busy run) has not failed.
    failed = {name: n for name, n in server.history.failures.items() if not name.endswith(":passing")}
    if failures := {**failed, **server.frontend.internal_errors}:
        logging.error("failures: %s", failures)
    await server.stop()


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    uvloop.run(main())
