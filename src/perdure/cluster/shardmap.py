"""Which shard a workflow id belongs to."""

from __future__ import annotations

from functools import lru_cache

_OFFSET = 0xCBF29CE484222325
_PRIME = 0x100000001B3
_MASK = 0xFFFFFFFFFFFFFFFF


def fnv1a64(data: bytes) -> int:
    value = _OFFSET
    for byte in data:
        value = ((value ^ byte) * _PRIME) & _MASK
    return value


@lru_cache(maxsize=65_536)
def shard_of(namespace_id: str, workflow_id: str, shards: int) -> int:
    """From 1 to `shards`. Remembered for the latest ids: a workflow has many calls in its short life."""
    return fnv1a64(f"{namespace_id}_{workflow_id}".encode()) % shards + 1
