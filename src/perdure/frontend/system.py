"""What the server is and can do: GetSystemInfo, GetClusterInfo."""

from __future__ import annotations

from temporalio.api.version.v1 import ReleaseInfo, VersionInfo
from temporalio.api.workflowservice.v1 import (
    GetClusterInfoRequest,
    GetClusterInfoResponse,
    GetSystemInfoRequest,
    GetSystemInfoResponse,
)

from perdure.frontend.rpc import COMPATIBLE_VERSION, CallContext, Frontend, Handler

# Only what is true: SDKs switch behaviour on these.
_SYSTEM_INFO = GetSystemInfoResponse(
    server_version=COMPATIBLE_VERSION,
    capabilities=GetSystemInfoResponse.Capabilities(
        signal_and_query_header=True,
        internal_error_differentiation=True,
        activity_failure_include_heartbeat=True,
        supports_schedules=False,
        encoded_failure_attributes=True,
        build_id_based_versioning=False,
        upsert_memo=True,
        eager_workflow_start=True,
        sdk_metadata=True,
        count_group_by_execution_status=True,
        nexus=False,
        server_scaled_deployments=False,
    ),
).SerializeToString()

# Versions of official SDKs and tools that are known to work, as version ranges.
_SUPPORTED_CLIENTS = {
    "temporal-go": "<2.0.0",
    "temporal-java": "<2.0.0",
    "temporal-php": "<3.0.0",
    "temporal-typescript": "<2.0.0",
    "temporal-python": "<2.0.0",
    "temporal-dotnet": "<2.0.0",
    "temporal-ruby": "<2.0.0",
    "temporal-cli": "<2.0.0",
    "temporal-ui": "<3.0.0",
}


async def get_system_info(frontend: Frontend, request: GetSystemInfoRequest, context: CallContext) -> bytes:
    return _SYSTEM_INFO


async def get_cluster_info(
    frontend: Frontend, request: GetClusterInfoRequest, context: CallContext
) -> GetClusterInfoResponse:
    cluster = frontend.cluster
    return GetClusterInfoResponse(
        supported_clients=_SUPPORTED_CLIENTS,
        server_version=COMPATIBLE_VERSION,
        cluster_id=cluster.id,
        version_info=VersionInfo(
            current=ReleaseInfo(version=COMPATIBLE_VERSION, notes=f"perdure {cluster.version}"),
        ),
        cluster_name=cluster.name,
        history_shard_count=cluster.shards,
        persistence_store=cluster.persistence_store,
        visibility_store=cluster.visibility_store,
        failover_version_increment=10,
        initial_failover_version=1,
    )


RPCS: dict[str, Handler] = {
    "GetSystemInfo": get_system_info,
    "GetClusterInfo": get_cluster_info,
}
