"""Looks after child processes: starts them one by one, starts one again that ended by itself, and ends all of them in
order.

A child says on its standard output that it is ready, by a line with a certain beginning. Its standard input ends when
this process does, however that ends, so that no child is left behind. What it writes to standard error goes where ours
goes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

log = logging.getLogger("perdure.supervisor")

_SAME_SIGNAL = 1.0
"""Seconds within which a second signal is the same one, as when a group of processes was signalled."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds. first_wait, longest_wait: before a child is started again; doubled each time, and as at first when it
    has run for `settled`. ending: that a child may take to end in order."""

    first_wait: float = 0.1
    longest_wait: float = 30.0
    settled: float = 30.0
    ending: float = 20.0


class StartFailed(Exception):
    """A child ended before it was ready for the first time. code: its exit code."""

    def __init__(self, name: str, code: int) -> None:
        super().__init__(f"{name} ended as it started ({_how(code)})")
        self.code = code


class _Child:
    def __init__(self, name: str, command: Sequence[str], ready_line: str, patience: Patience) -> None:
        self.name = name
        self.first_start = asyncio.get_running_loop().create_future()
        self._command = command
        self._ready_line = ready_line
        self._patience = patience
        self._process: asyncio.subprocess.Process | None = None
        self._ending = False

    async def run(self) -> None:
        """Until `end`. Raises StartFailed."""
        loop = asyncio.get_running_loop()
        wait = self._patience.first_wait
        while not self._ending:
            began = loop.time()
            code = await self._once()
            if self._ending:
                return
            if not self.first_start.done():
                self.first_start.set_exception(StartFailed(self.name, code))
                return
            if loop.time() - began >= self._patience.settled:
                wait = self._patience.first_wait
            log.error("%s %s; it is started again in %.1f s", self.name, _how(code), wait)
            await asyncio.sleep(wait)
            wait = min(2 * wait, self._patience.longest_wait)

    async def _once(self) -> int:
        try:
            process = self._process = await asyncio.create_subprocess_exec(
                *self._command, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE
            )
        except OSError as e:
            log.error("%s cannot be started: %s", self.name, e.strerror)
            return 1
        if self._ending:
            process.terminate()
        assert process.stdout is not None
        while line := await process.stdout.readline():
            if line.startswith(self._ready_line.encode()) and not self.first_start.done():
                self.first_start.set_result(line.decode(errors="replace").rstrip())
        return await process.wait()

    def end(self, number: int = signal.SIGTERM) -> None:
        self._ending = True
        if self._process is not None and self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)


async def supervise(
    commands: Mapping[str, Sequence[str]],
    ready_line: str,
    ready: Callable[[list[str]], None],
    patience: Patience = Patience(),
) -> int:
    """Runs the commands, by name, until SIGTERM or SIGINT. ready: called once, with each one's line that began with
    `ready_line`. Returns the exit code: 0, 130 when a second signal had to be sent, or that of a child which could not
    be started at all; it has said why."""
    ending = asyncio.Event()
    forced = asyncio.Event()
    _on_signal(ending, forced)
    children: list[_Child] = []
    running: list[asyncio.Task[None]] = []
    code = 0
    try:
        for name, command in commands.items():
            # One by one: the first makes what the others find, and what is wrong is said once.
            child = _Child(name, command, ready_line, patience)
            children.append(child)
            running.append(asyncio.create_task(child.run()))
            await _first(child.first_start, ending)
            if ending.is_set():
                break
        else:
            ready([child.first_start.result() for child in children])
            await ending.wait()
    except StartFailed as e:
        # What ended with an exit code has said why.
        log.log(logging.INFO if e.code > 0 else logging.ERROR, "%s", e)
        code = e.code if 0 < e.code < 128 else 1
    for child in children:
        child.end()
    done = asyncio.gather(*running)
    try:
        await asyncio.wait_for(_first(asyncio.shield(done), forced), patience.ending)
    except TimeoutError:
        log.error("children that did not end within %.0f s are killed", patience.ending)
    if not done.done():
        if forced.is_set():
            code = 130
        for child in children:
            child.end(signal.SIGKILL)
    await done
    return code


async def _first(future: asyncio.Future[object], event: asyncio.Event) -> None:
    """Until either is there. Raises what the future raises."""
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((future, waiting), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
    if future.done():
        future.result()


def _on_signal(ending: asyncio.Event, forced: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()
    first = 0.0

    def end() -> None:
        nonlocal first
        if not ending.is_set():
            first = loop.time()
            ending.set()
        elif loop.time() - first > _SAME_SIGNAL:
            forced.set()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)


def _how(code: int) -> str:
    if code >= 0:
        return f"ended with exit code {code}"
    try:
        return f"was ended by {signal.Signals(-code).name}"
    except ValueError:
        return f"was ended by signal {-code}"


def this_program(*arguments: str) -> list[str]:
    """The command that runs perdure with the interpreter that runs now."""
    return [sys.executable, "-m", "perdure", *arguments]


def supported() -> bool:
    return os.name == "posix"
