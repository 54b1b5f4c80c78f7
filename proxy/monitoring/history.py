"""The last hour of users' requests, in intervals of ten seconds: what the page draws.

Pure: unix time is an argument. Memory is bounded, and an hour without requests is empty. Intervals begin at
multiples of their length, so those of several processes are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import msgspec

from proxy.monitoring.histogram import Histogram

INTERVAL_S = 10
SPAN_S = 3600
MAX_INTERVALS = SPAN_S // INTERVAL_S + 1  # the one that is not over yet is one more


class Interval(msgspec.Struct):
    """`ttft` and `itl` are of answers that stream; `itl` is each answer's mean."""

    start: int  # unix
    ttft: Histogram = msgspec.field(default_factory=Histogram)
    itl: Histogram = msgspec.field(default_factory=Histogram)
    answered: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0  # of the prompts

    def include(self, other: Interval) -> None:
        self.ttft.include(other.ttft)
        self.itl.include(other.itl)
        self.answered += other.answered
        self.failed += other.failed
        self.prompt_tokens += other.prompt_tokens
        self.output_tokens += other.output_tokens
        self.cached_tokens += other.cached_tokens


class History(msgspec.Struct):
    """Oldest first. An interval exists once something has happened in it."""

    intervals: list[Interval] = msgspec.field(default_factory=list)

    def at(self, unix: float) -> Interval:
        """The interval to count in. A clock that was set back goes on in the newest one."""
        start = int(unix) // INTERVAL_S * INTERVAL_S
        if not self.intervals or self.intervals[-1].start < start:
            self.intervals.append(Interval(start))
            del self.intervals[:-MAX_INTERVALS]
        return self.intervals[-1]

    def include(self, other: History) -> None:
        """Of another process: its intervals are ours."""
        ours = {interval.start: interval for interval in self.intervals}
        for theirs in other.intervals:
            ours.setdefault(theirs.start, Interval(theirs.start)).include(theirs)
        self.intervals = [ours[start] for start in sorted(ours)][-MAX_INTERVALS:]

    def since(self, start: int, unix: float) -> Iterator[Interval]:
        """Those of the last hour that begin at `start` or later."""
        first = max(start, int(unix) - SPAN_S)
        return (interval for interval in self.intervals if interval.start >= first)


def history_json(intervals: Iterable[Interval]) -> list[dict[str, Any]]:
    """Quantiles in seconds, None where nothing streamed; the rest is counts, of INTERVAL_S each."""
    return [
        {
            "start": interval.start,
            "answered": interval.answered,
            "failed": interval.failed,
            "prompt_tokens": interval.prompt_tokens,
            "output_tokens": interval.output_tokens,
            "cached_tokens": interval.cached_tokens,
            "ttft_p50_s": interval.ttft.quantile(0.5),
            "ttft_p99_s": interval.ttft.quantile(0.99),
            "itl_p50_s": interval.itl.quantile(0.5),
            "itl_p99_s": interval.itl.quantile(0.99),
        }
        for interval in intervals
    ]
