"""Members that are processes, over PostgreSQL: killed, stopped and started again, or standing still for longer than
others take them for dead, while workflows run."""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from temporalio.client import Client
from tests import databases

from durability import load
from sdk.server import Server, free_port

pytestmark = pytest.mark.slow


class Member(Server):
    def __init__(self, folder: Path, name: str, url: str) -> None:
        folder.mkdir()
        flags = ["--member", name, "--cluster-port", str(free_port()), "--shards", "24"]
        super().__init__(folder, *flags, db=url)

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)


@asynccontextmanager
async def members(folder: Path) -> AsyncGenerator[list[Member]]:
    url = databases.url("postgresql", folder)
    started = [Member(folder / name, name, url) for name in ("one", "two", "three")]
    try:
        for member in started:
            await asyncio.to_thread(member.start)
        yield started
        for member in started:
            await asyncio.to_thread(member.close)
    finally:
        for member in started:
            if member._process is not None:
                member.signal(signal.SIGCONT)
                member.kill()


async def killed(members: Sequence[Member], times: int, randomly: random.Random) -> None:
    for _ in range(times):
        member = randomly.choice(members)
        await asyncio.sleep(randomly.uniform(0.5, 5))
        member.kill()
        await asyncio.sleep(randomly.uniform(0, 3))
        await asyncio.to_thread(member.start)


async def restarted(members: Sequence[Member], times: int, randomly: random.Random) -> None:
    for _ in range(times):
        for member in members:
            await asyncio.sleep(1)
            await asyncio.to_thread(member.stop)
            await asyncio.to_thread(member.start)


async def paused(members: Sequence[Member], times: int, randomly: random.Random) -> None:
    for _ in range(times):
        member = randomly.choice(members)
        await asyncio.sleep(randomly.uniform(0.5, 3))
        member.signal(signal.SIGSTOP)
        await asyncio.sleep(randomly.uniform(5, 8))  # others have what it had
        member.signal(signal.SIGCONT)


Trouble = Callable[[Sequence[Member], int, random.Random], Awaitable[None]]


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("trouble", "times", "workflows"),
    [
        pytest.param(killed, 5, 40, id="killed"),
        pytest.param(restarted, 2, 40, id="restarted"),
        pytest.param(paused, 3, 40, id="paused"),
        pytest.param(killed, 20, 500, id="killed long"),
    ],
)
async def test_every_workflow_ends_right(tmp_path: Path, trouble: Trouble, times: int, workflows: int) -> None:
    seed = int(os.environ.get("PERDURE_TEST_SEED") or random.randrange(1_000_000))
    print(f"seed: PERDURE_TEST_SEED={seed}")
    async with members(tmp_path) as started:
        client = await Client.connect(started[0].address)
        await load.run(client, workflows, seed, 4.0 * times, 600, trouble(started, times, random.Random(seed)))
