"""How a batch ended: the figures of its end, as JSON in its folder and as text, and the exit status.

Pure but for the file it is told to write.
"""

from __future__ import annotations

from enum import Enum

import msgspec

from launcher.batch.display import span
from launcher.batch.meter import Reading


class Outcome(Enum):
    """The value is the exit status."""

    complete = 0  # every request has a result
    failed = 1  # nothing is left, but some requests have an error instead
    partial = 3  # it stopped before its end; the same command goes on


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """`why`: what stopped it, "" where nothing did. Tokens and retries are of this life of the batch.

    `released_s`: from the last result until nothing of its own run was left; None: the run was not its own.
    """

    outcome: str
    why: str
    total: int
    done: int
    failed: int
    left: int
    output: str
    errors: str
    took_s: float
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    gpu_hours: float
    released_s: float | None
    retries: dict[str, int]


def outcome_of(reading: Reading) -> Outcome:
    if reading.left or reading.in_flight:
        return Outcome.partial
    return Outcome.failed if reading.failed else Outcome.complete


def text(summary: Summary) -> str:
    rate = summary.output_tokens / summary.took_s if summary.took_s else 0.0
    cached = summary.cached_tokens / summary.prompt_tokens if summary.prompt_tokens else 0.0
    retries = ", ".join(f"{count} {kind}" for kind, count in summary.retries.items())
    released = "" if summary.released_s is None else f", all released {summary.released_s:.1f} s after the last result"
    lines = [
        f"{summary.outcome}: {summary.done} of {summary.total} done, {summary.failed} failed, {summary.left} left",
        *([f"  stopped   {summary.why}"] if summary.why else []),
        f"  took      {span(summary.took_s)}, {rate:.0f} output tokens/s, {cached:.0%} of the prompts from caches",
        f"  GPU-hours {summary.gpu_hours:.3f}{released}",
        *([f"  tried again after: {retries}"] if retries else []),
        f"  results   {summary.output}",
        *([f"  errors    {summary.errors}"] if summary.failed else []),
        *(["the same command goes on from here"] if summary.left else []),
    ]
    return "\n".join(lines)
