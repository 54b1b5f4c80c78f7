"""How many requests are in flight: enough to keep every engine full, and no more. Learned from what answers tell.

Pure. An answer says how long its request waited at the proxy for a place. As long as they find one at once there may
be room for more, so the limit grows by one per answer: it doubles with each round. Where they wait, there is enough:
it shrinks until they wait a small part of their time only. Where the service refuses, it is halved.
"""

from __future__ import annotations

FIRST = 16
MOST = 8192
WAIT_PART = 0.1  # of its time may an answer have waited for a place
SHRINK_BY = 0.5  # per answer that waited longer
HALVE_EVERY_S = 1.0


class Pace:
    """`limit` is what may be in flight now."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._limit = float(min(FIRST, most))
        self._halved_at = float("-inf")

    @property
    def limit(self) -> int:
        return int(self._limit)

    def answered(self, took_s: float, waited_s: float, num_in_flight: int) -> None:
        """`num_in_flight`: while it ran; a limit that is not reached says nothing about more."""
        if waited_s > WAIT_PART * took_s:
            self._limit = max(1.0, self._limit - SHRINK_BY)
        elif waited_s == 0 and num_in_flight >= self.limit:
            self._limit = min(self._most, self._limit + 1)

    def refused(self, now: float) -> None:
        if now - self._halved_at >= HALVE_EVERY_S:
            self._limit, self._halved_at = max(1.0, self._limit / 2), now
