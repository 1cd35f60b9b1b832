"""Which shard a workflow id belongs to."""

from __future__ import annotations

_OFFSET = 0xCBF29CE484222325
_PRIME = 0x100000001B3
_MASK = 0xFFFFFFFFFFFFFFFF


def fnv1a64(data: bytes) -> int:
    value = _OFFSET
    for byte in data:
        value = ((value ^ byte) * _PRIME) & _MASK
    return value


def shard_of(namespace_id: str, workflow_id: str, shards: int) -> int:
    """From 1 to `shards`."""
    return fnv1a64(f"{namespace_id}_{workflow_id}".encode()) % shards + 1
