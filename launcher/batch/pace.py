"""How many requests are in flight: enough to keep every engine full, and no more. Learned from what answers tell.

Pure. An answer says how long its request waited at the proxy for a place. As long as they find one at once there may
be room for more, so the limit grows by one per answer: it doubles with each round. Where they wait, there is enough:
it shrinks by what they waited too long, until they wait a small part of their time only, and from then on grows by a
tenth per round. Where the service refuses, it is halved, and found anew. It begins small:
requests that share a beginning would be computed side by side, before the first has filled a cache.
"""

from __future__ import annotations

FIRST = 16
MOST = 8192
AT_ONCE, ENOUGH = 0.01, 0.1  # parts of its time that an answer has waited for a place
GROWTH, LATER_GROWTH = 1.0, 0.1  # per answer
HALVE_EVERY_S = 1.0


class Pace:
    """`limit` is what may be in flight now."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._limit = float(min(FIRST, most))
        self._growth = GROWTH
        self._halved_at = float("-inf")

    @property
    def limit(self) -> int:
        return int(self._limit)

    def answered(self, took_s: float, waited_s: float, num_in_flight: int) -> None:
        """`num_in_flight`: with it; a limit that is not reached says nothing about more."""
        part = waited_s / took_s if took_s > 0 else 0.0
        if part > ENOUGH:
            self._limit, self._growth = max(1.0, self._limit - (part - ENOUGH)), LATER_GROWTH
        elif part <= AT_ONCE and num_in_flight >= self.limit:
            self._limit = min(self._most, self._limit + self._growth)

    def refused(self, now: float) -> None:
        self._growth = GROWTH
        if now - self._halved_at >= HALVE_EVERY_S:
            self._limit, self._halved_at = max(1.0, self._limit / 2), now
