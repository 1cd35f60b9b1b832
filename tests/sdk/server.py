"""A perdure server as users run it: a process of its own, started by the console script of this environment."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

EXECUTABLE = str(Path(sys.executable).parent / "perdure")

START_SECONDS = 20  # for a loaded machine; a start takes less than one
STOP_SECONDS = 15


def free_port() -> int:
    with contextlib.closing(socket.socket()) as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """`perdure server start-dev`, or with `db`, a database's URL, `perdure server start`. It keeps its port when it is
    started again, and all its starts write to one log."""

    def __init__(self, folder: Path, *flags: str, db: str = "") -> None:
        self.port = free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        mode = ["start", "--db", db] if db else ["start-dev", "--headless"]
        self._command = [EXECUTABLE, "server", *mode, "--ip", "127.0.0.1", "--port", str(self.port), *flags]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        assert self._process is None
        with open(self.log, "ab") as log:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=os.environ | {"NO_COLOR": "1"}
            )
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise AssertionError(f"the server ended as it started:\n{self.log.read_text()}")
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
            time.sleep(0.02)
        raise AssertionError(f"the server does not listen after {START_SECONDS} s:\n{self.log.read_text()}")

    def kill(self) -> None:
        """SIGKILL: nothing is flushed, drained or told."""
        process, self._process = self._process, None
        assert process is not None
        assert process.poll() is None, f"the server ended by itself:\n{self.log.read_text()[-5000:]}"
        process.kill()
        process.wait()

    def stop(self) -> None:
        """SIGTERM, as an operator does it; it must end well."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.poll() is None, f"the server ended by itself:\n{self.log.read_text()[-5000:]}"
        process.send_signal(signal.SIGTERM)
        try:
            code = process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            raise AssertionError(f"the server did not stop on SIGTERM:\n{self.log.read_text()[-5000:]}") from None
        assert code == 0, f"the server stopped with {code}:\n{self.log.read_text()[-5000:]}"

    def close(self) -> None:
        """Stops it; its log must tell of no unexpected error."""
        self.stop()
        text = self.log.read_text()
        if found := re.search(r"Traceback|CRITICAL|never awaited|never retrieved", text):
            raise AssertionError(f"the server's log has errors:\n{text[max(0, found.start() - 2000) :][:8000]}")
