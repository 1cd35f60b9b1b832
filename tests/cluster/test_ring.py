from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from perdure.cluster.ring import Ring

MEMBERS = st.sets(st.uuids().map(str), min_size=1, max_size=8)
KEYS = [f"namespace/queue-{i}/1" for i in range(2000)]


def test_nobody_owns_anything_on_an_empty_ring() -> None:
    assert Ring().owner("key") is None
    assert Ring().shard_owners(4) == ()


@settings(max_examples=25, deadline=None)
@given(MEMBERS)
def test_everybody_sees_the_same_and_has_a_fair_share(members: set[str]) -> None:
    ring, other = Ring(sorted(members)), Ring(sorted(members, reverse=True))
    load = Counter(ring.owner(key) for key in KEYS)
    assert load == Counter(other.owner(key) for key in KEYS)
    assert set(load) <= members
    assert max(load.values()) < 2 * len(KEYS) / len(members)
    owners = ring.shard_owners(128)
    assert owners == other.shard_owners(128)
    shards = Counter(owners)
    assert max(shards.values()) <= 1.1 * 128 / len(members) + 1
    assert set(shards) == members


@settings(max_examples=25, deadline=None)
@given(st.sets(st.uuids().map(str), min_size=2, max_size=8))
def test_little_moves_when_a_member_leaves(members: set[str]) -> None:
    leaving, *staying = sorted(members)
    before, after = Ring(members), Ring(staying)
    for key in KEYS:
        if before.owner(key) != leaving:
            assert after.owner(key) == before.owner(key)
    moved = [b for b, a in zip(before.shard_owners(128), after.shard_owners(128), strict=True) if a != b]
    assert moved.count(leaving) == before.shard_owners(128).count(leaving)
    # Few of those that stay where they could: the load is evened out again.
    assert len(moved) - moved.count(leaving) <= 128 // 4


def test_few_shards_are_even_too() -> None:
    assert sorted(Counter(Ring(["a", "b"]).shard_owners(4)).values()) in ([2, 2], [1, 3])
    assert len(set(Ring(["a", "b", "c", "d"]).shard_owners(4))) >= 3
