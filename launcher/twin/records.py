"""What happened to each request of a replay, virtual or live: the raw material of all figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from launcher.twin.traces import Request
from proxy.routing.router import Route


@dataclass(slots=True)
class Record:
    """Seconds of the trace's time. Workers by name; `prefill` is None where one worker did all of it."""

    request: Request
    first_s: float = 0.0
    end_s: float = 0.0  # or when it was last looked at
    num_made: int = 0  # tokens, where it was looked at before its end
    num_cached: int = 0
    prefill: str | None = None
    decode: str = ""

    def begin(self, now: float, route: Route | None) -> None:
        self.first_s = now
        if route is not None:
            self.prefill = None if route.prefill is None else route.prefill.key[0]
            self.decode = route.decode.key[0]

    @property
    def ttft_s(self) -> float:
        return self.first_s - self.request.at_s

    @property
    def itl_s(self) -> float | None:
        """The mean of one answer; None: it has one token."""
        gaps = (self.num_made or self.request.num_output) - 1
        return (self.end_s - self.first_s) / gaps if gaps else None


@dataclass(frozen=True, slots=True)
class Replayed:
    records: Sequence[Record]  # in order of arrival
    workers: Sequence[str]
    decision_s: Sequence[float]
    num_preemptions: int
    block_size: int
    complete: bool  # else it was given up, and what had not begun or ended has times of 0
    end_s: float
