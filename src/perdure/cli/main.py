"""The program `perdure`. Only arguments are read here; each command imports what it needs when it runs, so that
`perdure --help` costs next to nothing."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from perdure import __version__

USAGE_ERROR = 2
MAX_SHARDS = 16_384


# Both are what flags are added to.
_Flags = argparse.ArgumentParser | argparse._ArgumentGroup  # pyright: ignore[reportPrivateUsage]


class CommandError(Exception):
    """Ends the program with its message as one line on standard error."""


class _Parser(argparse.ArgumentParser):
    def __init__(self, **options: Any) -> None:
        # No abbreviations: a flag that is added later must not change what a script means.
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        self.exit(USAGE_ERROR, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def _flag(text: str) -> bool:
    """Switches may be written --headless or --headless=true."""
    if text.lower() in ("true", "1", "t"):
        return True
    if text.lower() in ("false", "0", "f"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is neither true nor false")


def _port(text: str) -> int:
    if text.isascii() and text.isdigit() and int(text) <= 65535:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535)")


def _assignment(text: str) -> tuple[str, str]:
    key, separator, value = text.partition("=")
    if not separator or not key:
        raise argparse.ArgumentTypeError(f"{text!r} is not KEY=VALUE")
    return key, value


def _switch(parser: _Flags, *names: str, help: str) -> None:
    parser.add_argument(*names, nargs="?", const=True, default=False, type=_flag, metavar="BOOL", help=help)


def _repeated(parser: _Flags, *names: str, type: Any, metavar: str, help: str) -> None:
    parser.add_argument(*names, action="append", default=[], type=type, metavar=metavar, help=help)


def _global_flags(parser: argparse.ArgumentParser) -> None:
    """Those of every command, before or after its name. Where a default would be, there is nothing, so that the inner
    parser does not undo what the outer one read."""
    group = parser.add_argument_group("global flags")
    absent = argparse.SUPPRESS
    group.add_argument(
        "--log-level",
        default=absent,
        choices=("debug", "info", "warn", "warning", "error", "fatal", "never"),
        help="what is logged to standard error (default: warn)",
    )
    group.add_argument(
        "--log-format", default=absent, choices=("text", "json", "pretty"), help="how (default: text, which is UTC)"
    )
    group.add_argument("--color", default=absent, choices=("always", "never", "auto"), help="for --log-format pretty")
    # Flags that Temporal's CLI has for every command, and that say nothing to a server: taken and ignored, so that
    # scripts and test environments need no change.
    for name in (
        "--env",
        "--env-file",
        "--profile",
        "--config-file",
        "--command-timeout",
        "--client-connect-timeout",
        "--time-format",
    ):
        group.add_argument(name, default=absent, help=argparse.SUPPRESS)
    group.add_argument("-o", "--output", default=absent, help=argparse.SUPPRESS)
    for name in ("--disable-config-file", "--disable-config-env", "--no-json-shorthand-payloads"):
        group.add_argument(name, nargs="?", const=True, default=absent, type=_flag, help=argparse.SUPPRESS)


def _server_flags(parser: argparse.ArgumentParser) -> None:
    """Where a flag is absent, the configuration file, the environment and then a default decide."""
    parser.add_argument("-p", "--port", type=_port, help="of the gRPC API (default: 7233; 0: a free one)")
    parser.add_argument("--ip", help="address to listen on (default: 127.0.0.1)")
    parser.add_argument("--metrics-port", type=_port, help="serve Prometheus metrics there (default: none)")
    _repeated(
        parser,
        "-n",
        "--namespace",
        type=str,
        metavar="NAME",
        help="a namespace to create when it is missing, besides `default`; may be repeated",
    )
    _repeated(
        parser,
        "--search-attribute",
        type=_assignment,
        metavar="NAME=TYPE",
        help="a search attribute of those namespaces: Text, Keyword, Int, Double, Bool, Datetime or KeywordList",
    )
    _repeated(
        parser,
        "--dynamic-config-value",
        type=str,
        metavar="KEY=JSON",
        help="a dynamic setting under Temporal's key; strings need their quotes: KEY='\"10s\"'",
    )
    parser.add_argument(
        "--dynamic-config",
        metavar="FILE",
        help="dynamic settings in Temporal's YAML format; what changes there comes into force at once",
    )
    _repeated(
        parser, "--sqlite-pragma", type=_assignment, metavar="KEY=VALUE", help="a pragma of the SQLite connections"
    )
    _switch(parser, "--log-config", help="log the configuration in force at start")


def _start_dev(commands: Any) -> None:
    parser = commands.add_parser(
        "start-dev",
        help="start a server for development and tests, in memory unless --db-filename is given",
        description="Starts a server for development and tests. It forgets everything when it stops, unless "
        "--db-filename is given.",
    )
    _server_flags(parser)
    parser.add_argument("-f", "--db-filename", default="", metavar="FILE", help="keep everything in this SQLite file")
    parser.add_argument("--http-port", type=_port, default=0, help="accepted; there is no HTTP API yet")
    ui = parser.add_argument_group("web interface (accepted; there is none yet)")
    _switch(ui, "--headless", help="without the web interface")
    ui.add_argument("--ui-port", type=_port, default=0)
    for name in ("--ui-ip", "--ui-asset-path", "--ui-codec-endpoint", "--ui-public-path"):
        ui.add_argument(name, default="")
    _switch(ui, "--ui-disable-news-fetch", help=argparse.SUPPRESS)
    _global_flags(parser)
    parser.set_defaults(run="start_dev")


def _start(commands: Any) -> None:
    parser = commands.add_parser(
        "start",
        help="start the durable server",
        description="Starts the durable server. Without flags it listens on this machine only, and keeps everything in "
        "a SQLite file in the user's data directory; it says where. Settings come from flags, from the "
        "environment (PERDURE_DATABASE_URL and others), and from the file of --config, in this order.",
    )
    _server_flags(parser)
    parser.add_argument("-c", "--config", metavar="FILE", help="a YAML file of settings; flags win over it")
    parser.add_argument(
        "--db",
        metavar="URL",
        help="sqlite:FILE, a FILE, postgresql://… or mysql://… (default: a SQLite file in the data directory)",
    )
    parser.add_argument(
        "--shards", type=_shards, help="of a new database (default: 4 in a SQLite file, else 128); checked later"
    )
    cluster = parser.add_argument_group("several processes (with PostgreSQL or MySQL)")
    cluster.add_argument(
        "--services", type=_services, metavar="NAMES", help="frontend,history,matching,worker or some (default: all)"
    )
    cluster.add_argument(
        "--processes", type=_processes, metavar="N", help="so many on this machine, behind one port (default: 1)"
    )
    cluster.add_argument("--cluster-ip", help="where other processes reach this one (default: 127.0.0.1)")
    cluster.add_argument("--cluster-port", type=_port, help="the same (default: a free one)")
    cluster.add_argument("--member", metavar="NAME", help="of this process (default: the machine's name and the port)")
    # From `--processes` to those that it starts.
    _switch(cluster, "--supervised", help=argparse.SUPPRESS)
    _global_flags(parser)
    parser.set_defaults(run="start")


def _cluster_health(commands: Any) -> None:
    parser = commands.add_parser("health", help="ask a server whether it serves; exits 0 when it does")
    parser.add_argument("--address", default="127.0.0.1:7233", help="(default: 127.0.0.1:7233)")
    _global_flags(parser)
    parser.set_defaults(run="health")


def _services(text: str) -> list[str]:
    known = ("frontend", "history", "matching", "worker")
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or any(name not in known for name in names):
        raise argparse.ArgumentTypeError(f"{text!r} is not some of {','.join(known)}")
    return names


def _processes(text: str) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text) <= 256:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of processes (1 to 256)")


def _shards(text: str) -> int:
    if text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_SHARDS:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is not a number of shards (1 to {MAX_SHARDS})")


def _database_flag(parser: _Flags, *names: str, help: str, **options: Any) -> None:
    parser.add_argument(*names, metavar="URL", help=f"{help}: sqlite:PATH, postgresql://… or mysql://…", **options)


def _db(commands: Any) -> None:
    db = _commands(commands.add_parser("db", help="make, upgrade and copy databases"))
    default = os.environ.get("PERDURE_DATABASE_URL")
    for name, help in (
        ("init", "make perdure's tables where there are none"),
        ("upgrade", "bring tables of an older version up to date; there is no way back"),
        ("status", "say which versions the tables have; exits 0 when a server would start"),
    ):
        parser = db.add_parser(name, help=help, description=f"{help[0].upper()}{help[1:]}.")
        _database_flag(
            parser,
            "--db",
            help="the database (default: $PERDURE_DATABASE_URL)",
            default=default,
            required=not default,
        )
        if name == "init":
            parser.add_argument(
                "--shards",
                type=_shards,
                help="how many; it cannot be changed later, but by a copy (default: 4 in a SQLite file, else 128)",
            )
        _global_flags(parser)
        parser.set_defaults(run=f"db_{name}")
    copy = db.add_parser(
        "copy",
        help="copy a whole stopped server to another database",
        description="Copies everything from the database of a stopped server to an empty one, and compares both. Cut "
        "off, it goes on where it was when it is run again.",
    )
    _database_flag(copy, "--from", help="of the stopped server", required=True, dest="source")
    _database_flag(copy, "--to", help="an empty one", required=True)
    copy.add_argument("--shards", type=_shards, help="of the copy (default: 4 in a SQLite file, else 128)")
    _global_flags(copy)
    copy.set_defaults(run="db_copy")


def _commands(parser: argparse.ArgumentParser) -> Any:
    return parser.add_subparsers(title="commands", metavar="COMMAND", required=True, parser_class=_Parser)


def parser() -> argparse.ArgumentParser:
    root = _Parser(prog="perdure", description="A durable execution server, wire-compatible with the Temporal API.")
    root.add_argument("-v", "--version", action="version", version=f"perdure {__version__}")
    _global_flags(root)
    commands = _commands(root)
    server = _commands(commands.add_parser("server", help="start a server"))
    _start_dev(server)
    _start(server)
    operator = _commands(commands.add_parser("operator", help="look after a server"))
    _cluster_health(_commands(operator.add_parser("cluster", help="of the whole")))
    _db(commands)
    return root


def main(argv: Sequence[str] | None = None) -> int:
    """The exit code: 0, 1 when the command failed, 2 when it was called wrongly."""
    # Until a server looks after signals itself, they end the program without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    arguments = parser().parse_args(argv)
    arguments.argv = list(sys.argv[1:] if argv is None else argv)
    # What goes wrong in grpc's core reaches us as an error; on standard error it would only be noise.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    try:
        if arguments.run == "health":
            from perdure.cli import health

            return health.run(arguments)
        if arguments.run.startswith("db_"):
            from perdure.cli import db

            return db.run(arguments)
        from perdure.cli import server

        return server.start_dev(arguments) if arguments.run == "start_dev" else server.start(arguments)
    except CommandError as e:
        line = " ".join(str(e).split())
        print(f"perdure: error: {line}", file=sys.stderr)
        return 1
