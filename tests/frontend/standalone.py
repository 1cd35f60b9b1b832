"""The frontend as a process of its own, behind which no other service answers: prints its address, serves until its
input ends, and logs to standard error."""

from __future__ import annotations

import asyncio
import logging
import sys
from typing import Any, NoReturn

import uvloop

from perdure import errors

from .support import running


class Down:
    """A service that does not answer at the moment."""

    def __getattr__(self, name: str) -> Any:
        async def call(*args: object, **kwargs: object) -> NoReturn:
            raise errors.unavailable("not now")

        return call


async def main() -> None:
    async with running(history=Down(), matching=Down(), visibility=Down()) as r:
        print(r.address, flush=True)
        await asyncio.to_thread(sys.stdin.read)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO)
    uvloop.run(main())
