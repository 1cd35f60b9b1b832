"""A process that is killed loses no task that it accepted."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from perdure.persistence.sqlite import open_store

from .world import World, got

ACCEPTS_AND_DIES = """
import asyncio, os, signal, sys
from matching.world import World
from perdure.persistence.sqlite import open_store

async def main():
    world = World(await open_store(sys.argv[1]))
    async def add(i):
        await world.add(f"w{i}")
        os.write(1, f"w{i}\\n".encode())
        if i == 60:
            os.kill(os.getpid(), signal.SIGKILL)
    await asyncio.gather(*(add(i) for i in range(100)))

asyncio.run(main())
"""


async def test_a_killed_process_loses_nothing_it_accepted(tmp_path: Path) -> None:
    path = str(tmp_path / "perdure.db")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", ACCEPTS_AND_DIES, path),
        cwd=Path(__file__).parents[1],
        stdout=asyncio.subprocess.PIPE,
    )
    out, _ = await process.communicate()
    assert process.returncode == -signal.SIGKILL
    accepted = out.decode().split()
    assert "w60" in accepted

    store = await open_store(path)
    world = World(store)
    handed_out: set[str] = set()
    while accepted_left := set(accepted) - handed_out:
        name = await got(world.poll())
        assert name, accepted_left
        handed_out.add(name)
    await world.engine.stop()
    await store.close()
