"""Namespaces over the API: register, describe, list, update, deprecate."""

from __future__ import annotations

import uuid
from typing import Any

import msgspec
from google.protobuf.duration_pb2 import Duration
from temporalio.api.enums.v1 import ArchivalState, NamespaceState, ReplicationState
from temporalio.api.namespace.v1 import BadBinaries, BadBinaryInfo, NamespaceConfig, NamespaceInfo
from temporalio.api.replication.v1 import ClusterReplicationConfig, NamespaceReplicationConfig
from temporalio.api.workflowservice.v1 import (
    DeprecateNamespaceRequest,
    DeprecateNamespaceResponse,
    DescribeNamespaceRequest,
    DescribeNamespaceResponse,
    ListNamespacesRequest,
    ListNamespacesResponse,
    RegisterNamespaceRequest,
    RegisterNamespaceResponse,
    UpdateNamespaceRequest,
    UpdateNamespaceResponse,
)

from perdure.clock import from_duration, to_duration, to_timestamp
from perdure.config.dynamic import (
    BLOB_SIZE_ERROR,
    CANCEL_POLLS_ON_SHUTDOWN,
    ENABLE_EAGER_START,
    MAX_BAD_BINARIES,
    MAX_ID_LENGTH,
    MEMO_SIZE_ERROR,
)
from perdure.errors import ServiceError, invalid_argument, namespace_already_exists
from perdure.frontend import validation
from perdure.frontend.rpc import CallContext, Frontend, Handler
from perdure.namespaces import MIN_RETENTION, SYSTEM_NAMESPACE, BadBinary, Namespace

_LIST_PAGE = 100
_MAX_LIST_PAGE = 1000


async def register_namespace(
    frontend: Frontend, request: RegisterNamespaceRequest, context: CallContext
) -> RegisterNamespaceResponse:
    name = request.namespace
    if not name:
        raise invalid_argument("Namespace not set on request.")
    validation.check_id(name, frontend.config.get(MAX_ID_LENGTH), "Namespace")
    if request.is_global_namespace:
        raise invalid_argument("Cannot register global namespace when not enabled")
    _check_clusters(frontend, request.active_cluster_name, [c.cluster_name for c in request.clusters])
    if ArchivalState.ARCHIVAL_STATE_ENABLED in (request.history_archival_state, request.visibility_archival_state):
        raise invalid_argument("Cluster is not configured for archival.")
    retention = _retention(request.workflow_execution_retention_period)
    if name in frontend.namespaces.names():
        raise namespace_already_exists(name)
    await frontend.namespaces.register(
        Namespace(
            id=str(uuid.uuid4()),
            name=name,
            description=request.description,
            owner_email=request.owner_email,
            data=dict(request.data),
            retention=retention,
            created=frontend.clock.now(),
        )
    )
    return RegisterNamespaceResponse()


async def describe_namespace(
    frontend: Frontend, request: DescribeNamespaceRequest, context: CallContext
) -> DescribeNamespaceResponse:
    if request.id and request.namespace:
        raise invalid_argument("GetNamespace operation failed. Both ID and Name specified in request.")
    limit = frontend.config.get(MAX_ID_LENGTH)
    if request.id:
        validation.check_id(request.id, limit, "Namespace ID")
        namespace = frontend.namespaces.by_id(request.id)
    elif request.namespace:
        validation.check_id(request.namespace, limit, "Namespace")
        namespace = frontend.namespaces.by_name(request.namespace)
    else:
        raise invalid_argument("Namespace not set on request.")
    return DescribeNamespaceResponse(**_described(frontend, namespace))


async def list_namespaces(
    frontend: Frontend, request: ListNamespacesRequest, context: CallContext
) -> ListNamespacesResponse:
    try:
        after = request.next_page_token.decode()
    except UnicodeDecodeError:
        raise invalid_argument("Invalid NextPageToken.") from None
    size = min(request.page_size, _MAX_LIST_PAGE) if request.page_size > 0 else _LIST_PAGE
    response = ListNamespacesResponse()
    for name in frontend.namespaces.names():
        namespace = frontend.namespaces.by_name(name)
        deleted = namespace.state == NamespaceState.NAMESPACE_STATE_DELETED
        if name <= after or (deleted and not request.namespace_filter.include_deleted):
            continue
        if len(response.namespaces) == size:
            response.next_page_token = response.namespaces[-1].namespace_info.name.encode()
            break
        response.namespaces.append(DescribeNamespaceResponse(**_described(frontend, namespace)))
    return response


async def update_namespace(
    frontend: Frontend, request: UpdateNamespaceRequest, context: CallContext
) -> UpdateNamespaceResponse:
    name = frontend.namespace(request.namespace).name
    if request.promote_namespace:
        raise invalid_argument(
            "global namespace is not enabled on this cluster, cannot update global namespace or promote local "
            f"namespace: {name}"
        )
    replication = request.replication_config
    _check_clusters(frontend, replication.active_cluster_name, [c.cluster_name for c in replication.clusters])
    config = request.config
    if ArchivalState.ARCHIVAL_STATE_ENABLED in (config.history_archival_state, config.visibility_archival_state):
        raise invalid_argument("Cluster is not configured for archival.")
    if config.custom_search_attribute_aliases:
        raise invalid_argument("Search attributes are added and removed by the operator service.")
    namespace = await frontend.namespaces.update(name, lambda current: _updated(frontend, request, current))
    return UpdateNamespaceResponse(**_described(frontend, namespace))


