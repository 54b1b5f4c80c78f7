"""Durations in buckets, a third of an octave each: a quantile is right to a tenth, and sums are exact.

Pure. Memory does not grow. What two processes, or two intervals, have counted is added up bucket by bucket.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable

import msgspec

FIRST_BOUND_S = 0.001
PER_OCTAVE = 3
NUM_OCTAVES = 17  # to 131 s
RATIO = 2 ** (1 / PER_OCTAVE)
BOUNDS_S = tuple(FIRST_BOUND_S * RATIO**i for i in range(PER_OCTAVE * NUM_OCTAVES + 1))


class Histogram(msgspec.Struct):
    """`counts[i]` is what was at most BOUNDS_S[i], and more than the bound before; the last has no bound."""

    counts: list[int] = msgspec.field(default_factory=lambda: [0] * (len(BOUNDS_S) + 1))
    sum_s: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BOUNDS_S, seconds)] += 1
        self.sum_s += seconds

    def include(self, other: Histogram) -> None:
        self.counts = [ours + theirs for ours, theirs in zip(self.counts, other.counts, strict=True)]
        self.sum_s += other.sum_s

    def quantile(self, fraction: float) -> float | None:
        """None where nothing was counted. What is beyond the last bound counts as the last bound."""
        total = sum(self.counts)
        wanted, before = fraction * total, 0
        for i, count in enumerate(self.counts):
            if count and before + count >= wanted:
                part: float = RATIO ** ((wanted - before) / count - 1)
                return BOUNDS_S[min(i, len(BOUNDS_S) - 1)] * part
            before += count
        return None

    def octaves(self) -> Iterable[tuple[str, int]]:
        """For Prometheus: (bound, all up to it), one per octave: its series cost more than ours."""
        total = 0
        for i, count in enumerate(self.counts):
            total += count
            if i == len(BOUNDS_S):
                yield "+Inf", total
            elif i % PER_OCTAVE == 0:
                yield f"{BOUNDS_S[i]:g}", total
