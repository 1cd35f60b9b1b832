"""`perdure server start` and `start-dev`: from arguments to a running server, until a signal ends it."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

from perdure import __version__
from perdure.cli.main import CommandError
from perdure.config.dynamic import ConfigError, DynamicConfig, parse_assignment
from perdure.config.static import ServerConfig
from perdure.namespaces import DEFAULT_RETENTION, DEV_RETENTION
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
    file: str | None = arguments.db_filename or None
    return _run(arguments, file, DEV_RETENTION, file if file else "in memory: it is gone when the server stops")


def start(arguments: argparse.Namespace) -> int:
    file: str = arguments.db
    if not file:
        import platformdirs

        directory = platformdirs.user_data_dir("perdure", appauthor=False)
        try:
            os.makedirs(directory, mode=0o700, exist_ok=True)
        except OSError as e:
            raise CommandError(
                f"the data directory {directory} cannot be made: {e.strerror} (--db names a file)"
            ) from e
        file = os.path.join(directory, "perdure.db")
    return _run(arguments, file, DEFAULT_RETENTION, os.path.abspath(file))


def _config(arguments: argparse.Namespace, file: str | None, retention: int) -> ServerConfig:
    dynamic = DynamicConfig()
    for text in arguments.dynamic_config_value:
        try:
            dynamic.set(*parse_assignment(text))
        except ConfigError as e:
            raise CommandError(f"--dynamic-config-value: {e}") from None
    attributes = dict(_search_attribute(name, kind) for name, kind in arguments.search_attribute)
    host = "127.0.0.1" if arguments.ip == "localhost" else arguments.ip
    return ServerConfig(
        host=host,
        port=arguments.port,
        database=file,
        sqlite_pragmas=dict(arguments.sqlite_pragma),
        namespaces=list(dict.fromkeys(["default", *arguments.namespace])),
        retention=retention,
        search_attributes=attributes,
        dynamic=dynamic,
        metrics_port=arguments.metrics_port,
    )


def _search_attribute(name: str, kind: str) -> tuple[str, int]:
    from perdure.visibility.attributes import TYPE_NAMES

    for number, known in TYPE_NAMES.items():
        if known.lower() == kind.lower():
            return name, number
    raise CommandError(f"--search-attribute {name}: {kind!r} is none of {', '.join(TYPE_NAMES.values())}")


def _run(arguments: argparse.Namespace, file: str | None, retention: int, persistence: str) -> int:
    config = _config(arguments, file, retention)
    given = vars(arguments)
    logs.configure(given.get("log_level", "warn"), given.get("log_format", "text"), color=given.get("color", "auto"))
    if arguments.log_config:
        print(_described(config, arguments), file=sys.stderr)
    run: Callable[[Coroutine[Any, Any, int]], int] = asyncio.run if uvloop is None else uvloop.run
    return run(_serve(config, persistence))


def _described(config: ServerConfig, arguments: argparse.Namespace) -> str:
    return json.dumps(
        {
            "host": config.host,
            "port": config.port,
            "database": config.database,
            "pragmas": config.sqlite_pragmas,
            "namespaces": config.namespaces,
            "searchAttributes": dict(arguments.search_attribute),
            "dynamicConfigValues": arguments.dynamic_config_value,
            "metricsPort": config.metrics_port,
        }
    )


async def _serve(config: ServerConfig, persistence: str) -> int:
    gc.disable()  # until everything is loaded: there is nothing to collect
    from perdure.persistence.api import StoreError
    from perdure.server import Server

    ending = asyncio.Event()
    _on_signal(ending)
    server = Server(config)
    try:
        await server.start()
    except StoreError as e:
        raise CommandError(str(e)) from None
    except OSError as e:
        raise CommandError(e.strerror or str(e)) from None
    _say(server.address, persistence, server.metrics_address)
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


def _say(address: str, persistence: str, metrics: str | None) -> None:
    """What Temporal's CLI says at start, in its order; test environments wait for the line with `Server: `."""
    lines = [f"perdure {__version__}", "", f"{'Server:':<13}{address}", f"{'Database:':<13}{persistence}"]
    if metrics is not None:
        lines.append(f"{'Metrics:':<13}http://{metrics}/metrics")
    try:
        print("\n".join(lines), flush=True)
    except OSError:
        pass  # nobody reads
