"""Whether a replay keeps to its targets, and when that is certain before its end.

Pure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

from launcher.twin.figures import GROWTH_OF, MAX_WAIT, growth
from launcher.twin.percentiles import percentile
from launcher.twin.prediction import latencies
from launcher.twin.records import Replayed
from launcher.twin.traces import Request
from launcher.twin.trial import Late, Slow, Trial
from proxy.spec import LatencyTargets

STEADY_FROM = 0.2  # of the requests; before that caches and queues fill
MAX_GROWTH = 2.0
LATE = 2  # times as many as may be late: then it is given up


class Verdict(NamedTuple):
    """At the percentile; TTFT is infinite where it is not kept up."""

    ttft_s: float
    itl_s: float


def verdict(trial: Trial, targets: LatencyTargets, fraction: float) -> Verdict:
    """Where it is given up as answers are too slow, of what was seen until then."""
    replayed = trial.run()
    if isinstance(trial.given_up, Slow):
        begun = [record for record in replayed.records if record.first_s]
        return Verdict(*latencies(replace(replayed, records=begun), fraction, STEADY_FROM))
    ttft_s, itl_s = latencies(replayed, fraction, STEADY_FROM)
    kept_up = trial.given_up is None and _keeps_up(replayed, targets.ttft_s, fraction)
    return Verdict(ttft_s if kept_up else float("inf"), itl_s)


def _keeps_up(replayed: Replayed, ttft_s: float, fraction: float) -> bool:
    """A short replay ends before a queue that grows has become as long as the target."""
    steady = replayed.records[int(STEADY_FROM * len(replayed.records)) :]
    later_s = percentile([record.ttft_s for record in steady[len(steady) // 2 :]], fraction)
    return later_s < ttft_s / 2 or growth(steady) <= MAX_GROWTH


def late(requests: Sequence[Request], ttft_s: float, fraction: float) -> tuple[Late, Late]:
    """Until far more are late than may be, or so many that it cannot keep up."""
    steady = int(STEADY_FROM * len(requests))
    since = steady + (len(requests) - steady) // 2
    long_s = max(ttft_s / 2, MAX_WAIT * (requests[-1].at_s - requests[steady].at_s))
    num_later = len(requests) - since
    num_long = num_later - int(num_later * min(fraction, GROWTH_OF)) - 1
    return Late(ttft_s, LATE * (1 - fraction) * len(requests)), Late(long_s, num_long, since)


def slow(requests: Sequence[Request], itl_s: float, fraction: float) -> Slow:
    """Until the percentile of all is certain to be above the target."""
    since = int(STEADY_FROM * len(requests))
    num = sum(request.num_output > 1 for request in requests[since:])
    return Slow(itl_s, num - int(num * fraction) - 1, since)
