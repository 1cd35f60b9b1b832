from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import pytest

from sdk.server import Server
from sdk.world import World, connect


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = ["--search-attribute", "Customer=Keyword", "--search-attribute", "Amount=Int"]
    running = Server(tmp_path_factory.mktemp("server"), *flags)
    running.start()
    yield running
    running.close()


@pytest.fixture
async def world(server: Server) -> AsyncIterator[World]:
    yield await connect(server.address)
