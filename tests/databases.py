"""Temporary database servers for tests, started when the first test asks for one and stopped with the test session.

Nothing is installed here: without the server's programs, tests that need it are skipped, and say so."""

from __future__ import annotations

import atexit
import glob
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from functools import cache
from itertools import count
from pathlib import Path

import pytest

_numbers = count(1)


class PostgresServer:
    """A PostgreSQL server in a temporary folder, on a free port, with fsync on."""

    def __init__(self, programs: str, user: str | None) -> None:
        self._programs = programs
        self._user = user  # to run as, where we are root: PostgreSQL refuses to be
        self.folder = Path(tempfile.mkdtemp(prefix="perdure-postgresql-"))
        if user is not None:
            shutil.chown(self.folder, user)
        self.data = self.folder / "data"
        self._port = _free_port()
        self._run("initdb", "-D", str(self.data), "-U", "perdure", "-A", "trust", "-E", "UTF8", "--locale=C", "-N")
        with (self.data / "postgresql.conf").open("a") as settings:
            settings.write(
                f"listen_addresses = '127.0.0.1'\nport = {self._port}\n"
                f"unix_socket_directories = '{self.folder}'\nmax_connections = 200\nfsync = on\n"
            )
        atexit.register(self.remove)
        self.start()

    def url(self, schema: str = "", database: str = "postgres") -> str:
        """schema: one that no other test uses, when it is not given."""
        schema = schema or f"test_{os.getpid()}_{next(_numbers)}"
        return f"postgresql://perdure@127.0.0.1:{self._port}/{database}?schema={schema}"

    def start(self) -> None:
        self._run("pg_ctl", "-D", str(self.data), "-l", str(self.folder / "log"), "-w", "start")

    def stop(self, mode: str = "fast") -> None:
        self._run("pg_ctl", "-D", str(self.data), "-m", mode, "-w", "stop")

    def restart(self, mode: str = "immediate") -> None:
        """immediate: as if it had crashed."""
        self._run("pg_ctl", "-D", str(self.data), "-l", str(self.folder / "log"), "-m", mode, "-w", "restart")

    def remove(self) -> None:
        try:
            self.stop("immediate")
        except subprocess.CalledProcessError:
            pass  # it does not run
        shutil.rmtree(self.folder, ignore_errors=True)

    def _run(self, program: str, *arguments: str) -> None:
        command = [os.path.join(self._programs, program), *arguments]
        if self._user is not None:
            command = ["runuser", "-u", self._user, "--", *command]
        subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd=self.folder)


@cache
def postgresql() -> PostgresServer:
    """The session's server. Skips the test where there is none to be had."""
    programs = _postgresql_programs()
    if programs is None:
        pytest.skip("PostgreSQL's server (initdb, pg_ctl) is not installed", allow_module_level=True)
    user = None
    if os.geteuid() == 0:
        user = next((name for name in ("postgres", "nobody") if _exists(name)), None)
        if user is None or shutil.which("runuser") is None:
            pytest.skip("PostgreSQL does not run as root, and there is no other user", allow_module_level=True)
    return PostgresServer(programs, user)


def _postgresql_programs() -> str | None:
    """The newest that is installed: in the PATH, or where Debian puts them."""
    found = shutil.which("initdb")
    if found is not None:
        return os.path.dirname(os.path.realpath(found))
    folders = [os.path.dirname(path) for path in glob.glob("/usr/lib/postgresql/*/bin/initdb")]
    return max(folders, key=lambda folder: int(folder.split("/")[-2]), default=None)


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
