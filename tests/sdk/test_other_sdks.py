"""Workers of the other official SDKs. Each is a small project of its own in a folder beside this file; it prints a
line that begins with PASS or FAIL for each behaviour. They need their toolchains and registries, and are slow."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from sdk.server import EXECUTABLE, Server

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.parametrize("server", ["sqlite"], indirect=True),
]


def need(*tools: str) -> None:
    if missing := [tool for tool in tools if not shutil.which(tool)]:
        pytest.skip(f"not installed: {', '.join(missing)}")


def run(folder: Path, *command: str | Path, **environment: str) -> str:
    """What it prints; it must end well."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, f"{command} ended with {done.returncode}:\n{done.stdout[-10_000:]}"
    return done.stdout


def passes(output: str, at_least: int) -> None:
    lines = output.splitlines()
    assert not [line for line in lines if line.startswith("FAIL")], output
    assert sum(line.startswith("PASS") for line in lines) >= at_least, output


def test_go(server: Server, tmp_path: Path) -> None:
    need("go")
    run(HERE / "go", "go", "build", "-o", tmp_path / "sdk", ".", GOTOOLCHAIN="local")
    passes(run(tmp_path, tmp_path / "sdk", ADDRESS=server.address, DEV_SERVER=EXECUTABLE), 6)


def test_typescript(server: Server) -> None:
    need("node", "npm")
    folder = HERE / "typescript"
    run(folder, "npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts")
    passes(run(folder, "node", "main.js", ADDRESS=server.address, DEV_SERVER=EXECUTABLE), 6)


def test_java(server: Server) -> None:
    need("java", "mvn")
    folder = HERE / "java"
    run(folder, "mvn", "-q", "-B", "-ntp", "compile")
    passes(run(folder, "mvn", "-q", "-B", "-ntp", "exec:java", ADDRESS=server.address), 5)
