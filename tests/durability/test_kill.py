"""A server that is killed at random instants loses nothing that it acknowledged, and does nothing twice. One that is
restarted in order is not even noticed by who uses an SDK."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import grpc.aio
import pytest
from temporalio.client import Client
from temporalio.worker import UnsandboxedWorkflowRunner, Worker
from tests import databases

from durability import load
from durability.wire import Channel
from sdk.server import Server

SECONDS_A_KILL = 1.0


async def kill_and_restart(server: Server, times: int, randomly: random.Random) -> None:
    for _ in range(times):
        await asyncio.sleep(randomly.uniform(0.1, 2 * SECONDS_A_KILL))
        server.kill()
        await asyncio.to_thread(server.start)


@pytest.mark.parametrize(
    ("backend", "workflows", "kills"),
    [
        pytest.param("sqlite", 30, 4, id="short"),
        pytest.param("postgresql", 30, 4, id="short-postgresql", marks=pytest.mark.slow),
        pytest.param("mysql", 30, 4, id="short-mysql", marks=pytest.mark.slow),
        pytest.param("sqlite", 200, 20, id="long", marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
    ],
)
async def test_kill(tmp_path: Path, backend: str, workflows: int, kills: int) -> None:
    seed = int(os.environ.get("PERDURE_TEST_SEED") or random.randrange(1_000_000))
    print(f"seed: PERDURE_TEST_SEED={seed}")
    server = Server(tmp_path, db=databases.url(backend, tmp_path))
    server.start()
    try:
        client = await Client.connect(server.address)
        killing = kill_and_restart(server, kills, random.Random(seed))
        await load.run(client, workflows, seed, kills * SECONDS_A_KILL, 500 if kills > 4 else 90, killing)
    finally:
        server.close()


async def test_restart(tmp_path: Path) -> None:
    server = Server(tmp_path, "--db-filename", str(tmp_path / "perdure.db"))
    server.start()
    try:
        client = await Client.connect(server.address)
        async with Worker(
            client,
            task_queue=load.QUEUE,
            workflows=[load.Child],
            activities=[load.double],
            workflow_runner=UnsandboxedWorkflowRunner(),
        ):
            for n in range(2):
                handle = await client.start_workflow(load.Child.run, args=[n, 1], id=f"w-{n}", task_queue=load.QUEUE)
                result = asyncio.create_task(handle.result())
                await asyncio.sleep(0.5)  # the call waits at the server
                await asyncio.to_thread(server.stop)
                await asyncio.to_thread(server.start)
                await handle.signal(load.Child.go)
                assert await result == 2 * n
    finally:
        server.close()


async def test_calls_that_come_while_a_server_stops(tmp_path: Path) -> None:
    """They are told to ask again, whenever they come."""
    server = Server(tmp_path)
    server.start()
    try:
        channel = Channel(server.address)
        codes: list[grpc.StatusCode] = []

        async def ask_until_refused() -> None:
            run = await channel.start()
            while True:
                try:
                    await run.signal("again")
                except grpc.aio.AioRpcError as e:
                    codes.append(e.code())
                    return

        async with channel.channel, asyncio.TaskGroup() as asking:
            for _ in range(20):
                asking.create_task(ask_until_refused())
            await asyncio.sleep(0.5)
            await asyncio.to_thread(server.stop)
        assert codes == [grpc.StatusCode.UNAVAILABLE] * 20
    finally:
        server.close()
