"""How much there will be to do, minutes to an hour ahead: tokens per second, with intervals.

Pure. Owns the predictors and what each is worth. Plain ones (what was last, what is usual, the lines through what was)
are weighed by how wrong each has been of late for the same time ahead; so a trend is followed where there is one, and
noise is not.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import NamedTuple

BUCKET_S = 60
WINDOW = 5  # buckets: demand is a mean over so many
HORIZONS_MIN = (5, 15, 30, 60)
MAX_BUCKETS = 180
FURTHEST = 15  # buckets that a line is followed beyond its end
USUAL = 60  # buckets after which the past weighs a third in what is usual
FADE = 0.98  # of what is known of errors, per bucket
SHARPNESS = 2.0  # a predictor that is twice as wrong weighs 2 ** -SHARPNESS as much
NORMAL_P90 = 2.06  # of a normal error: what nine of ten stay below, in mean absolute errors
Predictor = Callable[[Sequence[float], int], float]  # what was, buckets ahead
DRIFT = 1.15  # a share that changes by this factor within half an hour is named


class Interval(NamedTuple):
    """Nine of ten times between `low` and `high`."""

    low: float
    mean: float
    high: float


def _last(past: Sequence[float], ahead: int) -> float:
    return fmean(past[-WINDOW:])


def _usual(past: Sequence[float], ahead: int) -> float:
    share, level = 1 / USUAL, fmean(past[:WINDOW])
    for number, value in enumerate(past[WINDOW:], WINDOW + 1):
        level += max(share, 1 / number) * (value - level)
    return level


def _line(length: int) -> Predictor:
    """Through so many buckets."""

    def predict(past: Sequence[float], ahead: int) -> float:
        """At the middle of the window that ends `ahead`, not much further on than the shortest line is long."""
        recent = past[-length:]
        middle = (len(recent) - 1) / 2
        spread = sum((x - middle) ** 2 for x in range(len(recent)))
        slope = sum((x - middle) * y for x, y in enumerate(recent)) / spread
        return max(0.0, fmean(recent) + slope * (middle + min(ahead - (WINDOW - 1) / 2, FURTHEST)))

    return predict


PREDICTORS: tuple[Predictor, ...] = (_last, _usual, _line(12), _line(30))


@dataclass(slots=True)
class _Ahead:
    """One time ahead: what was predicted for moments to come, and the faded errors of what has come."""

    minutes: int
    open: deque[list[float]] = field(default_factory=deque)  # the oldest is for the next bucket; last: all weighed
    errors: list[float] = field(default_factory=lambda: [0.0] * (len(PREDICTORS) + 1))
    seen: float = 0.0

    def learn(self, actual: float) -> None:
        if len(self.open) < self.minutes:
            return
        predicted = self.open.popleft()
        self.seen = FADE * self.seen + 1
        for which, value in enumerate(predicted):
            self.errors[which] += (abs(value - actual) - self.errors[which]) / self.seen

    def predict(self, past: Sequence[float]) -> None:
        values = [predictor(past, self.minutes) for predictor in PREDICTORS]
        self.open.append([*values, self._weighed(values)])

    def _weighed(self, values: Sequence[float]) -> float:
        if not self.seen:
            return values[0]
        least = min(self.errors[:-1])
        if least == 0.0:
            return values[self.errors.index(least)]
        weights = [math.pow(error / least, -SHARPNESS) for error in self.errors[:-1]]
        return sum(w * v for w, v in zip(weights, values, strict=True)) / sum(weights)

    def interval(self, past: Sequence[float]) -> Interval:
        mean = self.open[-1][-1]
        # Nothing has come yet of what was predicted: as far as it has moved within what was seen.
        off = NORMAL_P90 * self.errors[-1] if self.seen else max(past) - min(past)
        return Interval(max(0.0, mean - off), mean, mean + off)


class Series:
    """One kind of demand, bucket by bucket."""

    def __init__(self) -> None:
        self.past: deque[float] = deque(maxlen=MAX_BUCKETS)
        self._ahead = {minutes: _Ahead(minutes) for minutes in HORIZONS_MIN}

    def add(self, per_s: float) -> None:
        """Of a bucket that is over."""
        self.past.append(per_s)
        past = list(self.past)
        if len(past) < WINDOW:
            return
        for ahead in self._ahead.values():
            ahead.learn(fmean(past[-WINDOW:]))
            ahead.predict(past)

    def forecast(self) -> dict[int, Interval]:
        """By minutes ahead: the mean of the five minutes that end there. Nothing in the first minutes."""
        past = list(self.past)
        return {m: ahead.interval(past) for m, ahead in self._ahead.items()} if len(past) >= WINDOW else {}

    @property
    def now(self) -> float:
        return fmean(list(self.past)[-WINDOW:]) if self.past else 0.0


class Bucket(NamedTuple):
    """Tokens per second."""

    computed: float  # of prompts, not cached
    cached: float
    output: float


class Forecast:
    """All kinds together."""

    def __init__(self) -> None:
        self.kinds = {kind: Series() for kind in Bucket._fields}

    def add(self, bucket: Bucket) -> None:
        for kind, per_s in bucket._asdict().items():
            self.kinds[kind].add(per_s)

    def ahead(self) -> Mapping[str, Mapping[int, Interval]]:
        return {kind: series.forecast() for kind, series in self.kinds.items()}

    def until(self, seconds: float) -> Bucket:
        """The upper ends of what comes up to the window around then, the most of them."""
        least = seconds / BUCKET_S + WINDOW / 2
        last = next((minutes for minutes in HORIZONS_MIN if minutes >= least), HORIZONS_MIN[-1])
        return Bucket(
            **{
                kind: max((interval.high for minutes, interval in forecast.items() if minutes <= last), default=0.0)
                for kind, forecast in self.ahead().items()
            }
        )

    def now(self) -> Bucket:
        return Bucket(**{kind: series.now for kind, series in self.kinds.items()})

    def drift(self, minutes: int = 30) -> str:
        """Where the mix goes: `prefill-heavy`, `decode-heavy`, or nowhere in particular (empty)."""
        soon = {kind: forecast[minutes].mean for kind, forecast in self.ahead().items() if forecast}
        if not soon:
            return ""
        now = self.kinds["computed"].now / max(1e-9, self.kinds["output"].now)
        then = soon["computed"] / max(1e-9, soon["output"])
        if then > DRIFT * now:
            return "prefill-heavy"
        return "decode-heavy" if now > DRIFT * then else ""
