"""What it is worth that an answer's tokens keep to their target, where a prompt may be computed elsewhere.

Pure; in seconds of TTFT. A time that is over its target by ever more costs no more: where not all can keep to it, some
workers do, and what is lost anyway goes where answers are lost, long prompts first, as they would spoil most.
"""

from __future__ import annotations

from math import exp

import msgspec

from proxy.spec import LatencyTargets

WORTH = 3.0  # of an answer whose tokens come within their target, in targets of TTFT
# At this part of its target a predicted time keeps to it in half of cases, as who comes later adds to it. Three spreads
# from there it is all but certain.
EVEN_AT, SPREAD = 0.8, 0.1
# How much a stall still counts for answers that keep to their target, or miss it, with it and without it.
LEAST_WEIGHT = 0.3
_CERTAIN = 30.0


class Goodput(msgspec.Struct, frozen=True):
    targets: LatencyTargets

    def missed(self, itl_s: float) -> float:
        """How probable it is that a time between tokens misses its target when this is what is predicted."""
        off = (EVEN_AT - itl_s / self.targets.itl_s) / SPREAD
        return 1 / (1 + exp(off)) if abs(off) < _CERTAIN else float(off < 0)

    def itl_cost_s(self, itl_s: float) -> float:
        return WORTH * self.targets.ttft_s * self.missed(itl_s)

    def others_cost_s(self, num_answers: int, itl_s: float, more_s: float) -> float:
        """Of so many who have `itl_s` between tokens, and then have more."""
        return num_answers * (self.itl_cost_s(itl_s + more_s) - self.itl_cost_s(itl_s))

    def stall_weight(self, itl_s: float, later_s: float) -> float:
        """Of a second by which an answer is stalled: in full where, on the way from `itl_s` now to what it will be
        later, it is open whether it keeps to its target."""
        missed = self.missed(min(max(itl_s, EVEN_AT * self.targets.itl_s), later_s))
        return LEAST_WEIGHT + (1 - LEAST_WEIGHT) * 4 * missed * (1 - missed)
