"""All services in one process, or those that a member of a cluster runs.

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
from perdure.cluster.record import ClusterRecord, load_cluster
from perdure.config.static import FRONTEND, HISTORY, MATCHING, ServerConfig
from perdure.frontend.rpc import ClusterInfo
from perdure.frontend.server import Frontend, Listener, serve
from perdure.history.api import HistoryClient
from perdure.history.engine import HistoryService
from perdure.matching.api import MatchingClient
from perdure.matching.engine import MatchingEngine
from perdure.matching.partition import Counters
from perdure.namespaces import NamespaceRegistry
from perdure.persistence.api import SchemaMismatch, Store
from perdure.persistence.open import DEFAULT_SHARDS, SQLITE, backend_of, open_database_url
from perdure.telemetry.samples import Sample
from perdure.visibility.api import VisibilityStore

if TYPE_CHECKING:
    from perdure.cluster.node import Node
    from perdure.config.files import DynamicFile
    from perdure.telemetry.metrics import Metrics

__all__ = ["Server", "ServerConfig"]

logger = logging.getLogger("perdure.server")


class Server:
    """`start`, then `address` says where it listens; `stop` once."""

    def __init__(
        self,
        config: ServerConfig,
        clock: Clock | None = None,
        database: tuple[Store, VisibilityStore] | None = None,
    ) -> None:
        """database: one that is open already, and stays so; else that of the configuration is opened."""
        self.config = config
        self.clock = clock or RealClock()
        self.store: Store
        self.namespaces: NamespaceRegistry
        self.history: HistoryService | None = None
        self.matching: MatchingEngine | None = None
        self.frontend: Frontend
        self.node: Node | None = None
        self._database = database
        self._following: asyncio.Task[None] | None = None
        self._listener: Listener | None = None
        self._metrics: Metrics | None = None
        self._dynamic_file: DynamicFile | None = None

    @property
    def address(self) -> str:
        """host:port, for clients; "" for a member of a cluster without the frontend."""
        if self._listener is None:
            return ""
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
        if self._database is None:
            if config.cluster is not None and backend_of(config.database) == SQLITE:
                raise SchemaMismatch("the members of a cluster cannot share a SQLite file")
            store, visibility = await open_database_url(config.database, pragmas=config.sqlite_pragmas)
        else:
            store, visibility = self._database
        self.store = store
        try:
            cluster = await load_cluster(store, config.shards, DEFAULT_SHARDS[backend_of(config.database)])
            namespaces = self.namespaces = NamespaceRegistry(store, self.clock)
            await namespaces.load()
            await namespaces.ensure(config.namespaces, config.retention, config.search_attributes)
            history, matching = self._make_services(store, visibility, cluster)
            self.frontend = Frontend(
                history=history,
                matching=matching,
                visibility=visibility,
                namespaces=namespaces,
                clock=self.clock,
                config=config.dynamic,
                cluster=ClusterInfo(id=cluster.id, shards=cluster.shards),
            )
            try:
                await self._start_services()
                self._start_metrics()
                if config.cluster is None or FRONTEND in config.cluster.services:
                    self._listener = await serve(self.frontend, config.host, config.port, share_port=config.share_port)
                if self.matching is not None:
                    self.matching.host = self.address
            except BaseException:
                await self._stop_services(0)
                raise
        except BaseException:
            await self._close_store()
            raise
        logger.info("perdure %s listens on %s", self.frontend.cluster.version, self.address)

    def _make_services(
        self, store: Store, visibility: VisibilityStore, cluster: ClusterRecord
    ) -> tuple[HistoryClient, MatchingClient]:
        """Those that run here. Returns the whole services, for all who ask them."""
        config, namespaces = self.config, self.namespaces

        def namespace_name(namespace_id: str) -> str:
            return namespaces.by_id(namespace_id).name

        def make_history() -> HistoryService:
            return HistoryService(store, visibility, self.clock, config.dynamic, namespaces, cluster.shards)

        if config.cluster is None:
            history = self.history = make_history()
            # Partitions spread a task queue over processes: in one process they only cost.
            matching = self.matching = MatchingEngine(
                store, history, self.clock, config.dynamic, namespace_name, physical_partitions=1
            )
            history.set_matching(matching)
            return history, matching
        from perdure.cluster.node import Node  # a tenth of the time to start

        node = self.node = Node(
            config.cluster, cluster.id, store, self.clock, config.dynamic, namespace_name, cluster.shards
        )
        if HISTORY in config.cluster.services:
            self.history = make_history()
            self.history.others = node.history
            self.history.set_matching(node.matching)
        if MATCHING in config.cluster.services:
            self.matching = MatchingEngine(
                store,
                node.history,
                self.clock,
                config.dynamic,
                namespace_name,
                instance=node.id,
                others=node.matching,
            )
        return node.history, node.matching

    async def _start_services(self) -> None:
        if self.matching is not None:
            await self.matching.start()
        if self.node is None:
            assert self.history is not None
            await self.history.start()
            return
        if self.history is not None:
            self.history.start_maintenance()
        self._following = asyncio.create_task(self.namespaces.follow())
        await self.node.start(self.history, self.matching)

    async def stop(self, grace: float = 1.0) -> None:
        """The reverse of starting: the frontend stops taking calls, waiting polls answer empty, running calls have
        `grace` seconds, the queues end the tasks that they run, the store writes what waits and closes. What is not
        done by then, the next start takes up. A member of a cluster hands over what it has before that."""
        began = self.clock.now()
        if self.node is not None:
            await self.node.leave()
        await self._stop_services(grace)
        if self._dynamic_file is not None:
            await self._dynamic_file.stop()
        await self._close_store()
        logger.info("stopped within %.2f s", (self.clock.now() - began) / SECOND)

    async def _stop_services(self, grace: float) -> None:
        draining = None if self._listener is None else asyncio.create_task(self._listener.stop(grace))
        # Polls answer when new ones are refused already, or their workers would poll again at once.
        await asyncio.sleep(0)
        if self.node is not None:
            self.node.matching.end_polls()
        if self.matching is not None:
            await self.matching.stop()
        if draining is not None:
            await draining
        if self.history is not None:
            await self.history.stop(grace / 2)
        if self._following is not None:
            self._following.cancel()
        if self.node is not None:
            await self.node.stop(grace / 2)
        self._stop_metrics()

    async def _close_store(self) -> None:
        if self._database is None:
            await self.store.close()

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
        failures = {} if self.history is None else dict(self.history.failures)
        for name, count in failures.items():
            category, _, error = name.partition(":")
            yield Sample(
                "history_task_failures",
                "Attempts at tasks of the history queues that failed",
                count,
                {"category": category, "error": error},
            )
        counters = Counters() if self.matching is None else self.matching.counters
        yield Sample("matching_sync_matched", "Tasks that met a waiting poller", counters.sync_matched)
        yield Sample("matching_spooled", "Tasks written to a backlog", counters.spooled)
        yield Sample("matching_dispatched", "Tasks handed out", counters.dispatched)
        yield Sample("matching_dropped", "Tasks that were stale when a poller came", counters.dropped)
        yield Sample("matching_retried", "Hand-outs that were tried again", counters.retried)
        yield Sample("matching_errors", "Unexpected errors in matching", counters.errors)
        yield Sample("namespaces", "Namespaces", len(self.namespaces.names()), counter=False)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
