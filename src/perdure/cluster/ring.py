"""Who owns what: a consistent hash ring over the members that run a service. The same members give the same ring to
everybody, so nobody needs to be asked."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from hashlib import blake2b

_POINTS = 128  # of each member on the ring
_REMEMBERED = 20_000
_SLACK = 1.1  # how many more shards than its share a member may have


def _place(key: str) -> int:
    return int.from_bytes(blake2b(key.encode(), digest_size=8).digest())


class Ring:
    """members: names, in any order. Does not change."""

    __slots__ = ("_known", "_owners", "_places", "_shards", "members")

    def __init__(self, members: Iterable[str] = ()) -> None:
        self.members = tuple(sorted(set(members)))
        points = sorted((_place(f"{member}#{i}"), member) for member in self.members for i in range(_POINTS))
        self._places = [place for place, _ in points]
        self._owners = [owner for _, owner in points]
        self._known: dict[str, str] = {}
        self._shards: dict[int, tuple[str, ...]] = {}

    def owner(self, key: str) -> str | None:
        """None when there is no member."""
        found = self._known.get(key)
        if found is None and self._owners:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            found = self._known[key] = self._owners[bisect_right(self._places, _place(key)) % len(self._owners)]
        return found

    def shard_owners(self, shards: int) -> tuple[str, ...]:
        """The owner of shard 1, 2, …; empty when there is no member. A member that has its share already is passed
        over, since there are too few shards to be even by chance."""
        found = self._shards.get(shards)
        if found is None and self._owners:
            most = -int(-shards * (_SLACK if len(self.members) > 1 else 1) // len(self.members))
            load = dict.fromkeys(self.members, 0)
            owners: list[str] = []
            for shard_id in range(1, shards + 1):
                at = bisect_right(self._places, _place(f"shard/{shard_id}"))
                while load[owner := self._owners[at % len(self._owners)]] >= most:
                    at += 1
                load[owner] += 1
                owners.append(owner)
            found = self._shards[shards] = tuple(owners)
        return found or ()
