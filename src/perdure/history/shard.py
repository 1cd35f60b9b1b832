"""A shard: the executions of some workflow ids, owned by one process.

All that changes an execution goes through `Shard.run`, which locks it and has its state, and `Shard.commit`, which
writes one step and lets its tasks run. Nothing is answered, and no task runs, before the store has committed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol

import msgspec
from temporalio.api.history.v1 import History, HistoryEvent

from perdure import errors
from perdure.clock import Clock
from perdure.config import dynamic
from perdure.history.core import closing
from perdure.history.core import state as core_state
from perdure.history.core.state import State
from perdure.history.core.tasks import Task, UpsertVisibility, category_of, encode
from perdure.history.core.txn import Environment, TimerRequest, Txn, batches
from perdure.history.queues.immediate import ImmediateQueue
from perdure.history.queues.retrying import Retrying
from perdure.history.queues.timers import TimerQueue
from perdure.persistence.api import (
    Commit,
    ConditionFailed,
    CurrentConflict,
    CurrentRun,
    CurrentWrite,
    HistoryNode,
    NotFound,
    RunWrite,
    ShardFenced,
    Store,
    StoreError,
    TaskCategory,
    TaskRow,
    Unavailable,
)
from perdure.visibility.api import VisibilityRecord

log = logging.getLogger("perdure.history")

_TAIL_BYTES = 512 * 1024
_RANGE_BITS = 24  # task ids of one range id

RunKey = tuple[str, str, str]  # namespace id, workflow id, run id


class CurrentSummary(msgspec.Struct, array_like=True):
    """Of a workflow id's current run, for decisions without loading it."""

    start_request_id: str
    start_time: int
    first_run_id: str
    close_time: int = 0


_encode_summary = msgspec.msgpack.Encoder().encode
_decode_summary = msgspec.msgpack.Decoder(CurrentSummary).decode


def summary_of(current: CurrentRun) -> CurrentSummary:
    return _decode_summary(current.blob)


class RunMemory(Protocol):
    """What a room keeps of a run in memory only. It removes itself from `RunContext.memory` when it is empty."""

    def closed(self, state: State) -> None:
        """A commit has closed the run."""
        ...

    def lost(self) -> None:
        """The state was thrown away, a speculative workflow task with it: whoever waits has to begin again."""
        ...


class RunContext:
    """One run in memory. Used only within `Shard.run`.

    tail: the newest history nodes, contiguous up to the end, so that what a sticky worker needs is not read back.
    events: serialized events that later steps need (activity scheduled, child initiated, …), by id.
    memory: what other rooms keep for the run in memory (updates not yet accepted, queries); while it is not empty, the
    run stays in the cache."""

    __slots__ = ("events", "key", "lock", "memory", "state", "tail", "tail_bytes")

    def __init__(self, key: RunKey) -> None:
        self.key = key
        self.lock = asyncio.Lock()
        self.state: State | None = None
        self.tail: list[HistoryNode] = []
        self.tail_bytes = 0
        self.events: dict[int, bytes] = {}
        self.memory: dict[str, Any] = {}  # of RunMemory

    @property
    def loaded(self) -> State:
        assert self.state is not None
        return self.state

    def forget(self) -> None:
        """The state is no longer what the store has: load it again before the next use."""
        if self.state is not None:
            # Those that have a row stay: the stored state still counts on them.
            for entry in self.state.live_timers.values():
                if not entry.durable:
                    entry.cancel()
        self.state = None
        self.tail.clear()
        self.tail_bytes = 0
        memory, self.memory = self.memory, {}
        for room in list(memory.values()):
            room.lost()

    def append_tail(self, nodes: Sequence[HistoryNode]) -> None:
        self.tail.extend(nodes)
        self.tail_bytes += sum(len(n.blob) for n in nodes)
        keep_from = self.loaded.run.last_started_event_id
        tail = self.tail
        drop = 0
        while drop < len(tail) - 1 and (
            self.tail_bytes > _TAIL_BYTES or tail[drop].node_id + tail[drop].events <= keep_from
        ):
            self.tail_bytes -= len(tail[drop].blob)
            drop += 1
        if drop:
            del tail[:drop]


