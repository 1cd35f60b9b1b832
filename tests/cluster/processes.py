"""Members as users run them: processes of their own over PostgreSQL; and the network before them, which can be cut."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import urlsplit

from temporalio.client import Client
from tests import databases

from sdk.server import Server, free_port

NAMES = ("one", "two", "three")
LEASE = 4.0  # seconds after which others take a silent member for dead; they look once a second


class Proxy:
    """Passes TCP on to the first of its targets that takes the connection; each connection begins with the next.

    targets: host:port. silent: what a cut does. Either nothing passes and nothing is said, and what was sent meanwhile
    passes when the cut has healed, as when packets are lost; or connections break, and no other can be made."""

    def __init__(self, *targets: str, silent: bool = True) -> None:
        self.address = ""
        self._targets = list(targets)
        self._silent = silent
        self._passes = asyncio.Event()
        self._passes.set()
        self._connections: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connected, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"

    def cut(self) -> None:
        self._passes.clear()
        if not self._silent:
            self._break()

    def heal(self) -> None:
        self._passes.set()

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        self._break()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _break(self) -> None:
        for connection in self._connections:
            connection.cancel()

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            if self._silent:
                await self._passes.wait()
            if self._passes.is_set():
                await self._pass_on(reader, writer)
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.transport.abort()

    async def _pass_on(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there = await self._connect()
        try:
            ways = [
                asyncio.create_task(self._one_way(reader, there[1])),
                asyncio.create_task(self._one_way(there[0], writer)),
            ]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for way in ways:
                    way.cancel()
                await asyncio.gather(*ways, return_exceptions=True)
        finally:
            there[1].transport.abort()

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        for _ in self._targets:
            self._targets.append(target := self._targets.pop(0))
            host, port = target.split(":")
            with contextlib.suppress(OSError):
                return await asyncio.open_connection(host, int(port))
        raise OSError("none of the targets takes the connection")

    async def _one_way(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            await self._passes.wait()
            writer.write(data)
            await writer.drain()


class Member(Server):
    """advertise: where the others reach it, "" for where it listens."""

    def __init__(self, folder: Path, name: str, db: str, cluster_port: int, advertise: str = "") -> None:
        folder.mkdir()
        settings = folder / "member.yaml"
        settings.write_text(f'cluster: {{name: {name}, port: {cluster_port}, advertise: "{advertise}"}}\n')
        super().__init__(folder, "--config", str(settings), "--shards", "24", "--log-level", "info", db=db)
        self.name = name

    def pause(self) -> None:
        """SIGSTOP: it stands still, and its connections stay open."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def restart(self) -> None:
        """In order."""
        await asyncio.to_thread(self.stop)
        await asyncio.to_thread(self.start)

    async def kill_and_start(self, between: float) -> None:
        self.kill()
        await asyncio.sleep(between)
        await asyncio.to_thread(self.start)

    def took_for_dead(self, other: Member) -> bool:
        """Its log says so."""
        return re.search(rf"{other.name} at \S+ is taken for dead", self.log.read_text()) is not None

    def abandon(self) -> None:
        """After a failure: it is ended whatever its state is."""
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()


class Cluster:
    """Three members. links: by member, what the others reach it through. database: what `three` reaches the database
    through; the others do directly."""

    def __init__(self) -> None:
        self.members: list[Member] = []
        self.links: dict[str, Proxy] = {}
        self.database: Proxy | None = None
        self._proxies: list[Proxy] = []

    async def proxy(self, *targets: str, silent: bool = True) -> Proxy:
        proxy = Proxy(*targets, silent=silent)
        await proxy.start()
        self._proxies.append(proxy)
        return proxy

    async def balancer(self) -> str:
        """The address of one that spreads connections over the members that take them."""
        return (await self.proxy(*(m.address for m in self.members))).address

    async def clients(self) -> list[Client]:
        return [await Client.connect(member.address) for member in self.members]

    async def start(self, folder: Path, links: bool, database: bool, silent: bool) -> None:
        url = databases.url("postgresql", folder)
        for name in NAMES:
            port, advertise, db = free_port(), "", url
            if links:
                self.links[name] = await self.proxy(f"127.0.0.1:{port}", silent=silent)
                advertise = self.links[name].address
            if database and name == NAMES[-1]:
                place = urlsplit(url)
                target = f"{place.hostname}:{place.port}"
                self.database = await self.proxy(target, silent=silent)
                db = url.replace(target, self.database.address)
            member = Member(folder / name, name, db, port, advertise)
            self.members.append(member)
            await asyncio.to_thread(member.start)

    async def close(self) -> None:
        """They must stop in order, and have logged no unexpected error."""
        for member in self.members:
            await asyncio.to_thread(member.close)

    async def abandon(self) -> None:
        for member in self.members:
            member.abandon()
        for proxy in self._proxies:
            await proxy.stop()


@asynccontextmanager
async def cluster(
    folder: Path, *, links: bool = False, database: bool = False, silent: bool = True
) -> AsyncGenerator[Cluster]:
    """links, database: which of the proxies there are; silent: see Proxy."""
    world = Cluster()
    try:
        await world.start(folder, links, database, silent)
        yield world
        await world.close()
    finally:
        await world.abandon()
