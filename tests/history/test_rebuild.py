"""A workflow execution is its history: whatever happens to a run, its events (and the short list of facts that have no
event) give its state."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.history.simulation import simulate


@settings(max_examples=300, deadline=None)
@given(st.randoms(use_true_random=False), st.integers(1, 100))
def test_events_give_the_state(random: Random, steps: int) -> None:
    simulate(random, steps)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_events_give_the_state_ten_thousand_times() -> None:
    for seed in range(10_000):
        try:
            simulate(Random(seed), 80)
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
