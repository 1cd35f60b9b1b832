"""An SDK's test environment starts the program in place of Temporal's, with no change but the path."""

from __future__ import annotations

import pathlib
import uuid
from datetime import timedelta

import pytest
from temporalio import activity, workflow
from temporalio.common import SearchAttributeKey
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from .support import PROGRAM


@activity.defn
async def greeting(name: str) -> str:
    return f"Hello, {name}!"


@workflow.defn(sandboxed=False)
class Greeter:
    @workflow.run
    async def run(self, name: str) -> str:
        return await workflow.execute_activity(greeting, name, start_to_close_timeout=timedelta(seconds=10))


@pytest.mark.parametrize("on_disk", [False, True])
async def test_start_local_runs_a_workflow(on_disk: bool, tmp_path: pathlib.Path) -> None:
    async with await WorkflowEnvironment.start_local(
        dev_server_existing_path=PROGRAM,
        dev_server_database_filename=str(tmp_path / "x.db") if on_disk else None,
        namespace="mine",
        search_attributes=[SearchAttributeKey.for_keyword("Order")],
    ) as environment:
        client = environment.client
        assert client.namespace == "mine"
        queue = str(uuid.uuid4())
        async with Worker(client, task_queue=queue, workflows=[Greeter], activities=[greeting]):
            result = await client.execute_workflow(Greeter.run, "you", id=queue, task_queue=queue)
    assert result == "Hello, you!"
