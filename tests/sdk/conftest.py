from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest
from tests import databases

from sdk.server import Server
from sdk.world import World, connect


@pytest.fixture(scope="session", params=databases.EACH_BACKEND)
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    flags = ["--search-attribute", "Customer=Keyword", "--search-attribute", "Amount=Int"]
    # With SQLite in memory, as developers start it.
    db = "" if request.param == "sqlite" else databases.url(request.param, folder)
    running = Server(folder, *flags, db=db)
    running.start()
    yield running
    running.close()


@pytest.fixture
async def world(server: Server) -> AsyncIterator[World]:
    yield await connect(server.address)
