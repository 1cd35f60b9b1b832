"""The Python SDK's own test environment starts perdure as its dev server."""

from __future__ import annotations

from temporalio import workflow
from temporalio.common import SearchAttributeKey
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from sdk.server import EXECUTABLE


@workflow.defn
class Hello:
    @workflow.run
    async def run(self, who: str) -> str:
        await workflow.sleep(0.01)
        return f"hello {who}"


async def test_workflow_environment_starts_it() -> None:
    async with await WorkflowEnvironment.start_local(
        dev_server_existing_path=EXECUTABLE,
        namespace="a-namespace",
        search_attributes=[SearchAttributeKey.for_keyword("Customer")],
        dev_server_extra_args=["--dynamic-config-value", "system.enableEagerWorkflowStart=true"],
    ) as environment:
        client = environment.client
        assert client.namespace == "a-namespace"
        async with Worker(client, task_queue="tq", workflows=[Hello], workflow_runner=UnsandboxedWorkflowRunner()):
            assert await client.execute_workflow(Hello.run, "you", id="hello", task_queue="tq") == "hello you"
