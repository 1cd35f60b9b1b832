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
import time
from functools import cache
from itertools import count
from pathlib import Path

import pytest

_numbers = count(1)

# For tests that run on each: the default suite has SQLite only.
EACH_BACKEND = ["sqlite", *(pytest.param(name, marks=pytest.mark.slow) for name in ("postgresql", "mysql"))]


def url(backend: str, folder: Path) -> str:
    """Of an empty database that no other test uses. Skips the test where its server is not to be had."""
    if backend == "sqlite":
        return f"sqlite:{folder / 'perdure.db'}"
    return {"postgresql": postgresql, "mysql": mysql}[backend]().url()


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
        atexit.unregister(self.remove)
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


class MysqlServer:
    """A MariaDB (or MySQL) server in a temporary folder, on a free port, that waits for the disk at each commit."""

    def __init__(self, install: list[str], server: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="perdure-mysql-"))
        # Root may run it only when told to; everybody else runs it as oneself.
        self._user = ["--user=root"] if os.geteuid() == 0 else []
        data = f"--datadir={self.folder / 'data'}"
        subprocess.run(
            [*install, "--no-defaults", *self._user, data], check=True, stdout=subprocess.DEVNULL, cwd=self.folder
        )
        self._port = _free_port()
        self._command = [
            server,
            "--no-defaults",
            *self._user,
            data,
            f"--port={self._port}",
            "--bind-address=127.0.0.1",
            f"--socket={self.folder / 'socket'}",
            f"--pid-file={self.folder / 'pid'}",
            f"--log-error={self.folder / 'log'}",
            "--innodb-flush-log-at-trx-commit=1",
            "--max-connections=200",
        ]
        atexit.register(self.remove)
        self.start()
        # Connections over TCP are not those of the account that may only come through the socket.
        self.run("CREATE USER IF NOT EXISTS perdure@'127.0.0.1'; GRANT ALL ON *.* TO perdure@'127.0.0.1'")

    def url(self, database: str = "") -> str:
        """database: an empty one that no other test uses, when it is not given."""
        if not database:
            database = f"test_{os.getpid()}_{next(_numbers)}"
            self.run(f"CREATE DATABASE {database}")
        return f"mysql://perdure@127.0.0.1:{self._port}/{database}"

    def run(self, statements: str) -> str:
        """By the server's own client. Answers what it prints."""
        client = next(path for name in ("mariadb", "mysql") if (path := shutil.which(name)))
        command = [client, "--no-defaults", "--user=root", f"--socket={self.folder / 'socket'}", "--skip-column-names"]
        return subprocess.run(command, input=statements, check=True, stdout=subprocess.PIPE, text=True).stdout

    def start(self) -> None:
        """Returns when it takes connections."""
        self.process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=self.folder
        )
        while True:
            if self.process.poll() is not None:
                raise RuntimeError((self.folder / "log").read_text()[-2000:])
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", self._port)) == 0:
                    return
            time.sleep(0.05)

    def kill(self) -> None:
        """As if it had crashed."""
        self.process.kill()
        self.process.wait()

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


@cache
def mysql() -> MysqlServer:
    """The session's server. Skips the test where there is none to be had."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))
    server = shutil.which("mariadbd", path=path)
    install = shutil.which("mariadb-install-db", path=path)
    if server is None or install is None:
        pytest.skip("MariaDB's server (mariadbd, mariadb-install-db) is not installed", allow_module_level=True)
    return MysqlServer([install, "--auth-root-authentication-method=normal", "--skip-test-db"], server)
