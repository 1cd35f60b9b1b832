"""Protobuf on the wire without parsing: histories are stored as serialized `History` messages, and concatenating
serialized Histories gives the History of all their events. So a reply is made by putting bytes side by side.

A field of a message type must come once: some clients do not merge one that comes twice. So all batches of a history
go into one `history` field.
"""

from __future__ import annotations

from collections.abc import Iterable


def varint(value: int) -> bytes:
    if value < 0x80:
        return bytes((value,))
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def bytes_field(number: int, value: bytes) -> bytes:
    """A length-delimited field: bytes, string or a serialized message."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def joined_field(number: int, parts: Iterable[bytes]) -> list[bytes]:
    """One length-delimited field whose value is all parts, as pieces to join with others."""
    pieces = list(parts)
    return [varint(number << 3 | 2) + varint(sum(map(len, pieces))), *pieces]


def int_field(number: int, value: int) -> bytes:
    """A varint field of a value that is not negative; b"" for 0, the default."""
    return varint(number << 3) + varint(value) if value else b""
