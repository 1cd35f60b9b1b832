from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc.aio
import msgspec
import pytest
from google.protobuf.duration_pb2 import Duration
from temporalio.api.enums.v1 import IndexedValueType, NamespaceState
from temporalio.api.errordetails.v1 import NamespaceAlreadyExistsFailure, NamespaceInvalidStateFailure
from temporalio.api.namespace.v1 import NamespaceConfig, UpdateNamespaceInfo
from temporalio.api.operatorservice.v1 import (
    AddSearchAttributesRequest,
    ListClustersRequest,
    ListSearchAttributesRequest,
    RemoveSearchAttributesRequest,
)
from temporalio.api.workflowservice.v1 import (
    DeprecateNamespaceRequest,
    DescribeNamespaceRequest,
    ListNamespacesRequest,
    RegisterNamespaceRequest,
    StartWorkflowExecutionRequest,
    UpdateNamespaceRequest,
)

from perdure import errors
from perdure.clock import DAY, HOUR, RealClock
from perdure.namespaces import DEFAULT_RETENTION, DEV_RETENTION, SYSTEM_NAMESPACE, Namespace, NamespaceRegistry
from perdure.persistence.sqlite.store import SqliteStore, open_store

from .support import details, running

WEEK = Duration(seconds=7 * 86400)


@pytest.fixture
async def store() -> AsyncIterator[SqliteStore]:
    opened = await open_store(None)
    yield opened
    await opened.close()


async def loaded(store: SqliteStore) -> NamespaceRegistry:
    registry = NamespaceRegistry(store, RealClock())
    await registry.load()
    return registry


async def test_what_a_start_creates_is_there_at_the_next_one(store: SqliteStore):
    first = await loaded(store)
    await first.ensure(["default", "other"], DEV_RETENTION, {"Color": 2})
    again = await loaded(store)
    await again.ensure(["default"], DEFAULT_RETENTION, {"Color": 3, "Size": 3})
    assert again.names() == ["default", "other", SYSTEM_NAMESPACE]
    default = again.by_name("default")
    assert default.id == first.by_name("default").id
    assert again.by_id(default.id) is default
    assert default.retention == DEV_RETENTION
    assert default.search_attributes == {"Color": 2, "Size": 3}


async def test_two_writers_lose_nothing_of_each_other(store: SqliteStore):
    a = await loaded(store)
    await a.ensure(["default"], DAY)
    b = await loaded(store)
    await asyncio.gather(
        *(r.add_search_attributes("default", {f"{name}{i}": 2}) for i in range(5) for name, r in (("A", a), ("B", b)))
    )
    found = (await loaded(store)).by_name("default")
    assert found.search_attributes.keys() == {f"{name}{i}" for i in range(5) for name in "AB"}


async def test_a_name_is_registered_once(store: SqliteStore):
    a, b = await loaded(store), await loaded(store)
    await a.register(Namespace(id="1", name="n"))
    with pytest.raises(errors.ServiceError) as caught:
        await b.register(Namespace(id="2", name="n"))
    assert caught.value.code is errors.Code.ALREADY_EXISTS
    assert b.by_name("n").id == "1"


async def test_a_record_of_a_later_version_is_read(store: SqliteStore):
    class Later(Namespace, frozen=True, kw_only=True):
        colour: str = "red"

    await store.put_document("namespace", "n", 0, msgspec.msgpack.encode(Later(id="1", name="n", retention=5)))
    assert (await loaded(store)).by_name("n").retention == 5


async def test_register_describe_and_list():
    async with running() as r:
        await r.workflows.RegisterNamespace(
            RegisterNamespaceRequest(
                namespace="mine", description="d", workflow_execution_retention_period=WEEK, data={"k": "v"}
            )
        )
        by_name = await r.workflows.DescribeNamespace(DescribeNamespaceRequest(namespace="mine"))
        by_id = await r.workflows.DescribeNamespace(DescribeNamespaceRequest(id=by_name.namespace_info.id))
        assert by_id == by_name
        assert by_name.namespace_info.data == {"k": "v"}
        assert by_name.config.workflow_execution_retention_ttl == WEEK
        assert by_name.namespace_info.capabilities.async_update
        assert by_name.namespace_info.limits.blob_size_limit_error == 2 * 1024 * 1024

        names: list[str] = []
        token = b""
        while True:
            page = await r.workflows.ListNamespaces(ListNamespacesRequest(page_size=2, next_page_token=token))
            names += [n.namespace_info.name for n in page.namespaces]
            token = page.next_page_token
            if not token:
                break
        assert names == ["default", "mine", SYSTEM_NAMESPACE]

        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await r.workflows.RegisterNamespace(
                RegisterNamespaceRequest(namespace="mine", workflow_execution_retention_period=WEEK)
            )
        details(caught.value, NamespaceAlreadyExistsFailure)


