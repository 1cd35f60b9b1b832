"""`perdure db`: tables that are made and told of, and a server that goes on in another database."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.worker import Replayer, Worker
from tests import databases

from .support import PATIENCE, PROGRAM, refused, running


def db(*arguments: str) -> tuple[int, str]:
    """Exit code and output."""
    done = subprocess.run([PROGRAM, "db", *arguments], capture_output=True, text=True, timeout=2 * PATIENCE)
    assert done.returncode == 0 or not done.stderr, done.stderr
    return done.returncode, done.stdout


def sqlite(tmp_path: Path) -> str:
    return f"sqlite:{tmp_path / 'made.db'}"


def postgresql(tmp_path: Path) -> str:
    return databases.postgresql().url()


def mysql(tmp_path: Path) -> str:
    return databases.mysql().url()


# Whole servers on each database take their time: one of them is enough for every day.
EACH = pytest.mark.parametrize(
    "make",
    [sqlite, pytest.param(postgresql, marks=pytest.mark.slow), pytest.param(mysql, marks=pytest.mark.slow)],
    ids=["sqlite", "postgresql", "mysql"],
)
ALL = pytest.mark.parametrize("make", [sqlite, postgresql, mysql], ids=lambda make: make.__name__)


@ALL
def test_tables_are_made_once_and_told_of(tmp_path: Path, make: Callable[[Path], str]) -> None:
    url = make(tmp_path)
    code, said = db("status", "--db", url)
    assert code == 1 and "no tables yet" in said
    for _ in range(2):
        assert db("init", "--db", url, "--shards", "7") == (0, f"{url} is ready, with 7 shards\n")
    code, said = db("status", "--db", url)
    assert code == 0
    assert said.startswith(f"{url}: up to date\n  store ")
    assert db("upgrade", "--db", url) == (0, f"{url}: up to date already\n")
    assert "made with 7 shards, not 8" in refused("db", "init", "--db", url, "--shards", "8")
    assert "made with 7 shards, not 8" in refused("server", "start", "--port", "0", "--db", url, "--shards", "8")


@pytest.mark.parametrize("make", [postgresql, mysql], ids=lambda make: make.__name__)
def test_several_may_make_the_tables_at_once(tmp_path: Path, make: Callable[[Path], str]) -> None:
    url = make(tmp_path)
    commands = [[PROGRAM, "db", command, "--db", url] for command in ("init", "upgrade", "init", "upgrade")]
    running = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands]
    said = [process.communicate(timeout=2 * PATIENCE)[1] for process in running]
    assert [process.returncode for process in running] == [0] * 4, said
    assert db("status", "--db", url)[0] == 0


def test_tables_of_other_versions(tmp_path: Path) -> None:
    file = tmp_path / "x.db"
    db("init", "--db", str(file))
    with closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("UPDATE module_version SET version = version + 1 WHERE module = 'store'")
    code, said = db("status", "--db", str(file))
    assert code == 1 and "written by a newer version" in said
    for command in (("db", "upgrade"), ("db", "init"), ("server", "start", "--port", "0")):
        assert "was written by a newer version (store tables: version 2, known: 1)" in refused(
            *command, "--db", str(file)
        )


def test_wrong_calls(tmp_path: Path) -> None:
    assert "--db" in refused("db", "status", env={"PERDURE_DATABASE_URL": ""})
    assert "oracle://x is no address" in refused("db", "status", "--db", "oracle://x")
    assert "no tables of perdure" in refused(
        "db", "copy", "--from", f"{tmp_path}/none.db", "--to", f"sqlite:{tmp_path}/to.db"
    )
    assert not (tmp_path / "none.db").exists()
    assert refused("db", "status", env={"PERDURE_DATABASE_URL": "oracle://y"}).startswith("perdure: error: oracle://y")


# --- moving -----------------------------------------------------------------------------------------------------------


@activity.defn
async def half(part: str) -> str:
    return part.upper()


@workflow.defn
class Child:
    @workflow.run
    async def run(self, text: str) -> str:
        await asyncio.sleep(3)
        return text + "!"


@workflow.defn
class Order:
    """Does something of each sort before and after the move."""

    def __init__(self) -> None:
        self.go = ""

    @workflow.run
    async def run(self, name: str) -> str:
        first = await workflow.execute_activity(half, name, start_to_close_timeout=timedelta(seconds=20))
        child = await workflow.start_child_workflow(Child.run, name, id=f"{name}-child")
        timer = asyncio.create_task(asyncio.sleep(3))
        await workflow.wait_condition(lambda: self.go != "")
        second = await workflow.execute_activity(half, self.go, start_to_close_timeout=timedelta(seconds=20))
        await timer
        return f"{first} {second} {await child}"

    @workflow.signal
    def proceed(self, word: str) -> None:
        self.go = word


@workflow.defn
class Waiting:
    """Its first task waits in a backlog through the move, since no worker asks for it before."""

    @workflow.run
    async def run(self) -> str:
        return "served"


RUNS = 10


async def begin(address: str) -> None:
    client = await Client.connect(address)
    async with Worker(client, task_queue="orders", workflows=[Order, Child], activities=[half]):
        done = await client.start_workflow(Order.run, "done", id="done", task_queue="orders")
        await done.signal(Order.proceed, "quickly")
        assert await done.result() == "DONE QUICKLY done!"
        for i in range(RUNS):
            await client.start_workflow(Order.run, f"order-{i}", id=f"order-{i}", task_queue="orders")
            await client.start_workflow(Waiting.run, id=f"waiting-{i}", task_queue="later")
        for i in range(RUNS):
            async with asyncio.timeout(PATIENCE):
                while True:
                    description = await client.get_workflow_handle(f"order-{i}").describe()
                    if description.raw_description.pending_children:
                        break
                    await asyncio.sleep(0.02)


async def finish(address: str) -> None:
    client = await Client.connect(address)
    query = "ExecutionStatus = 'Running' AND WorkflowType != 'Child'"
    assert (await client.count_workflows(query)).count == 2 * RUNS
    assert (await client.get_workflow_handle("done").result()) == "DONE QUICKLY done!"
    async with (
        Worker(client, task_queue="orders", workflows=[Order, Child], activities=[half]),
        Worker(client, task_queue="later", workflows=[Waiting]),
    ):
        for i in range(RUNS):
            order = client.get_workflow_handle_for(Order.run, f"order-{i}")
            await order.signal(Order.proceed, "later")
            async with asyncio.timeout(PATIENCE):
                assert await order.result() == f"ORDER-{i} LATER order-{i}!"
                assert await client.get_workflow_handle(f"waiting-{i}").result() == "served"
            assert (await order.describe()).status == WorkflowExecutionStatus.COMPLETED
            await Replayer(workflows=[Order]).replay_workflow(await order.fetch_history())


@EACH
async def test_open_workflows_end_in_another_database(tmp_path: Path, make: Callable[[Path], str]) -> None:
    source, target = f"sqlite:{tmp_path / 'from.db'}", make(tmp_path)
    with running("start", "--port", "0", "--db", source) as server:
        await begin(server.address)
        assert "in use by another process" in refused("db", "copy", "--from", source, "--to", target)
        server.end(signal.SIGKILL)  # what it had not finished is copied as it is

    # Killed now and then, it goes on where it was.
    command = [PROGRAM, "db", "copy", "--from", source, "--to", target, "--shards", "13"]
    for wait in (0.3, 0.4, 0.5, None):
        attempt = await asyncio.create_subprocess_exec(*command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        if wait is not None:
            await asyncio.sleep(wait)
            with contextlib.suppress(ProcessLookupError):
                attempt.kill()
        stdout, stderr = await attempt.communicate()
        said = stdout.decode()
        if attempt.returncode == 0:
            assert re.search(rf"^ +{3 * RUNS + 2} runs +[0-9a-f]{{32}}$", said, re.MULTILINE), said
            assert "which has 13 shards" in said and "counts and checksums agree" in said
            break
    else:
        assert b"the target is not empty" in stderr, stderr  # it was complete when it was killed
    assert "the target is not empty" in refused(*command[1:])

    with running("start", "--port", "0", "--db", target) as server:
        await finish(server.address)
        assert server.end() < 10
        assert server.process.returncode == 0


@pytest.mark.parametrize("make", [postgresql, mysql], ids=lambda make: make.__name__)
def test_a_database_that_a_server_uses_is_not_copied(tmp_path: Path, make: Callable[[Path], str]) -> None:
    url = make(tmp_path)
    target = f"sqlite:{tmp_path / 'to.db'}"
    with running("start", "--port", "0", "--db", url, "--member", "the one") as server:
        assert refused("db", "copy", "--from", url, "--to", target).endswith("the source is in use by the one")
        server.end(signal.SIGKILL)
    began = time.monotonic()
    assert db("copy", "--from", url, "--to", target)[0] == 0  # what is left of a killed one does not matter
    assert time.monotonic() - began < 30
