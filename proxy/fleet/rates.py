"""How fast one worker computes prompts, receives KV and makes tokens: learned from what its legs took.

Pure: durations are arguments. Owns the estimators and what they assume before anything was seen. All are sums that
fade: what lies WINDOW observations back weighs a third, so that a worker that has changed is known again soon.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

WINDOW = 64
BUSY_S = 20.0  # "of late"
MOST_BUSY = 0.9


@dataclass(slots=True)
class Line:
    """Seconds per piece of work: `fixed_s + each_s * size`, by least squares, neither below zero."""

    fixed_s: float
    each_s: float
    _mean: float = 0.0
    _mean_s: float = 0.0
    _variance: float = 0.0
    _covariance: float = 0.0
    _weight: float = 0.0

    @property
    def known(self) -> bool:
        return self._weight >= NUM_KNOWN

    def taken_over(self) -> Line:
        return replace(self, _weight=NUM_KNOWN)

    def seconds(self, size: float) -> float:
        return self.fixed_s + self.each_s * size

    def learn(self, size: float, seconds: float) -> None:
        if not self._weight:  # what was assumed counts as a few observations
            self._believe()
        self._weight = min(self._weight + 1, WINDOW)
        share = 1 / self._weight
        off, off_s = size - self._mean, seconds - self._mean_s
        self._mean += share * off
        self._mean_s += share * off_s
        self._variance = (1 - share) * (self._variance + share * off * off)
        self._covariance = (1 - share) * (self._covariance + share * off * off_s)
        slope = self._covariance / self._variance if self._variance else self.each_s
        steepest = self._mean_s / self._mean if self._mean else slope
        self.each_s = min(max(slope, 0.0), steepest)
        self.fixed_s = self._mean_s - self.each_s * self._mean

    def _believe(self) -> None:
        self._weight = 2.0
        self._mean, self._variance = PRIOR_SIZE, PRIOR_SIZE**2
        self._mean_s, self._covariance = self.seconds(PRIOR_SIZE), self.each_s * PRIOR_SIZE**2


PRIOR_SIZE = 1000.0
NUM_KNOWN = 8  # observations, of which the first two are assumed


@dataclass(slots=True)
class Mean:
    """A mean that fades."""

    value: float
    _weight: float = 2.0

    @property
    def known(self) -> bool:
        """More of it has been seen than assumed."""
        return self._weight >= NUM_KNOWN

    def taken_over(self) -> Mean:
        return replace(self, _weight=NUM_KNOWN)

    def learn(self, value: float) -> None:
        self._weight = min(self._weight + 1, WINDOW)
        self.value += (value - self.value) / self._weight


@dataclass(slots=True)
class Rates:
    """Assumed at first: 20,000 prompt tokens/s, 200,000 tokens' KV per second, 15 ms per token of an answer."""

    prefill: Line = field(default_factory=lambda: Line(0.02, 5e-5))  # of one prompt: uncached tokens -> seconds
    transfer: Line = field(default_factory=lambda: Line(0.02, 5e-6))  # of one hand-over: tokens -> seconds
    answer_tokens: Mean = field(default_factory=lambda: Mean(300.0))
    answer_share: Mean = field(default_factory=lambda: Mean(1 / 300))  # that a token has in its answer, mean of answers
    step: Line = field(default_factory=lambda: Line(0.015, 2e-8))  # of one token: tokens held there -> seconds
    computed_s: float = 0.0  # all that prompts have taken since the start
    peers: Rates | None = None  # of all that are as this one: they learn together while all are little known
    _busy: float = 0.0  # part of the time that prompts took, of late
    _busy_at: float = 0.0

    def busy(self, now: float) -> float:
        """The part of the time in which a prompt is computed and those that decode wait for it."""
        return min(MOST_BUSY, self._busy * math.exp((self._busy_at - now) / BUSY_S))

    def share(self) -> None:
        """Who is little known is taken to be as its peers: else who seems slow at first is never tried again, and each
        of many that start together has to find out by itself."""
        if self.peers is None:
            return
        for name in ("prefill", "transfer", "answer_tokens", "answer_share", "step"):
            own, of_peers = getattr(self, name), getattr(self.peers, name)
            if own.known:
                setattr(self.peers, name, own)
            elif of_peers.known:
                setattr(self, name, of_peers.taken_over())

    def learn_prefill(self, num_tokens: int, seconds: float, now: float) -> None:
        self._learn("prefill", num_tokens, seconds)
        self.computed_s += seconds
        self._busy = self._busy * math.exp((self._busy_at - now) / BUSY_S) + seconds / BUSY_S
        self._busy_at = now

    def learn_transfer(self, num_tokens: int, seconds: float) -> None:
        self._learn("transfer", num_tokens, seconds)

    def learn_answer(self, num_tokens: int, held_tokens: int, decoding_s: float) -> None:
        """Of at least two tokens; `held_tokens`: by all that decode there."""
        # Each by itself: of many workers' answers the first to end are the shortest.
        self.answer_tokens.learn(num_tokens)
        self.answer_share.learn(1 / (num_tokens - 1))
        self._learn("step", held_tokens, decoding_s / (num_tokens - 1))

    def _learn(self, name: str, size: float, seconds: float) -> None:
        own = getattr(self, name)
        own.learn(size, seconds)
        if self.peers is not None and not own.known:
            of_peers = getattr(self.peers, name)
            if not of_peers.known:  # else it is that of one of them
                of_peers.learn(size, seconds)

    def stalls_per_step(self, now: float) -> float:
        """By how much prompts that come as of late make a step longer, in steps."""
        busy = self.busy(now)
        return busy / (1 - busy)

    def itl_s(self, held_tokens: int, now: float) -> float:
        """Of one that decodes among so many tokens, with prompts coming as they have come of late."""
        return self.step.seconds(held_tokens) * (1 + self.stalls_per_step(now))
