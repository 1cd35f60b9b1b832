"""Range deletes that are put off: they ride with later groups, a bounded piece each, instead of being a write of
their own. Losing them in a crash is harmless, for their rows are done and will be named again."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V", int, tuple[int, int])

PIECE = 256
"""Rows deleted in one group, so that no commit waits long behind a delete."""


class RangeDeletes(Generic[K, V]):
    """Of one table: for each key (say, a shard's category) the position up to which rows are to go.

    To a reader the rows are gone at once (it starts behind `floor`). To a writer too: before it puts a row into a range
    that is still being deleted, it calls `finish`, or its row would be deleted with the others.

    delete_piece: deletes the first PIECE rows of a key up to a position; whether there may be more."""

    def __init__(self, delete_piece: Callable[[sqlite3.Connection, K, V], bool]) -> None:
        self._delete_piece = delete_piece
        self.until: dict[K, V] = {}
        self._deleted: dict[K, V] = {}

    def add(self, key: K, until: V) -> None:
        if key not in self.until or self.until[key] < until:
            self.until[key] = until

    def floor(self, key: K, after: V) -> V:
        """Where a reader that wants rows behind `after` starts."""
        until = self.until.get(key)
        return after if until is None or until < after else until

    def step(self, connection: sqlite3.Connection) -> None:
        """One piece of one range."""
        key = next(iter(self.until))
        until = self.until.pop(key)
        self.until[key] = until  # the others are next
        if not self._delete_piece(connection, key, until):
            self._deleted[key] = until

    def finish(self, connection: sqlite3.Connection, key: K) -> None:
        until = self.until.pop(key)
        while self._delete_piece(connection, key, until):
            pass

    def finish_all(self, connection: sqlite3.Connection) -> None:
        for key in list(self.until):
            self.finish(connection, key)

    def committed(self) -> None:
        for key, until in self._deleted.items():
            if self.until.get(key) == until:
                del self.until[key]
        self._deleted.clear()

    def rolled_back(self) -> None:
        self._deleted.clear()
