"""Logging: one line a record to standard error, with UTC times. Records name ids, never payloads.

Modules take `logging.getLogger("perdure....")`; what is below the level costs one comparison.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import time
from typing import Any, Final, TextIO

LEVELS: Final[dict[str, int]] = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warn": logging.WARNING,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "fatal": logging.CRITICAL,
    "never": logging.CRITICAL + 10,
}
FORMATS: Final = ("text", "pretty", "json")

_NAMES: Final = {
    logging.DEBUG: "debug",
    logging.INFO: "info",
    logging.WARNING: "warn",
    logging.ERROR: "error",
    logging.CRITICAL: "fatal",
}
_COLORS: Final = {"debug": "\x1b[2m", "info": "\x1b[34m", "warn": "\x1b[33m", "error": "\x1b[31m", "fatal": "\x1b[35m"}
_RESET: Final = "\x1b[0m"


def _utc(seconds: float) -> str:
    """2026-01-31T23:59:59.123Z"""
    whole = int(seconds)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{int((seconds - whole) * 1000):03}Z"


def _level(record: logging.LogRecord) -> str:
    return _NAMES.get(record.levelno, record.levelname.lower())


class TextFormatter(logging.Formatter):
    """`time level logger message`, a traceback on the lines after it. color: for people at a terminal. member: of a
    cluster; its name is before the logger's."""

    def __init__(self, color: bool = False, member: str = "") -> None:
        super().__init__()
        self._color = color
        self._member = f"[{member}] " if member else ""

    def format(self, record: logging.LogRecord) -> str:
        level = _level(record)
        shown = f"{level:<5}"
        if self._color:
            shown = f"{_COLORS.get(level, '')}{shown}{_RESET}"
        # A line break in a value that a client chose must not make a line of the log.
        message = record.getMessage().replace("\r", "\\r").replace("\n", "\\n")
        line = f"{_utc(record.created)} {shown} {self._member}{record.name} {message}"
        if record.exc_info and record.exc_info[0] is not None:
            line += "\n" + self.formatException(record.exc_info)
        return line


class JsonFormatter(logging.Formatter):
    """One object a line: ts, level, member (of a cluster), logger, msg, and stack when there is a traceback."""

    def __init__(self, member: str = "") -> None:
        super().__init__()
        self._member = {"member": member} if member else {}

    def format(self, record: logging.LogRecord) -> str:
        fields: dict[str, Any] = {
            "ts": _utc(record.created),
            "level": _level(record),
            **self._member,
            "logger": record.name,
            "msg": record.getMessage(),
        }
        if record.exc_info and record.exc_info[0] is not None:
            fields["stack"] = self.formatException(record.exc_info)
        return json.dumps(fields, ensure_ascii=False)


def configure(
    level: str = "warn", form: str = "text", stream: TextIO | None = None, color: str = "auto", member: str = ""
) -> None:
    """Sets up the process's logging. level: of LEVELS. form: of FORMATS. color: auto, always or never, for `pretty`.
    member: the name of this process among several."""
    target: TextIO = sys.stderr if stream is None else stream
    # Not asked for by any format, and not free.
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.raiseExceptions = False
    handler = logging.StreamHandler(target)
    if form == "json":
        handler.setFormatter(JsonFormatter(member))
    else:
        handler.setFormatter(TextFormatter(form == "pretty" and _colored(target, color), member))
    root = logging.getLogger()
    for old in list(root.handlers):
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(LEVELS[level])


def _colored(stream: TextIO, color: str) -> bool:
    if color == "auto":
        return stream.isatty() and "NO_COLOR" not in os.environ
    return color == "always"
