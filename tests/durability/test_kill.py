"""A server that is killed at random instants loses nothing that it acknowledged, and does nothing twice. One that is
restarted in order is not even noticed by who uses an SDK."""

from __future__ import annotations

import asyncio
import os
import random
from pathlib import Path

import pytest
from temporalio.client import Client
from tests import databases

from durability import load
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
    seed = int(os.environ.get("PERDURE_TEST_SEED") or random.randrange(1_000_000))
    print(f"seed: PERDURE_TEST_SEED={seed}")
    server = Server(tmp_path, "--db-filename", str(tmp_path / "perdure.db"))
    server.start()

    async def restart() -> None:
        for _ in range(2):
            await asyncio.sleep(1.5)
            await asyncio.to_thread(server.stop)
            await asyncio.to_thread(server.start)

    try:
        client = await Client.connect(server.address)
        await load.run(client, 20, seed, 3, 60, restart(), load.once)
    finally:
        server.close()
