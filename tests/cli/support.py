"""The program as its users run it: a process of its own."""

from __future__ import annotations

import contextlib
import os
import pathlib
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

PROGRAM = str(pathlib.Path(sys.executable).with_name("perdure"))
PATIENCE = 30.0
"""Seconds: for machines that have much else to do."""


@dataclass
class Running:
    """address: host:port. said: the start message. first_line: seconds from the command to that message."""

    process: subprocess.Popen[str]
    address: str
    said: list[str]
    first_line: float

    def end(self, number: int = signal.SIGTERM) -> float:
        """Sends a signal and waits; the seconds that it took."""
        began = time.perf_counter()
        self.process.send_signal(number)
        self.process.wait(PATIENCE)
        return time.perf_counter() - began


@contextlib.contextmanager
def running(*arguments: str, env: dict[str, str] | None = None, lines: int = 4) -> Iterator[Running]:
    """`perdure server ARGUMENTS` from its start message on; it is killed at the end if the test did not end it."""
    began = time.perf_counter()
    process = subprocess.Popen(
        [PROGRAM, "server", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **(env or {})},
    )
    try:
        said = _lines(process, lines)
        server = next(line for line in said if line.startswith("Server: "))
        yield Running(process, server.split()[1], said, time.perf_counter() - began)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def _lines(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    stdout = process.stdout
    found: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read() -> None:
        for _ in range(count):
            found.put(stdout.readline())

    threading.Thread(target=read, daemon=True).start()
    said: list[str] = []
    for _ in range(count):
        line = found.get(timeout=PATIENCE)
        if not line:
            process.wait(PATIENCE)
            assert process.stderr is not None
            raise AssertionError(f"ended with {process.returncode}: {process.stderr.read()}")
        said.append(line.rstrip("\n"))
    return said


def refused(*arguments: str, env: dict[str, str] | None = None) -> str:
    """Runs `perdure ARGUMENTS`, which must fail; the one line that it says about it."""
    done = subprocess.run(
        [PROGRAM, *arguments],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **(env or {})},
    )
    assert done.returncode not in (0, None) and done.returncode > 0, done
    assert done.stdout == ""
    lines: Sequence[str] = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    return lines[0]