class _Held:
    """`async with shard.run(…) as context`."""

    __slots__ = ("_context", "_shard")

    def __init__(self, shard: Shard, context: RunContext) -> None:
        self._shard = shard
        self._context = context

    async def __aenter__(self) -> RunContext:
        context = self._context
        await context.lock.acquire()
        if not self._shard.taking:
            context.lock.release()
            raise errors.NotOwned(f"shard {self._shard.shard_id}")
        if context.state is None:
            try:
                await self._shard.load(context)
            except BaseException:
                context.lock.release()
                raise
        return context

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._context.lock.release()


@dataclass(slots=True)
class Services:
    """What the shards of a process share.

    lost: told of a shard that can write no more: another process has it (True), or the outcome of a write is not known
    (False)."""

    store: Store
    clock: Clock
    new_id: Callable[[], str]
    environment: Callable[[str], Environment]  # of a namespace id
    transfer: Callable[[Shard, Task], Awaitable[None]]
    timer: Callable[[Shard, Task], Awaitable[None]]
    visibility: Callable[[Shard, Task], Awaitable[None]]
    lost: Callable[[Shard, bool], None]
    failures: Counter[str] = field(default_factory=Counter[str])
    cache_size: int = 10_000


class Shard:
    """taking: calls may begin. closed: nothing is written any more. calls: under way, as far as they are counted; who
    adds one says when it has `left`."""

    def __init__(self, shard_id: int, owner: str, services: Services) -> None:
        self.shard_id = shard_id
        self.owner = owner
        self.services = services
        self.store = services.store
        self._visibility_along = services.store.carries_visibility
        self.clock = services.clock
        self.range_id = 0
        self.taking = True
        self.closed = False
        self.calls = 0
        self._idle: asyncio.Future[None] | None = None
        self._sequence = 0
        self._runs: OrderedDict[RunKey, RunContext] = OrderedDict()
        self._currents: OrderedDict[tuple[str, str], CurrentRun] = OrderedDict()
        self._start_locks: dict[tuple[str, str], tuple[asyncio.Lock, list[int]]] = {}
        self.removed: OrderedDict[str, None] = OrderedDict()  # run ids, the latest 10,000
        self._watchers: dict[RunKey, set[asyncio.Future[None]]] = {}  # of the next events
        self._end_watchers: dict[RunKey, set[asyncio.Future[None]]] = {}  # of the run's end
        retrying = Retrying(services.clock, services.store, shard_id, services.failures)
        self.transfers = ImmediateQueue(
            services.store, shard_id, TaskCategory.TRANSFER, lambda t: services.transfer(self, t), retrying
        )
        self.visibility = ImmediateQueue(
            services.store, shard_id, TaskCategory.VISIBILITY, lambda t: services.visibility(self, t), retrying
        )
        self.timers = TimerQueue(services.store, shard_id, services.clock, lambda t: services.timer(self, t), retrying)

    # --- ownership

    async def acquire(self) -> None:
        record = await self.store.acquire_shard(self.shard_id, self.owner)
        self.range_id = record.range_id
        self._sequence = 0

    async def recover(self) -> None:
        """Starts what the previous owner left undone."""
        await self.timers.load()
        await self.transfers.recover()
        await self.visibility.recover()

    async def maintain(self) -> None:
        """Every second or so: deletes the rows of what is done, reads timers that come near."""
        if not self.taking:
            return
        await self.transfers.delete_done()
        await self.visibility.delete_done()
        await self.timers.load()
        await self.timers.delete_done()

    async def drain(self, grace: float) -> None:
        """For another to take it: no calls begin, those that wait for something end with NotOwned, those that run have
        so many seconds, then nothing is written any more."""
        self._refuse()
        if self.calls:
            self._idle = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._idle], timeout=grace)
        await self.close(grace, cancel=False)

    def left(self) -> None:
        """A call that was counted has ended."""
        self.calls -= 1
        if not self.calls and self._idle is not None and not self._idle.done():
            self._idle.set_result(None)

    async def close(self, grace: float, *, cancel: bool = True) -> None:
        """The queues end the tasks that they run within so many seconds; then nothing is written any more. cancel: of
        those that do not end. A task that is with matching just now is better left to end there: cancelled between a
        worker and the record of its start, it would be started for nobody."""
        self._refuse()
        await asyncio.gather(*(q.stop(grace, cancel=cancel) for q in (self.timers, self.transfers, self.visibility)))
        self._forget_all()

    async def drop(self) -> None:
        """At once, because it is not this process's any more: nothing that is in memory counts."""
        if not self.closed:
            self._forget_all()
            self._refuse()
        self.timers.abandon()
        self.transfers.abandon()
        self.visibility.abandon()
        await asyncio.gather(*(q.stop(0, cancel=False) for q in (self.timers, self.transfers, self.visibility)))

    def _refuse(self) -> None:
        self.taking = False
        for watchers in (self._watchers, self._end_watchers):
            for watcher in [w for of_run in watchers.values() for w in of_run]:
                if not watcher.done():
                    watcher.set_exception(errors.NotOwned(f"shard {self.shard_id}"))
            watchers.clear()
        self._end_memories()

    def _end_memories(self, locked_too: bool = False) -> None:
        """Whoever waits for a query or an update begins again, and finds the next owner."""
        for context in self._runs.values():
            if context.memory and (locked_too or not context.lock.locked()):
                memory, context.memory = context.memory, {}
                for room in list(memory.values()):
                    room.lost()

    def _forget_all(self) -> None:
        self.closed = True
        self._end_memories(locked_too=True)
        for context in self._runs.values():
            if not context.lock.locked():
                context.forget()
        self._currents.clear()

    def _lose(self, fenced: bool) -> None:
        if not self.closed:
            self._forget_all()
            self._refuse()
            self.timers.abandon()
            self.transfers.abandon()
            self.visibility.abandon()
            self.services.lost(self, fenced)

    def new_task_id(self) -> int:
        self._sequence += 1
        if self._sequence >= 1 << _RANGE_BITS:
            # A new range id begins a new block of them.
            self._lose(fenced=False)
            raise errors.NotOwned(f"shard {self.shard_id}")
        return (self.range_id << _RANGE_BITS) + self._sequence

    # --- runs

    def run(self, namespace_id: str, workflow_id: str, run_id: str) -> _Held:
        """Locks the run and has its state. Raises ServiceError NOT_FOUND when there is no such run."""
        return _Held(self, self._context((namespace_id, workflow_id, run_id)))

    def _context(self, key: RunKey) -> RunContext:
        runs = self._runs
        context = runs.get(key)
        if context is None:
            context = runs[key] = RunContext(key)
            if len(runs) > self.services.cache_size:
                self._evict()
        else:
            runs.move_to_end(key)
        return context

    def _evict(self) -> None:
        excess = len(self._runs) - self.services.cache_size
        for key, context in list(self._runs.items())[: excess + 64]:
            if excess <= 0:
                break
            if not context.lock.locked() and not context.memory and not _speculative(context):
                del self._runs[key]
                excess -= 1

    def cached(self, key: RunKey) -> RunContext | None:
        return self._runs.get(key)

    async def load(self, context: RunContext) -> None:
        namespace_id, workflow_id, run_id = context.key
        if self.closed:
            raise errors.NotOwned(f"shard {self.shard_id}")
        try:
            record = await self.store.load_run(self.shard_id, namespace_id, workflow_id, run_id)
        except NotFound:
            self._runs.pop(context.key, None)
            raise errors.workflow_not_found(workflow_id, run_id) from None
        except StoreError as e:
            raise errors.unavailable(f"the database does not answer: {e}") from e
        context.state = core_state.load(record.version, record.state, record.pending)

    async def current(self, namespace_id: str, workflow_id: str) -> CurrentRun | None:
        """The current run of a workflow id, None when there is none."""
        key = (namespace_id, workflow_id)
        found = self._currents.get(key)
        if found is not None:
            self._currents.move_to_end(key)
            return found
        if self.closed:
            raise errors.NotOwned(f"shard {self.shard_id}")
        try:
            found = await self.store.load_current(self.shard_id, namespace_id, workflow_id)
        except NotFound:
            return None
        except StoreError as e:
            raise errors.unavailable(f"the database does not answer: {e}") from e
        self._remember_current(key, found)
        return found

    def _remember_current(self, key: tuple[str, str], run: CurrentRun) -> None:
        self._currents[key] = run
        self._currents.move_to_end(key)
        if len(self._currents) > 2 * self.services.cache_size:
            self._currents.popitem(last=False)

    async def run_id_of(self, namespace_id: str, workflow_id: str, run_id: str) -> str:
        """run_id, or the current run's where it is "". Raises ServiceError NOT_FOUND."""
        if run_id:
            return run_id
        current = await self.current(namespace_id, workflow_id)
        if current is None:
            raise errors.workflow_not_found(workflow_id)
        return current.run_id

    def starting(self, namespace_id: str, workflow_id: str) -> _StartLock:
        """Serializes what creates runs of one workflow id: `async with shard.starting(…)`."""
        return _StartLock(self._start_locks, (namespace_id, workflow_id))

    # --- steps

    def begin(self, context: RunContext) -> Txn:
        return Txn(context.loaded, self.clock.now(), self.services.environment(context.key[0]))

    def context_for(self, txn: Txn) -> RunContext:
        """For the first step of a new run: a context that holds its state. Nobody else can know it yet."""
        info = txn.state.info
        context = RunContext((info.namespace_id, info.workflow_id, info.run_id))
        context.state = txn.state
        return context

    async def commit(
        self,
        context: RunContext,
        txn: Txn,
        *,
        expected_current: str | None = None,
        also: Sequence[tuple[RunContext, Txn]] = (),
    ) -> None:
        """Writes the step (with that of its `new_run`, and others of the same workflow id in `also`), then lets what
        follows run. expected_current: for a step that creates a run: the run id that must be current, "" for none.

        On failure the state is thrown away, and ServiceError UNAVAILABLE is raised, or CurrentConflict. A run that
        has come to its limits is terminated instead: LimitReached."""
        if txn.state.version and (reason := closing.exceeded(txn)):
            self.abandon(context, txn)
            await self.load(context)
            last = self.begin(context)
            error = closing.end(last, reason)
            await self.commit(context, last)
            log.warning("%s was terminated: %s", context.key, reason)
            raise error
        steps = [(context, txn), *also]
        for c, t in list(steps):
            if t.new_run is not None:
                steps.append((self.context_for(t.new_run), t.new_run))
            del c
        for _, t in steps:
            closing.finish(t)
        if not any(t.dirty for _, t in steps):
            for c, t in steps:
                self._after(c, t, [], [])
            return
        writes: list[RunWrite] = []
        rows: list[TaskRow] = []
        records: list[VisibilityRecord] = []
        started: list[tuple[RunContext, Txn, list[tuple[TaskCategory, int, Task]], list[tuple[TimerRequest, int]]]] = []
        nodes_of: list[list[HistoryNode]] = []
        sent = False
        try:
            for c, t in steps:
                nodes = self._nodes(t)
                t.state.run.transition_count += 1
                immediate, timers = self._task_rows(t, rows, records)
                row, put, removed = t.state.rows()
                namespace_id, workflow_id, run_id = c.key
                writes.append(RunWrite(namespace_id, workflow_id, run_id, t.state.version, row, put, removed, nodes))
                nodes_of.append(nodes)
                started.append((c, t, immediate, timers))
            currents = await self._current_writes(steps, expected_current)
            if self.closed:
                raise errors.NotOwned(f"shard {self.shard_id}")
            sent = True
            await self.store.commit(Commit(self.shard_id, self.range_id, writes, currents, rows, records))
        except BaseException as error:
            self._undo(steps, rows)
            if isinstance(error, CurrentConflict):
                self._currents.pop(context.key[:2], None)
                raise
            if isinstance(error, ShardFenced):
                self._lose(fenced=True)
                raise errors.NotOwned(f"shard {self.shard_id}") from error
            if sent and isinstance(error, Unavailable | asyncio.CancelledError):
                # Nobody knows whether it was written: with a new range id it is, or never will be.
                self._lose(fenced=False)
            if isinstance(error, StoreError):
                if isinstance(error, ConditionFailed):
                    log.warning("a step of %s met another version of its record", context.key)
                raise errors.unavailable(f"the step was not written: {error}") from error
            raise
        for write in currents:
            self._remember_current((write.namespace_id, write.workflow_id), write.run)
        for (c, t, immediate, timers), nodes in zip(started, nodes_of, strict=True):
            t.state.saved()
            if t.state.version == 1:
                self._runs[c.key] = c
                if len(self._runs) > self.services.cache_size:
                    self._evict()
            if nodes:
                c.append_tail(nodes)
            self._after(c, t, immediate, timers)

    def _after(
        self,
        context: RunContext,
        txn: Txn,
        immediate: list[tuple[TaskCategory, int, Task]],
        timers: list[tuple[TimerRequest, int]],
    ) -> None:
        live = txn.state.live_timers
        for key in txn.canceled_timers:
            entry = live.pop(key, None)
            if entry is not None:
                entry.cancel()
        for request, task_id in timers:
            entry = self.timers.start(request.fire_time, task_id, request.task)
            self._replace_live(live, request, entry)
        for request in txn.timers:
            if not request.durable:
                self._fill(txn, request.task)
                entry = self.timers.start_unrecorded(request.fire_time, request.task)
                self._replace_live(live, request, entry)
        for category, task_id, task in immediate:
            (self.transfers if category == TaskCategory.TRANSFER else self.visibility).start(task_id, task)
        for task in txn.memory_dispatches:
            self._fill(txn, task)
            self.transfers.start_unrecorded(task)
        for effect in txn.on_commit:
            effect()
        if context.memory and not txn.state.open:
            for room in list(context.memory.values()):
                room.closed(txn.state)
        if txn.events:
            if self._watchers:
                self._wake(self._watchers, context.key)
            if self._end_watchers and not txn.state.open:
                self._wake(self._end_watchers, context.key)

    @staticmethod
    def _replace_live(live: dict[Any, Any], request: TimerRequest, entry: Any) -> None:
        if request.key is None:
            return
        old = live.pop(request.key, None)
        if old is not None:
            old.cancel()
        if entry is not None:
            live[request.key] = entry

    @staticmethod
    def _fill(txn: Txn, task: Task) -> None:
        info = txn.state.info
        task.namespace_id = info.namespace_id
        task.workflow_id = info.workflow_id
        task.run_id = info.run_id

    def _undo(self, steps: Sequence[tuple[RunContext, Txn]], rows: Sequence[TaskRow]) -> None:
        for row in rows:
            if row.category == TaskCategory.TIMER:
                self.timers.release(row.task_id)
            elif row.category == TaskCategory.TRANSFER:
                self.transfers.release(row.task_id)
            else:
                self.visibility.release(row.task_id)
        for c, t in steps:
            self.abandon(c, t)

    def abandon(self, context: RunContext, txn: Txn) -> None:
        """Throws a step away that will not be committed. Call it whenever a step has changed the state (`txn.dirty`)
        and then fails."""
        for effect in txn.on_abort:
            effect()
        context.forget()

    def _nodes(self, txn: Txn) -> list[HistoryNode]:
        run = txn.state.run
        nodes: list[HistoryNode] = []
        if txn.events:
            size_before = run.history_size
            for batch in batches(txn.events):
                blob = History(events=batch).SerializeToString()
                txn_id = self.new_task_id()
                nodes.append(HistoryNode(run.branch_id, batch[0].event_id, txn_id, run.last_txn_id, len(batch), blob))
                run.last_txn_id = txn_id
                run.history_size += len(blob)
            self._warn(txn, size_before)
        return nodes

    @staticmethod
    def _warn(txn: Txn, size_before: int) -> None:
        """Says once that a history has become long. size_before: before this step."""
        run, info, env = txn.state.run, txn.state.info, txn.env
        for what, before, now, key in (
            ("size", size_before, run.history_size, dynamic.HISTORY_SIZE_WARN),
            ("count", txn.events[0].event_id - 1, run.next_event_id - 1, dynamic.HISTORY_COUNT_WARN),
        ):
            if before <= env.config.get(key, env.namespace) < now:
                log.warning(
                    "history %s exceeds warn limit: %d, namespace %s workflow %s run %s",
                    what,
                    now,
                    env.namespace,
                    info.workflow_id,
                    info.run_id,
                )

    def _task_rows(
        self, txn: Txn, rows: list[TaskRow], records: list[VisibilityRecord]
    ) -> tuple[list[tuple[TaskCategory, int, Task]], list[tuple[TimerRequest, int]]]:
        immediate: list[tuple[TaskCategory, int, Task]] = []
        timers: list[tuple[TimerRequest, int]] = []
        for task in txn.tasks:
            if self._visibility_along and isinstance(task, UpsertVisibility):
                records.append(core_state.visibility_record(txn.state))
                continue
            self._fill(txn, task)
            category = category_of(task)
            task_id = self.new_task_id()
            (self.transfers if category == TaskCategory.TRANSFER else self.visibility).reserve(task_id)
            rows.append(TaskRow(category, 0, task_id, encode(task)))
            immediate.append((category, task_id, task))
        for request in txn.timers:
            if not request.durable:
                continue
            self._fill(txn, request.task)
            task_id = self.new_task_id()
            fire_time = request.fire_time = self.timers.reserve(request.fire_time, task_id)
            rows.append(TaskRow(TaskCategory.TIMER, fire_time, task_id, encode(request.task)))
            timers.append((request, task_id))
        return immediate, timers

    async def _current_writes(
        self, steps: Sequence[tuple[RunContext, Txn]], expected_current: str | None
    ) -> list[CurrentWrite]:
        """The current record changes when a run is created, and when the current run closes."""
        created = [t.state for _, t in steps if t.state.version == 0]
        if created:
            state = created[-1]
            info = state.info
            if expected_current is None:
                others = [t.state.info.run_id for _, t in steps if t.state.version]
                expected_current = others[0] if others else ""
            return [CurrentWrite(info.namespace_id, info.workflow_id, expected_current, _current_of(state))]
        writes: list[CurrentWrite] = []
        for _, t in steps:
            if t.events and not t.state.open:
                info = t.state.info
                current = await self.current(info.namespace_id, info.workflow_id)
                if current is not None and current.run_id == info.run_id:
                    writes.append(CurrentWrite(info.namespace_id, info.workflow_id, info.run_id, _current_of(t.state)))
        return writes

    # --- histories

    async def nodes(
        self, context: RunContext, first_event_id: int, end_event_id: int, max_bytes: int
    ) -> list[HistoryNode]:
        """History nodes that hold first_event_id <= event < end_event_id, from memory if they are there: as many as fit
        in max_bytes, one at least. The first and the last may hold other events as well."""
        tail = context.tail
        if tail and tail[0].node_id <= first_event_id:
            found: list[HistoryNode] = []
            size = 0
            for node in tail:
                if node.node_id >= end_event_id:
                    break
                if node.node_id + node.events <= first_event_id:
                    continue
                size += len(node.blob)
                if found and size > max_bytes:
                    break
                found.append(node)
            return found
        return await self.stored_nodes(context.loaded, first_event_id, end_event_id, max_bytes)

    async def stored_nodes(
        self, state: State, first_event_id: int, end_event_id: int, max_bytes: int, reverse: bool = False
    ) -> list[HistoryNode]:
        """As `nodes`, from the store. A run that was reset begins on the branches of the run that it came from."""
        branches = [*state.info.history_ancestors, (state.run.branch_id, 2**62)]
        spans: list[tuple[str, int, int]] = []
        begin = core_state.FIRST_EVENT_ID
        for branch_id, end in branches:
            low, high = max(begin, first_event_id), min(end, end_event_id)
            if low < high:
                spans.append((branch_id, low, high))
            begin = end
        try:
            for branch_id, low, high in reversed(spans) if reverse else spans:
                found = await self.store.read_history(self.shard_id, branch_id, low, high, max_bytes, reverse)
                if found:
                    return found
        except StoreError as e:
            raise errors.unavailable(f"the database does not answer: {e}") from e
        return []

    async def event(self, context: RunContext, event_id: int) -> HistoryEvent:
        """One stored event of the run. Raises ServiceError INTERNAL when the history lacks it."""
        for node in reversed(context.tail):
            if node.node_id <= event_id < node.node_id + node.events:
                return History.FromString(node.blob).events[event_id - node.node_id]
        cached = context.events.get(event_id)
        if cached is not None:
            return HistoryEvent.FromString(cached)
        for node in await self.stored_nodes(context.loaded, event_id, event_id + 1, 1):
            events = History.FromString(node.blob).events
            if node.node_id <= event_id < node.node_id + len(events):
                event = events[event_id - node.node_id]
                if len(context.events) < 16:
                    context.events[event_id] = event.SerializeToString()
                return event
        raise errors.internal(f"event {event_id} is missing from the history")

    # --- waiting for what comes

    def watch(self, key: RunKey, until_end: bool = False) -> asyncio.Future[None]:
        """Done when the run next gets events (until_end: when it closes), or is deleted. Cancel it when it is no longer
        waited for."""
        watchers = self._end_watchers if until_end else self._watchers
        watcher: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        watchers.setdefault(key, set()).add(watcher)
        watcher.add_done_callback(lambda w: _unwatch(watchers, key, w))
        return watcher

    @staticmethod
    def _wake(watchers: dict[RunKey, set[asyncio.Future[None]]], key: RunKey) -> None:
        for watcher in watchers.pop(key, ()):
            if not watcher.done():
                watcher.set_result(None)

    def wake_watchers(self, key: RunKey) -> None:
        self._wake(self._watchers, key)
        self._wake(self._end_watchers, key)

    # --- removal

    async def delete(self, context: RunContext) -> None:
        """Removes the run from the store and from memory. Its visibility record is the caller's affair."""
        state = context.loaded
        namespace_id, workflow_id, run_id = context.key
        self.removed[run_id] = None
        if len(self.removed) > 10_000:
            self.removed.popitem(last=False)
        try:
            await self.store.delete_run(
                self.shard_id, self.range_id, namespace_id, workflow_id, run_id, [state.run.branch_id]
            )
        except ShardFenced as e:
            self._lose(fenced=True)
            raise errors.NotOwned(f"shard {self.shard_id}") from e
        except StoreError as e:
            raise errors.unavailable(f"the run was not removed: {e}") from e
        finally:
            context.forget()
        self._runs.pop(context.key, None)
        current = self._currents.get((namespace_id, workflow_id))
        if current is not None and current.run_id == run_id:
            del self._currents[(namespace_id, workflow_id)]
        self.wake_watchers(context.key)


