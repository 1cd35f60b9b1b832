"""`perdure server start --processes N` over PostgreSQL: members behind one port, one of which is killed again and again
while workflows run."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
from datetime import timedelta
from pathlib import Path

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.worker import Worker
from tests import databases

from .support import PATIENCE, refused, running


@activity.defn
async def double(number: int) -> int:
    return 2 * number


@workflow.defn
class Doubling:
    @workflow.run
    async def run(self, number: int) -> int:
        for _ in range(5):
            number = await workflow.execute_activity(double, number, start_to_close_timeout=timedelta(seconds=5))
            await asyncio.sleep(0.2)
        return number


def members(supervisor: int) -> list[int]:
    found = subprocess.run(["ps", "--ppid", str(supervisor), "-o", "pid="], capture_output=True, text=True)
    return [int(pid) for pid in found.stdout.split()]


async def test_workflows_go_on_while_members_are_killed(tmp_path: Path) -> None:
    url = databases.postgresql().url()
    flags = ("--processes", "2", "--shards", "8", "--member", "here", "--log-level", "info")
    with running("start", "--port", "0", "--db", url, *flags) as server:
        before = members(server.process.pid)
        assert len(before) == 2
        client = await Client.connect(server.address)
        async with Worker(client, task_queue="q", workflows=[Doubling], activities=[double]):
            handles = [
                await client.start_workflow(Doubling.run, i, id=f"doubling-{i}", task_queue="q") for i in range(20)
            ]
            for pid in before:
                os.kill(pid, signal.SIGKILL)
                async with asyncio.timeout(PATIENCE):
                    while len(now := members(server.process.pid)) < 2 or pid in now:  # noqa: ASYNC110
                        await asyncio.sleep(0.05)
            results = [asyncio.create_task(handle.result()) for handle in handles]
            await asyncio.wait(results, timeout=2 * PATIENCE)
            for i, (handle, result) in enumerate(zip(handles, results, strict=True)):
                assert result.done(), (await handle.describe()).raw_description
                assert result.result() == 32 * i
        assert not set(before) & set(members(server.process.pid))
        assert server.end() < 15
        assert server.process.returncode == 0
        assert server.process.stderr is not None
        log = server.process.stderr.read()
    for name in ("here/1", "here/2"):
        assert f"perdure.supervisor {name} was ended by SIGKILL; it is started again in 0.1 s" in log
        assert len(re.findall(rf"\[{name}\] perdure.server perdure \S+ listens on {server.address}$", log, re.M)) == 2
        assert f"[{name}] perdure.server stopped" in log


def test_a_port_that_is_in_use(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = str(other.getsockname()[1])
        line = refused("server", "start", "--db", "postgresql://127.0.0.1:1/x", "--processes", "2", "--port", port)
    assert line == f"perdure: error: cannot listen on 127.0.0.1:{port}: Address already in use"


def test_what_keeps_the_members_from_starting_is_said_once(tmp_path: Path) -> None:
    flags = ("--db", "postgresql://perdure@127.0.0.1:1/x", "--processes", "3", "--port", "0")
    assert "postgresql://perdure@127.0.0.1:1/x cannot be reached" in refused("server", "start", *flags)
