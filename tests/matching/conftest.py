from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from perdure.persistence.sqlite import open_store

from .world import World


@pytest.fixture
async def world() -> AsyncIterator[World]:
    store = await open_store(None)
    world = World(store)
    await world.engine.start()
    yield world
    await world.engine.stop()
    await store.close()


@pytest.fixture
async def partitioned() -> AsyncIterator[World]:
    """With four partitions, the default."""
    store = await open_store(None)
    world = World(store, partitions=None)
    await world.engine.start()
    yield world
    await world.engine.stop()
    await store.close()