async def deprecate_namespace(
    frontend: Frontend, request: DeprecateNamespaceRequest, context: CallContext
) -> DeprecateNamespaceResponse:
    namespace = frontend.namespace(request.namespace)
    if namespace.name == SYSTEM_NAMESPACE:
        raise invalid_argument("Invalid namespace state update.")
    await frontend.namespaces.update(
        namespace.name,
        lambda n: msgspec.structs.replace(n, state=int(NamespaceState.NAMESPACE_STATE_DEPRECATED)),
    )
    return DeprecateNamespaceResponse()


def _updated(frontend: Frontend, request: UpdateNamespaceRequest, current: Namespace) -> Namespace:
    """`current` with what the request changes: what it leaves empty stays."""
    changes: dict[str, Any] = {}
    info = request.update_info
    if info.description:
        changes["description"] = info.description
    if info.owner_email:
        changes["owner_email"] = info.owner_email
    if info.data:
        changes["data"] = {**current.data, **info.data}
    if info.state and info.state != current.state:
        changes["state"] = _next_state(current, info.state)
    if request.config.HasField("workflow_execution_retention_ttl"):
        changes["retention"] = _retention(request.config.workflow_execution_retention_ttl)
    binaries = dict(current.bad_binaries)
    for checksum, binary in request.config.bad_binaries.binaries.items():
        binaries[checksum] = BadBinary(binary.reason, binary.operator, frontend.clock.now())
    if len(binaries) > (most := frontend.config.get(MAX_BAD_BINARIES, current.name)):
        raise invalid_argument(f"Total resetBinaries cannot exceed the max limit: {most}")
    if request.delete_bad_binary:
        if request.delete_bad_binary not in binaries:
            raise invalid_argument(f"Bad binary checksum {request.delete_bad_binary} doesn't exists.")
        del binaries[request.delete_bad_binary]
    if binaries != current.bad_binaries:
        changes["bad_binaries"] = binaries
    return msgspec.structs.replace(current, **changes) if changes else current


def _next_state(current: Namespace, state: int) -> int:
    registered = NamespaceState.NAMESPACE_STATE_REGISTERED
    deprecated = NamespaceState.NAMESPACE_STATE_DEPRECATED
    deleted = NamespaceState.NAMESPACE_STATE_DELETED
    allowed = {registered: (deprecated, deleted), deprecated: (deleted,)}
    if current.name == SYSTEM_NAMESPACE or state not in allowed.get(NamespaceState.ValueType(current.state), ()):
        raise invalid_argument("Invalid namespace state update.")
    return state


def _retention(duration: Duration) -> int:
    try:
        validation.check_duration(duration, "retention")
    except ServiceError:
        raise _invalid_retention() from None
    retention = from_duration(duration)
    if retention < MIN_RETENTION:
        raise _invalid_retention()
    return retention


def _invalid_retention() -> ServiceError:
    return invalid_argument("A valid retention period is not set on request.")


def _check_clusters(frontend: Frontend, active: str, clusters: list[str]) -> None:
    """A namespace lives in this cluster alone."""
    own = frontend.cluster.name
    for name in [active, *clusters]:
        if name and name != own:
            raise invalid_argument(f"Invalid cluster name: {name}")


def _described(frontend: Frontend, namespace: Namespace) -> dict[str, Any]:
    """The fields that describing, listing and updating answer alike."""
    config = frontend.config
    name = namespace.name
    disabled = ArchivalState.ARCHIVAL_STATE_DISABLED
    return {
        "namespace_info": NamespaceInfo(
            name=name,
            state=NamespaceState.ValueType(namespace.state),
            description=namespace.description,
            owner_email=namespace.owner_email,
            data=namespace.data,
            id=namespace.id,
            # Only what is true: workers switch behaviour on these.
            capabilities=NamespaceInfo.Capabilities(
                eager_workflow_start=config.get(ENABLE_EAGER_START, name),
                sync_update=True,
                async_update=True,
                worker_poll_complete_on_shutdown=config.get(CANCEL_POLLS_ON_SHUTDOWN, name),
            ),
            limits=NamespaceInfo.Limits(
                blob_size_limit_error=config.get(BLOB_SIZE_ERROR, name),
                memo_size_limit_error=config.get(MEMO_SIZE_ERROR, name),
            ),
            supports_schedules=False,
        ),
        "config": NamespaceConfig(
            workflow_execution_retention_ttl=to_duration(namespace.retention),
            bad_binaries=BadBinaries(
                binaries={
                    checksum: BadBinaryInfo(reason=b.reason, operator=b.operator, create_time=to_timestamp(b.created))
                    for checksum, b in namespace.bad_binaries.items()
                }
            ),
            history_archival_state=disabled,
            visibility_archival_state=disabled,
            custom_search_attribute_aliases={attribute: attribute for attribute in namespace.search_attributes},
        ),
        "replication_config": NamespaceReplicationConfig(
            active_cluster_name=frontend.cluster.name,
            clusters=[ClusterReplicationConfig(cluster_name=frontend.cluster.name)],
            state=ReplicationState.REPLICATION_STATE_NORMAL,
        ),
        "is_global_namespace": False,
        "failover_version": 0,
    }


RPCS: dict[str, Handler] = {
    "RegisterNamespace": register_namespace,
    "DescribeNamespace": describe_namespace,
    "ListNamespaces": list_namespaces,
    "UpdateNamespace": update_namespace,
    "DeprecateNamespace": deprecate_namespace,
}
