"""How soon targets are kept again after traffic has turned: for `benchmarks.planner`.

Pure. The queue is everybody who has no first token yet. It has built up if it is longer than ever in the second half
of the first phase, and is worked off when, after its peak, it is as short as that again. Owns what counts from then on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from launcher.twin.records import Record
from proxy.spec import LatencyTargets

Moment = tuple[float, int]  # and how many have no first token from then on


class Recovery(NamedTuple):
    """After one change. Of the phase's requests that came when the queue was worked off, the last that missed."""

    queue_s: float  # from the change until the queue was worked off; if it never was, the whole phase
    late_s: float  # from then until the last came whose first token was late
    slow_s: float  # and the last whose tokens were too far apart
    missed: float  # the part of all who came then


def recoveries(records: Sequence[Record], phase_s: float, phases: int, targets: LatencyTargets) -> list[Recovery]:
    """One for each phase but the first."""
    queue = _queue(records)
    usual = max((number for at_s, number in queue if phase_s / 2 <= at_s < phase_s), default=0)
    found = []
    for start_s in (number * phase_s for number in range(1, phases)):
        end_s = start_s + phase_s
        done_s = _worked_off([each for each in queue if start_s <= each[0] < end_s], usual, start_s, end_s)
        after = [record for record in records if done_s <= record.request.at_s < end_s]
        late = {r.request.at_s for r in after if r.ttft_s > targets.ttft_s}
        slow = {r.request.at_s for r in after if (r.itl_s or 0.0) > targets.itl_s}
        late_s, slow_s = (max(missed, default=done_s) - done_s for missed in (late, slow))
        found.append(Recovery(done_s - start_s, late_s, slow_s, len(late | slow) / max(1, len(after))))
    return found


def _queue(records: Sequence[Record]) -> list[Moment]:
    changes = sorted([(r.request.at_s, 1) for r in records] + [(r.first_s, -1) for r in records])
    number, found = 0, list[Moment]()
    for at_s, change in changes:
        number += change
        found.append((at_s, number))
    return found


def _worked_off(queue: Sequence[Moment], usual: int, start_s: float, end_s: float) -> float:
    peak_s, most = max(queue, key=lambda each: each[1], default=(start_s, 0))
    if most <= usual:
        return start_s
    return next((at_s for at_s, number in queue if at_s > peak_s and number <= usual), end_s)
