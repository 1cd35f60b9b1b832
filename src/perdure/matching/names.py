"""Names of a task queue's partitions: the root has its own name, partition 3 of `orders` is `/_sys/orders/3`."""

from __future__ import annotations

from perdure.errors import invalid_argument

_PREFIX = "/_sys/"


def partition_name(base: str, index: int) -> str:
    return f"{_PREFIX}{base}/{index}" if index else base


def parse_partition(name: str) -> tuple[str, int]:
    """(name of the task queue, index of the partition). Raises ServiceError INVALID_ARGUMENT."""
    if not name.startswith(_PREFIX):
        return name, 0
    base, _, digits = name[len(_PREFIX) :].rpartition("/")
    if not base or base.startswith(_PREFIX) or not (digits.isascii() and digits.isdigit()) or int(digits) == 0:
        raise invalid_argument(f"invalid task queue partition name {name}")
    return base, int(digits)
