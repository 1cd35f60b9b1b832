"""From arguments, a configuration file and the environment to the configuration of a server."""

from __future__ import annotations

import argparse
import json
import os
import socket
from dataclasses import dataclass
from typing import Any

from perdure.cli.main import CommandError
from perdure.clock import HOUR
from perdure.config.dynamic import ConfigError, DynamicConfig, parse_assignment, parse_duration
from perdure.config.settings import ALL_SERVICES, Settings, load_settings
from perdure.config.static import ClusterConfig, ServerConfig
from perdure.namespaces import DEFAULT_RETENTION, DEV_RETENTION
from perdure.persistence.api import SchemaMismatch
from perdure.persistence.open import SQLITE, backend_of, path_of, shown


@dataclass(slots=True)
class Options:
    """server: what runs in one process. persistence: the database, for people. color: as of the flag."""

    server: ServerConfig
    settings: Settings
    persistence: str
    color: str


def development(arguments: argparse.Namespace) -> Options:
    """Of `start-dev`: from the arguments alone. Raises CommandError."""
    settings = Settings()
    _flags_win(settings, arguments)
    file: str | None = arguments.db_filename or None
    said = file if file else "in memory: it is gone when the server stops"
    return _options(settings, arguments, file, said, DEV_RETENTION)


def durable(arguments: argparse.Namespace) -> Options:
    """Of `start`. Raises CommandError."""
    try:
        settings = load_settings(arguments.config or os.environ.get("PERDURE_CONFIG") or None, os.environ)
    except ConfigError as e:
        raise CommandError(str(e)) from None
    _flags_win(settings, arguments)
    for flag, section, field in (
        ("db", settings.database, "url"),
        ("shards", settings.database, "shards"),
        ("services", settings, "services"),
        ("processes", settings, "processes"),
        ("cluster_ip", settings.cluster, "ip"),
        ("cluster_port", settings.cluster, "port"),
        ("member", settings.cluster, "name"),
    ):
        _win(section, field, getattr(arguments, flag))
    url = settings.database.url or default_file()
    try:
        alone = backend_of(url) == SQLITE
        said = os.path.abspath(path_of(url) or "") if alone else shown(url)
    except SchemaMismatch as e:
        raise CommandError(str(e)) from None
    options = _options(settings, arguments, url, said, DEFAULT_RETENTION)
    if alone:
        if settings.processes > 1:
            raise CommandError("several processes need PostgreSQL or MySQL: a SQLite file is used by one")
        if set(settings.services) != set(ALL_SERVICES):
            raise CommandError("services run apart with PostgreSQL or MySQL only: a SQLite file is used by one process")
    else:
        # Also when there is only one process: another may come at any time, and has to find it.
        options.server.cluster = _cluster(settings)
    return options


def default_file() -> str:
    """The SQLite file in the user's data directory, which is made. Raises CommandError."""
    import platformdirs

    directory = platformdirs.user_data_dir("perdure", appauthor=False)
    try:
        os.makedirs(directory, mode=0o700, exist_ok=True)
    except OSError as e:
        raise CommandError(
            f"the data directory {directory} cannot be made: {e.strerror} (--db names a database)"
        ) from e
    return os.path.join(directory, "perdure.db")


def described(options: Options) -> str:
    """The configuration in force, without secrets, as JSON."""
    config, settings = options.server, options.settings
    return json.dumps(
        {
            "host": config.host,
            "port": config.port,
            "database": options.persistence,
            "shards": config.shards,
            "pragmas": config.sqlite_pragmas,
            "services": settings.services,
            "processes": settings.processes,
            "namespaces": config.namespaces,
            "searchAttributes": settings.namespaces.search_attributes,
            "dynamicConfigFile": config.dynamic_file,
            "dynamicConfigValues": settings.dynamic_config.values,
            "metricsPort": config.metrics_port,
        }
    )


def _win(section: Any, field: str, flag: Any) -> None:
    if flag is not None:
        setattr(section, field, flag)


def _flags_win(settings: Settings, arguments: argparse.Namespace) -> None:
    given = vars(arguments)
    _win(settings.frontend, "ip", arguments.ip)
    _win(settings.frontend, "port", arguments.port)
    _win(settings.metrics, "port", arguments.metrics_port)
    _win(settings.log, "level", given.get("log_level"))
    _win(settings.log, "format", given.get("log_format"))
    _win(settings.dynamic_config, "file", arguments.dynamic_config)
    settings.namespaces.names = [*settings.namespaces.names, *arguments.namespace]
    settings.namespaces.search_attributes = {
        **settings.namespaces.search_attributes,
        **dict(arguments.search_attribute),
    }
    settings.database.sqlite_pragmas = {**settings.database.sqlite_pragmas, **dict(arguments.sqlite_pragma)}


def _options(
    settings: Settings, arguments: argparse.Namespace, url: str | None, persistence: str, retention: int
) -> Options:
    dynamic = DynamicConfig()
    try:
        for name, value in settings.dynamic_config.values.items():
            dynamic.set(name, value)
    except ConfigError as e:
        raise CommandError(f"dynamicConfig.values: {e}") from None
    try:
        for text in arguments.dynamic_config_value:
            name, value = parse_assignment(text)
            dynamic.set(name, value)
            settings.dynamic_config.values[name] = value
    except ConfigError as e:
        raise CommandError(f"--dynamic-config-value: {e}") from None
    if settings.namespaces.retention:
        try:
            retention = parse_duration(settings.namespaces.retention)
        except ConfigError as e:
            raise CommandError(f"namespaces.retention: {e}") from None
        if retention < HOUR:
            raise CommandError("namespaces.retention: less than 1h")
    ip = settings.frontend.ip
    config = ServerConfig(
        host="127.0.0.1" if ip == "localhost" else ip,
        port=settings.frontend.port,
        share_port=vars(arguments).get("supervised", False),
        database=url,
        sqlite_pragmas={name: _pragma(value) for name, value in settings.database.sqlite_pragmas.items()},
        namespaces=list(dict.fromkeys(["default", *settings.namespaces.names])),
        retention=retention,
        search_attributes=dict(
            _search_attribute(name, kind) for name, kind in settings.namespaces.search_attributes.items()
        ),
        shards=settings.database.shards,
        dynamic=dynamic,
        dynamic_file=settings.dynamic_config.file or None,
        metrics_port=settings.metrics.port,
    )
    return Options(config, settings, persistence, vars(arguments).get("color", "auto"))


def _pragma(value: str | int | bool) -> str:
    """YAML takes ON and OFF for truth values."""
    return ("ON" if value else "OFF") if isinstance(value, bool) else str(value)


def _search_attribute(name: str, kind: str) -> tuple[str, int]:
    from perdure.visibility.attributes import TYPE_NAMES

    for number, known in TYPE_NAMES.items():
        if known.lower() == kind.lower():
            return name, number
    raise CommandError(f"search attribute {name}: {kind!r} is none of {', '.join(TYPE_NAMES.values())}")


def _cluster(settings: Settings) -> ClusterConfig:
    cluster = settings.cluster
    name = cluster.name
    if not name and settings.frontend.port:
        name = f"{socket.gethostname()}:{settings.frontend.port}"
    return ClusterConfig(
        host=cluster.ip,
        port=cluster.port,
        advertise=cluster.advertise,
        name=name,
        services=list(settings.services),
    )
