"""Limits that a request meets before anything else, each at a value of its own, for one namespace."""

from __future__ import annotations

import logging
from typing import Any

import grpc
import pytest
from temporalio.api.workflowservice.v1 import (
    PollWorkflowTaskQueueRequest,
    StartWorkflowExecutionRequest,
    UpdateNamespaceRequest,
)

from perdure.config.dynamic import Constraints, DynamicConfig
from perdure.errors import ServiceError
from perdure.frontend.workflows import prepare_start
from perdure.namespaces import Namespace

from .support import running

NAMESPACE = Namespace(id="1", name="default", search_attributes={"Color": 2, "Shape": 2})
X = {"data": b'"xxxxxxxxxx"', "metadata": {"encoding": b"json/plain"}}
LARGE = {"payloads": [{"data": b"x" * 100}]}


def prepare(config: DynamicConfig, namespace: Namespace = NAMESPACE, **fields: Any) -> None:
    request = StartWorkflowExecutionRequest(
        **{
            "namespace": "default",
            "workflow_id": "w",
            "workflow_type": {"name": "t"},
            "task_queue": {"name": "q"},
            **fields,
        }
    )
    prepare_start(request, namespace, config, 0)


@pytest.mark.parametrize(
    ("name", "value", "fields", "message"),
    [
        ("limit.maxIDLength", 2, {"workflow_id": "abc"}, "WorkflowId exceeds maximum allowed length (3/2)"),
        ("limit.blobSize.error", 50, {"input": LARGE}, "Blob data size exceeds limit."),
        (
            "limit.blobSize.error",
            50,
            {"header": {"fields": {"k": LARGE["payloads"][0]}}},
            "Blob data size exceeds limit.",
        ),
        ("limit.memoSize.error", 50, {"memo": {"fields": {"k": LARGE["payloads"][0]}}}, "Memo size exceeds limit."),
        (
            "frontend.searchAttributesNumberOfKeysLimit",
            1,
            {"search_attributes": {"indexed_fields": {"Color": X, "Shape": X}}},
            "number of search attributes 2 exceeds limit 1",
        ),
        (
            "frontend.searchAttributesSizeOfValueLimit",
            5,
            {"search_attributes": {"indexed_fields": {"Color": X}}},
            "search attribute Color value size 12 exceeds size limit 5",
        ),
        (
            "frontend.searchAttributesTotalSizeLimit",
            20,
            {"search_attributes": {"indexed_fields": {"Color": X, "Shape": X}}},
            "exceeds size limit 20",
        ),
        (
            "limit.userMetadataSummarySize",
            5,
            {"user_metadata": {"summary": X}},
            "UserMetadata summary size 12 exceeds limit 5.",
        ),
        (
            "limit.userMetadataDetailsSize",
            5,
            {"user_metadata": {"details": X}},
            "UserMetadata details size 12 exceeds limit 5.",
        ),
        (
            "frontend.maxlinksPerRequest",
            1,
            {"links": [{"batch_job": {"job_id": "a"}}, {"batch_job": {"job_id": "b"}}]},
            "cannot attach more than 1 links per request, got 2",
        ),
        ("frontend.linkMaxSize", 10, {"links": [{"batch_job": {"job_id": "x" * 20}}]}, "link exceeds allowed size"),
    ],
)
def test_what_is_too_large_or_too_many(name: str, value: int, fields: dict[str, Any], message: str):
    prepare(DynamicConfig(), **fields)
    config = DynamicConfig()
    if name == "limit.maxIDLength":  # of all namespaces, as Temporal's
        config.set(name, value)
    else:
        config.set(name, value, Constraints(namespace="default"))
        prepare(config, Namespace(id="2", name="other", search_attributes=NAMESPACE.search_attributes), **fields)
    with pytest.raises(ServiceError) as caught:
        prepare(config, **fields)
    assert message in caught.value.message


def test_what_is_large_is_told_of_ever_more_seldom(caplog: pytest.LogCaptureFixture):
    config = DynamicConfig()
    config.set("limit.blobSize.warn", 50)
    config.set("limit.memoSize.warn", 50)
    namespace = Namespace(id="3", name="namespace-of-large-ones")
    for _ in range(9):
        prepare(config, namespace, input=LARGE, memo={"fields": {"k": LARGE["payloads"][0]}})
    told = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert [m.rsplit(" ", 1)[1] for m in told if m.startswith("blob size")] == ["1", "2", "4", "8"]
    assert [m.rsplit(" ", 1)[1] for m in told if m.startswith("memo size")] == ["1", "2", "4", "8"]
    assert "namespace-of-large-ones" in told[0]


async def test_a_build_id_that_is_too_long_and_too_many_bad_binaries():
    config = DynamicConfig()
    config.set("limit.workerBuildIdSize", 3)
    config.set("frontend.maxBadBinaries", 1)
    async with running(config=config) as r:
        poll = PollWorkflowTaskQueueRequest(
            namespace="default", task_queue={"name": "q"}, worker_version_capabilities={"build_id": "long"}
        )
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await r.workflows.PollWorkflowTaskQueue(poll, timeout=5)
        assert caught.value.details() == "Build ID length exceeds limit."
        binaries = {name: {"reason": "bad"} for name in ("a", "b")}
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await r.workflows.UpdateNamespace(
                UpdateNamespaceRequest(namespace="default", config={"bad_binaries": {"binaries": binaries}})
            )
        assert caught.value.details() == "Total resetBinaries cannot exceed the max limit: 1"
