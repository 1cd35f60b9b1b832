"""A server that is started with a configuration file, and what follows a dynamic one."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import grpc
import pytest
from temporalio.api.workflowservice.v1 import StartWorkflowExecutionRequest, StartWorkflowExecutionResponse

from .support import PATIENCE, refused, running
from .test_server import Client, client


def test_flags_win_over_the_environment_and_that_over_the_file(tmp_path: Path) -> None:
    config = tmp_path / "perdure.yaml"
    config.write_text(
        f"""
        database: {{url: "sqlite:{tmp_path}/x.db", shards: 7}}
        frontend: {{port: 1}}
        metrics: {{port: 2}}
        log: {{level: info, format: json}}
        namespaces: {{names: [one, two], retention: 2h}}
        """
    )
    env = {"PERDURE_METRICS_PORT": "0", "PERDURE_NAMESPACES_NAMES": "three", "PERDURE_CONFIG": str(config)}
    with (
        running("start", "--port", "0", "--namespace", "four", env=env, lines=5) as server,
        client(server.address) as c,
    ):
        assert server.said[3] == f"Database:    {tmp_path}/x.db"
        assert server.said[4].startswith("Metrics:     http://127.0.0.1:")
        assert c.namespaces() >= {"default", "three", "four"}
        assert "one" not in c.namespaces()
        assert c.cluster().history_shard_count == 7
        server.end()
        assert server.process.stderr is not None
        assert json.loads(server.process.stderr.readline())["level"] == "info"


def accepted(c: Client, workflow_id: str) -> bool:
    request = StartWorkflowExecutionRequest(
        namespace="default", workflow_id=workflow_id, workflow_type={"name": "T"}, task_queue={"name": "q"}
    )
    try:
        c.call("StartWorkflowExecution", request, StartWorkflowExecutionResponse)
    except grpc.RpcError as e:
        assert "exceeds maximum allowed length" in str(e)
        return False
    return True


def test_what_changes_in_the_dynamic_file_comes_into_force(tmp_path: Path) -> None:
    file = tmp_path / "dynamic.yaml"
    file.write_text("limit.maxIDLength:\n- value: 7\n")
    with running("start-dev", "--port", "0", "--dynamic-config", str(file)) as server, client(server.address) as c:
        assert not accepted(c, "x" * 8)
        new = tmp_path / "new"
        new.write_text("limit.maxIDLength:\n- value: 9\n")
        os.replace(new, file)
        deadline = time.monotonic() + PATIENCE
        while not accepted(c, "x" * 8) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert accepted(c, "x" * 9)
        assert not accepted(c, "x" * 10)


@pytest.mark.parametrize(
    ("content", "flags", "said"),
    [
        ("frontend: {port: x}", [], "perdure.yaml: frontend.port: expected int, got str"),
        (None, [], "perdure.yaml cannot be read: No such file or directory"),
        ("database: {url: 'oracle://x'}", [], "oracle://x is no address of a database"),
        ("database: {url: 'x.db'}\nprocesses: 2", [], "several processes need PostgreSQL or MySQL"),
        ("database: {url: 'x.db'}\nservices: [frontend]", [], "services run apart with PostgreSQL or MySQL only"),
        ("namespaces: {retention: 5x}", [], "namespaces.retention: not a duration: '5x'"),
        ("namespaces: {retention: 5m}", [], "namespaces.retention: less than 1h"),
        ("namespaces: {searchAttributes: {A: Colour}}", [], "search attribute A: 'Colour' is none of"),
        ("dynamicConfig: {values: {limit.maxIDLength: x}}", [], "dynamicConfig.values: limit.maxIDLength: not a whole"),
        ("dynamicConfig: {file: none.yaml}", [], "none.yaml cannot be read: No such file"),
        ("", ["--services", "frontend,foo"], "'frontend,foo' is not some of frontend,history,matching,worker"),
        ("", ["--processes", "0"], "'0' is not a number of processes"),
        ("", ["--shards", "x"], "'x' is not a number of shards"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, content: str | None, flags: list[str], said: str) -> None:
    config = tmp_path / "perdure.yaml"
    if content is not None:
        config.write_text(content)
    env = {"XDG_DATA_HOME": str(tmp_path)}
    line = refused("server", "start", "--port", "0", "--config", str(config), *flags, env=env)
    assert line.startswith("perdure") and said in line
