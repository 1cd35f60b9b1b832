"""One member of a cluster: its membership, its connections to the others, and what it does when members come and go.

node = Node(config, cluster_id, store, clock, dynamic, namespace_name, shards)
...  # its services, which are given node.history and node.matching to ask the others by
await node.start(history, matching)
await node.leave()
await node.stop()
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any, Protocol

from perdure.clock import Clock
from perdure.cluster.codec import methods
from perdure.cluster.history import METHODS as HISTORY_METHODS
from perdure.cluster.history import routed_history
from perdure.cluster.matching import METHODS as MATCHING_METHODS
from perdure.cluster.matching import RoutedMatching
from perdure.cluster.membership import Membership, new_member
from perdure.cluster.routing import Router
from perdure.cluster.rpc import HISTORY, MATCHING, MEMBERS, InternalServer, Peers, Target
from perdure.config import static
from perdure.config.dynamic import DynamicConfig
from perdure.config.static import ClusterConfig
from perdure.history.engine import HistoryService
from perdure.matching.engine import MatchingEngine
from perdure.persistence.api import MetadataStore

log = logging.getLogger("perdure.cluster")

_ASK = 1.0  # seconds that others have to give up shards
_TELL = 0.5
_HAND_OVER = 3.0


class MemberClient(Protocol):
    """What members ask of each other besides the services."""

    async def refresh(self) -> None:
        """Members have come or gone: read them now."""
        ...

    async def release_shards(self, shard_ids: list[int]) -> None:
        """The caller is their next owner. Returns when nothing is written to them here any more."""
        ...


_MEMBER_METHODS = methods(MemberClient)


class Node:
    """history, matching: the whole services, wherever their parts are."""

    def __init__(
        self,
        config: ClusterConfig,
        cluster_id: str,
        store: MetadataStore,
        clock: Clock,
        dynamic: DynamicConfig,
        namespace_name: Callable[[str], str],
        shards: int,
    ) -> None:
        """Raises OSError when its address cannot be bound."""
        self.config = config
        self._shards = shards
        self._server = InternalServer(cluster_id, clock, config.host, config.port)
        address = _advertised(config.advertise, self._server.port) if config.advertise else self._server.address
        me = new_member(config.name or address, address, config.services, clock)
        self.membership = Membership(store, clock, me, heartbeat=config.heartbeat, dead_after=config.dead_after)
        self._peers = Peers(cluster_id, clock)
        self._router = Router(self.membership, self._peers, clock, MEMBERS, _MEMBER_METHODS)
        self._routed_history, self.history = routed_history(self.membership, self._peers, clock, shards, None)
        self.matching = RoutedMatching(self.membership, self._peers, clock, dynamic, namespace_name)
        self._history: HistoryService | None = None

    @property
    def id(self) -> str:
        return self.membership.me.id

    @property
    def address(self) -> str:
        """Of the internal gRPC."""
        return self._server.address

    async def start(self, history: HistoryService | None, matching: MatchingEngine | None) -> None:
        """Joins; the services that this member runs are told what they own from now on. They have begun already, but
        for their shards. Raises StoreError."""
        self._history = self._routed_history.local = history
        self.matching.local = matching
        if history is not None:
            history.shards.ask = self._ask
        self._server.offer(HISTORY, HISTORY_METHODS, self._routed_history.target)
        self._server.offer(MATCHING, MATCHING_METHODS, self.matching.target)
        self._server.offer(MEMBERS, _MEMBER_METHODS, self._target)
        await self._server.start()
        self.membership.watch(self._changed)
        await self.membership.join()
        self._changed()
        await self._router.broadcast("", "refresh", (), _TELL)
        log.info("%s at %s is a member of the cluster", self.membership.me.name, self.membership.me.address)

    async def leave(self) -> None:
        """Hands over what it has; calls that come still are passed on to the next owners."""
        await self.membership.leave()
        await self._router.broadcast("", "refresh", (), _TELL)
        if self._history is not None and self.membership.ring(static.HISTORY).members:
            await self._history.shards.empty(_HAND_OVER)

    async def stop(self, grace: float = 0.5) -> None:
        """After the services have stopped."""
        await self.membership.close()
        await self._server.stop(grace)
        await self._peers.close()

    # --- ownership

    def _changed(self) -> None:
        membership = self.membership
        if membership.members:
            self._peers.keep({m.address for m in membership.others()})
        history, matching = self._history, self.matching.local
        if not membership.valid:
            # Others may have all that this member had.
            if history is not None:
                history.shards.drop_all()
            if matching is not None:
                matching.unload(lambda *_: False)
            return
        if history is not None:
            owners = membership.ring(static.HISTORY).shard_owners(self._shards)
            history.shards.want(i for i, owner in enumerate(owners, 1) if owner == self.id)
        if matching is not None:
            matching.unload(self.matching.owned)

    async def _ask(self, shard_ids: list[int]) -> None:
        await self._router.broadcast(static.HISTORY, "release_shards", (sorted(shard_ids),), _ASK)

    # --- what others ask

    def _target(self, name: str) -> Target:
        async def refresh(args: list[Any], kwargs: dict[str, Any]) -> None:
            await self.membership.refresh()

        async def release_shards(args: list[Any], kwargs: dict[str, Any]) -> None:
            if self._history is not None:
                await self._history.shards.release(args[0])

        return {"refresh": refresh, "release_shards": release_shards}[name]


def _advertised(advertise: str, port: int) -> str:
    """advertise: a host, or host:port where others reach `port` by another one."""
    return advertise if re.search(r"^[^:]+:\d+$|]:\d+$", advertise) else f"{advertise}:{port}"
