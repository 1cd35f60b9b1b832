"""A database server that crashes under load, again and again, takes nothing with it that clients were told, and has
nothing done twice: what cannot be written meanwhile waits, or is refused as something to be tried again."""

from __future__ import annotations

import asyncio
import os
import random
import uuid
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import partial
from pathlib import Path
from typing import TypeVar

import grpc.aio
import pytest
from temporalio.api.workflowservice.v1 import CountWorkflowExecutionsRequest
from temporalio.client import Client
from tests import databases

from durability import load
from durability.wire import NAMESPACE, Channel, Run, types
from sdk.server import Server

T = TypeVar("T")

CRASHES = 5
WORKFLOWS = 120
SECONDS_A_CRASH = 3.0

Database = tuple[str, Callable[[], None]]  # its URL; what makes it crash, and starts it again


@pytest.fixture(params=["postgresql", "mysql"])
def database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """A server of its own, because it is going to crash."""
    if request.param == "postgresql":
        postgres = databases.postgresql.__wrapped__()
        yield postgres.url(), postgres.restart
        postgres.remove()
        return
    mysql = databases.mysql.__wrapped__()

    def crash() -> None:
        mysql.kill()
        mysql.start()

    yield mysql.url(), crash
    mysql.remove()


async def crash(database: Callable[[], None], randomly: random.Random) -> None:
    for _ in range(CRASHES):
        await asyncio.sleep(randomly.uniform(0.1, 2 * SECONDS_A_CRASH))
        await asyncio.to_thread(database)


async def answered(call: Callable[[], Awaitable[T]]) -> T:
    """Asks until it succeeds. Whatever the database does, all that may be said is: try it again."""
    while True:
        try:
            return await call()
        except grpc.aio.AioRpcError as e:
            assert e.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED), e
            await asyncio.sleep(0.05)


async def ask(channel: Channel) -> None:
    """Calls without an SDK, which would hide what is answered. An answer stands: what was started is found under the
    run it was said to have, in the list too, and has each of its signals once."""
    key = uuid.uuid4().hex
    start = partial(channel.start, workflow_id=key, request_id=key)
    run: Run = await answered(start)
    for i in range(3):
        await answered(partial(run.signal, str(i), request_id=f"{key}/{i}"))
    assert (await answered(start)).run_id == run.run_id
    kinds = types(await answered(run.stored))
    assert (kinds[0], kinds.count("WorkflowExecutionSignaled")) == ("WorkflowExecutionStarted", 3)
    request = CountWorkflowExecutionsRequest(namespace=NAMESPACE, query=f"WorkflowId = '{key}'")
    counted = await answered(lambda: channel.stub.CountWorkflowExecutions(request))
    assert counted.count == 1
    await answered(partial(end, run))
    assert types(await answered(run.stored))[-1] == "WorkflowExecutionTerminated"


async def end(run: Run) -> None:
    try:
        await run.terminate()
    except grpc.aio.AioRpcError as e:
        if e.code() is not grpc.StatusCode.NOT_FOUND:  # it has ended: the answer to an earlier request was lost
            raise


async def while_asked(channel: Channel, what: Coroutine[None, None, None]) -> None:
    doing = asyncio.create_task(what)

    async def ask_again_and_again() -> None:
        while not doing.done():
            await ask(channel)

    await asyncio.gather(doing, *(ask_again_and_again() for _ in range(4)))


@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_database_that_crashes(tmp_path: Path, database: Database) -> None:
    seed = int(os.environ.get("PERDURE_TEST_SEED") or random.randrange(1_000_000))
    print(f"seed: PERDURE_TEST_SEED={seed}")
    url, crashes = database
    server = Server(tmp_path, db=url)
    server.start()
    try:
        client = await Client.connect(server.address)
        channel = Channel(server.address)
        crashing = while_asked(channel, crash(crashes, random.Random(seed)))
        async with channel.channel:
            await load.run(client, WORKFLOWS, seed, CRASHES * SECONDS_A_CRASH, 200, crashing)
    finally:
        server.close()