@pytest.mark.parametrize("retention", [None, Duration(seconds=60), Duration(seconds=-1), Duration(nanos=2**31 - 1)])
async def test_a_retention_must_be_an_hour_at_least(retention: Duration | None):
    async with running() as r:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await r.workflows.RegisterNamespace(
                RegisterNamespaceRequest(namespace="mine", workflow_execution_retention_period=retention)
            )
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == "A valid retention period is not set on request."


async def test_update_keeps_what_it_does_not_name():
    async with running() as r:
        updated = await r.workflows.UpdateNamespace(
            UpdateNamespaceRequest(
                namespace="default",
                update_info=UpdateNamespaceInfo(owner_email="me@example.org", data={"a": "1"}),
                config=NamespaceConfig(workflow_execution_retention_ttl=WEEK),
            )
        )
        updated = await r.workflows.UpdateNamespace(
            UpdateNamespaceRequest(namespace="default", update_info=UpdateNamespaceInfo(data={"b": "2"}))
        )
        assert updated.namespace_info.owner_email == "me@example.org"
        assert updated.namespace_info.data == {"a": "1", "b": "2"}
        assert r.frontend.namespaces.by_name("default").retention == 168 * HOUR


async def test_no_workflow_starts_in_a_deprecated_namespace():
    async with running() as r:
        await r.workflows.DeprecateNamespace(DeprecateNamespaceRequest(namespace="default"))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await r.workflows.StartWorkflowExecution(StartWorkflowExecutionRequest(namespace="default"))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        detail = details(caught.value, NamespaceInvalidStateFailure)
        assert detail.state == NamespaceState.NAMESPACE_STATE_DEPRECATED


async def test_search_attributes_are_added_listed_and_removed():
    async with running() as r:
        keyword = IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD
        whole = IndexedValueType.INDEXED_VALUE_TYPE_INT
        add = AddSearchAttributesRequest(namespace="default", search_attributes={"Color": keyword})
        await r.operator.AddSearchAttributes(add)
        await r.operator.AddSearchAttributes(add)
        await r.operator.AddSearchAttributes(
            AddSearchAttributesRequest(namespace="default", search_attributes={"Color": whole, "Size": whole})
        )
        found = await r.operator.ListSearchAttributes(ListSearchAttributesRequest(namespace="default"))
        assert dict(found.custom_attributes) == {"Color": keyword, "Size": whole}
        assert found.system_attributes["WorkflowId"] == keyword
        remove = RemoveSearchAttributesRequest(namespace="default", search_attributes=["Color", "Unknown"])
        await r.operator.RemoveSearchAttributes(remove)
        await r.operator.RemoveSearchAttributes(remove)
        found = await r.operator.ListSearchAttributes(ListSearchAttributesRequest(namespace="default"))
        assert dict(found.custom_attributes) == {"Size": whole}


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (AddSearchAttributesRequest(namespace="default"), "SearchAttributes are not set on request."),
        (AddSearchAttributesRequest(search_attributes={"A": 2}), "Namespace is not set on request."),  # type: ignore[dict-item]
        (
            AddSearchAttributesRequest(namespace="default", search_attributes={"RunId": 2}),  # type: ignore[dict-item]
            "Search attribute RunId is reserved by system.",
        ),
        (
            AddSearchAttributesRequest(namespace="default", search_attributes={"TemporalX": 2}),  # type: ignore[dict-item]
            "Search attribute TemporalX is reserved by system.",
        ),
        (
            AddSearchAttributesRequest(namespace="default", search_attributes={"A": 99}),  # type: ignore[dict-item]
            "Unknown search attribute type: 99.",
        ),
    ],
)
async def test_search_attributes_that_cannot_be(request_: AddSearchAttributesRequest, message: str):
    async with running() as r:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await r.operator.AddSearchAttributes(request_)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert caught.value.details() == message


async def test_removing_a_system_search_attribute_is_refused():
    async with running() as r:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await r.operator.RemoveSearchAttributes(
                RemoveSearchAttributesRequest(namespace="default", search_attributes=["RunId"])
            )
        assert caught.value.details() == "Unable to remove non-custom search attributes: RunId."


async def test_the_cluster_lists_itself():
    async with running() as r:
        found = await r.operator.ListClusters(ListClustersRequest())
        assert [(c.cluster_name, c.address) for c in found.clusters] == [("active", r.address)]
