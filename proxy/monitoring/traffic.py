"""What users' requests were and took: totals since the start, and the last hour.

Pure: times are arguments. Counts once when an answer begins and once when it ends, never per token: how many
tokens an answer had, its worker says with its end. Proofs and scrapes are nobody's requests.
"""

from __future__ import annotations

from typing import TypeVar

import msgspec

from proxy.flights.flight import Flight
from proxy.monitoring.histogram import Histogram
from proxy.monitoring.history import History
from workers.protocol import End

Counts = dict[tuple[str, str], int]
K = TypeVar("K")


class Traffic(msgspec.Struct):
    """`routes` and `handed_over` by names of (prefill, decode); without a hand-over the first is empty."""

    routes: Counts = msgspec.field(default_factory=dict)  # good answers begun
    handed_over: Counts = msgspec.field(default_factory=dict)  # prompt tokens whose KV went from one to the other
    decisions: Counts = msgspec.field(default_factory=dict)  # good answers begun, by policy and why
    prompt_tokens: int = 0
    cached_tokens: int = 0  # of these, where they were computed
    output_tokens: int = 0
    ttft: Histogram = msgspec.field(default_factory=Histogram)
    ttft_error: Histogram = msgspec.field(default_factory=Histogram)  # from what was predicted, either way
    itl: Histogram = msgspec.field(default_factory=Histogram)
    duration: Histogram = msgspec.field(default_factory=Histogram)
    history: History = msgspec.field(default_factory=History)

    def include(self, other: Traffic) -> None:
        """What another process has counted."""
        for ours, theirs in (
            (self.routes, other.routes),
            (self.handed_over, other.handed_over),
            (self.decisions, other.decisions),
        ):
            for pair, number in theirs.items():
                add(ours, pair, number)
        self.prompt_tokens += other.prompt_tokens
        self.cached_tokens += other.cached_tokens
        self.output_tokens += other.output_tokens
        self.ttft.include(other.ttft)
        self.ttft_error.include(other.ttft_error)
        self.itl.include(other.itl)
        self.duration.include(other.duration)
        self.history.include(other.history)

    def began(self, flight: Flight, now: float, unix: float) -> None:
        """The head of a good answer goes to its client."""
        if not _of_a_user(flight):
            return
        add(self.routes, _names(flight), 1)
        assert flight.route is not None
        reason = flight.route.reason
        add(self.decisions, (reason.policy, reason.why.partition(":")[0]), 1)
        if flight.streams:
            ttft_s = now - flight.arrived_at
            self.ttft.add(ttft_s)
            self.history.at(unix).ttft.add(ttft_s)
            if reason.ttft_s is not None:
                self.ttft_error.add(abs(ttft_s - reason.ttft_s))

    def ended(self, flight: Flight, began_at: float, end: End, now: float, unix: float) -> None:
        """A good answer is complete."""
        if not _of_a_user(flight):
            return
        interval = self.history.at(unix)
        interval.answered += 1
        interval.prompt_tokens += end.num_prompt_tokens
        interval.cached_tokens += min(flight.cached_tokens, end.num_prompt_tokens)
        interval.output_tokens += end.num_output_tokens
        self.prompt_tokens += end.num_prompt_tokens
        self.cached_tokens += min(flight.cached_tokens, end.num_prompt_tokens)
        self.output_tokens += end.num_output_tokens
        self.duration.add(now - flight.arrived_at)
        names = _names(flight)
        if names[0]:
            add(self.handed_over, names, end.num_prompt_tokens)
        if flight.streams and end.num_output_tokens > 1:
            itl_s = (now - began_at) / (end.num_output_tokens - 1)
            self.itl.add(itl_s)
            interval.itl.add(itl_s)

    def failed(self, flight: Flight, unix: float) -> None:
        """It ends in an error that is not its client's fault."""
        if _of_a_user(flight):
            self.history.at(unix).failed += 1


def add(counts: dict[K, int], key: K, number: int) -> None:
    counts[key] = counts.get(key, 0) + number


def _of_a_user(flight: Flight) -> bool:
    return flight.demand.forced is None


def _names(flight: Flight) -> tuple[str, str]:
    assert flight.route is not None
    prefill = flight.route.prefill
    return ("" if prefill is None else prefill.key[0], flight.route.decode.key[0])
