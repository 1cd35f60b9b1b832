"""A whole server, in memory, as a process of its own: so that a test sees whether it stays up and what it logs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import grpc
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, GetSystemInfoRequest, WorkflowServiceStub


@dataclass
class Target:
    """A server to test. log: where it writes. namespace_id: of its namespace `default`. seen: so much of the log was
    checked."""

    channel: grpc.Channel
    workflows: WorkflowServiceStub
    log: Path
    namespace_id: str
    seen: int = 0

    def check(self) -> None:
        """It answers, and nothing unexpected has happened in it."""
        self.workflows.GetSystemInfo(GetSystemInfoRequest(), timeout=10)
        log = self.log.read_text()
        new, self.seen = log[self.seen :], len(log)
        assert "Traceback" not in new, new[max(0, new.index("Traceback") - 500) :][:8000]


@contextmanager
def server_process(log: Path, *settings: str) -> Iterator[Target]:
    """settings: KEY=JSON_VALUE of the dynamic configuration. PERDURE_TEST_COMMAND starts another server: it must print
    its address as its first line, log to standard error, and end when its input does."""
    command = os.environ.get("PERDURE_TEST_COMMAND")
    argv = command.split() if command else [sys.executable, "-m", "tests.frontend.whole", *settings]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            argv,
            cwd=Path(__file__).parents[2],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
    try:
        assert process.stdout and process.stdin
        address = process.stdout.readline().strip()
        assert address, log.read_text()
        with grpc.insecure_channel(address) as channel:
            stub = WorkflowServiceStub(channel)
            default = stub.DescribeNamespace(DescribeNamespaceRequest(namespace="default"))
            yield Target(channel, stub, log, default.namespace_info.id)
        process.stdin.close()
        assert process.wait(20) == 0
        text = log.read_text()
        assert "Traceback" not in text, text[max(0, text.index("Traceback") - 500) :][:8000]
        assert "failures:" not in text, text[-2000:]
    finally:
        process.kill()
        process.wait()
