"""Calls go to the member that owns what they are about: directly, when that is this one."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from perdure.clock import SECOND, Clock
from perdure.cluster.codec import Method
from perdure.cluster.membership import Member, Membership
from perdure.cluster.rpc import Lost, NotReached, Peers
from perdure.errors import NotOwned, ServiceError, unavailable

_PATIENCE = 5 * SECOND  # so long a call looks for its owner
_FIRST_PAUSE = 0.02  # seconds
_LONGEST_PAUSE = 0.5

Call = Callable[..., Awaitable[Any]]


class Router:
    """What the routed clients share. service: of the internal gRPC. methods: of the protocol that is routed."""

    def __init__(
        self, membership: Membership, peers: Peers, clock: Clock, service: str, methods: Mapping[str, Method]
    ) -> None:
        self.membership = membership
        self.peers = peers
        self.clock = clock
        self.service = service
        self.methods = methods
        self._me = membership.me.id

    async def send(
        self,
        name: str,
        owner: Callable[[], str | None],
        local: Call | None,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        repeatable: bool,
    ) -> Any:
        """owner: looks up the id of the member. local: answers here. repeatable: doing it twice does no harm, so it is
        tried again when no answer came.

        A call of which it is sure that nothing was done goes to the next owner, for some seconds. Raises what the call
        raises, and ServiceError UNAVAILABLE."""
        until = 0
        pause = _FIRST_PAUSE
        while True:
            began = self.clock.now()
            try:
                return await self._once(name, owner(), local, args, kwargs)
            except NotOwned as e:
                error: ServiceError = e
            except NotReached as e:
                error = unavailable(f"a member of the cluster is not reached: {e}")
            except Lost as e:
                error = unavailable(f"a member of the cluster did not answer: {e}")
                if not repeatable:
                    raise error from None
            now = self.clock.now()
            if not until or (isinstance(error, NotOwned) and now - began > _PATIENCE // 2):
                # The first time, or the owner had it for a while: that of a long wait may change more than once.
                until, pause = now + _PATIENCE, _FIRST_PAUSE
            if now >= until:
                raise error
            await self.membership.changed(pause * random.uniform(0.5, 1.5))
            pause = min(2 * pause, _LONGEST_PAUSE)

    async def _once(
        self, name: str, owner: str | None, local: Call | None, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> Any:
        if owner == self._me:
            if local is None or not self.membership.valid:
                raise NotOwned(f"what {name} is about")
            return await local(*args, **kwargs)
        member = self.membership.members.get(owner) if owner is not None else None
        if member is None:
            raise NotOwned(f"what {name} is about")
        return await self.to(member, name, args, kwargs)

    async def to(self, member: Member, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """To this member. Raises Lost, NotReached too."""
        return await self.peers.call(member.address, self.service, self.methods[name], args, kwargs)

    async def broadcast(self, service: str, name: str, args: tuple[Any, ...], timeout: float) -> None:
        """To all other members that run the service, without regard to what comes of it."""
        calls = [self.to(member, name, args, {}) for member in self.membership.others(service)]
        if calls:
            waiting = [asyncio.ensure_future(c) for c in calls]
            _, late = await asyncio.wait(waiting, timeout=timeout)
            for call in late:
                call.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
