"""`perdure db`: the tables of a database, and moving a server from one to another."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Coroutine, Sequence
from typing import Any

from perdure.cli.main import CommandError
from perdure.persistence import open as databases
from perdure.persistence.api import StoreError
from perdure.persistence.open import ModuleVersion, shown

_REPORT_EVERY = 2.0  # seconds


def run(arguments: argparse.Namespace) -> int:
    commands = {"db_init": _init, "db_upgrade": _upgrade, "db_status": _status, "db_copy": _copy}
    job: Coroutine[Any, Any, int] = commands[arguments.run](arguments)
    try:
        return asyncio.run(job)
    except StoreError as e:
        raise CommandError(str(e)) from None


async def _init(arguments: argparse.Namespace) -> int:
    from perdure.cluster.record import load_cluster

    url: str = arguments.db
    shards: int | None = arguments.shards
    await databases.init(url)
    store, _ = await databases.open_database_url(url)
    try:
        cluster = await load_cluster(store, shards, databases.DEFAULT_SHARDS[databases.backend_of(url)])
    finally:
        await store.close()
    print(f"{shown(url)} is ready, with {cluster.shards} shards")
    return 0


async def _upgrade(arguments: argparse.Namespace) -> int:
    url: str = arguments.db
    before = await databases.schema_status(url)
    await databases.upgrade(url)
    changed = [
        f"{module} {was.found} to {now}"
        for was, (module, now, _) in zip(before, await databases.schema_status(url), strict=True)
        if was.found != now
    ]
    print(f"{shown(url)}: " + (f"upgraded {', '.join(changed)}" if changed else "up to date already"))
    return 0


async def _status(arguments: argparse.Namespace) -> int:
    """Exits with 0 only when a server of this version would start."""
    url: str = arguments.db
    found = await databases.schema_status(url)
    state = _state(found)
    print(f"{shown(url)}: {state}")
    for module, version, known in found:
        print(f"  {module:<12} version {version}, known: {known}")
    return 0 if state == "up to date" else 1


def _state(found: Sequence[ModuleVersion]) -> str:
    if any(module.found > module.known for module in found):
        return "written by a newer version of perdure"
    if all(module.found == 0 for module in found):
        return "no tables yet (perdure db init makes them)"
    if any(module.found < module.known for module in found):
        return "written by an older version of perdure (perdure db upgrade brings it up to date)"
    return "up to date"


async def _copy(arguments: argparse.Namespace) -> int:
    from perdure.persistence.copy import copy

    began = time.monotonic()
    shards: int = arguments.shards or databases.DEFAULT_SHARDS[databases.backend_of(arguments.to)]
    source = await databases.open_database_url(arguments.source, create=False)
    try:
        target = await databases.open_database_url(arguments.to)
        try:
            content = await copy(source, target, shards, _Reporter())
        finally:
            await target.store.close()
    finally:
        await source.store.close()
    print(f"copied {shown(arguments.source)} to {shown(arguments.to)}, which has {shards} shards,", end=" ")
    print(f"in {time.monotonic() - began:.1f} s; counts and checksums agree:")
    for sort, count in sorted(content.counts.items()):
        print(f"  {count:>12,} {sort:<18} {content.digests[sort]:032x}")
    return 0


class _Reporter:
    """Lines on standard error, not too many."""

    def __init__(self) -> None:
        self._last = time.monotonic()

    def __call__(self, line: str) -> None:
        now = time.monotonic()
        if now - self._last >= _REPORT_EVERY:
            self._last = now
            print(line, file=sys.stderr, flush=True)
