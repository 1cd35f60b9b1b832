"""One physical task queue: takes tasks, hands them to polls, and keeps what finds none.

A task that is handed out goes through `_hand_out`: history records it as started and makes the response. What comes of
it decides where task and poll go. Whoever took the pair out of the matcher runs it: the caller of `add` itself when a
poll waits (so a sync match costs no further task of the event loop), else a task of its own. The poll only waits for
its future, so a client that goes away does not interrupt history in the middle.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import IntEnum
from itertools import count
from typing import TypeVar

from temporalio.api.enums.v1 import TaskQueueType
from temporalio.api.query.v1 import WorkflowQuery
from temporalio.api.taskqueue.v1 import PollerScalingDecision

from perdure.clock import MILLISECOND, SECOND, Clock
from perdure.config.dynamic import DynamicConfig, Key
from perdure.errors import Code, NotOwned, ServiceError, internal, unavailable
from perdure.history.api import HistoryClient, Poller
from perdure.matching import settings
from perdure.matching.api import NoPoller, TaskRef
from perdure.matching.backlog import Backlog, Spawn
from perdure.matching.forwarder import Forwarder
from perdure.matching.matcher import DEFAULT_PRIORITY, Entry, Matcher
from perdure.matching.pollers import Poll, PollerHistory
from perdure.matching.rates import RateWindow, TokenBucket
from perdure.persistence.api import TaskQueueKey, TaskQueueStore
from perdure.wire import bytes_field, int_field

log = logging.getLogger(__name__)

T = TypeVar("T")

WORKFLOW = TaskQueueType.TASK_QUEUE_TYPE_WORKFLOW

_RETRY_FIRST = 50 * MILLISECOND
_RETRY_LAST = 5 * SECOND
_FORWARD_WAIT = 60 * SECOND
_LOAD_RETRY = SECOND
_STICKY_LIMIT = 10_000

_BACKLOG_COUNT_HINT = 7  # of PollWorkflowTaskQueueResponse
# A worker that is told of a sticky backlog sends all its polls there until it is told otherwise. Replies overtake each
# other: were a short backlog told of, the last word could be a number no longer true, and the normal queue would
# have no poll until the sticky ones end. A long one is followed by enough replies without it.
_STICKY_HINT_FROM = 64


def _scaling_field(number: int, delta: int) -> bytes:
    return bytes_field(number, PollerScalingDecision(poll_request_delta_suggestion=delta).SerializeToString())


class Outcome(IntEnum):
    """What came of handing a task out. RETRY: it is not started and must not be lost. DROP: history has no use for it
    any more."""

    DONE = 1
    DROP = 2
    RETRY = 3


@dataclass(slots=True)
class Counters:
    """Since the engine started."""

    sync_matched: int = 0
    spooled: int = 0
    dispatched: int = 0
    dropped: int = 0
    retried: int = 0
    errors: int = 0


@dataclass(slots=True)
class Env:
    """What all partitions of an engine share."""

    store: TaskQueueStore
    history: HistoryClient
    clock: Clock
    config: DynamicConfig
    spawn: Spawn
    instance: str  # unique; makes request ids
    counters: Counters


_request_numbers = count(1)


class PriorityRates:
    """Tasks that came and went, of one priority key."""

    __slots__ = ("added", "dispatched")

    def __init__(self, now: int) -> None:
        self.added = RateWindow(now)
        self.dispatched = RateWindow(now)


class Partition:
    """sticky: its tasks wait in memory only. They are lost with the process, and nothing is lost with them: history
    times a sticky workflow task out by itself and schedules it on the normal task queue.

    read_partitions: of the whole task queue, which share its rate limit. pass_on: takes the tasks that wait in memory
    only when the queue goes to another process; None: they are lost. normal_name: of a sticky queue's worker, known
    once it was polled."""

    def __init__(
        self,
        env: Env,
        key: TaskQueueKey,
        namespace: str,
        base_name: str,
        *,
        sticky: bool,
        forwarder: Forwarder | None = None,
        read_partitions: int = 1,
    ) -> None:
        self.key = key
        self.base_name = base_name
        self.namespace = namespace
        self.sticky = sticky
        self._forwarder = forwarder
        self._read_partitions = read_partitions
        self._env = env
        self._clock = env.clock
        self._history = env.history
        self._record: Callable[[TaskRef, Poller], Awaitable[bytes]]
        if key.type == WORKFLOW:
            self._record = env.history.record_workflow_task_started
            scaling_field = 16
        else:
            self._record = env.history.record_activity_task_started
            scaling_field = 18
        self._scale_up = _scaling_field(scaling_field, 1)
        self._scale_down = _scaling_field(scaling_field, -1)
        now = env.clock.now()
        self.matcher = Matcher(env.clock, self._matched, self._expired, self._offered)
        self.backlog: Backlog | None = None
        if not sticky:
            self.backlog = Backlog(
                env.store,
                key,
                env.clock,
                env.spawn,
                self.matcher.add_task,
                self._offered,
                read_batch=self._get(settings.GET_TASKS_BATCH_SIZE),
                reload_at=self._get(settings.GET_TASKS_RELOAD_AT),
                append_batch=self._get(settings.MAX_TASK_BATCH_SIZE),
                delete_batch=self._get(settings.MAX_TASK_DELETE_BATCH_SIZE),
            )
        self.pollers = PollerHistory()
        self.rates: dict[int, PriorityRates] = {}
        self.open_polls = 0
        self.last_poll = 0
        self.last_active = now
        self.worker_rate: float | None = None
        self.pass_on: Callable[[TaskRef], None] | None = None
        self.normal_name = ""
        self._in_memory = 0  # unfinished tasks of a sticky queue
        self._dispatching = 0
        self._scaling = TokenBucket(self._get(settings.POLLER_SCALING_DECISIONS_PER_SECOND))
        self._forwarding_poll: asyncio.Task[bytes] | None = None
        self._forwarding_tasks: asyncio.Task[None] | None = None
        self._load_task: asyncio.Task[None] | None = None
        self.closed = False

    def _get(self, key: Key[T]) -> T:
        return self._env.config.get(key, self.namespace, self.base_name)

    # --- tasks

    async def add(self, task: TaskRef) -> None:
        """See `MatchingClient.add_workflow_task`."""
        now = self._clock.now()
        if self.closed:
            raise NoPoller if self.sticky else NotOwned(f"task queue {self.key.name}")
        entry = Entry(task)
        self.last_active = now
        self._rates(entry.priority, now).added.add(now)
        backlog = self.backlog
        if backlog is not None and not backlog.ready:
            await backlog.load()
        outcome = await self._sync_match(entry, now)
        if outcome is not None and outcome is not Outcome.RETRY:
            self._env.counters.sync_matched += 1
            return
        if backlog is not None:
            await backlog.append(entry)
        else:
            if self.closed or self._in_memory >= _STICKY_LIMIT:
                raise NoPoller
            self._in_memory += 1
            self._offer(entry)
        self._env.counters.spooled += 1

    async def offer(self, task: TaskRef, deadline: int) -> bool:
        """A task of a child partition; see `Forwarder.offer`."""
        now = self._clock.now()
        self.last_active = now
        if self.closed:
            return False
        entry = Entry(task)
        # The child may give its offer up, but not between a worker and the record that it has the task.
        matching = self._sync_match(entry, now, forward=not deadline)
        outcome = await (asyncio.shield(self._env.spawn(matching)) if self.matcher.polls else matching)
        if outcome is not None:
            return outcome is not Outcome.RETRY
        if self.closed or deadline <= now:
            return False
        done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        entry.done = done

        def expired() -> None:
            if not done.done() and entry.queued:
                done.set_result(False)

        timer = self._clock.call_at(deadline, expired)
        self._offer(entry)
        try:
            return await done
        finally:
            timer.cancel()
            self.matcher.drop_task(entry)

    async def _sync_match(self, entry: Entry, now: int, forward: bool = True) -> Outcome | None:
        """None: there was no poller for it."""
        if not self._backlog_negligible(now):
            return None
        matcher = self.matcher
        poll = matcher.take_poll(now) if matcher.polls and matcher.may_dispatch(now) else None
        if poll is None:
            if forward and self._forwarder is not None and not matcher.polls and await self._offer_up(entry.task, 0):
                return Outcome.DONE
            return None
        matcher.limit.take()
        self._dispatching += 1
        try:
            outcome, _ = await self._hand_out(entry, poll)
        finally:
            self._dispatching -= 1
        return outcome

    async def _offer_up(self, task: TaskRef, deadline: int) -> bool:
        assert self._forwarder is not None
        try:
            return await self._forwarder.offer(task, deadline)
        except Exception as e:
            log.warning("task of %s/%s not forwarded by %s: %r", task.workflow_id, task.run_id, self.key.name, e)
            return False

    def query(
        self, task: TaskRef, query: WorkflowQuery, query_token: bytes, answer: asyncio.Future[bytes]
    ) -> Callable[[], None]:
        """Offers a direct query. `answer` gets an exception when it cannot be asked. Returns what takes it back."""
        self.last_active = self._clock.now()
        entry = Entry(task, query=query, query_token=query_token, done=answer)
        self._rates(entry.priority, self.last_active).added.add(self.last_active)
        self._offer(entry)
        return lambda: self.matcher.drop_task(entry)

    def _backlog_negligible(self, now: int) -> bool:
        """Older tasks that wait go first, unless they wait for a moment only."""
        backlog = self.backlog
        if backlog is None:
            return not len(self.matcher)
        if backlog.count <= 0:
            return True
        oldest = backlog.oldest()
        return oldest is None or now - oldest < self._get(settings.BACKLOG_NEGLIGIBLE_AGE)

    def _offer(self, entry: Entry) -> None:
        self.matcher.add_task(entry)
        self._offered()

    def _offered(self) -> None:
        self.matcher.match()
        if self._forwarder is not None:
            self._forward_tasks()

    def _expired(self, entry: Entry) -> None:
        self._settle(entry, Outcome.DROP, None)

    # --- polls

    async def poll(self, poller: Poller, deadline: int, rate: float | None) -> bytes:
        """See `MatchingClient.poll_workflow_task_queue`. rate: tasks per second that the worker allows the whole task
        queue, None for no limit."""
        now = self._clock.now()
        if self.closed or deadline <= now:
            return b""
        poll = Poll(poller, now, deadline, rate)
        matcher = self.matcher
        self.last_active = self.last_poll = now
        self.normal_name = poller.task_queue
        self.pollers.record(poller, rate, now)
        if rate != self.worker_rate:
            self.worker_rate = rate
            matcher.set_rate(None if rate is None else rate / self._read_partitions, now)
        if self.backlog is not None and not self.backlog.ready:
            self.load_soon()
        matcher.add_poll(poll)
        if len(matcher):
            matcher.match()
        if poll in matcher.polls:
            if self._forwarder is not None:
                self._forward_polls()
            if poll.forwarding is None:
                self._arm(poll)
        self.open_polls += 1
        try:
            return await poll.future
        finally:
            self.open_polls -= 1
            poll.disarm()
            matcher.remove_poll(poll)
            if poll.forwarding is not None:
                poll.forwarding.cancel()
            now = self._clock.now()
            self.last_active = self.last_poll = now
            self.pollers.touch(poller, now)
            if self._forwarder is not None:
                self._forward_tasks()

    def _arm(self, poll: Poll) -> None:
        def expired() -> None:
            poll.answer(b"")

        poll.arm(self._clock, expired)

    def _return_poll(self, poll: Poll) -> None:
        """It was taken in vain and goes on waiting."""
        if poll.future.done():
            return
        if self.closed or self._clock.now() >= poll.deadline:
            poll.answer(b"")
            return
        self.matcher.return_poll(poll)
        self._arm(poll)
        self.matcher.match()
        if self._forwarder is not None:
            self._forward_polls()

    def cancel_polls(self, worker_instance_key: str) -> None:
        """Of a worker that shuts down. A poll that already has a task gets it still."""
        self.pollers.forget_worker(worker_instance_key)
        for poll in list(self.matcher.polls):
            if poll.poller.worker_instance_key == worker_instance_key:
                poll.disarm()
                self.matcher.remove_poll(poll)
                poll.answer(b"")

    def polled_since(self, earliest: int) -> bool:
        return self.open_polls > 0 or self.last_poll >= earliest

    # --- handing out

    def _matched(self, entry: Entry, poll: Poll) -> None:
        self._dispatching += 1
        self._env.spawn(self._dispatch(entry, poll))

    async def _dispatch(self, entry: Entry, poll: Poll) -> None:
        outcome, error = Outcome.RETRY, None
        try:
            if poll.future.done() or entry.dead:
                # One of them went away before history was asked.
                self.matcher.limit.give_back()
                self._return_poll(poll)
                if not entry.dead:
                    self.matcher.add_task(entry)
                outcome = None
                return
            outcome, error = await self._hand_out(entry, poll)
            backlog = self.backlog
            if outcome is Outcome.RETRY and backlog is not None and entry.level and backlog.is_stuck_at(entry.level):
                # Its place goes to a copy at the end.
                await backlog.append(Entry(entry.task))
                outcome = Outcome.DROP
        except ServiceError:
            outcome = Outcome.RETRY
        finally:
            self._dispatching -= 1
            if outcome is not None:
                self._settle(entry, outcome, error)
            self._offered()

    async def _hand_out(self, entry: Entry, poll: Poll) -> tuple[Outcome, ServiceError | None]:
        """Both were taken out of the matcher. Afterwards the poll is answered or waits again; the task is the
        caller's affair, as the outcome says."""
        task, poller = entry.task, poll.poller
        poller.request_id = entry.request_id or f"{self._env.instance}-{next(_request_numbers)}"
        counters = self._env.counters
        try:
            if entry.query is None:
                response = await self._record(task, poller)
            else:
                response = await self._history.make_query_task(task, poller, entry.query, entry.query_token)
        except ServiceError as e:
            error = e
            if e.code is Code.NOT_FOUND or e.code is Code.ALREADY_EXISTS:
                counters.dropped += 1
                outcome = Outcome.DROP
            else:
                log.info("task of %s/%s event %d put back: %s", *_ids(task), e)
                counters.retried += 1
                outcome = Outcome.RETRY
        except asyncio.CancelledError:
            self._return_poll(poll)
            raise
        except Exception:
            log.exception("task of %s/%s event %d put back", *_ids(task))
            counters.errors += 1
            counters.retried += 1
            error, outcome = internal("the task could not be handed out"), Outcome.RETRY
        else:
            counters.dispatched += 1
            now = self._clock.now()
            self._rates(entry.priority, now).dispatched.add(now)
            if not poll.answer(response + self._suffix(poll, now, entry.level > 0)):
                log.debug("poll gone while task of %s/%s event %d was started: left to its timeout", *_ids(task))
            return Outcome.DONE, None
        if outcome is Outcome.RETRY:
            entry.attempts += 1
            entry.request_id = poller.request_id
        self.matcher.limit.give_back()
        self._return_poll(poll)
        return outcome, error

    def _settle(self, entry: Entry, outcome: Outcome, error: ServiceError | None) -> None:
        """Where a task goes that came from the matcher."""
        done = entry.done
        if entry.query is not None:
            if outcome is not Outcome.DONE and done is not None and not done.done():
                done.set_exception(error or unavailable("the query could not be handed out"))
        elif done is not None:
            if not done.done():
                done.set_result(outcome is not Outcome.RETRY)  # type: ignore[arg-type]
        elif outcome is Outcome.RETRY:
            if not self.closed:
                self.matcher.add_task_at(entry, self._clock.now() + _retry_delay(entry.attempts))
            elif self.pass_on is not None and self.backlog is None:
                self.pass_on(entry.task)
        elif entry.level and self.backlog is not None:
            self.backlog.finish(entry)
        else:
            self._in_memory -= 1

    def _suffix(self, poll: Poll, now: int, from_backlog: bool) -> bytes:
        """What matching adds to the response, as protobuf fields."""
        backlog = self.backlog
        waiting = self._in_memory if backlog is None else backlog.count
        hinted = self.key.type == WORKFLOW and waiting >= (_STICKY_HINT_FROM if backlog is None else 1)
        hint = int_field(_BACKLOG_COUNT_HINT, waiting) if hinted else b""
        if not from_backlog and now - poll.arrived >= self._get(settings.POLLER_SCALING_WAIT_TIME):
            return hint + self._scale_down
        return hint + self._scale_up if self._should_scale_up(now, waiting) else hint

    def _should_scale_up(self, now: int, waiting: int) -> bool:
        scaling = self._scaling
        scaling.set_rate(self._get(settings.POLLER_SCALING_DECISIONS_PER_SECOND) * max(1, len(self.pollers)), now)
        if scaling.delay(now):
            return False
        scaling.take()
        if self.rate_limited(now):
            return False
        if waiting > 0:
            oldest = self.oldest(now)
            if oldest is not None and now - oldest > self._get(settings.POLLER_SCALING_BACKLOG_AGE):
                return True
        if self._forwarder is not None:
            return False
        added = dispatched = 0
        for rates in self.rates.values():
            added += rates.added.total
            dispatched += rates.dispatched.total
        return dispatched > 0 and added / dispatched > self._get(settings.POLLER_SCALING_ADD_TO_DISPATCH)

    # --- forwarding

    def _forward_tasks(self) -> None:
        """Tasks that find no poller here go to the parent, one at a time."""
        if self._forwarding_tasks is None and len(self.matcher) and not self.matcher.polls and not self.closed:
            self._forwarding_tasks = self._env.spawn(self._forward_tasks_up())

    async def _forward_tasks_up(self) -> None:
        entry: Entry | None = None
        try:
            while not self.matcher.polls and not self.closed:
                now = self._clock.now()
                entry = self.matcher.take_task(now)
                if entry is None:
                    return
                handed_out = await self._offer_up(entry.task, now + _FORWARD_WAIT)
                taken, entry = entry, None
                self._settle(taken, Outcome.DONE if handed_out else Outcome.RETRY, None)
        finally:
            self._forwarding_tasks = None
            if entry is not None:
                self._settle(entry, Outcome.RETRY, None)

    def _forward_polls(self) -> None:
        """Polls that find no task here wait at the parent, one at a time."""
        if self._forwarding_poll is not None or self.closed:
            return
        poll = self.matcher.take_poll(self._clock.now())
        if poll is None:
            return
        assert self._forwarder is not None
        poll.forwarding = asyncio.ensure_future(self._forwarder.poll(poll.poller, poll.deadline, poll.rate))
        self._forwarding_poll = poll.forwarding
        self._env.spawn(self._forward_poll(poll, poll.forwarding))

    async def _forward_poll(self, poll: Poll, forwarding: asyncio.Task[bytes]) -> None:
        response = b""
        try:
            response = await forwarding
        except asyncio.CancelledError:
            # The poll's client went away, or this partition closes.
            forwarding.cancel()
        except Exception as e:
            log.warning("poll not forwarded by %s: %r", self.key.name, e)
        finally:
            poll.forwarding = None
            self._forwarding_poll = None
            if not poll.answer(response) and response:
                log.debug("poll gone while a task was started by the parent of %s: left to its timeout", self.key.name)
            if not self.closed:
                self._forward_polls()

    # --- for the description

    def oldest(self, now: int) -> int | None:
        """When the oldest waiting task was created."""
        if self.backlog is not None:
            return self.backlog.oldest()
        first = self.matcher.first_task(now)
        return first.task.created if first is not None else None

    def rate_limited(self, now: int) -> bool:
        """Whether the rate limit held tasks back lately."""
        at = self.matcher.limited_at
        return at > 0 and now - at < 30 * SECOND

    def waiting_by_priority(self) -> dict[int, int]:
        if self.backlog is not None:
            return self.backlog.count_by_priority()
        return {DEFAULT_PRIORITY: self._in_memory} if self._in_memory else {}

    def _rates(self, priority: int, now: int) -> PriorityRates:
        rates = self.rates.get(priority)
        if rates is None:
            rates = self.rates[priority] = PriorityRates(now)
        return rates

    # --- life

    def load_soon(self) -> None:
        """Loads the backlog in the background, until it succeeds."""
        if self._load_task is None:
            self._load_task = self._env.spawn(self._load())

    async def _load(self) -> None:
        backlog = self.backlog
        try:
            while backlog is not None and not backlog.ready and not self.closed:
                try:
                    await backlog.load()
                except ServiceError as e:
                    log.warning("%s", e.message)
                    await self._clock.sleep(_LOAD_RETRY)
        finally:
            self._load_task = None

    def idle_since(self, earliest: int) -> bool:
        """Nobody polled or added since, and nothing is under way."""
        return (
            self.last_active < earliest
            and not self.open_polls
            and not self._dispatching
            and self._forwarding_tasks is None
            and (self.backlog is None or self.backlog.idle)
        )

    def stop(self) -> None:
        """Polls answer empty, nothing more is handed out; what is being handed out may still finish."""
        self.closed = True
        for entry in self.matcher.close():
            done = entry.done
            if done is None:
                if self.pass_on is not None and self.backlog is None:
                    self.pass_on(entry.task)
                continue
            if done.done():
                continue
            if entry.query is not None:
                done.set_exception(NoPoller() if self.sticky else NotOwned(f"task queue {self.key.name}"))
            else:
                done.set_result(False)  # type: ignore[arg-type]
        # What waits at the parent, which may be with another process.
        for waiting in (self._load_task, self._forwarding_tasks, self._forwarding_poll):
            if waiting is not None:
                waiting.cancel()
        if self.backlog is not None:
            self.backlog.stop_reading()

    async def close(self) -> None:
        """The tasks stay in the backlog; its state is written."""
        self.stop()
        if self.backlog is not None:
            await self.backlog.close()


def _ids(task: TaskRef) -> tuple[str, str, int]:
    return task.workflow_id, task.run_id, task.scheduled_event_id


def _retry_delay(attempts: int) -> int:
    return min(_RETRY_LAST, _RETRY_FIRST << min(max(0, attempts - 1), 10))
