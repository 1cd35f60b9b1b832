"""What services report of themselves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple


class Sample(NamedTuple):
    """One number. name: snake case, without prefix and `_total`. labels: the same names in all samples of a name."""

    name: str
    help: str
    value: float
    labels: Mapping[str, str] = {}
    counter: bool = True


Source = Callable[[], Iterable[Sample]]
