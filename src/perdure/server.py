"""All services in one process.

server = Server(ServerConfig(port=0))
await server.start()
...  # any Temporal SDK connects to server.address
await server.stop()
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

from perdure.clock import SECOND, Clock, RealClock
from perdure.cluster.record import load_cluster
from perdure.config.static import ServerConfig
from perdure.frontend.rpc import ClusterInfo
from perdure.frontend.server import Frontend, Listener, serve
from perdure.history.engine import HistoryService
from perdure.matching.engine import MatchingEngine
from perdure.namespaces import NamespaceRegistry
from perdure.persistence.api import Store
from perdure.persistence.open import DEFAULT_SHARDS, backend_of, open_database_url
from perdure.telemetry.samples import Sample

if TYPE_CHECKING:
    from perdure.config.files import DynamicFile
    from perdure.telemetry.metrics import Metrics

__all__ = ["Server", "ServerConfig"]

logger = logging.getLogger("perdure.server")


class Server:
    """`start`, then `address` says where it listens; `stop` once."""

    def __init__(self, config: ServerConfig, clock: Clock | None = None) -> None:
        self.config = config
        self.clock = clock or RealClock()
        self.store: Store
        self.namespaces: NamespaceRegistry
        self.history: HistoryService
        self.matching: MatchingEngine
        self.frontend: Frontend
        self._listener: Listener
        self._metrics: Metrics | None = None
        self._dynamic_file: DynamicFile | None = None

    @property
    def address(self) -> str:
        """host:port, for clients."""
        return _address(self.config.host, self._listener.port)

    @property
    def metrics_address(self) -> str | None:
        return None if self._metrics is None else _address(self._metrics.host, self._metrics.port)

    async def start(self) -> None:
        """Returns when calls are taken. Raises persistence.SchemaMismatch for a database that cannot be used, OSError
        when a port is taken, ConfigError for a file of dynamic settings; everything is let go of then."""
        config = self.config
        if config.dynamic_file is not None:
            from perdure.config.files import DynamicFile

            self._dynamic_file = DynamicFile(config.dynamic_file, config.dynamic, self.clock)
            self._dynamic_file.start()
        try:
            await self._start()
        except BaseException:
            if self._dynamic_file is not None:
                await self._dynamic_file.stop()
            raise

    async def _start(self) -> None:
        config = self.config
        store, visibility = await open_database_url(config.database, pragmas=config.sqlite_pragmas)
        self.store = store
        try:
            cluster = await load_cluster(store, config.shards, DEFAULT_SHARDS[backend_of(config.database)])
            namespaces = self.namespaces = NamespaceRegistry(store, self.clock)
            await namespaces.load()
            await namespaces.ensure(config.namespaces, config.retention, config.search_attributes)
            self.history = HistoryService(store, visibility, self.clock, config.dynamic, namespaces, cluster.shards)
            # Partitions spread a task queue over processes: in one process they only cost.
            self.matching = MatchingEngine(
                store,
                self.history,
                self.clock,
                config.dynamic,
                lambda namespace_id: namespaces.by_id(namespace_id).name,
                physical_partitions=1,
            )
            self.history.set_matching(self.matching)
            self.frontend = Frontend(
                history=self.history,
                matching=self.matching,
                visibility=visibility,
                namespaces=namespaces,
                clock=self.clock,
                config=config.dynamic,
                cluster=ClusterInfo(id=cluster.id, shards=cluster.shards),
            )
            await self.matching.start()
            await self.history.start()
            try:
                self._start_metrics()
                self._listener = await serve(self.frontend, config.host, config.port)
                self.matching.host = self.address
            except BaseException:
                await self.matching.stop()
                await self.history.stop(0)
                self._stop_metrics()
                raise
        except BaseException:
            await store.close()
            raise
        logger.info("perdure %s listens on %s", self.frontend.cluster.version, self.address)

    async def stop(self, grace: float = 1.0) -> None:
        """The reverse of starting: the frontend stops taking calls, waiting polls answer empty, running calls have
        `grace` seconds, the queues end the tasks that they run, the store writes what waits and closes. What is not
        done by then, the next start takes up."""
        began = self.clock.now()
        draining = asyncio.create_task(self._listener.stop(grace))
        # Polls answer when new ones are refused already, or their workers would poll again at once.
        await asyncio.sleep(0)
        await self.matching.stop()
        await draining
        await self.history.stop(grace / 2)
        self._stop_metrics()
        if self._dynamic_file is not None:
            await self._dynamic_file.stop()
        await self.store.close()
        logger.info("stopped within %.2f s", (self.clock.now() - began) / SECOND)

    # --- metrics

    def _start_metrics(self) -> None:
        if self.config.metrics_port is not None:
            from perdure.telemetry.metrics import Metrics  # a tenth of the time to start

            self._metrics = Metrics(self._samples, self.config.host, self.config.metrics_port)

    def _stop_metrics(self) -> None:
        if self._metrics is not None:
            self._metrics.stop()

    def _samples(self) -> Iterator[Sample]:
        for method, count in list(self.frontend.internal_errors.items()):
            yield Sample("internal_errors", "Calls that failed by a fault of the server", count, {"method": method})
        for name, count in list(self.history.failures.items()):
            category, _, error = name.partition(":")
            yield Sample(
                "history_task_failures",
                "Attempts at tasks of the history queues that failed",
                count,
                {"category": category, "error": error},
            )
        counters = self.matching.counters
        yield Sample("matching_sync_matched", "Tasks that met a waiting poller", counters.sync_matched)
        yield Sample("matching_spooled", "Tasks written to a backlog", counters.spooled)
        yield Sample("matching_dispatched", "Tasks handed out", counters.dispatched)
        yield Sample("matching_dropped", "Tasks that were stale when a poller came", counters.dropped)
        yield Sample("matching_retried", "Hand-outs that were tried again", counters.retried)
        yield Sample("matching_errors", "Unexpected errors in matching", counters.errors)
        yield Sample("namespaces", "Namespaces", len(self.namespaces.names()), counter=False)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
