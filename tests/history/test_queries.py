"""Queries: they see all that came before them, and leave no trace."""

from __future__ import annotations

import pytest
from temporalio.api.enums.v1 import QueryRejectCondition as Reject
from temporalio.api.enums.v1 import WorkflowExecutionStatus as Status
from temporalio.api.errordetails.v1 import QueryFailedFailure, WorkflowNotReadyFailure
from tests.history.live import answered, complete_workflow, live, query_failed, shown

from perdure.errors import Code, ServiceError


async def test_a_query_of_an_idle_run_goes_straight_to_a_worker_and_writes_nothing() -> None:
    async with live() as w:
        run_id = await w.idle()
        before = await w.stored_version(run_id)
        asked = w.soon(w.query("state"))
        task = await w.poll()
        assert task.query.query_type == "state"
        assert (task.started_event_id, task.previous_started_event_id) == (0, 3)
        assert shown(task) == [
            "WorkflowExecutionStarted",
            "WorkflowTaskScheduled",
            "WorkflowTaskStarted",
            "WorkflowTaskCompleted",
        ]
        await w.answer_query(task, answered("42"))
        assert (await asked).query_result == answered("42").answer
        assert await w.stored_version(run_id) == before
        assert not w.context(run_id).memory


async def test_a_query_goes_with_a_pending_workflow_task_so_that_it_sees_what_came_before() -> None:
    async with live() as w:
        run_id = await w.idle()
        await w.signal()
        asked = w.soon(w.query())
        await w.settle(asked)
        task = await w.poll()
        assert "WorkflowExecutionSignaled" in shown(task)
        ((query_id, query),) = task.queries.items()
        assert query.query_type == "q"
        await w.complete(task, queries={query_id: answered("seen")})
        assert (await asked).query_result == answered("seen").answer
        assert not w.context(run_id).memory


async def test_a_query_that_comes_while_a_task_is_worked_on_is_asked_afterwards() -> None:
    async with live() as w:
        await w.idle()
        await w.signal()
        task = await w.poll()
        asked = w.soon(w.query())
        await w.settle(asked)
        await w.complete(task)
        direct = await w.poll()
        assert direct.HasField("query")
        await w.answer_query(direct, answered("later"))
        assert (await asked).query_result == answered("later").answer


async def test_a_query_goes_with_the_next_task_when_one_follows() -> None:
    async with live() as w:
        await w.idle()
        await w.signal()
        task = await w.poll()
        asked = w.soon(w.query())
        await w.settle(asked)
        await w.signal("second")
        following = (await w.complete(task)).workflow_task
        ((query_id, _),) = following.queries.items()
        await w.complete(following, queries={query_id: answered("both")})
        assert (await asked).query_result == answered("both").answer


async def test_a_query_waits_for_the_first_workflow_task() -> None:
    async with live() as w:
        await w.start()
        asked = w.soon(w.query())
        await w.settle(asked)
        task = await w.poll()
        ((query_id, _),) = task.queries.items()
        await w.complete(task, queries={query_id: answered("first")})
        assert (await asked).query_result == answered("first").answer


async def test_a_query_outlives_a_failure_of_the_task_that_it_went_with() -> None:
    async with live() as w:
        await w.idle()
        await w.signal()
        asked = w.soon(w.query())
        await w.settle(asked)
        await w.fail(await w.poll())
        task = await w.poll()
        ((query_id, _),) = task.queries.items()
        await w.complete(task, queries={query_id: answered("again")})
        assert (await asked).query_result == answered("again").answer


@pytest.mark.parametrize("direct", [True, False])
async def test_a_query_that_fails_says_why(direct: bool) -> None:
    async with live() as w:
        await w.idle()
        if not direct:
            await w.signal()
        asked = w.soon(w.query())
        await w.settle(asked)
        task = await w.poll()
        if direct:
            await w.answer_query(task, query_failed("no such query"))
        else:
            await w.complete(task, queries=dict.fromkeys(task.queries, query_failed("no such query")))
        with pytest.raises(ServiceError, match="no such query") as error:
            await asked
        assert error.value.code == Code.INVALID_ARGUMENT
        assert isinstance(error.value.detail, QueryFailedFailure)
        assert error.value.detail.failure.message == "no such query"


