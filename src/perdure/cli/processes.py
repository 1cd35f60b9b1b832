"""`perdure server start --processes N`: N members of a cluster on this machine, behind one port."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Generator, Sequence

from perdure.cli import server, supervisor
from perdure.cli.main import CommandError
from perdure.cli.options import Options

_READY = "Server:"


def run(chosen: Options, argv: Sequence[str]) -> int:
    """argv: the arguments that this process was started with; each member gets them too, and a name and ports of its
    own. Raises CommandError."""
    if not supervisor.supported():
        raise CommandError("--processes needs an operating system where processes can share a port")
    server.configure_logs(chosen)
    config, settings = chosen.server, chosen.settings
    count = settings.processes
    with _shared_port(config.host, config.port) as port:
        base = settings.cluster.name or f"{socket.gethostname()}:{port}"
        commands: dict[str, list[str]] = {}
        for i in range(count):
            name = f"{base}/{i + 1}"
            own = ["--processes", "1", "--supervised", "--member", name, "--port", str(port)]
            for flag, first in (("--cluster-port", settings.cluster.port), ("--metrics-port", config.metrics_port)):
                if first:
                    own += [flag, str(first + i)]
            commands[name] = supervisor.this_program(*argv, *own)

        def ready(_: list[str]) -> None:
            address = f"[{config.host}]:{port}" if ":" in config.host else f"{config.host}:{port}"
            server.say(address, chosen, None)

        return asyncio.run(supervisor.supervise(commands, _READY, ready))


@contextlib.contextmanager
def _shared_port(host: str, port: int) -> Generator[int]:
    """A port that the members may listen on together, and nobody else: it stays taken between their restarts. A socket
    that does not listen gets no connections. Raises CommandError when it is in use."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with contextlib.ExitStack() as stack:
        try:
            # Sockets that share a port do not notice others that do: one that does not share does.
            alone = stack.enter_context(socket.socket(family))
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind((host, port))
            alone.close()
            shared = stack.enter_context(socket.socket(family))
            shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            shared.bind((host, port))
        except OSError as e:
            raise CommandError(f"cannot listen on {host}:{port}: {e.strerror or e}") from None
        yield int(shared.getsockname()[1])
