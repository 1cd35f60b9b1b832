"""Namespaces: the tenants of a server, their settings, and the registry that every request asks.

A namespace is a document of kind "namespace" in the metadata store, under its name. The registry keeps all of them in
memory, so that reading needs no await; writing is durable when it returns, and safe against other writers.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterable

import msgspec
from temporalio.api.enums.v1 import NamespaceState

from perdure import errors
from perdure.clock import DAY, HOUR, MILLISECOND, SECOND, Clock
from perdure.persistence.api import ConditionFailed, Document, MetadataStore, NotFound, StoreError

log = logging.getLogger("perdure.namespaces")

SYSTEM_NAMESPACE = "temporal-system"
# The same in every Temporal cluster.
SYSTEM_NAMESPACE_ID = "32049b68-7872-4094-8e63-d0dd59896a83"
DEFAULT_RETENTION = 3 * DAY
DEV_RETENTION = DAY
SYSTEM_RETENTION = 7 * DAY
MIN_RETENTION = HOUR

_KIND = "namespace"
_REFRESH = 2 * SECOND
_LOOK_PAUSE = 100 * MILLISECOND
_PAGE = 1000


class BadBinary(msgspec.Struct, frozen=True):
    """A worker build that must not get workflow tasks any more. created: nanoseconds."""

    reason: str = ""
    operator: str = ""
    created: int = 0


class Namespace(msgspec.Struct, frozen=True, kw_only=True):
    """id: a UUID, never reused. state: NamespaceState. retention: nanoseconds that a closed run is kept. data: the
    user's own. search_attributes: custom name to IndexedValueType. config_version: grows with each change."""

    id: str
    name: str
    description: str = ""
    owner_email: str = ""
    state: int = NamespaceState.NAMESPACE_STATE_REGISTERED
    data: dict[str, str] = {}
    retention: int = DEFAULT_RETENTION
    search_attributes: dict[str, int] = {}
    bad_binaries: dict[str, BadBinary] = {}
    created: int = 0
    config_version: int = 0


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Namespace).decode


