"""Static configuration: what a server is started with, and what cannot change while it runs."""

from __future__ import annotations

from dataclasses import dataclass, field

from perdure.clock import DAY, SECOND
from perdure.config.dynamic import DynamicConfig

FRONTEND, HISTORY, MATCHING, WORKER = SERVICES = ("frontend", "history", "matching", "worker")


@dataclass(slots=True)
class ClusterConfig:
    """Of a process that is one of several on one database.

    host, port: where other members reach it; port 0 takes a free one. advertise: the host, or host:port, that others
    are told, when it is another than `host` (0.0.0.0 is nobody's). name: of this member, the same at its next start;
    "": its address. services: that it runs. heartbeat: nanoseconds. dead_after: a member is taken for dead after so
    many heartbeats without a sign of it; the same for all members."""

    host: str = "127.0.0.1"
    port: int = 0
    advertise: str = ""
    name: str = ""
    services: list[str] = field(default_factory=lambda: list(SERVICES))
    heartbeat: int = SECOND
    dead_after: int = 4


@dataclass(slots=True)
class ServerConfig:
    """All services in one process, or those of a member of a cluster.

    host: address to listen on. port: 0 takes a free one. share_port: with other processes. database: its address
    (`persistence.open`), a SQLite file is created when it is missing; None: in memory. sqlite_pragmas: over the store's
    own. namespaces: created when they are missing, with `retention` (nanoseconds) and `search_attributes` (name to
    IndexedValueType). shards: None takes what the database was made with, and `persistence.open.DEFAULT_SHARDS` for a
    new one. dynamic: settings that may change while the server runs. dynamic_file: sets and follows those that
    `dynamic` does not set already. metrics_port: None for no metrics, 0 for a free port. cluster: None for a process
    that is alone."""

    host: str = "127.0.0.1"
    port: int = 7233
    share_port: bool = False
    database: str | None = None
    sqlite_pragmas: dict[str, str] = field(default_factory=dict[str, str])
    namespaces: list[str] = field(default_factory=lambda: ["default"])
    retention: int = 3 * DAY
    search_attributes: dict[str, int] = field(default_factory=dict[str, int])
    shards: int | None = None
    dynamic: DynamicConfig = field(default_factory=DynamicConfig)
    dynamic_file: str | None = None
    metrics_port: int | None = None
    cluster: ClusterConfig | None = None
