"""Statements as bytes. The driver sends text only, so values become literals here, and nowhere else.

Every connection is set to the character set `binary` and to backslash escapes (`connections`): then a quoted literal is
the bytes between its quotes, in which only the quote and the backslash mean anything.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Final

Value = bytes | str | int | float | bool | None

CHUNK: Final = 512 << 10
"""Bytes of rows in one statement, unless one row is larger."""


def quote(value: Value) -> bytes:
    """A literal."""
    if isinstance(value, bytes):
        return b"'" + value.replace(b"\\", b"\\\\").replace(b"'", b"\\'") + b"'"
    if isinstance(value, str):
        return b"'" + value.encode().replace(b"\\", b"\\\\").replace(b"'", b"\\'") + b"'"
    if value is None:
        return b"NULL"
    if isinstance(value, int):
        return b"%d" % value
    text = repr(value)
    return (text if "e" in text else text + "e0").encode()  # without an exponent it would be a decimal


@lru_cache(256)
def _parts(statement: str) -> Sequence[bytes]:
    return statement.encode().split(b"?")


def bind(statement: str, *values: Value) -> bytes:
    """The statement, with a literal in the place of each `?`."""
    first, *rest = _parts(statement)
    out = [first]
    for value, part in zip(values, rest, strict=True):
        out.append(quote(value))
        out.append(part)
    return b"".join(out)


def chunks(pieces: Iterable[bytes]) -> Iterable[list[bytes]]:
    """In lists of up to CHUNK bytes."""
    chunk: list[bytes] = []
    size = 0
    for piece in pieces:
        if chunk and size + len(piece) > CHUNK:
            yield chunk
            chunk = []
            size = 0
        chunk.append(piece)
        size += len(piece)
    if chunk:
        yield chunk