class NamespaceRegistry:
    """All namespaces of the store, in memory."""

    __slots__ = ("_by_id", "_by_name", "_clock", "_looked", "_looking", "_shared", "_store", "_versions")

    def __init__(self, store: MetadataStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._by_name: dict[str, Namespace] = {}
        self._by_id: dict[str, Namespace] = {}
        self._versions: dict[str, int] = {}  # of the document, by name
        self._shared = False
        self._looking: asyncio.Future[None] | None = None
        self._looked = 0

    async def load(self) -> None:
        """Reads all namespaces anew. At start, and to see what other processes changed."""
        known = set(self._by_name)
        documents: list[Document] = []
        page = await self._store.list_documents(_KIND, "", _PAGE)
        while page:
            documents += page
            page = await self._store.list_documents(_KIND, page[-1].key, _PAGE) if len(page) == _PAGE else []
        found = {d.key: d for d in documents}
        for name in known - found.keys():  # what was registered meanwhile is not among those that were read
            self._forget(name)
        for document in documents:
            self._remember(document)

    async def follow(self) -> None:
        """For ever: sees what other processes change, within seconds. Run it as a task."""
        self._shared = True
        while True:
            await self._clock.sleep(_REFRESH)
            try:
                await self.load()
            except StoreError as e:
                log.warning("namespaces not read: %s", e)

    async def missed(self) -> bool:
        """A namespace was not found: looks whether another process has made it just now. Whether it is worth to try
        again."""
        if not self._shared:
            return False
        if self._looking is None:
            self._looking = asyncio.ensure_future(self._look())
        await asyncio.shield(self._looking)
        return True

    async def _look(self) -> None:
        """All who miss something within a while look together."""
        try:
            await self._clock.sleep(self._looked + _LOOK_PAUSE - self._clock.now())
            self._looked = self._clock.now()
            await self.load()
        except StoreError as e:
            log.warning("namespaces not read: %s", e)
        finally:
            self._looking = None

    async def ensure(
        self, names: Iterable[str], retention: int, search_attributes: dict[str, int] | None = None
    ) -> None:
        """For a server's start: creates the system namespace and those named that are missing, and adds missing search
        attributes to the named ones."""
        if SYSTEM_NAMESPACE not in self._by_name:
            await self._create_if_missing(
                Namespace(
                    id=SYSTEM_NAMESPACE_ID,
                    name=SYSTEM_NAMESPACE,
                    description="System workflows of the server",
                    retention=SYSTEM_RETENTION,
                    created=self._clock.now(),
                )
            )
        for name in names:
            if name not in self._by_name:
                await self._create_if_missing(
                    Namespace(id=str(uuid.uuid4()), name=name, retention=retention, created=self._clock.now())
                )
            if search_attributes:
                await self.add_search_attributes(name, search_attributes)

    def by_name(self, name: str) -> Namespace:
        """Raises ServiceError NOT_FOUND."""
        found = self._by_name.get(name)
        if found is None:
            raise errors.namespace_not_found(name)
        return found

    def by_id(self, namespace_id: str) -> Namespace:
        """Raises ServiceError NOT_FOUND."""
        found = self._by_id.get(namespace_id)
        if found is None:
            raise errors.namespace_not_found(namespace_id)
        return found

    def names(self) -> list[str]:
        """Sorted."""
        return sorted(self._by_name)

    async def register(self, namespace: Namespace) -> None:
        """Raises ServiceError ALREADY_EXISTS when the name is taken."""
        try:
            self._remember(await self._store.put_document(_KIND, namespace.name, 0, _encode(namespace)))
        except ConditionFailed:
            await self._reload(namespace.name)
            raise errors.namespace_already_exists(namespace.name) from None

    async def update(self, name: str, change: Callable[[Namespace], Namespace]) -> Namespace:
        """Writes what `change` makes of the namespace, and returns it. `change` is called again when another writer was
        faster; it may raise, and returning its argument writes nothing. Raises ServiceError NOT_FOUND."""
        while True:
            current = self.by_name(name)
            changed = change(current)
            if changed is current or changed == current:
                return current
            changed = msgspec.structs.replace(changed, config_version=current.config_version + 1)
            try:
                document = await self._store.put_document(_KIND, name, self._versions[name], _encode(changed))
            except ConditionFailed:
                await self._reload(name)
                continue
            self._remember(document)
            return changed

    async def add_search_attributes(self, name: str, wanted: dict[str, int]) -> None:
        """Those that the namespace has already keep their type. Raises ServiceError NOT_FOUND."""
        await self.update(
            name, lambda n: msgspec.structs.replace(n, search_attributes={**wanted, **n.search_attributes})
        )

    async def delete(self, name: str) -> None:
        """Removes the record only. Raises ServiceError NOT_FOUND."""
        while True:
            self.by_name(name)
            try:
                await self._store.delete_document(_KIND, name, self._versions[name])
            except ConditionFailed:
                await self._reload(name)
                continue
            except NotFound:
                pass
            self._forget(name)
            return

    async def _create_if_missing(self, namespace: Namespace) -> None:
        try:
            self._remember(await self._store.put_document(_KIND, namespace.name, 0, _encode(namespace)))
        except ConditionFailed:
            await self._reload(namespace.name)

    async def _reload(self, name: str) -> None:
        try:
            self._remember(await self._store.get_document(_KIND, name))
        except NotFound:
            self._forget(name)

    def _remember(self, document: Document) -> None:
        namespace = _decode(document.blob)
        known = self._by_name.get(namespace.name)
        if known is not None:
            if known.id != namespace.id:
                self._by_id.pop(known.id, None)
            elif document.version < self._versions[namespace.name]:
                return  # answers of the store may arrive out of order
        self._by_name[namespace.name] = namespace
        self._by_id[namespace.id] = namespace
        self._versions[namespace.name] = document.version

    def _forget(self, name: str) -> None:
        namespace = self._by_name.pop(name, None)
        if namespace is not None:
            self._by_id.pop(namespace.id, None)
        self._versions.pop(name, None)
