"""The highest rate that a policy keeps up with: p90 of TTFT does not grow to more than twice from half to half.

Far beyond it the growth is about 2 again, as then both halves only queue: so the search comes from below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from launcher.twin.card import Card
from launcher.twin.traces import Request

MAX_GROWTH = 2.0
PRECISION = 1.01
STEP = 1.2
FIRST_LOAD = 0.4


def first_rate(requests: Sequence[Request], card: Card, num_workers: int) -> float:
    """At which computing all prompts, nothing cached, would take this part of the engines' time."""
    batch = card.max_num_batched_tokens
    batch_s = card.timing.pass_s(batch, 0, 0.0)
    needed_s = sum(request.num_prompt for request in requests) / batch * batch_s
    duration_s = requests[-1].at_s - requests[0].at_s
    return FIRST_LOAD * num_workers * duration_s / needed_s


def saturation(growth_at: Callable[[float], float], start: float) -> float:
    """`growth_at`: of one replay at that rate."""
    low, high = start, start * STEP
    while growth_at(low) > MAX_GROWTH:
        low, high = low / STEP, low
    while high == low * STEP and growth_at(high) <= MAX_GROWTH:
        low, high = high, high * STEP
    while high / low > PRECISION:
        middle = (low * high) ** 0.5
        if growth_at(middle) <= MAX_GROWTH:
            low = middle
        else:
            high = middle
    return low