def _unwatch(watchers: dict[RunKey, set[asyncio.Future[None]]], key: RunKey, watcher: asyncio.Future[None]) -> None:
    of_run = watchers.get(key)
    if of_run is not None:
        of_run.discard(watcher)
        if not of_run:
            del watchers[key]


class _StartLock:
    __slots__ = ("_key", "_locks")

    def __init__(self, locks: dict[tuple[str, str], tuple[asyncio.Lock, list[int]]], key: tuple[str, str]) -> None:
        self._locks = locks
        self._key = key

    async def __aenter__(self) -> None:
        lock, users = self._locks.setdefault(self._key, (asyncio.Lock(), [0]))
        users[0] += 1
        try:
            await lock.acquire()
        except BaseException:
            self._left(users)
            raise

    async def __aexit__(self, *_: object) -> None:
        lock, users = self._locks[self._key]
        lock.release()
        self._left(users)

    def _left(self, users: list[int]) -> None:
        users[0] -= 1
        if not users[0]:
            self._locks.pop(self._key, None)


def _speculative(context: RunContext) -> bool:
    state = context.state
    return state is not None and state.run.workflow_task is not None and state.run.workflow_task.speculative


def _current_of(state: State) -> CurrentRun:
    info, run = state.info, state.run
    summary = CurrentSummary(info.start_request_id, info.start_time, info.first_run_id, run.close_time)
    return CurrentRun(info.run_id, run.status, _encode_summary(summary))