async def test_an_answer_that_is_too_large_fails_the_query_only() -> None:
    async with live(limit__blobSize__error=1000) as w:
        await w.idle()
        await w.signal()
        asked = w.soon(w.query())
        await w.settle(asked)
        task = await w.poll()
        await w.complete(task, queries=dict.fromkeys(task.queries, answered("x" * 2000)))
        with pytest.raises(ServiceError, match="exceeds"):
            await asked
        assert (await w.types())[-1] == "WorkflowTaskCompleted"


async def test_a_closed_run_is_queried_with_its_history_unless_the_caller_minds() -> None:
    async with live() as w:
        await w.start()
        await w.complete(await w.poll(), complete_workflow())
        asked = w.soon(w.query(reject=Reject.QUERY_REJECT_CONDITION_NOT_COMPLETED_CLEANLY))
        task = await w.poll()
        assert shown(task)[-1] == "WorkflowExecutionCompleted"
        await w.answer_query(task, answered("final"))
        assert (await asked).query_result == answered("final").answer
        rejected = await w.query(reject=Reject.QUERY_REJECT_CONDITION_NOT_OPEN)
        assert rejected.query_rejected.status == Status.WORKFLOW_EXECUTION_STATUS_COMPLETED


async def test_a_terminated_run_did_not_complete_cleanly() -> None:
    async with live() as w:
        await w.idle()
        await w.terminate()
        rejected = await w.query(reject=Reject.QUERY_REJECT_CONDITION_NOT_COMPLETED_CLEANLY)
        assert rejected.query_rejected.status == Status.WORKFLOW_EXECUTION_STATUS_TERMINATED


async def test_a_run_that_closes_under_a_waiting_query_answers_it_from_its_history() -> None:
    async with live() as w:
        await w.idle()
        await w.signal()
        asked = w.soon(w.query())
        await w.settle(asked)
        await w.terminate()
        task = await w.poll()
        assert shown(task)[-1] == "WorkflowExecutionTerminated"
        await w.answer_query(task, answered("end"))
        assert (await asked).query_result == answered("end").answer


async def test_a_run_without_a_workflow_task_cannot_be_queried() -> None:
    async with live() as w:
        await w.start(workflow_start_delay={"seconds": 3600})
        with pytest.raises(ServiceError, match=r"Workflow task is not scheduled yet\.") as error:
            await w.query()
        assert isinstance(error.value.detail, WorkflowNotReadyFailure)
        await w.terminate()
        with pytest.raises(ServiceError, match="closed before WorkflowTaskStarted"):
            await w.query()


async def test_a_run_whose_workflow_task_keeps_failing_is_not_queried() -> None:
    async with live() as w:
        await w.start()
        await w.fail(await w.poll())
        await w.fail(await w.poll())
        with pytest.raises(ServiceError, match="Workflow Task in failed state") as error:
            await w.query()
        assert error.value.code == Code.FAILED_PRECONDITION


async def test_only_so_many_queries_wait_for_one_task() -> None:
    async with live() as w:
        await w.start()
        first = w.soon(w.query())
        await w.settle(first)
        with pytest.raises(ServiceError, match="consistent query buffer is full") as error:
            await w.query()
        assert error.value.code == Code.RESOURCE_EXHAUSTED


async def test_a_query_that_nobody_answers_ends_with_its_deadline() -> None:
    async with live() as w:
        run_id = await w.start()
        with pytest.raises(ServiceError) as error:
            await w.query(seconds=0.05)
        assert error.value.code == Code.DEADLINE_EXCEEDED
        assert not w.context(run_id).memory


async def test_a_sticky_worker_is_asked_first_and_needs_no_history() -> None:
    async with live() as w:
        await w.idle(sticky=True)
        poll = w.soon(w.poll(sticky=True))
        await w.settle(poll)
        asked = w.soon(w.query())
        task = await poll
        assert task.HasField("query")
        assert not task.history.events
        await w.answer_query(task, answered("cached"))
        assert (await asked).query_result == answered("cached").answer


async def test_when_the_sticky_worker_is_gone_another_is_asked_and_the_run_is_free_again() -> None:
    async with live() as w:
        run_id = await w.idle(sticky=True)
        asked = w.soon(w.query())
        task = await w.poll()
        assert len(task.history.events) == 4
        await w.answer_query(task, answered("replayed"))
        assert (await asked).query_result == answered("replayed").answer
        assert w.context(run_id).loaded.run.sticky_queue == ""
