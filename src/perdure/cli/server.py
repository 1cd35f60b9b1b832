"""`perdure server start` and `start-dev`: from arguments to a running server, until a signal ends it."""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from perdure import __version__
from perdure.cli import options
from perdure.cli.main import CommandError
from perdure.cli.options import Options
from perdure.config.dynamic import ConfigError
from perdure.telemetry import logs

try:
    import uvloop
except ImportError:  # there is none for Windows
    uvloop = None

# The server makes many short-lived objects and few cycles: looking for those at CPython's default pace would cost a
# percent or two of its time.
_GC_THRESHOLDS = (20_000, 20, 20)

_FORCED = 130
_SAME_SIGNAL = 1.0  # seconds


def start_dev(arguments: argparse.Namespace) -> int:
    return _run(options.development(arguments), arguments)


def start(arguments: argparse.Namespace) -> int:
    chosen = options.durable(arguments)
    if chosen.settings.processes > 1:
        from perdure.cli import processes

        return processes.run(chosen, arguments.argv)
    return _run(chosen, arguments, supervised=arguments.supervised)


def _run(chosen: Options, arguments: argparse.Namespace, *, supervised: bool = False) -> int:
    configure_logs(chosen)
    if arguments.log_config:
        print(options.described(chosen), file=sys.stderr)
    run: Callable[[Coroutine[Any, Any, int]], int] = asyncio.run if uvloop is None else uvloop.run
    return run(_serve(chosen, supervised))


def configure_logs(chosen: Options) -> None:
    cluster = chosen.server.cluster
    logs.configure(
        chosen.settings.log.level,
        chosen.settings.log.format,
        color=chosen.color,
        member="" if cluster is None else cluster.name,
    )


async def _serve(chosen: Options, supervised: bool) -> int:
    gc.disable()  # until everything is loaded: there is nothing to collect
    from perdure.persistence.api import StoreError
    from perdure.server import Server

    ending = asyncio.Event()
    _on_signal(ending)
    if supervised:
        _on_orphaned(ending)
    server = Server(chosen.server)
    try:
        await server.start()
    except (StoreError, ConfigError) as e:
        raise CommandError(str(e)) from None
    except OSError as e:
        raise CommandError(e.strerror or str(e)) from None
    say(server.address, chosen, server.metrics_address)
    # What is there now stays: no collection need look at it again.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*_GC_THRESHOLDS)
    gc.enable()
    await ending.wait()
    await server.stop()
    return 0


def _on_signal(ending: asyncio.Event) -> None:
    """The first signal ends the server in order, another one at once: but not one that comes with the first, as when a
    supervisor signals a group of processes and one of them passes it on."""
    loop = asyncio.get_running_loop()
    first = 0.0

    def end() -> None:
        nonlocal first
        if not ending.is_set():
            first = loop.time()
            ending.set()
        elif loop.time() - first > _SAME_SIGNAL:
            os._exit(_FORCED)

    for number in (signal.SIGINT, signal.SIGTERM):
        try:
            loop.add_signal_handler(number, end)
        except NotImplementedError:  # on Windows
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(end))


def _on_orphaned(ending: asyncio.Event) -> None:
    """The supervisor holds the other end of standard input: when it is gone, this process ends in order."""
    loop = asyncio.get_running_loop()

    def read() -> None:
        if not os.read(0, 1024):
            loop.remove_reader(0)
            ending.set()

    loop.add_reader(0, read)


def say(address: str, chosen: Options, metrics: str | None) -> None:
    """What Temporal's CLI says at start, in its order; test environments wait for the line with `Server: `."""
    lines = [f"perdure {__version__}", "", f"{'Server:':<13}{address or 'no frontend here'}"]
    lines.append(f"{'Database:':<13}{chosen.persistence}")
    if metrics is not None:
        lines.append(f"{'Metrics:':<13}http://{metrics}/metrics")
    try:
        print("\n".join(lines), flush=True)
    except OSError:
        pass  # nobody reads
