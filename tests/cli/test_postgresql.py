"""The server over PostgreSQL from the command line: it makes its tables, says where it keeps things, and says in one
line what is wrong with a database."""

from __future__ import annotations

import pathlib

import grpc
import pytest
from temporalio.api.workflowservice.v1 import (
    GetClusterInfoRequest,
    GetClusterInfoResponse,
    StartWorkflowExecutionRequest,
    StartWorkflowExecutionResponse,
)
from tests import databases

from .support import refused, running


@pytest.fixture
def url() -> str:
    return databases.postgresql().url()


def call(address: str, method: str, request, answer):
    with grpc.insecure_channel(address) as channel:
        ask = channel.unary_unary(
            f"/temporal.api.workflowservice.v1.WorkflowService/{method}",
            request_serializer=type(request).SerializeToString,
            response_deserializer=answer.FromString,
        )
        return ask(request, timeout=20, wait_for_ready=True)


def start_workflow(address: str) -> str:
    request = StartWorkflowExecutionRequest(
        namespace="default",
        workflow_id="order-17",
        request_id="one",
        workflow_type={"name": "Order"},
        task_queue={"name": "orders"},
    )
    return call(address, "StartWorkflowExecution", request, StartWorkflowExecutionResponse).run_id


def test_an_empty_database_is_made_ready_and_found_again(url: str) -> None:
    with running("start", "--db", url, "--port", "0") as server:
        assert server.said[3] == f"Database:    {url}"
        cluster = call(server.address, "GetClusterInfo", GetClusterInfoRequest(), GetClusterInfoResponse)
        run_id = start_workflow(server.address)
        server.process.kill()
    with running("start", "--db", url, "--port", "0") as server:
        again = call(server.address, "GetClusterInfo", GetClusterInfoRequest(), GetClusterInfoResponse)
        assert again.cluster_id == cluster.cluster_id
        assert start_workflow(server.address) == run_id  # the same request: it is there already
        server.end()


def test_databases_that_cannot_be_used_are_named_in_one_line(url: str, tmp_path: pathlib.Path) -> None:
    nobody = refused("server", "start", "--db", "postgresql://perdure:secret@127.0.0.1:1/db", "--port", "0")
    assert nobody.startswith("perdure: error: postgresql://perdure@127.0.0.1:1/db cannot be reached: ")
    missing = url.replace("/postgres?", "/missing?")
    assert refused("server", "start", "--db", missing, "--port", "0") == (
        f'perdure: error: {missing} cannot be opened: database "missing" does not exist'
    )
    # As where the extra is not installed.
    tmp_path.joinpath("sitecustomize.py").write_text("import sys\nsys.modules['asyncpg'] = None\n")
    said = refused("server", "start", "--db", url, "--port", "0", env={"PYTHONPATH": str(tmp_path)})
    assert said == "perdure: error: asyncpg is not installed, which postgresql needs: pip install perdure[postgresql]"
