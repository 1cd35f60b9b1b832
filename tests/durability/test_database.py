"""A database server that crashes under load, again and again, takes nothing with it that clients were told, and has
nothing done twice: what cannot be written meanwhile waits, or is refused as something to be tried again."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from temporalio.client import Client
from tests import databases

from durability import load
from sdk.server import Server

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
        crashing = crash(crashes, random.Random(seed))
        await load.run(client, WORKFLOWS, seed, CRASHES * SECONDS_A_CRASH, 200, crashing)
    finally:
        server.close()
