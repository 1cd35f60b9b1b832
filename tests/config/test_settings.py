"""Settings of a server from a file and from the environment, and what is said about wrong ones."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from perdure.config.dynamic import ConfigError
from perdure.config.files import parse_dynamic, read_yaml
from perdure.config.settings import Settings, load_settings

FULL = """
services: [frontend, history]
processes: 2
database:
  url: postgresql://perdure@db.example/perdure
  shards: 64
  sqlitePragmas: {synchronous: OFF, cache_size: -1000}
frontend: {ip: 0.0.0.0, port: 7000}
cluster: {name: node-1, ip: 0.0.0.0, port: 7100, advertise: 10.0.0.5}
metrics: {port: 9000}
log: {level: info, format: json}
namespaces:
  names: [orders]
  retention: 30d
  searchAttributes: {Customer: Keyword}
dynamicConfig:
  file: /etc/perdure/dynamic.yaml
  values: {limit.maxIDLength: 500}
"""


def load(tmp_path: Path, text: str, **environment: str) -> Settings:
    file = tmp_path / "perdure.yaml"
    file.write_text(text)
    return load_settings(str(file), environment)


def test_every_setting_from_a_file(tmp_path: Path) -> None:
    found = load(tmp_path, FULL)
    assert (found.services, found.processes) == (["frontend", "history"], 2)
    assert found.database.url == "postgresql://perdure@db.example/perdure"
    assert (found.database.shards, found.database.sqlite_pragmas) == (64, {"synchronous": False, "cache_size": -1000})
    assert (found.frontend.ip, found.frontend.port) == ("0.0.0.0", 7000)
    cluster = found.cluster
    assert (cluster.name, cluster.ip, cluster.port, cluster.advertise) == ("node-1", "0.0.0.0", 7100, "10.0.0.5")
    assert (found.metrics.port, found.log.level, found.log.format) == (9000, "info", "json")
    assert (found.namespaces.names, found.namespaces.retention) == (["orders"], "30d")
    assert found.namespaces.search_attributes == {"Customer": "Keyword"}
    assert (found.dynamic_config.file, found.dynamic_config.values) == (
        "/etc/perdure/dynamic.yaml",
        {"limit.maxIDLength": 500},
    )


def test_the_environment_wins_over_the_file(tmp_path: Path) -> None:
    found = load(
        tmp_path,
        FULL,
        PERDURE_SERVICES="matching, worker",
        PERDURE_DATABASE_URL="mysql://x/y",
        PERDURE_DATABASE_SHARDS="32",
        PERDURE_FRONTEND_PORT="0",
        PERDURE_NAMESPACES_SEARCH_ATTRIBUTES="{Amount: Int}",
        PERDURE_DYNAMIC_CONFIG_FILE="other.yaml",
        PERDURE_LOG_LEVEL="",
        # As Kubernetes sets it beside a service of the name perdure-metrics.
        PERDURE_METRICS_PORT="tcp://10.0.0.1:9090",
        PERDURE_SOMETHING="else",
    )
    assert (found.services, found.database.url, found.database.shards) == (["matching", "worker"], "mysql://x/y", 32)
    assert (found.frontend.port, found.frontend.ip) == (0, "0.0.0.0")
    assert found.namespaces.search_attributes == {"Amount": "Int"}
    assert (found.dynamic_config.file, found.log.level, found.metrics.port) == ("other.yaml", "info", 9000)


@pytest.mark.parametrize("text", ["", "# nothing\n", "log:\n  # level: info\nmetrics: {}\n"])
def test_what_is_not_said_is_the_default(tmp_path: Path, text: str) -> None:
    assert load(tmp_path, text) == Settings() == load_settings(None, {})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("frontend: {port: x}", "frontend.port: expected int, got str"),
        ("frontend: {port: 70000}", "frontend.port: expected int <= 65535"),
        ("frontend: 5", "frontend: expected a map, got int"),
        ("fronted: {}", "fronted: there is no such setting"),
        ("frontend: {prt: 5}", "frontend.prt: there is no such setting"),
        ("services: [frontend, foo]", "services[1]: 'foo' is none of frontend, history, matching, worker"),
        ("services: []", "services: expected a list of length >= 1"),
        ("database: {sqlitePragmas: {a: [1]}}", "database.sqlitePragmas.*: expected bool | int | str, got array"),
        ("log: {level: loud}", "log.level: 'loud' is none of debug, info, warn, warning, error, fatal, never"),
        ("- 5", "expected a map, got array"),
        ("processes: 0", "processes: expected int >= 1"),
        ("dynamicConfig: {values: {5: 6}}", "dynamicConfig.values: a key: expected str, got int"),
    ],
)
def test_a_wrong_file(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load(tmp_path, text)
    assert str(refused.value) == f"{tmp_path / 'perdure.yaml'}: {said}"


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("PERDURE_FRONTEND_PORT", "x", "expected int, got str"),
        ("PERDURE_DATABASE_SHARDS", "0", "expected int >= 1"),
        ("PERDURE_SERVICES", "frontend,foo", "'foo' is none of frontend, history, matching, worker"),
        ("PERDURE_LOG_FORMAT", "xml", "'xml' is none of text, json, pretty"),
        ("PERDURE_DATABASE_SQLITE_PRAGMAS", "{a: }}", "not a map, as in {a: b, c: d}"),
        ("PERDURE_DATABASE_SQLITE_PRAGMAS", "a", "expected a map, got str"),
    ],
)
def test_a_wrong_variable(variable: str, value: str, said: str) -> None:
    with pytest.raises(ConfigError) as refused:
        load_settings(None, {variable: value})
    assert str(refused.value) == f"{variable}: {said}"


def test_the_examples_of_the_documentation_are_true(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    settings, dynamic = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    found = load(tmp_path, settings)
    assert (found.database.shards, found.namespaces.names, found.metrics.port) == (128, ["orders"], 9090)
    file = tmp_path / "dynamic.yaml"
    file.write_text(dynamic)
    values, remarks = parse_dynamic(read_yaml(str(file)))
    assert (len(values), remarks) == (3, [])
