"""Starting and stopping the server from the command line."""

from __future__ import annotations

import contextlib
import json
import pathlib
import re
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator

import grpc
import pytest
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import (
    ListSearchAttributesRequest,
    ListSearchAttributesResponse,
)
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    GetClusterInfoRequest,
    GetClusterInfoResponse,
    ListNamespacesRequest,
    ListNamespacesResponse,
    PollWorkflowTaskQueueRequest,
    PollWorkflowTaskQueueResponse,
    RegisterNamespaceRequest,
    RegisterNamespaceResponse,
)

from perdure import __version__

from .support import PROGRAM, refused, running


class Client:
    """Plain calls, so that what is sent and answered is in sight."""

    def __init__(self, channel: grpc.Channel) -> None:
        self._channel = channel

    def call(self, method: str, request, answer, service: str = "workflowservice.v1.WorkflowService"):
        call = self._channel.unary_unary(
            f"/temporal.api.{service}/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return call(request, timeout=20, wait_for_ready=True)

    def namespaces(self) -> set[str]:
        answer = self.call("ListNamespaces", ListNamespacesRequest(), ListNamespacesResponse)
        return {n.namespace_info.name for n in answer.namespaces}

    def cluster(self) -> GetClusterInfoResponse:
        return self.call("GetClusterInfo", GetClusterInfoRequest(), GetClusterInfoResponse)


@contextlib.contextmanager
def client(address: str) -> Iterator[Client]:
    with grpc.insecure_channel(address) as channel:
        yield Client(channel)


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_version() -> None:
    done = subprocess.run([PROGRAM, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"perdure {__version__}\n"


def test_help_imports_no_server() -> None:
    code = (
        "import sys, perdure.cli.main as m\n"
        "try: m.main(['server', 'start-dev', '--help'])\n"
        "except SystemExit: pass\n"
        "assert not {'grpc', 'asyncio', 'google.protobuf'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


class TestStartDev:
    def test_answers_and_ends_on_sigterm(self) -> None:
        with running("start-dev", "--port", "0", "--headless") as server:
            with client(server.address) as c:
                began = time.perf_counter()
                names = c.namespaces()
                answered = server.first_line + time.perf_counter() - began
            assert {"default"} <= names
            took = server.end()
            print(f"first answer after {answered:.2f} s, stopped within {took:.2f} s")
            assert server.process.returncode == 0
            assert answered < 5 and took < 5

    def test_ends_on_sigint(self) -> None:
        with running("start-dev", "--port", "0") as server:
            server.end(signal.SIGINT)
            assert server.process.returncode == 0

    def test_a_signal_that_comes_twice_at_once_is_one(self) -> None:
        with running("start-dev", "--port", "0") as server:
            server.process.send_signal(signal.SIGTERM)
            server.end()
            assert server.process.returncode == 0

    def test_is_in_memory(self) -> None:
        with running("start-dev", "--port", "0", "-n", "mine") as server, client(server.address) as c:
            assert {"default", "mine"} <= c.namespaces()
            assert "in memory" in server.said[3]
        with running("start-dev", "--port", "0") as server, client(server.address) as c:
            assert "mine" not in c.namespaces()

    def test_keeps_a_file(self, tmp_path: pathlib.Path) -> None:
        file = str(tmp_path / "dev.db")
        with running("start-dev", "--port", "0", "--db-filename", file, "--namespace", "mine") as server:
            server.end()
        with running("start-dev", "--port", "0", "-f", file) as server, client(server.address) as c:
            assert "mine" in c.namespaces()

    def test_takes_the_flags_of_test_environments(self) -> None:
        """As official SDKs start a development server, and as people do who write their own."""
        port = free_port()
        flags = [
            *("--port", str(port), "--namespace", "default", "--ip", "127.0.0.1"),
            *("--log-format", "pretty", "--log-level", "warn"),
            *("--dynamic-config-value", "frontend.enableServerVersionCheck=false"),
            *("--dynamic-config-value", "frontend.enableUpdateWorkflowExecution=true"),
            *("--dynamic-config-value", 'system.system.refreshNexusEndpointsMinWait="0s"'),
            *("--dynamic-config-value", "limit.historyCount.suggestContinueAsNew=50"),
            *("--ui-port", str(port + 1000), "--ui-ip", "127.0.0.1", "--ui-asset-path", "x"),
            *("--ui-codec-endpoint", "http://localhost:1", "--ui-public-path", "/"),
            *("--http-port", str(free_port()), "--sqlite-pragma", "synchronous=normal", "--log-config"),
            *("--search-attribute", "Order=Keyword", "--search-attribute", "size=int"),
            *("--color", "never", "--env", "default", "--env-file", "none", "--output", "text", "--headless=false"),
        ]
        with running("start-dev", *flags) as server, client(server.address) as c:
            assert server.address == f"127.0.0.1:{port}"
            attributes = c.call(
                "ListSearchAttributes",
                ListSearchAttributesRequest(namespace="default"),
                ListSearchAttributesResponse,
                "operatorservice.v1.OperatorService",
            ).custom_attributes
            assert attributes == {
                "Order": IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD,
                "size": IndexedValueType.INDEXED_VALUE_TYPE_INT,
            }

    def test_global_flags_before_the_command(self) -> None:
        done = subprocess.run(
            [PROGRAM, "--log-level", "loud", "server", "start-dev"], capture_output=True, text=True, timeout=30
        )
        assert done.returncode == 2 and "loud" in done.stderr

    def test_metrics(self) -> None:
        with running("start-dev", "--port", "0", "--metrics-port", "0", lines=5) as server:
            url = server.said[4].split()[1]
            with urllib.request.urlopen(url, timeout=10) as answer:
                page = answer.read().decode()
            assert re.search(r"^perdure_matching_dispatched_total 0\.0$", page, re.MULTILINE)
            assert re.search(r"^perdure_namespaces 2\.0$", page, re.MULTILINE)
            server.end()
            assert server.process.returncode == 0


class TestStart:
    def test_is_durable_in_the_data_directory(self, tmp_path: pathlib.Path) -> None:
        env = {"XDG_DATA_HOME": str(tmp_path), "HOME": str(tmp_path), "LOCALAPPDATA": str(tmp_path)}
        port = str(free_port())
        with running("start", "--port", port, env=env) as server, client(server.address) as c:
            assert server.address == f"127.0.0.1:{port}"
            request = RegisterNamespaceRequest(namespace="kept")
            request.workflow_execution_retention_period.FromSeconds(86400)
            c.call("RegisterNamespace", request, RegisterNamespaceResponse)
            cluster = c.cluster()
            file = pathlib.Path(server.said[3].removeprefix("Database:").strip())
            server.end(signal.SIGKILL)  # nothing that was answered may be lost
        assert file.exists() and tmp_path in file.parents
        with running("start", "--port", "0", env=env) as server, client(server.address) as c:
            assert "kept" in c.namespaces()
            again = c.cluster()
            assert again.cluster_id == cluster.cluster_id
            assert again.history_shard_count == cluster.history_shard_count == 4

    def test_waiting_polls_answer_empty_at_the_end(self, tmp_path: pathlib.Path) -> None:
        answers: list[object] = []
        with running("start", "--port", "0", "--db", str(tmp_path / "x.db")) as server, client(server.address) as c:
            request = PollWorkflowTaskQueueRequest(namespace="default", task_queue=TaskQueue(name="quiet"))

            def poll() -> None:
                try:
                    answers.append(c.call("PollWorkflowTaskQueue", request, PollWorkflowTaskQueueResponse))
                except grpc.RpcError as e:
                    answers.append(e)

            poller = threading.Thread(target=poll)
            poller.start()
            deadline = time.monotonic() + 20
            while not _has_poller(c) and time.monotonic() < deadline:
                time.sleep(0.02)
            took = server.end()
            poller.join(20)
            assert answers == [PollWorkflowTaskQueueResponse()]
            assert server.process.returncode == 0
            assert took < 5

    def test_logs_as_json(self, tmp_path: pathlib.Path) -> None:
        flags = ("--port", "0", "--db", str(tmp_path / "x.db"), "--log-level", "info", "--log-format", "json")
        with running("start", *flags) as server:
            server.end()
            assert server.process.stderr is not None
            records = [json.loads(line) for line in server.process.stderr.read().splitlines()]
        assert {"perdure.server"} <= {r["logger"] for r in records}
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", r["ts"]) for r in records)


def _has_poller(c: Client) -> bool:
    from temporalio.api.enums.v1 import TaskQueueType
    from temporalio.api.workflowservice.v1 import DescribeTaskQueueRequest, DescribeTaskQueueResponse

    request = DescribeTaskQueueRequest(
        namespace="default",
        task_queue=TaskQueue(name="quiet"),
        task_queue_type=TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW,
    )
    return bool(c.call("DescribeTaskQueue", request, DescribeTaskQueueResponse).pollers)


class TestRefusals:
    """One line each, and an exit code that is not 0."""

    def test_used_port(self) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            s.listen()
            port = s.getsockname()[1]
            line = refused("server", "start-dev", "--port", str(port))
        assert line == f"perdure: error: cannot listen on 127.0.0.1:{port}: Address already in use"

    def test_used_metrics_port(self) -> None:
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            s.listen()
            port = s.getsockname()[1]
            line = refused("server", "start-dev", "--port", "0", "--metrics-port", str(port))
        assert f"cannot listen on 127.0.0.1:{port} for metrics" in line

    def test_corrupt_file(self, tmp_path: pathlib.Path) -> None:
        file = tmp_path / "bad.db"
        file.write_bytes(b"not a database, surely" * 500)
        assert refused("server", "start", "--port", "0", "--db", str(file)).endswith("bad.db is not a SQLite database")

    def test_file_of_another_program(self, tmp_path: pathlib.Path) -> None:
        file = tmp_path / "other.db"
        with contextlib.closing(sqlite3.connect(file)) as db:
            db.execute("CREATE TABLE other (x)")
        assert "other.db is a SQLite database of another program" in refused(
            "server", "start", "--port", "0", "--db", str(file)
        )

    def test_file_of_a_newer_version(self, tmp_path: pathlib.Path) -> None:
        file = tmp_path / "new.db"
        with running("start", "--port", "0", "--db", str(file)) as server:
            server.end()
        with contextlib.closing(sqlite3.connect(file)) as db:
            db.execute("PRAGMA user_version = 1000")
        assert "newer version" in refused("server", "start", "--port", "0", "--db", str(file))

    def test_file_in_use(self, tmp_path: pathlib.Path) -> None:
        file = str(tmp_path / "x.db")
        with running("start", "--port", "0", "--db", file):
            assert "in use by another process" in refused("server", "start", "--port", "0", "--db", file)

    @pytest.mark.parametrize(
        ("arguments", "said"),
        [
            (["server", "start-dev", "--bogus"], "--bogus"),
            (["server", "start-dev", "--headles"], "--headles"),
            (["server", "stop"], "stop"),
            (["server"], "COMMAND"),
            (["server", "start-dev", "--port", "70000"], "70000"),
            (["server", "start-dev", "--port", "x"], "'x' is not a port"),
            (["server", "start-dev", "--headless", "maybe"], "maybe"),
            (["server", "start-dev", "--dynamic-config-value", "novalue"], "KEY=JSON_VALUE"),
            (["server", "start-dev", "--dynamic-config-value", "a=b"], "not a JSON value"),
            (["server", "start-dev", "--dynamic-config-value", 'limit.maxIDLength="x"'], "limit.maxIDLength"),
            (["server", "start-dev", "--search-attribute", "X=Colour"], "Colour"),
            (["server", "start-dev", "--search-attribute", "X"], "KEY=VALUE"),
            (["server", "start-dev", "--port", "0", "--sqlite-pragma", "colour=red"], "colour"),
            (["server", "start-dev", "--port", "0", "--ip", "300.1.1.1"], "300.1.1.1"),
            (["server", "start-dev", "--db-filename", "/no/such/directory/x.db"], "/no/such/directory/x.db"),
            (["operator", "cluster", "health", "--address", "127.0.0.1:1"], "127.0.0.1:1"),
        ],
    )
    def test_wrong_arguments(self, arguments: list[str], said: str) -> None:
        line = refused(*arguments)
        assert line.startswith("perdure") and said in line


def test_health() -> None:
    with running("start-dev", "--port", "0") as server:
        done = subprocess.run(
            [PROGRAM, "operator", "cluster", "health", "--address", server.address],
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert (done.returncode, done.stdout) == (0, "SERVING\n")
