"""What the modules of the public API share: the frontend's parts, the shape of a handler, deadlines.

A handler is `async def (frontend, request, context) -> response`, where the response is a message or its serialized
bytes. It raises ServiceError for what the caller should know.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

from google.protobuf.message import Message
from temporalio.api.enums.v1 import NamespaceState

import perdure
from perdure import errors
from perdure.clock import MILLISECOND, SECOND, Clock
from perdure.config.dynamic import DynamicConfig
from perdure.history.api import HistoryClient
from perdure.matching.api import MatchingClient
from perdure.namespaces import Namespace, NamespaceRegistry
from perdure.visibility.api import VisibilityStore

# The Temporal server version whose API this server speaks. Clients read it from GetSystemInfo and GetClusterInfo to
# know which features they may use (the web UI compares it with minimum versions), so it must be one that they know.
# perdure's own version is in GetClusterInfo's version_info.
COMPATIBLE_VERSION = "1.31.2"

# A long poll answers empty this long before its caller's deadline, so that the answer still arrives.
POLL_MARGIN = SECOND
MIN_POLL_TIMEOUT = 2 * SECOND

# Looking a value up in a generated enum costs half a microsecond, so those of hot paths are looked up once.
_REGISTERED = NamespaceState.NAMESPACE_STATE_REGISTERED
_DELETED = NamespaceState.NAMESPACE_STATE_DELETED


class CallContext(Protocol):
    """Of one call: what handlers may ask of grpc.aio's context, or of another gateway's."""

    def time_remaining(self) -> float | None:
        """Seconds until the caller's deadline, None without one."""
        ...


Handler = Callable[["Frontend", Any, CallContext], Awaitable[Message | bytes]]


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """What GetClusterInfo and ListClusters tell. id: a UUID, made when the database was made. address: host:port, set
    when the frontend listens."""

    id: str
    name: str = "active"
    shards: int = 4
    persistence_store: str = "sqlite"
    visibility_store: str = "sqlite"
    address: str = ""
    version: str = perdure.__version__


class Frontend:
    """The public API's parts. internal_errors: how often each method failed unexpectedly."""

    __slots__ = (
        "clock",
        "cluster",
        "config",
        "history",
        "internal_errors",
        "matching",
        "namespaces",
        "visibility",
    )

    def __init__(
        self,
        *,
        history: HistoryClient,
        matching: MatchingClient,
        visibility: VisibilityStore,
        namespaces: NamespaceRegistry,
        clock: Clock,
        config: DynamicConfig,
        cluster: ClusterInfo,
    ) -> None:
        self.history = history
        self.matching = matching
        self.visibility = visibility
        self.namespaces = namespaces
        self.clock = clock
        self.config = config
        self.cluster = cluster
        self.internal_errors: Counter[str] = Counter()

    def namespace(self, name: str) -> Namespace:
        """The namespace of a request, which must not be deleted. Raises INVALID_ARGUMENT, NOT_FOUND,
        FAILED_PRECONDITION."""
        if not name:
            raise errors.invalid_argument("Namespace not set on request.")
        if len(name) > 1000:
            raise errors.invalid_argument("Namespace length exceeds limit.")
        namespace = self.namespaces.by_name(name)
        if namespace.state == _DELETED:
            raise _invalid_state(namespace, _USABLE)
        return namespace

    def namespace_for_start(self, name: str) -> Namespace:
        """As `namespace`, and one in which new workflows may start (a deprecated one refuses)."""
        namespace = self.namespace(name)
        if namespace.state != _REGISTERED:
            raise _invalid_state(namespace, [_REGISTERED])
        return namespace

    def namespace_of_token(self, namespace_id: str, name: str) -> Namespace:
        """The namespace of a task token. name: of the request, "" if it has none."""
        if not namespace_id:
            raise errors.invalid_argument("Namespace not set on request.")
        namespace = self.namespaces.by_id(namespace_id)
        if namespace.state == _DELETED:
            raise _invalid_state(namespace, _USABLE)
        if name and name != namespace.name:
            self.namespace(name)
            raise errors.invalid_argument("Operation requested with a token from a different namespace.")
        return namespace

    def deadline(self, context: CallContext, at_most: int, margin: int = 100 * MILLISECOND) -> int:
        """When to stop waiting: `margin` before the caller does, and after `at_most` nanoseconds."""
        remaining = context.time_remaining()
        if remaining is not None:
            at_most = min(at_most, max(0, int(remaining * SECOND) - margin))
        return self.clock.now() + at_most

    def poll_deadline(self, context: CallContext, at_most: int) -> int | None:
        """As `deadline` for a worker's long poll; None when there is no time left to wait in. Raises when the caller
        set no deadline, or one too near to be meant."""
        remaining = context.time_remaining()
        if remaining is None:
            raise errors.invalid_argument("Context timeout is not set.")
        left = int(remaining * SECOND)
        # The time that the request travelled counts for it.
        if left < MIN_POLL_TIMEOUT - SECOND:
            raise errors.failed_precondition("Context timeout is too short.")
        left = min(left - POLL_MARGIN, at_most)
        return self.clock.now() + left if left > 0 else None


_USABLE = [_REGISTERED, NamespaceState.NAMESPACE_STATE_DEPRECATED]


def _invalid_state(namespace: Namespace, allowed: list[NamespaceState.ValueType]) -> errors.ServiceError:
    return errors.namespace_invalid_state(namespace.name, NamespaceState.ValueType(namespace.state), allowed)
