"""What a call looks like on the other side."""

from __future__ import annotations

from typing import Any

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.errordetails.v1 import WorkflowExecutionAlreadyStartedFailure
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import SignalWorkflowExecutionRequest
from tests.matching.world import ManualClock

from perdure import errors
from perdure.clock import SECOND
from perdure.cluster import history, matching
from perdure.cluster.codec import Method, failure
from perdure.errors import Code, NotOwned, ServiceError
from perdure.history.api import ParentLink, Poller
from perdure.matching.api import NoPoller, QueryOutcome, TaskRef

HERE = ManualClock()
THERE = ManualClock()
THERE._now = HERE.now() + 12345 * SECOND  # clocks need not agree

TASK = TaskRef("namespace", "workflow", "run", 5, 0, 1)
POLLER = Poller("me", "request", "queue")


def passed(method: Method, *args: Any, **kwargs: Any) -> tuple[list[Any], dict[str, Any]]:
    return method.arguments(method.request(args, kwargs, HERE), THERE)


def test_every_method_has_a_route() -> None:
    assert set(history.METHODS) == set(history.ROUTES)
    assert set(matching.QUEUES) < set(matching.METHODS)


def test_messages_structs_and_plain_values_arrive_as_they_were() -> None:
    args, kwargs = passed(history.METHODS["record_activity_task_started"], TASK, POLLER)
    assert (args, kwargs) == ([TASK, POLLER], {})
    link = ParentLink("n", "default", "w", "r", 7, "w", "r")
    method = history.METHODS["start_child_workflow"]
    assert passed(method, "n", SignalWorkflowExecutionRequest(), link)[0][2] == link
    queue = TaskQueue(name="queue")
    assert passed(matching.METHODS["cancel_polls"], "n", "queue", [1, 2], "key")[0] == ["n", "queue", [1, 2], "key"]
    assert passed(matching.METHODS["add_workflow_task"], queue, TASK)[0] == [queue, TASK]


def test_what_is_given_by_name_or_left_out() -> None:
    method = history.METHODS["signal_workflow_execution"]
    request = SignalWorkflowExecutionRequest(signal_name="signal")
    child = WorkflowExecution(workflow_id="parent")
    args, kwargs = passed(method, "namespace", request, child_only_of=child)
    assert args == ["namespace", request]
    assert kwargs == {"child_only_of": child, "external_initiated": None}


def test_a_deadline_is_the_time_that_is_left() -> None:
    method = matching.METHODS["query_workflow"]
    args, _ = passed(method, TaskQueue(), TASK, WorkflowQuery(), HERE.now() + 3 * SECOND)
    assert args[3] == THERE.now() + 3 * SECOND
    offer = matching.METHODS["offer_task"]
    assert passed(offer, "n", "queue", 1, TASK, 0)[0][4] == 0
    assert passed(offer, "n", "queue", 1, TASK, HERE.now() - SECOND)[0][4] == THERE.now() + 1


@pytest.mark.parametrize(
    ("method", "result"),
    [
        (history.METHODS["record_workflow_task_started"], b"bytes"),
        (history.METHODS["start_child_workflow"], "run id"),
        (history.METHODS["reset_sticky_task_queue"], None),
        (matching.METHODS["offer_task"], True),
        (matching.METHODS["query_workflow"], QueryOutcome(b"answer")),
    ],
)
def test_results(method: Method, result: Any) -> None:
    assert method.result(method.response(result)) == result


def test_errors_arrive_as_they_were_raised() -> None:
    method = history.METHODS["start_child_workflow"]
    with pytest.raises(ServiceError) as refused:
        method.result(failure(errors.already_started("already", "request", "run", "first")))
    assert refused.value.code == Code.ALREADY_EXISTS
    assert refused.value.message == "already"
    detail = refused.value.detail
    assert isinstance(detail, WorkflowExecutionAlreadyStartedFailure)
    assert detail.run_id == "run"
    with pytest.raises(NoPoller):
        method.result(failure(NoPoller()))
    with pytest.raises(NotOwned, match="shard 3"):
        method.result(failure(NotOwned("shard 3")))
    with pytest.raises(ServiceError) as unexpected:
        method.result(failure(ValueError("secret")))
    assert unexpected.value.code == Code.INTERNAL
    assert "secret" not in unexpected.value.message
