"""Whatever comes in whatever order: no task is lost, and none is handed out twice."""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from perdure.clock import MILLISECOND, MINUTE, SECOND
from perdure.errors import Code, ServiceError, unavailable
from perdure.matching.api import NoPoller, TaskRef
from perdure.persistence.api import Unavailable

from .world import History, World, settle, sticky


class UnsteadyHistory(History):
    """Fails and dawdles at random. refused: starts of a task that is started already."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.rng = rng
        self.steady = False
        self.refused = 0

    async def _start(self, task: TaskRef, poller: Any) -> None:
        for _ in range(self.rng.randrange(4)):
            await asyncio.sleep(0)
        if not self.steady and self.rng.random() < 0.2:
            raise self.rng.choice([unavailable("moving"), RuntimeError("a bug"), ServiceError(Code.INTERNAL, "?")])
        try:
            await super()._start(task, poller)
        except ServiceError as e:
            self.refused += e.code is Code.ALREADY_EXISTS
            raise
        for _ in range(self.rng.randrange(4)):
            await asyncio.sleep(0)


class Run:
    def __init__(self, world: World, rng: random.Random) -> None:
        self.world = world
        self.rng = rng
        self.numbers = iter(range(1_000_000))
        self.adds: dict[str, asyncio.Task[None]] = {}
        self.polls: dict[str, asyncio.Task[Any]] = {}
        self.cancelled: set[str] = set()
        self.accepted: set[str] = set()
        self.delivered: dict[str, str] = {}  # task -> poll

    def add(self, on_sticky: bool = False) -> None:
        name = f"w{next(self.numbers)}"
        call = self.world.add_sticky(name) if on_sticky else self.world.add(name)
        self.adds[name] = asyncio.create_task(call)

    def poll(self, queue: Any = "q") -> None:
        identity = f"p{next(self.numbers)}"
        timeout = self.rng.choice([10 * MILLISECOND, SECOND, MINUTE])
        self.polls[identity] = self.world.poll(identity, queue=queue, timeout=timeout)

    def cancel(self) -> None:
        open_polls = [i for i, p in self.polls.items() if not p.done()]
        if open_polls:
            identity = self.rng.choice(open_polls)
            self.polls[identity].cancel()
            self.cancelled.add(identity)

    async def collect(self) -> None:
        for name, add in list(self.adds.items()):
            if add.done():
                del self.adds[name]
                if add.exception() is None:
                    self.accepted.add(name)
                else:
                    assert isinstance(add.exception(), ServiceError | NoPoller)
        for identity, poll in list(self.polls.items()):
            if poll.done():
                del self.polls[identity]
                if not poll.cancelled() and poll.result().task_token:
                    name = poll.result().task_token.decode().partition("/")[0]
                    assert name not in self.delivered, "handed out twice"
                    self.delivered[name] = identity

    async def finish(self) -> None:
        """Lets all that is left come out."""
        self.world.store.errors.clear()
        while self.adds or self.polls:
            await self.world.clock.advance(5 * SECOND)
            await asyncio.sleep(0.001)
            await self.collect()
        for _ in range(200):
            missing = [n for n in self.accepted if (n, 5) not in self.world.history.started]
            if not missing:
                break
            self.poll()
            await self.world.clock.advance(5 * SECOND)
            await asyncio.sleep(0.001)
            await self.collect()
        assert missing == []
        while self.polls:
            await self.world.clock.advance(5 * SECOND)
            await self.collect()
        # What is started reached its poll, unless the poll's client had gone.
        for (name, _), poller in self.world.history.started.items():
            assert self.delivered.get(name) == poller.identity or poller.identity in self.cancelled


async def run(world: World, seed: int, steps: int, store_fails: bool) -> Run:
    rng = random.Random(seed)
    world.history = history = UnsteadyHistory(rng)
    world.config.set("matching.getTasksBatchSize", 8)
    world.config.set("matching.getTasksReloadAt", 2)
    await world.engine.stop()
    world.engine = world.new_engine()
    run = Run(world, rng)
    for _ in range(steps):
        # Times of many polls and times of many tasks take turns.
        busy = rng.random()
        for _ in range(rng.randrange(6)):
            action = rng.random()
            if action < 0.45 * busy:
                run.add()
            elif action < 0.8:
                run.poll()
            elif action < 0.9:
                run.cancel()
            elif action < 0.93 and store_fails:
                method = rng.choice(["append_backlog", "read_backlog", "lease_task_queue", "delete_backlog"])
                world.store.errors.setdefault(method, []).append(Unavailable("disk"))
            else:
                await world.clock.advance(rng.choice([MILLISECOND, 100 * MILLISECOND, 3 * SECOND]))
            for _ in range(rng.randrange(5)):
                await asyncio.sleep(0)
        await run.collect()
    await run.finish()
    assert history.refused == 0, "a started task was offered again"
    assert len(run.accepted) > steps / 4
    return run


@pytest.mark.parametrize("seed", range(8))
async def test_one_partition(world: World, seed: int) -> None:
    await run(world, seed, 150, store_fails=False)


@pytest.mark.parametrize("seed", range(4))
async def test_one_partition_on_a_failing_store(world: World, seed: int) -> None:
    await run(world, seed, 150, store_fails=True)


@pytest.mark.parametrize("seed", range(4))
async def test_four_partitions(partitioned: World, seed: int) -> None:
    await run(partitioned, seed, 100, store_fails=False)


@pytest.mark.parametrize("seed", range(3))
async def test_processes_that_are_killed_and_started_again(world: World, seed: int) -> None:
    """What was accepted is handed out by whichever process is there."""
    rng = random.Random(seed)
    world.history = history = UnsteadyHistory(rng)
    history.steady = True
    world.engine = world.new_engine()
    run_ = Run(world, rng)
    old = []
    for _ in range(15):
        for _ in range(10):
            run_.add()
            if rng.random() < 0.5:
                run_.poll()
            await settle()
        await asyncio.sleep(0.002)
        await run_.collect()
        old.append(world.engine)
        world.engine = world.new_engine()
    await run_.finish()
    for engine in old:
        await engine.stop()


@pytest.mark.parametrize("seed", range(3))
async def test_a_sticky_task_queue(world: World, seed: int) -> None:
    rng = random.Random(seed)
    world.history = history = UnsteadyHistory(rng)
    world.engine = world.new_engine()
    run_ = Run(world, rng)
    run_.poll(sticky())
    await settle()
    for _ in range(200):
        rng.choice([lambda: run_.add(True), lambda: run_.poll(sticky()), run_.cancel])()
        await world.clock.advance(rng.choice([0, MILLISECOND, SECOND]))
        await run_.collect()
    for _ in range(100):
        run_.poll(sticky())
        await world.clock.advance(SECOND)
        await run_.collect()
    assert all((name, 5) in history.started for name in run_.accepted)
    assert history.refused == 0
