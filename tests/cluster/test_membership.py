"""Who is taken for alive, by turning the clock."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any

import pytest
from tests.cluster.members import Connection
from tests.matching.world import ManualClock

from perdure.clock import SECOND
from perdure.cluster.membership import Membership, new_member
from perdure.config.static import HISTORY
from perdure.persistence.open import open_database_url

Make = Callable[..., Awaitable[tuple[Membership, Connection]]]


class World:
    def __init__(self, store: Any) -> None:
        self.clock = ManualClock()
        self.store = store
        self.all: list[Membership] = []

    async def join(self, name: str, services: tuple[str, ...] = (HISTORY,)) -> tuple[Membership, Connection]:
        connection = Connection(self.store)
        me = new_member(name, f"{name}:1", services, self.clock)
        membership = Membership(connection, self.clock, me)  # type: ignore[arg-type]
        self.all.append(membership)
        await membership.join()
        return membership, connection

    async def beats(self, count: int) -> None:
        for _ in range(count):
            await self.clock.advance(SECOND)
            await self.store.list_documents("member")


@pytest.fixture
async def world() -> AsyncGenerator[World]:
    store, _ = await open_database_url(None)
    world = World(store)
    yield world
    for membership in world.all:
        await membership.close()
    await store.close()


def names(membership: Membership) -> set[str]:
    return {m.name for m in membership.members.values()}


async def test_members_see_each_other(world: World) -> None:
    one, _ = await world.join("one")
    two, _ = await world.join("two", ("frontend",))
    await world.beats(2)
    assert names(one) == names(two) == {"one", "two"}
    assert one.ring(HISTORY).members == (one.me.id,)


async def test_a_silent_member_is_dead_after_four_heartbeats(world: World) -> None:
    one, _ = await world.join("one")
    two, connection = await world.join("two")
    await world.beats(2)
    told: list[set[str]] = []
    one.watch(lambda: told.append(names(one)))
    connection.lost = True
    await world.beats(3)
    assert names(one) == {"one", "two"}
    assert two.valid
    await world.beats(2)
    assert names(one) == {"one"}
    assert told == [{"one"}]
    # It knew by itself before that, and serves nothing.
    assert not two.valid
    assert not two.members
    assert [d.key for d in await world.store.list_documents("member")] == [one.me.id]
    connection.lost = False
    await world.beats(2)
    assert two.valid
    assert names(one) == names(two) == {"one", "two"}


async def test_a_member_that_leaves_is_given_nothing(world: World) -> None:
    one, _ = await world.join("one")
    two, _ = await world.join("two")
    await world.beats(1)
    await two.leave()
    await one.refresh()
    assert names(one) == {"one", "two"}
    assert one.ring(HISTORY).members == two.ring(HISTORY).members == (one.me.id,)
    await two.close()
    await one.refresh()
    assert names(one) == {"one"}


async def test_a_member_that_starts_again_takes_the_place_of_its_former_self(world: World) -> None:
    one, _ = await world.join("one")
    _, connection = await world.join("two")
    connection.lost = True
    again, _ = await world.join("two")
    await one.refresh()
    assert {m.id for m in one.members.values()} == {one.me.id, again.me.id}


async def test_nobody_is_dead_because_the_database_was_away(world: World) -> None:
    one, first = await world.join("one")
    two, second = await world.join("two")
    await world.beats(2)
    first.lost = second.lost = True
    await world.beats(20)
    assert not one.valid
    assert not two.valid
    first.lost = second.lost = False
    await world.beats(2)
    assert names(one) == names(two) == {"one", "two"}
