"""How a batch goes, in figures: rates, shares, what is left, GPU-hours.

Pure. Rates are of the last minute, so that an estimate follows when workers come and go.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping

import msgspec

from launcher.batch.progress import Progress
from launcher.jobs import JobRecord

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


def gpu_seconds(records: Iterable[JobRecord], gpus: Mapping[str, int], since: float, now: float) -> float:
    """From their jobs' start to their end, loading included. `gpus`: by worker; of the controller nothing."""
    taken_s = 0.0
    for record in records:
        ended_at = now if record.ended_at is None else record.ended_at
        held_s = 0.0 if record.started_at is None else max(0.0, ended_at - max(since, record.started_at))
        earlier_s = record.earlier_s if record.submitted_at >= since else 0.0
        taken_s += gpus.get(record.worker, 0) * (held_s + earlier_s)
    return taken_s


class Meter:
    """`look` as often as one likes."""

    def __init__(self, core: Progress, now: float) -> None:
        self._core = core
        self._points: deque[tuple[float, int, int]] = deque([(now, self._ended(), 0)])

    def _ended(self) -> int:
        return self._core.figures.done + self._core.figures.failed

    def look(self, now: float, gpu_s: float) -> Reading:
        """`gpu_s`: what the run's jobs have taken."""
        figures = self._core.figures
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
            gpu_hours=gpu_s / 3600,
            num_retries=sum(figures.retries.values()),
        )
