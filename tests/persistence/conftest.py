"""The backends that the contract suite runs against. A new one adds an entry to BACKENDS."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests import databases

from perdure.persistence.api import Store
from perdure.persistence.mysql import open_store as open_mysql
from perdure.persistence.postgresql import open_store as open_postgresql
from perdure.persistence.sqlite import open_store


@dataclass
class Backend:
    """open: opens the same, at first empty, database each time. durable: what was written is there when it is opened
    again."""

    open: Callable[[], Awaitable[Store]]
    durable: bool = True


def sqlite_file(tmp_path: Path) -> Backend:
    return Backend(lambda: open_store(str(tmp_path / "perdure.db")))


def sqlite_memory(tmp_path: Path) -> Backend:
    return Backend(lambda: open_store(None), durable=False)


def postgresql(tmp_path: Path) -> Backend:
    url = databases.postgresql().url()
    return Backend(lambda: open_postgresql(url))


def mysql(tmp_path: Path) -> Backend:
    url = databases.mysql().url()
    return Backend(lambda: open_mysql(url))


BACKENDS = [sqlite_file, sqlite_memory, postgresql, mysql]


@pytest.fixture(params=BACKENDS, ids=lambda make: make.__name__)
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    return request.param(tmp_path)


@pytest.fixture
async def store(backend: Backend) -> AsyncIterator[Store]:
    store = await backend.open()
    yield store
    await store.close()
