"""OperatorService: search attributes of namespaces, and clusters."""

from __future__ import annotations

import msgspec
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import (
    AddSearchAttributesRequest,
    AddSearchAttributesResponse,
    ClusterMetadata,
    ListClustersRequest,
    ListClustersResponse,
    ListSearchAttributesRequest,
    ListSearchAttributesResponse,
    RemoveSearchAttributesRequest,
    RemoveSearchAttributesResponse,
)

from perdure.config.dynamic import MAX_ID_LENGTH
from perdure.errors import invalid_argument
from perdure.frontend import validation
from perdure.frontend.rpc import CallContext, Frontend, Handler
from perdure.namespaces import Namespace
from perdure.visibility import attributes


async def add_search_attributes(
    frontend: Frontend, request: AddSearchAttributesRequest, context: CallContext
) -> AddSearchAttributesResponse:
    """Adding one that is there already changes nothing, also if it is there with another type."""
    if not request.search_attributes:
        raise invalid_argument("SearchAttributes are not set on request.")
    wanted: dict[str, int] = {}
    limit = frontend.config.get(MAX_ID_LENGTH)
    for name, kind in request.search_attributes.items():
        if attributes.is_reserved(name):
            raise invalid_argument(f"Search attribute {name} is reserved by system.")
        validation.require_id(name, limit, "Search attribute name")
        if kind not in attributes.TYPE_NAMES:
            raise invalid_argument(f"Unknown search attribute type: {kind}.")
        wanted[name] = int(kind)
    await frontend.namespaces.add_search_attributes(_namespace(frontend, request.namespace).name, wanted)
    return AddSearchAttributesResponse()


async def remove_search_attributes(
    frontend: Frontend, request: RemoveSearchAttributesRequest, context: CallContext
) -> RemoveSearchAttributesResponse:
    """Removing one that is not there changes nothing."""
    names = set(request.search_attributes)
    if not names:
        raise invalid_argument("SearchAttributes are not set on request.")
    namespace = _namespace(frontend, request.namespace)
    for name in names - namespace.search_attributes.keys():
        if name in attributes.SYSTEM or name in attributes.PREDEFINED:
            raise invalid_argument(f"Unable to remove non-custom search attributes: {name}.")

    def without(current: Namespace) -> Namespace:
        kept = {name: kind for name, kind in current.search_attributes.items() if name not in names}
        return msgspec.structs.replace(current, search_attributes=kept)

    await frontend.namespaces.update(namespace.name, without)
    return RemoveSearchAttributesResponse()


async def list_search_attributes(
    frontend: Frontend, request: ListSearchAttributesRequest, context: CallContext
) -> ListSearchAttributesResponse:
    namespace = _namespace(frontend, request.namespace)
    return ListSearchAttributesResponse(
        custom_attributes=_typed(namespace.search_attributes),
        system_attributes=_typed({**attributes.SYSTEM, **attributes.PREDEFINED}),
    )


async def list_clusters(frontend: Frontend, request: ListClustersRequest, context: CallContext) -> ListClustersResponse:
    cluster = frontend.cluster
    return ListClustersResponse(
        clusters=[
            ClusterMetadata(
                cluster_name=cluster.name,
                cluster_id=cluster.id,
                address=cluster.address,
                initial_failover_version=1,
                history_shard_count=cluster.shards,
                is_connection_enabled=True,
            )
        ]
    )


def _namespace(frontend: Frontend, name: str) -> Namespace:
    if not name:
        raise invalid_argument("Namespace is not set on request.")
    return frontend.namespace(name)


def _typed(kinds: dict[str, int]) -> dict[str, IndexedValueType.ValueType]:
    return {name: IndexedValueType.ValueType(kind) for name, kind in kinds.items()}


RPCS: dict[str, Handler] = {
    "AddSearchAttributes": add_search_attributes,
    "RemoveSearchAttributes": remove_search_attributes,
    "ListSearchAttributes": list_search_attributes,
    "ListClusters": list_clusters,
}
