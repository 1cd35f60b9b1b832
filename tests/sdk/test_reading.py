"""What clients see of workflows: describe, history, lists, memo and search attributes; terminate and delete."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest
from temporalio import activity, workflow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import GetWorkflowExecutionHistoryRequest
from temporalio.client import (
    WorkflowExecution as Listed,
)
from temporalio.client import (
    WorkflowExecutionStatus,
    WorkflowFailureError,
    WorkflowHistoryEventFilterType,
)
from temporalio.common import SearchAttributeKey, SearchAttributePair, TypedSearchAttributes
from temporalio.exceptions import TerminatedError
from temporalio.service import RPCError, RPCStatusCode

from sdk.world import SOON, World, events, name, types

CUSTOMER = SearchAttributeKey.for_keyword("Customer")
AMOUNT = SearchAttributeKey.for_int("Amount")


@activity.defn
async def nothing() -> None:
    pass


@workflow.defn
class Labelled:
    def __init__(self) -> None:
        self.go = False

    @workflow.run
    async def run(self) -> str:
        workflow.upsert_search_attributes([AMOUNT.value_set(7)])
        workflow.upsert_memo({"b": 2, "a": None})
        await workflow.execute_activity(nothing, start_to_close_timeout=SOON)
        await workflow.wait_condition(lambda: self.go)
        workflow.upsert_search_attributes([CUSTOMER.value_unset(), AMOUNT.value_set(8)])
        return "labelled"

    @workflow.signal
    def proceed(self) -> None:
        self.go = True


async def listed(world: World, query: str, count: int) -> list[Listed]:
    """Lists are a little behind; waits until so many are there."""
    for _ in range(100):
        found = [w async for w in world.client.list_workflows(query)]
        if len(found) == count:
            assert (await world.client.count_workflows(query)).count == count
            return found
        await asyncio.sleep(0.05)
    raise AssertionError(f"{query} finds {len(found)}, not {count}")


async def test_memo_and_search_attributes(world: World) -> None:
    async with world.worker(Labelled, activities=[nothing]) as queue:
        customer = name("customer")
        handle = await world.client.start_workflow(
            Labelled.run,
            id=name("labelled"),
            task_queue=queue,
            memo={"a": 1, "z": "kept"},
            search_attributes=TypedSearchAttributes([SearchAttributePair(CUSTOMER, customer)]),
            static_summary="a summary",
            static_details="some details",
        )
        (one,) = await listed(world, f"Customer = '{customer}' AND Amount = 7", 1)
        assert one.id == handle.id
        assert one.workflow_type == "Labelled"
        assert one.status == WorkflowExecutionStatus.RUNNING
        assert await one.memo() == {"b": 2, "z": "kept"}
        assert one.typed_search_attributes[CUSTOMER] == customer

        described = await handle.describe()
        assert await described.memo() == {"b": 2, "z": "kept"}
        assert described.typed_search_attributes[AMOUNT] == 7
        assert await described.static_summary() == "a summary"
        assert await described.static_details() == "some details"
        assert described.task_queue == queue

        await handle.signal(Labelled.proceed)
        assert await handle.result() == "labelled"
        assert await listed(world, f"WorkflowId = '{handle.id}' AND Amount = 8 AND Customer IS NULL", 1)
        await listed(world, f"Customer = '{customer}'", 0)
        described = await handle.describe()
        assert AMOUNT in described.typed_search_attributes
        assert CUSTOMER not in described.typed_search_attributes
        assert described.close_time is not None
        assert described.close_time >= (described.execution_time or described.start_time)
        assert described.history_length == len(await events(world.client, handle.id))


async def test_lists_by_status_and_type(world: World) -> None:
    async with world.worker(Labelled, activities=[nothing]) as queue:
        handles = [
            await world.client.start_workflow(Labelled.run, id=name("labelled"), task_queue=queue) for _ in range(5)
        ]
        running = f"TaskQueue = '{queue}' AND WorkflowType = 'Labelled' AND ExecutionStatus = 'Running'"
        assert {w.id for w in await listed(world, running, 5)} == {h.id for h in handles}
        for handle in handles[:2]:
            await handle.signal(Labelled.proceed)
            await handle.result()
        await handles[2].terminate("enough")
        assert {w.id for w in await listed(world, running, 2)} == {h.id for h in handles[3:]}
        await listed(world, f"TaskQueue = '{queue}' AND ExecutionStatus = 'Completed'", 2)
        await listed(world, f"TaskQueue = '{queue}' AND ExecutionStatus = 'Terminated'", 1)
        paged = [w async for w in world.client.list_workflows(f"TaskQueue = '{queue}'", page_size=2)]
        assert len({w.id for w in paged}) == len(paged) == 5
        for handle in handles[3:]:
            await handle.terminate()


async def test_an_unknown_search_attribute_is_refused(world: World) -> None:
    with pytest.raises(RPCError) as refused:
        await world.client.start_workflow(
            Labelled.run,
            id=name("labelled"),
            task_queue="any",
            search_attributes=TypedSearchAttributes(
                [SearchAttributePair(SearchAttributeKey.for_keyword("Unheard"), "x")]
            ),
        )
    assert refused.value.status == RPCStatusCode.INVALID_ARGUMENT
    assert "Unheard" in refused.value.message
    with pytest.raises(RPCError) as refused:
        _ = [w async for w in world.client.list_workflows("Unheard = 'x'")]
    assert refused.value.status == RPCStatusCode.INVALID_ARGUMENT


async def test_history_is_followed_as_it_grows(world: World) -> None:
    async with world.worker(Labelled, activities=[nothing]) as queue:
        handle = await world.client.start_workflow(Labelled.run, id=name("labelled"), task_queue=queue)
        following = asyncio.create_task(all_events(handle.fetch_history_events(wait_new_event=True)))
        closing = asyncio.create_task(
            all_events(
                handle.fetch_history_events(
                    wait_new_event=True, event_filter_type=WorkflowHistoryEventFilterType.CLOSE_EVENT
                )
            )
        )
        await listed(world, f"WorkflowId = '{handle.id}' AND Amount = 7", 1)
        assert not closing.done()
        await handle.signal(Labelled.proceed)
        followed = await following
        assert followed == await events(world.client, handle.id)
        assert types(followed)[-1] == "WorkflowExecutionCompleted"
        assert types(await closing) == ["WorkflowExecutionCompleted"]


async def all_events(source):  # type: ignore[no-untyped-def]
    return [e async for e in source]


async def test_pages_of_history_are_its_events(world: World) -> None:
    async with world.worker(Labelled, activities=[nothing]) as queue:
        handle = await world.client.start_workflow(Labelled.run, id=name("labelled"), task_queue=queue)
        await asyncio.gather(*(handle.signal("unheard of") for _ in range(10)))
        await handle.signal(Labelled.proceed)
        await handle.result()
        whole = await events(world.client, handle.id)
        request = GetWorkflowExecutionHistoryRequest(
            namespace="default", execution=WorkflowExecution(workflow_id=handle.id), maximum_page_size=3
        )
        paged = []
        pages = 0
        while pages == 0 or request.next_page_token:
            page = await world.client.workflow_service.get_workflow_execution_history(request)
            paged += page.history.events
            request.next_page_token = page.next_page_token
            pages += 1
        assert paged == whole
        assert pages > 1


async def test_terminate_and_delete(world: World) -> None:
    async with world.worker(Labelled, activities=[nothing]) as queue:
        handle = await world.client.start_workflow(Labelled.run, id=name("labelled"), task_queue=queue)
        await handle.terminate("why", reason="a reason")
        with pytest.raises(WorkflowFailureError) as ended:
            await handle.result()
        assert isinstance(ended.value.cause, TerminatedError)
        assert ended.value.cause.message == "a reason"
        last = (await events(world.client, handle.id))[-1].workflow_execution_terminated_event_attributes
        assert last.details.payloads[0].data == b'"why"'
        with pytest.raises(RPCError) as gone:
            await handle.terminate()
        assert gone.value.status == RPCStatusCode.NOT_FOUND
        with pytest.raises(RPCError) as gone:
            await handle.signal(Labelled.proceed)
        assert gone.value.status == RPCStatusCode.NOT_FOUND
        await listed(world, f"WorkflowId = '{handle.id}'", 1)
        await world.check(Labelled)

        await delete(world, handle.id)
        await listed(world, f"WorkflowId = '{handle.id}'", 0)

        again = await world.client.start_workflow(Labelled.run, id=handle.id, task_queue=queue)
        await again.signal(Labelled.proceed)
        assert await again.result() == "labelled"


async def delete(world: World, workflow_id: str) -> None:
    from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest

    handle = world.client.get_workflow_handle(workflow_id)
    await world.client.workflow_service.delete_workflow_execution(
        DeleteWorkflowExecutionRequest(
            namespace="default", workflow_execution=WorkflowExecution(workflow_id=workflow_id)
        )
    )
    for _ in range(100):
        try:
            await handle.describe()
        except RPCError as e:
            assert e.status == RPCStatusCode.NOT_FOUND
            return
        await asyncio.sleep(0.05)
    raise AssertionError("it is there still")


async def test_what_is_pending_is_described(world: World) -> None:
    async with world.worker(Pending, Labelled, activities=[nothing]) as queue:
        handle = await world.client.start_workflow(Pending.run, id=name("pending"), task_queue=queue)
        for _ in range(100):
            described = (await handle.describe()).raw_description
            if described.pending_activities and described.pending_children:
                break
            await asyncio.sleep(0.05)
        (pending,) = described.pending_activities
        assert pending.activity_type.name == "nothing"
        assert not pending.HasField("last_started_time")
        (child,) = described.pending_children
        assert child.workflow_type_name == "Labelled"
        assert described.workflow_execution_info.execution.run_id == handle.result_run_id
        assert described.execution_config.workflow_run_timeout.ToTimedelta() == timedelta(0)
        await handle.terminate()


@workflow.defn
class Pending:
    @workflow.run
    async def run(self) -> None:
        workflow.start_activity(nothing, task_queue="nobody polls it", schedule_to_close_timeout=SOON)
        await workflow.execute_child_workflow(Labelled.run)
