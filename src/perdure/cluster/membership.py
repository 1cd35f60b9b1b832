"""Who is there. Each member keeps a document in the database and rewrites it every second or so, and reads those of the
others. A member is taken for dead when its document has not changed for so many readings: the readers' clocks do not
matter.

Of the own membership, `valid_until` tells how long no other member can have taken this one for dead. A member that has
not reached the database for so long must serve nothing from memory: others may own it by now.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import msgspec

from perdure.clock import SECOND, Clock
from perdure.cluster.ring import Ring
from perdure.persistence.api import ConditionFailed, Document, MetadataStore, NotFound, StoreError

log = logging.getLogger("perdure.cluster")

_KIND = "member"
_PAGE = 1000


class Member(msgspec.Struct, frozen=True, kw_only=True):
    """id: of this start of it. name: of the member, the same at its next start. address: of its internal gRPC.
    started: nanoseconds. leaving: it hands over what it has, and is given nothing any more."""

    id: str
    name: str
    address: str
    services: list[str]
    started: int
    leaving: bool = False


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Member).decode


@dataclass(slots=True)
class _Seen:
    """version: of the document, which every heartbeat changes. still: readings in a row that found it unchanged."""

    member: Member
    version: int
    still: int = 0


def new_member(name: str, address: str, services: Iterable[str], clock: Clock) -> Member:
    return Member(id=str(uuid.uuid4()), name=name, address=address, services=list(services), started=clock.now())


class Membership:
    """heartbeat: nanoseconds between two. dead_after: readings without a change."""

    def __init__(
        self, store: MetadataStore, clock: Clock, me: Member, *, heartbeat: int = SECOND, dead_after: int = 4
    ) -> None:
        self.me = me
        self.valid_until = 0
        self.members: dict[str, Member] = {}  # alive, by id, those that leave too
        self._store = store
        self._clock = clock
        self._heartbeat = heartbeat
        # Less than it takes others to give this one up.
        self._validity = heartbeat * dead_after * 9 // 10
        self._dead_after = dead_after
        self._seen: dict[str, _Seen] = {}
        self._version = 0  # of the own document, 0: there is none
        self._rings: dict[str, Ring] = {}
        self._watchers: list[Callable[[], None]] = []
        self._changed = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()
        self._reading = asyncio.Lock()

    # --- what others ask

    @property
    def valid(self) -> bool:
        return self._clock.now() < self.valid_until

    def ring(self, service: str) -> Ring:
        """Of the members that run the service and do not leave."""
        found = self._rings.get(service)
        if found is None:
            found = self._rings[service] = Ring(
                m.id for m in self.members.values() if service in m.services and not m.leaving
            )
        return found

    def others(self, service: str = "") -> list[Member]:
        """Alive, those that leave too."""
        return [m for m in self.members.values() if m.id != self.me.id and (not service or service in m.services)]

    def watch(self, changed: Callable[[], None]) -> None:
        """Called whenever members or rings may have changed."""
        self._watchers.append(changed)

    async def changed(self, timeout: float) -> None:
        """Waits for the next change, for so many seconds at most."""
        event = self._changed
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await event.wait()

    # --- life

    async def join(self) -> None:
        """Raises StoreError when the database does not answer."""
        # What was under this name or address before is gone, or this one could not have it.
        for document in await self._documents():
            former = _decode(document.blob)
            if former.name == self.me.name or former.address == self.me.address:
                with contextlib.suppress(ConditionFailed, NotFound):
                    await self._store.delete_document(_KIND, document.key, document.version)
        await self._write()
        await self.refresh()
        self._task = asyncio.create_task(self._run())

    async def leave(self) -> None:
        """From now on this member is in no ring. It stays known until `close`."""
        self.me = msgspec.structs.replace(self.me, leaving=True)
        try:
            await self._write()
            await self.refresh()
        except StoreError as e:
            log.warning("others learn only later that %s leaves: %s", self.me.name, e)
            self._publish({**self.members, self.me.id: self.me})

    async def close(self) -> None:
        """Ends the heartbeats, and removes the document if the member has left in order."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        self.valid_until = 0
        if self.me.leaving and self._version:
            with contextlib.suppress(StoreError):
                await self._store.delete_document(_KIND, self.me.id, self._version)

    async def _run(self) -> None:
        while True:
            await self._clock.sleep(self._heartbeat)
            try:
                await self._write()
                await self.refresh(counts=True)
            except StoreError as e:
                if self.valid:
                    log.warning("no heartbeat: %s", e)
                elif self.members:
                    log.error("no heartbeat for too long: others may have taken what this member had: %s", e)
                    self._publish({})
            except Exception:
                log.exception("no heartbeat")

    async def _write(self) -> None:
        async with self._writing:
            began = self._clock.now()
            late = self._version > 0 and began >= self.valid_until
            try:
                document = await self._store.put_document(_KIND, self.me.id, self._version, _encode(self.me))
            except ConditionFailed:
                await self._return()
                return
            self._version = document.version
            if late:
                # Others may have given this member up and have what it had: it takes nothing for its own before the
                # next reading.
                self._publish({})
            self.valid_until = began + self._validity

    async def _return(self) -> None:
        """Others took this member for dead, or an earlier heartbeat of its was written although it did not seem so."""
        began = self._clock.now()
        try:
            self._version = (await self._store.get_document(_KIND, self.me.id)).version
        except NotFound:
            log.warning("%s was taken for dead, and comes back", self.me.name)
            self._version = 0
            self.valid_until = 0
            self._publish({})
        document = await self._store.put_document(_KIND, self.me.id, self._version, _encode(self.me))
        self._version = document.version
        self.valid_until = began + self._validity

    # --- reading

    async def _documents(self) -> list[Document]:
        found: list[Document] = []
        page = await self._store.list_documents(_KIND, "", _PAGE)
        while page:
            found += page
            page = await self._store.list_documents(_KIND, page[-1].key, _PAGE) if len(page) == _PAGE else []
        return found

    async def refresh(self, *, counts: bool = False) -> None:
        """Reads all members. counts: as one of the readings that take a silent member for dead."""
        async with self._reading:
            await self._refresh(counts)

    async def _refresh(self, counts: bool) -> None:
        seen: dict[str, _Seen] = {}
        alive: dict[str, Member] = {}
        for document in await self._documents():
            member = _decode(document.blob)
            known = self._seen.get(member.id)
            now = seen[member.id] = _Seen(member, document.version)
            if known is not None and known.version == document.version and member.id != self.me.id:
                now.still = known.still + counts
            if now.still < self._dead_after:
                alive[member.id] = member
            elif counts and now.still % self._dead_after == 0:
                log.warning("%s at %s is taken for dead", member.name, member.address)
                with contextlib.suppress(ConditionFailed, NotFound):
                    await self._store.delete_document(_KIND, member.id, document.version)
        self._seen = seen
        if self.valid:
            alive[self.me.id] = self.me
        else:
            alive.pop(self.me.id, None)
        self._publish(alive)

    def _publish(self, alive: dict[str, Member]) -> None:
        if alive == self.members:
            return
        self.members = alive
        self._rings.clear()
        self._changed.set()
        self._changed = asyncio.Event()
        for watcher in self._watchers:
            watcher()
