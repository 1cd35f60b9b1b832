"""Several members of a cluster in this process, over one database in memory; real gRPC between them."""

from __future__ import annotations

import asyncio
import inspect
import random
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from typing import Any

from temporalio.client import Client

from perdure.clock import MILLISECOND
from perdure.config.dynamic import DynamicConfig
from perdure.config.static import SERVICES, ClusterConfig, ServerConfig
from perdure.persistence.api import Unavailable
from perdure.persistence.open import open_database_url
from perdure.server import Server

HEARTBEAT = 100 * MILLISECOND


class Connection:
    """What one member has of the database. lost: it does not answer. frozen: it answers only later, as to a process
    that stands still. doubtful: of so many commits in a hundred it is not told what came of them, whatever did."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.lost = False
        self.doubtful = 0
        self.frozen: asyncio.Event | None = None

    def freeze(self) -> None:
        self.frozen = asyncio.Event()

    def thaw(self) -> None:
        assert self.frozen is not None
        self.frozen.set()
        self.frozen = None

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._store, name)
        if not inspect.iscoroutinefunction(found):
            return found

        async def call(*args: Any, **kwargs: Any) -> Any:
            if self.frozen is not None:
                await self.frozen.wait()
            if self.lost:
                raise Unavailable("the connection is lost")
            if name == "commit" and random.randrange(100) < self.doubtful:
                if random.random() < 0.5:
                    await found(*args, **kwargs)
                raise Unavailable("the connection broke")
            return await found(*args, **kwargs)

        return call


class Cluster:
    def __init__(self, store: Any, visibility: Any, settings: dict[str, Any]) -> None:
        self.database = (store, visibility)
        self.store = store
        self.settings = settings
        self.members: dict[str, Server] = {}
        self.connections: dict[str, Connection] = {}
        self._crashed: list[Server] = []

    async def add(self, name: str, *services: str) -> Server:
        dynamic = DynamicConfig()
        for key, value in self.settings.items():
            dynamic.set(key, value)
        config = ServerConfig(
            port=0,
            shards=16,
            dynamic=dynamic,
            cluster=ClusterConfig(name=name, services=list(services or SERVICES), heartbeat=HEARTBEAT),
        )
        connection = self.connections[name] = Connection(self.store)
        server = Server(config, database=(connection, self.database[1]))  # type: ignore[arg-type]
        await server.start()
        self.members[name] = server
        return server

    async def leave(self, name: str) -> None:
        await self.members.pop(name).stop(0.5)

    async def crash(self, name: str) -> None:
        """It is gone at once: nothing is written, told or answered any more."""
        server = self.members.pop(name)
        self.connections[name].lost = True
        assert server.node is not None
        assert server._listener is not None
        self._crashed.append(server)
        await server.node._server.stop(0)
        await server._listener.server.stop(0)
        await server.node._peers.close()

    async def end(self) -> None:
        for name in list(self.members):
            await self.leave(name)
        for server in self._crashed:
            await server._stop_services(0)

    async def until(self, what: Callable[[], bool], seconds: float = 10) -> None:
        async with asyncio.timeout(seconds):
            while True:
                if what():
                    return
                await asyncio.sleep(0.01)

    def settled(self) -> bool:
        """All know each other, and every shard is with one member."""
        owned: list[int] = []
        for server in self.members.values():
            assert server.node is not None
            if {m.name for m in server.node.membership.members.values()} != set(self.members):
                return False
            if server.history is not None:
                owned += [shard.shard_id for shard in server.history.shards.live()]
        return sorted(owned) == list(range(1, 17))

    def owned(self, name: str) -> list[int]:
        history = self.members[name].history
        assert history is not None
        return [shard.shard_id for shard in history.shards.live()]

    async def client(self, name: str) -> Client:
        return await Client.connect(self.members[name].address)


@asynccontextmanager
async def cluster(*names: str, **settings: Any) -> AsyncGenerator[Cluster]:
    """settings: of the dynamic configuration, "__" for each dot."""
    store, visibility = await open_database_url(None)
    world = Cluster(store, visibility, {name.replace("__", "."): value for name, value in settings.items()})
    try:
        for name in names:
            await world.add(name)
        if names:
            await world.until(world.settled)
        yield world
    finally:
        await world.end()
        await store.close()
