"""How a batch goes, in figures: rates, shares, what is left, GPU-hours.

Pure. Rates are of the last minute, so that an estimate follows when workers come and go.
"""

from __future__ import annotations

from collections import deque

import msgspec

from launcher.batch.progress import Progress

SPAN_S = 60.0


class Reading(msgspec.Struct, frozen=True, kw_only=True):
    """Rates are per second; `cached_share` is of the prompts' tokens."""

    total: int
    done: int
    failed: int
    in_flight: int
    left: int
    limit: int
    requests_per_s: float
    output_tokens_per_s: float
    cached_share: float
    eta_s: float | None
    gpu_hours: float
    num_retries: int

    @property
    def ended(self) -> int:
        return self.done + self.failed


class Meter:
    """`look` as often as one likes."""

    def __init__(self, core: Progress, now: float) -> None:
        self._core = core
        self._points: deque[tuple[float, int, int]] = deque([(now, self._ended(), 0)])
        self._gpu_s = 0.0
        self._looked_at = now

    def _ended(self) -> int:
        return self._core.figures.done + self._core.figures.failed

    def look(self, now: float, num_gpus: int) -> Reading:
        """`num_gpus`: that the run holds now."""
        figures = self._core.figures
        self._gpu_s += num_gpus * (now - self._looked_at)
        self._looked_at = now
        self._points.append((now, self._ended(), figures.output_tokens))
        while len(self._points) > 2 and self._points[1][0] <= now - SPAN_S:
            self._points.popleft()
        since, ended, tokens = self._points[0]
        span_s = max(now - since, 1e-9)
        rate = (self._ended() - ended) / span_s
        left = self._core.left + self._core.num_in_flight
        return Reading(
            total=figures.total,
            done=figures.done,
            failed=figures.failed,
            in_flight=self._core.num_in_flight,
            left=self._core.left,
            limit=self._core.pace.limit,
            requests_per_s=rate,
            output_tokens_per_s=(figures.output_tokens - tokens) / span_s,
            cached_share=figures.cached_tokens / figures.prompt_tokens if figures.prompt_tokens else 0.0,
            eta_s=left / rate if rate > 0 else None,
            gpu_hours=self._gpu_s / 3600,
            num_retries=sum(figures.retries.values()),
        )
