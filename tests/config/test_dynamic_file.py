"""Dynamic configuration from a file: Temporal's format, followed while the server runs."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from perdure.clock import SECOND, RealClock
from perdure.config import dynamic
from perdure.config.dynamic import ConfigError, DynamicConfig
from perdure.config.files import DynamicFile, parse_dynamic, read_yaml

GOOD = """
limit.maxIDLength:
  - value: 500
  - value: 100
    constraints:
      namespace: small
  - value: 50
    constraints: {namespace: small, taskQueueName: tiny}
history.defaultWorkflowTaskTimeout:
  - value: 20s
    constraints: {shardID: 3}
  - value: 1m30s
history.longPollExpirationInterval:
  - value: 5
Matching.numTaskqueueWritePartitions:
- value: 8
  constraints: {}
frontend.notOfOurs:
- value: {a: [1, 2]}
limit.blobSize.error:
- value: 1
  constraints: {taskType: Activity}
"""


class FastClock(RealClock):
    """Waits a hundredth of what it is told to."""

    async def sleep(self, duration: int) -> None:
        await super().sleep(duration // 100)


def write(path: Path, content: str) -> None:
    """As a whole, as editors and orchestrators do it."""
    new = path.with_suffix(".new")
    new.write_text(content)
    os.replace(new, path)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110 (a file has no event)
            await asyncio.sleep(0.005)


async def test_values_hold_where_their_constraints_say(tmp_path: Path) -> None:
    path = tmp_path / "dynamic.yaml"
    path.write_text(GOOD)
    config = DynamicConfig()
    file = DynamicFile(str(path), config, RealClock())
    file.start()
    await file.stop()
    assert config.get(dynamic.MAX_ID_LENGTH, "other") == 500
    assert config.get(dynamic.MAX_ID_LENGTH, "small") == 100
    assert config.get(dynamic.MAX_ID_LENGTH, "small", "tiny") == 50
    assert config.get(dynamic.DEFAULT_WORKFLOW_TASK_TIMEOUT) == 90 * SECOND
    assert config.get(dynamic.DEFAULT_WORKFLOW_TASK_TIMEOUT, shard_id=3) == 20 * SECOND
    assert config.get(dynamic.LONG_POLL_EXPIRATION) == 5 * SECOND
    assert config.get(dynamic.TASK_QUEUE_WRITE_PARTITIONS) == 8
    # One that holds for activities only would be wrong for everything else.
    assert config.get(dynamic.BLOB_SIZE_ERROR) == dynamic.BLOB_SIZE_ERROR.default


async def test_the_file_is_followed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "perdure.config")
    path = tmp_path / "dynamic.yaml"
    path.write_text(GOOD)
    config = DynamicConfig()
    config.set("limit.blobSize.warn", 7)  # as on the command line
    file = DynamicFile(str(path), config, FastClock())
    file.start()
    length = lambda: config.get(dynamic.MAX_ID_LENGTH)  # noqa: E731
    assert length() == 500
    assert [r.getMessage() for r in caplog.records] == [
        f"{path}: frontend.notOfOurs is not a key that does anything here",
        f"{path}: limit.blobSize.error: a value with constraints that are not known here holds nowhere",
    ]
    caplog.clear()

    write(
        path, "limit.maxIDLength: [{value: 600}]\nfrontend.notOfOurs: [{value: 1}]\nlimit.blobSize.warn: [{value: 9}]"
    )
    await until(lambda: length() == 600)
    assert config.get(dynamic.DEFAULT_WORKFLOW_TASK_TIMEOUT) == 10 * SECOND  # not there any more
    assert config.get(dynamic.BLOB_SIZE_WARN) == 7

    for bad in (
        "limit.maxIDLength: [{value: many}]\nlimit.blobSize.error: [{value: 5}]",
        "limit.maxIDLength: [{value: 5}",
        None,
    ):
        caplog.clear()
        if bad is None:
            path.unlink()
        else:
            write(path, bad)
        await until(lambda: bool(caplog.records))
        assert [r.levelname for r in caplog.records] == ["ERROR"]
        message = caplog.records[0].getMessage()
        assert message.startswith(f"dynamic configuration stays as it was: {path}")
        assert "\n" not in message
        assert length() == 600
        assert config.get(dynamic.BLOB_SIZE_ERROR) == dynamic.BLOB_SIZE_ERROR.default

    write(path, "limit.maxIDLength: [{value: 700}]")
    await until(lambda: length() == 700)
    write(path, "")
    await until(lambda: length() == 1000)
    await file.stop()


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("- a\n", "not a map of keys"),
        ("limit.maxIDLength: 5", "limit.maxIDLength: not a list of values"),
        ("limit.maxIDLength: [5]", "limit.maxIDLength: an entry without `value:`"),
        ("limit.maxIDLength: [{value: x}]", "limit.maxIDLength: not a whole number: 'x'"),
        ("history.longPollExpirationInterval: [{value: x}]", "history.longPollExpirationInterval: not a duration: 'x'"),
        ("limit.maxIDLength: [{value: 5, where: x}]", "limit.maxIDLength: where is neither value nor constraints"),
        ("limit.maxIDLength: [{value: 5, constraints: {colour: red}}]", "colour is not a constraint"),
        ("limit.maxIDLength: [{value: 5, constraints: {shardID: red}}]", "'red' is not a shardID"),
        ("limit.maxIDLength: [{value: 5, constraints: [x]}]", "constraints are not a map"),
        ("5: [{value: 5}]", "5 is not a key"),
        ("a: [{value: 5}]\nb: [{value: 5}]\na: [{value: 6}]", ", line 3: a is there twice"),
        ("a: [\n{value: 5}\nb", ", line 3: "),
        ("a: !!python/object:os.system {}", ", line 1: could not determine a constructor"),
        ("a: \x01", "special characters are not allowed"),
    ],
)
async def test_a_file_that_is_bad_at_start(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "dynamic.yaml"
    path.write_text(content)
    config = DynamicConfig()
    with pytest.raises(ConfigError) as refused:
        DynamicFile(str(path), config, RealClock()).start()
    message = str(refused.value)
    assert message.startswith(str(path)) and said in message and "\n" not in message, message
    assert config.get(dynamic.MAX_ID_LENGTH) == 1000


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_yaml(str(tmp_path / "none.yaml"))
    assert parse_dynamic(None) == ({}, [])
