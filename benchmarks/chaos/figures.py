"""What users saw of an event, beside what the same users saw before it. Pure.

A stream's pause is its longest time without a token once it has begun; its wait is the time to the first one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import msgspec

from benchmarks.chaos.users import Stream
from launcher.twin.percentiles import percentile


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """`lost`: streams that had begun and did not come whole. `failed`: requests without any answer. `cut`: what ended
    with its connection, begun or not; `may_cut`: as many, since the row ended what they were connected to."""

    streams: int
    lost: int
    failed: int
    different: int  # whole, but not the text of an undisturbed one
    cut: int
    may_cut: int
    calm_pause_p99_s: float
    calm_wait_p99_s: float
    pause_p99_s: float
    pause_max_s: float
    wait_max_s: float

    @property
    def over_s(self) -> float:
        """The longest pause or wait, over the normal p99."""
        pause_s = self.pause_max_s - self.calm_pause_p99_s
        return max(0.0, pause_s, self.wait_max_s - self.calm_wait_p99_s)

    @property
    def is_whole(self) -> bool:
        return not (self.lost or self.failed or self.different or self.cut > self.may_cut)


def pause_s(stream: Stream) -> float:
    return max((after - before for before, after in pairwise(stream.arrivals)), default=0.0)


def wait_s(stream: Stream) -> float:
    return stream.arrivals[0] - stream.asked_at


def figures(streams: Sequence[Stream], event_at: float, may_cut: int = 0) -> Seen:
    """Streams that ended before the event are the undisturbed ones. Raises ValueError where one of them is broken, or
    a prompt was never asked before."""
    calm = [stream for stream in streams if stream.ended_at <= event_at]
    texts = undisturbed(calm)
    after = [stream for stream in streams if stream.ended_at > event_at]
    whole = [stream for stream in after if not stream.fault]
    broken = [stream for stream in after if stream.fault and not stream.was_cut]
    pauses, waits = [pause_s(stream) for stream in whole], [wait_s(stream) for stream in whole]
    return Seen(
        streams=len(after),
        lost=sum(stream.began for stream in broken),
        failed=sum(not stream.began for stream in broken),
        different=sum(stream.text != texts[stream.prompt] for stream in whole),
        cut=sum(stream.was_cut for stream in after),
        may_cut=may_cut,
        calm_pause_p99_s=percentile([pause_s(stream) for stream in calm], 0.99),
        calm_wait_p99_s=percentile([wait_s(stream) for stream in calm], 0.99),
        pause_p99_s=percentile(pauses, 0.99),
        pause_max_s=max(pauses, default=0.0),
        wait_max_s=max(waits, default=0.0),
    )


def undisturbed(calm: Sequence[Stream]) -> dict[int, str]:
    """The text of each prompt."""
    for stream in calm:
        if stream.fault:
            raise ValueError(f"a stream failed before anything had happened: {stream.fault}")
    texts = {stream.prompt: stream.text for stream in calm}
    if any(stream.text != texts[stream.prompt] for stream in calm):
        raise ValueError("undisturbed streams of one prompt differ")
    return texts
