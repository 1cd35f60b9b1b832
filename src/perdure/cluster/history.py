"""The whole history service, as one client: each call goes to the owner of its execution's shard."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, cast

from perdure import tokens
from perdure.clock import Clock
from perdure.cluster.codec import methods
from perdure.cluster.membership import Membership
from perdure.cluster.routing import Router
from perdure.cluster.rpc import HISTORY, Peers, Target
from perdure.cluster.shardmap import shard_of
from perdure.config import static
from perdure.errors import NotOwned
from perdure.history.api import HistoryClient
from perdure.history.engine import HistoryService

METHODS = methods(HistoryClient)

_TAKING = 2.0  # seconds that a call waits for its shard while that is being taken

Key = Callable[[Any], tuple[str, str]]  # of a call's positional arguments: namespace id, workflow id


def _task(args: Any) -> tuple[str, str]:
    return args[0].namespace_id, args[0].workflow_id


def _request(args: Any) -> tuple[str, str]:
    return args[0], args[1].workflow_id


def _execution(args: Any) -> tuple[str, str]:
    return args[0], args[1].execution.workflow_id


def _workflow_execution(args: Any) -> tuple[str, str]:
    return args[0], args[1].workflow_execution.workflow_id


def _workflow_token(args: Any) -> tuple[str, str]:
    token = tokens.decode(args[1].task_token, tokens.WorkflowTaskToken)
    return token.namespace_id, token.workflow_id


def _activity_token(args: Any) -> tuple[str, str]:
    token = tokens.decode(args[1].task_token, tokens.ActivityTaskToken)
    return token.namespace_id, token.workflow_id


def _update_ref(args: Any) -> tuple[str, str]:
    return args[0], args[1].update_ref.workflow_execution.workflow_id


def _first_operation(args: Any) -> tuple[str, str]:
    return args[0], args[1].operations[0].start_workflow.workflow_id


def _always(_: Any) -> bool:
    return True


def _never(_: Any) -> bool:
    return False


def _by_request_id(args: Any) -> bool:
    return bool(args[1].request_id)


# What a call is about, and whether doing it twice does no harm: it has an id by which the second is known, or changes
# nothing.
ROUTES: dict[str, tuple[Key, Callable[[Any], bool]]] = {
    "start_workflow_execution": (_request, _by_request_id),
    "signal_with_start_workflow_execution": (_request, _by_request_id),
    "execute_multi_operation": (_first_operation, _always),
    "signal_workflow_execution": (_workflow_execution, _by_request_id),
    "request_cancel_workflow_execution": (_workflow_execution, _by_request_id),
    "terminate_workflow_execution": (_workflow_execution, _never),
    "delete_workflow_execution": (_request, _never),
    "record_workflow_task_started": (_task, _always),
    "make_query_task": (_task, _always),
    "respond_workflow_task_completed": (_workflow_token, _never),
    "respond_workflow_task_failed": (_workflow_token, _never),
    "reset_sticky_task_queue": (_request, _always),
    "record_activity_task_started": (_task, _always),
    "record_activity_task_heartbeat": (_activity_token, _always),
    "record_activity_task_heartbeat_by_id": (_request, _always),
    "respond_activity_task_completed": (_activity_token, _never),
    "respond_activity_task_completed_by_id": (_request, _never),
    "respond_activity_task_failed": (_activity_token, _never),
    "respond_activity_task_failed_by_id": (_request, _never),
    "respond_activity_task_canceled": (_activity_token, _never),
    "respond_activity_task_canceled_by_id": (_request, _never),
    "query_workflow": (_execution, _always),
    "update_workflow_execution": (_workflow_execution, _always),
    "poll_workflow_execution_update": (_update_ref, _always),
    "describe_workflow_execution": (_execution, _always),
    "get_workflow_execution_history": (_execution, _always),
    "get_workflow_execution_history_reverse": (_request, _always),
    "start_child_workflow": (_request, _always),
    "schedule_first_workflow_task": (_request, _always),
    "record_child_closed": (_request, _always),
}


class RoutedHistory:
    """Fulfils HistoryClient (see `routed_history`). local: None for a member that does not run history."""

    def __init__(
        self, membership: Membership, peers: Peers, clock: Clock, shards: int, local: HistoryService | None
    ) -> None:
        self.membership = membership
        self.clock = clock
        self.router = Router(membership, peers, clock, HISTORY, METHODS)
        self.shards = shards
        self.local = local

    def target(self, name: str) -> Target:
        """Answers a call of another member."""
        key, _ = ROUTES[name]

        async def answer(args: list[Any], kwargs: dict[str, Any]) -> Any:
            if not self.membership.valid:
                raise NotOwned(f"what {name} is about")
            return await self.here(name, shard_of(*key(args), self.shards), args, kwargs)

        return answer

    async def here(self, name: str, shard_id: int, args: Any, kwargs: Any) -> Any:
        local = self.local
        if local is None or shard_id not in local.shards.wanted:
            raise NotOwned(f"shard {shard_id}")
        shard = await local.shards.ready(shard_id, _TAKING)
        shard.calls += 1
        try:
            return await getattr(local, name)(*args, **kwargs)
        finally:
            shard.left()


def _routed(name: str, key: Key, repeatable: Callable[[Any], bool]) -> Callable[..., Awaitable[Any]]:
    async def call(self: RoutedHistory, *args: Any, **kwargs: Any) -> Any:
        shard_id = shard_of(*key(args), self.shards)
        local = self.local
        if local is not None and shard_id in local.shards.wanted and self.membership.valid:
            shard = local.shards.owned[shard_id - 1]
            if shard is not None:
                shard.calls += 1
                try:
                    return await getattr(local, name)(*args, **kwargs)
                except NotOwned:
                    pass  # lost in between
                finally:
                    shard.left()

        def owner() -> str | None:
            owners = self.membership.ring(static.HISTORY).shard_owners(self.shards)
            return owners[shard_id - 1] if owners else None

        async def here(*args: Any, **kwargs: Any) -> Any:
            return await self.here(name, shard_id, args, kwargs)

        return await self.router.send(name, owner, here, args, kwargs, repeatable(args))

    return call


for _name, (_key, _repeatable) in ROUTES.items():
    setattr(RoutedHistory, _name, _routed(_name, _key, _repeatable))


def routed_history(
    membership: Membership, peers: Peers, clock: Clock, shards: int, local: HistoryService | None
) -> tuple[RoutedHistory, HistoryClient]:
    """The same object twice: its methods are made from `ROUTES`."""
    routed = RoutedHistory(membership, peers, clock, shards, local)
    return routed, cast(HistoryClient, routed)
