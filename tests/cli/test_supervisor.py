"""The supervisor with plain child processes, itself in a process of its own."""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PATIENCE = 30.0

SUPERVISOR = """
import asyncio, sys, logging
from perdure.cli.supervisor import Patience, supervise
logging.basicConfig(format="%(message)s", stream=sys.stderr)
commands = {name: [sys.executable, "-uc", CHILD, name, *sys.argv[2:]] for name in sys.argv[1].split(",")}
patience = Patience(first_wait=0.05, longest_wait=0.2, settled=60, ending=ENDING)
ready = lambda lines: print("ready", *lines, flush=True)
sys.exit(asyncio.run(supervise(commands, "Server:", ready, patience)))
"""

# Writes what happens to it to the file `log`, and ends when it is told to or its standard input does.
CHILD = """
import os, signal, sys, threading
name, log = sys.argv[1:3]
def note(what):
    with open(log, "a") as file:
        file.write(f"{name} {what} {os.getpid()}\\n")
def end(*_):
    note("ends")
    os._exit(0)
if not os.path.exists(log + ".deaf"):
    signal.signal(signal.SIGTERM, end)
else:
    signal.signal(signal.SIGTERM, lambda *_: note("hears"))
if name == "bad" or os.path.exists(log + ".fails"):
    print("cannot", name, file=sys.stderr)
    sys.exit(3)
note("starts")
print("something else")
print("Server: at", name)
while sys.stdin.buffer.read(1):
    pass
note("orphaned")
os._exit(0)
"""


class Supervised:
    def __init__(self, log: Path, names: str, ending: float) -> None:
        script = SUPERVISOR.replace("CHILD", repr(textwrap.dedent(CHILD))).replace("ENDING", str(ending))
        self.log = log
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, names, str(log)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
        )
        self._said: queue.SimpleQueue[str] = queue.SimpleQueue()
        assert self.process.stdout is not None
        threading.Thread(target=lambda out: [self._said.put(x) for x in out], args=(self.process.stdout,)).start()

    def ready(self) -> str:
        return self._said.get(timeout=PATIENCE).rstrip()

    def events(self) -> list[tuple[str, str, int]]:
        if not self.log.exists():
            return []
        rows = [line.split() for line in self.log.read_text().splitlines()]
        return [(name, what, int(pid)) for name, what, pid in rows]

    def until(self, count: int, what: str) -> list[tuple[str, str, int]]:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            found = [event for event in self.events() if event[1] == what]
            if len(found) >= count:
                return found
            time.sleep(0.01)
        raise AssertionError(f"not {count} times {what}: {self.events()}")

    def said(self) -> str:
        self.process.wait(PATIENCE)
        assert self.process.stderr is not None
        return self.process.stderr.read()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


@contextlib.contextmanager
def supervised(log: Path, names: str = "a,b", ending: float = 20) -> Iterator[Supervised]:
    running = Supervised(log, names, ending)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()
        for _, _, pid in running.events():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_children_start_one_by_one_and_end_together(log: Path) -> None:
    with supervised(log, "a,b,c") as running:
        assert running.ready() == "ready Server: at a Server: at b Server: at c"
        assert [(name, what) for name, what, _ in running.events()] == [(n, "starts") for n in "abc"]
        running.process.terminate()
        assert running.said() == ""
        assert running.process.returncode == 0
        assert sorted(name for name, what, _ in running.events() if what == "ends") == ["a", "b", "c"]


def test_a_child_that_dies_is_started_again_and_again(log: Path) -> None:
    with supervised(log) as running:
        running.ready()
        for count in range(3, 6):
            name, _, pid = running.until(count - 1, "starts")[-1]
            os.kill(pid, signal.SIGKILL)
            starts = running.until(count, "starts")
            assert starts[-1][0] == name
            assert starts[-1][2] != pid
        running.process.send_signal(signal.SIGINT)
        said = running.said().splitlines()
        assert running.process.returncode == 0
        assert said == [f"b was ended by SIGKILL; it is started again in {wait} s" for wait in ("0.1", "0.1", "0.2")]
        ends = {pid for _, what, pid in running.events() if what == "ends"}
        starts = {name: pid for name, what, pid in running.events() if what == "starts"}
        assert ends == set(starts.values())


def test_a_child_that_cannot_start_at_all(log: Path) -> None:
    log.with_name("log.fails").touch()
    with supervised(log) as running:
        assert running.said() == "cannot a\n"
        assert running.process.returncode == 3
        assert running.events() == []


def test_a_later_child_that_cannot_start_ends_the_others(log: Path) -> None:
    with supervised(log, "a,b,bad") as running:
        assert running.said() == "cannot bad\n"
        assert running.process.returncode == 3
        assert sorted(name for name, what, _ in running.events() if what == "ends") == ["a", "b"]


def test_children_that_do_not_end_are_killed(log: Path) -> None:
    log.with_name("log.deaf").touch()
    with supervised(log, ending=0.5) as running:
        running.ready()
        running.process.terminate()
        assert running.said() == "children that did not end within 0 s are killed\n"
        assert running.process.returncode == 0
        assert len(running.until(2, "hears")) == 2


def test_a_second_signal_ends_everything_at_once(log: Path) -> None:
    log.with_name("log.deaf").touch()
    with supervised(log) as running:
        running.ready()
        running.process.terminate()
        running.until(2, "hears")
        began = time.monotonic()
        while running.process.poll() is None and time.monotonic() - began < PATIENCE:
            running.process.terminate()
            time.sleep(0.2)
        assert running.process.returncode == 130
        assert time.monotonic() - began < 10


def test_no_child_outlives_its_supervisor(log: Path) -> None:
    with supervised(log) as running:
        running.ready()
        running.process.kill()
        running.until(2, "orphaned")
