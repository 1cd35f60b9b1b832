"""Rates: how many tasks may be dispatched, and how many were."""

from __future__ import annotations

import math

from perdure.clock import SECOND

NEVER = 1 << 62
"""A delay that does not end by itself: the rate is zero."""


class TokenBucket:
    """Lets `rate` tokens a second through, and a second's worth at once after a pause (at least one).

    rate: None for no limit, 0 for none at all."""

    __slots__ = ("_filled_at", "_tokens", "rate")

    def __init__(self, rate: float | None = None) -> None:
        self.rate = rate
        self._tokens = 0.0 if rate is None else max(1.0, rate)
        self._filled_at = 0

    def set_rate(self, rate: float | None, now: int) -> None:
        if rate == self.rate:
            return
        if self.rate is None or rate is None:
            self._tokens = 0.0 if rate is None else max(1.0, rate)
            self._filled_at = now
        else:
            self._fill(now)
            self._tokens = min(self._tokens, max(1.0, rate))
        self.rate = rate

    def _fill(self, now: int) -> None:
        rate = self.rate
        if rate is None:
            return
        elapsed = now - self._filled_at
        if elapsed > 0:
            self._filled_at = now
            self._tokens = min(max(1.0, rate), self._tokens + rate * elapsed / SECOND)

    def delay(self, now: int) -> int:
        """Nanoseconds until a token is there; 0: now. NEVER at rate zero."""
        rate = self.rate
        if rate is None:
            return 0
        if rate <= 1e-9:
            return NEVER
        self._fill(now)
        # A token that is there but for rounding is there.
        missing = 1.0 - self._tokens
        return 0 if missing <= 1e-9 else math.ceil(missing / rate * SECOND)

    def take(self) -> None:
        if self.rate is not None:
            self._tokens -= 1.0

    def give_back(self) -> None:
        """A token that was taken in vain."""
        if self.rate is not None:
            self._tokens += 1.0


_BUCKET = 5 * SECOND
_BUCKETS = 7
_WINDOW = 30 * SECOND


class RateWindow:
    """Counts over the last 30 seconds, in steps of 5."""

    __slots__ = ("_at", "_bucket_end", "_counts", "_started", "total")

    def __init__(self, now: int) -> None:
        self._counts = [0] * _BUCKETS
        self._at = 0
        self._started = now
        self._bucket_end = now + _BUCKET
        self.total = 0

    def add(self, now: int) -> None:
        if now >= self._bucket_end:
            self._advance(now)
        self._counts[self._at] += 1
        self.total += 1

    def _advance(self, now: int) -> None:
        steps = (now - self._bucket_end) // _BUCKET + 1
        for _ in range(min(steps, _BUCKETS)):
            self._at = (self._at + 1) % _BUCKETS
            self.total -= self._counts[self._at]
            self._counts[self._at] = 0
        self._bucket_end += steps * _BUCKET

    def per_second(self, now: int) -> float:
        if now >= self._bucket_end:
            self._advance(now)
        elapsed = min(now - (self._bucket_end - _BUCKET) + _WINDOW, now - self._started)
        return self.total * SECOND / elapsed if elapsed > 0 else 0.0
