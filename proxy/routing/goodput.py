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
# How much a stall still counts for answers that are over their target, and at how much over.
LOST_WEIGHT, LOST_AT = 0.3, 1.2
_CERTAIN = 30.0


class Goodput(msgspec.Struct, frozen=True):
    targets: LatencyTargets

    def itl_cost_s(self, itl_s: float) -> float:
        return WORTH * self.targets.ttft_s * _missed(itl_s / self.targets.itl_s)

    def others_cost_s(self, num_answers: int, itl_s: float, more_s: float) -> float:
        """Of so many who have `itl_s` between tokens, and then have more."""
        return num_answers * (self.itl_cost_s(itl_s + more_s) - self.itl_cost_s(itl_s))

    def stall_weight(self, itl_s: float) -> float:
        over = (itl_s / self.targets.itl_s - 1) / (LOST_AT - 1)
        return max(LOST_WEIGHT, min(1.0, 1 - over))


def _missed(part: float) -> float:
    """How probable it is that a time which is predicted to be this part of its target misses it."""
    off = (EVEN_AT - part) / SPREAD
    return 1 / (1 + exp(off)) if abs(off) < _CERTAIN else float(off < 0)
