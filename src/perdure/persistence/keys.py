"""Keys of rows: short, whatever the length of names, and next to each other for what is recent."""

from __future__ import annotations

from hashlib import blake2b

from perdure.persistence.api import TaskQueueKey


def run_key(namespace_id: str, workflow_id: str, run_id: str) -> bytes:
    """16 bytes: the time of a run id that is a UUID of version 7, then a digest of the names; else a digest alone."""
    digest = blake2b(f"{namespace_id}\0{workflow_id}\0{run_id}".encode(), digest_size=16).digest()
    if len(run_id) == 36 and run_id[14] == "7" and run_id[8] == run_id[13] == "-":
        try:
            return bytes.fromhex(run_id[:8] + run_id[9:13]) + digest[6:]
        except ValueError:
            pass
    return digest


def workflow_key(namespace_id: str, workflow_id: str) -> bytes:
    return blake2b(f"{namespace_id}\0{workflow_id}".encode(), digest_size=16).digest()


def queue_key(key: TaskQueueKey) -> bytes:
    return blake2b(f"{key.namespace_id}\0{key.type}\0{key.name}".encode(), digest_size=16).digest()


def branch_key(branch_id: str) -> bytes:
    """The 16 bytes of a UUID, or the name behind a 0xFF. `branch_id_of` turns it back."""
    if len(branch_id) == 36:
        digits = branch_id.replace("-", "")
        if len(digits) == 32:
            try:
                raw = bytes.fromhex(digits)
            except ValueError:
                raw = b""
            if len(raw) == 16 and _uuid_text(raw) == branch_id:
                return raw
    name = branch_id.encode()
    return b"\xff" + name if len(name) != 15 else b"\xff\xff" + name


def branch_id_of(key: bytes) -> str:
    return _uuid_text(key) if len(key) == 16 else key.lstrip(b"\xff").decode()


def _uuid_text(raw: bytes) -> str:
    digits = raw.hex()
    return f"{digits[:8]}-{digits[8:12]}-{digits[12:16]}-{digits[16:20]}-{digits[20:]}"
