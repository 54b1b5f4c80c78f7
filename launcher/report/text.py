"""A report for people: tables of pools, generations, keys and events. Decides nothing."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

from launcher.report.happenings import Effect, Happening
from launcher.report.lives import GenerationUse, PoolUse
from launcher.report.report import Report
from launcher.view.present import duration, table
from proxy.monitoring.accounts import Sums, life_name

NUM_SHOWN = 20  # generations and events, the newest; report.json has all


def report_text(report: Report) -> str:
    totals = report.totals
    since = "" if report.since is None else f", since {_clock(report.since)}"
    lines = [
        f"run {report.run}{since}",
        f"{report.gpu_hours:.2f} GPU hours; lost of them: {report.start_gpu_hours:.2f} to start-up, "
        f"{report.drain_gpu_hours:.2f} to drains; {report.queue_hours:.2f} hours of workers in the queue",
        f"{totals.requests} requests; {totals.prompt_tokens} prompt tokens ({totals.cached_tokens} cached), "
        f"{totals.output_tokens} output tokens; {_rate(report.tokens_per_gpu_hour)} tokens per GPU hour",
        "",
        *table([POOL_HEADER, *(_pool(pool) for pool in report.pools)]),
    ]
    lines += _section(_of("generations", report.generations), GENERATION_HEADER, map(_generation, _newest(report)))
    lines += _section("requests by key", KEY_HEADER, (_key(name, sums) for name, sums in report.keys.items()))
    shown = report.events[-NUM_SHOWN:]
    lines += _section(_of("events", report.events), EVENT_HEADER, map(_event, shown))
    lines += [f"not counted: {fault}" for fault in report.unread]
    return "\n".join(lines)


POOL_HEADER = ("pool", "jobs", "worker h", "GPU h", "queue h", "start GPU h", "drain GPU h", "answers", "tokens/GPU h")
GENERATION_HEADER = ("worker", "job", "GPUs", "queue", "start", "serving", "drain", "GPU h", "answers", "ended as")
KEY_HEADER = (
    "key",
    "requests",
    "refused",
    "turned away",
    "failed",
    "broken",
    "left",
    "moved",
    "resumed",
    "prompt",
    "output",
)
EVENT_HEADER = ("when", "", "what", "who", "requests", "why")


def _section(title: str, header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    found = list(rows)
    return ["", title, *table([header, *found])] if found else []


def _of(title: str, every: Sequence[object]) -> str:
    return title if len(every) <= NUM_SHOWN else f"{title}, the newest {NUM_SHOWN} of {len(every)}"


def _newest(report: Report) -> Sequence[GenerationUse]:
    return report.generations[-NUM_SHOWN:]


def _pool(pool: PoolUse) -> tuple[str, ...]:
    hours = (pool.worker_hours, pool.gpu_hours, pool.queue_hours, pool.start_gpu_hours, pool.drain_gpu_hours)
    cells = (f"{value:.2f}" for value in hours)
    return (pool.pool, str(pool.generations), *cells, str(pool.answers), _rate(pool.tokens_per_gpu_hour))


def _generation(use: GenerationUse) -> tuple[str, ...]:
    spans = (_span(span_s) for span_s in (use.queue_s, use.start_s, use.serve_s, use.drain_s))
    end = use.state or ("runs" if use.started_at else "waits")
    name = life_name(use.worker, use.generation)
    return (name, use.job, str(use.gpus), *spans, f"{use.gpu_hours:.2f}", str(use.answers), end)


def _key(name: str, sums: Sums) -> tuple[str, ...]:
    ends = (sums.requests, sums.refused, sums.turned_away, sums.failed, sums.broken, sums.left)
    rest = (sums.moved, sums.resumed, sums.prompt_tokens, sums.output_tokens)
    return (name, *map(str, ends), *map(str, rest))


def _event(event: Happening) -> tuple[str, ...]:
    planned = "planned" if event.planned else "unplanned"
    return (_clock(event.at), planned, event.what, event.who, _effect(event.effect), event.why[:100])


def _effect(effect: Effect | None) -> str:
    """Zeros say nothing, but that there were none at all does."""
    if effect is None:
        return ""
    told = [f"{number} {name}" for name in effect.__struct_fields__ if (number := getattr(effect, name))]
    return ", ".join(told) or "none"


def _rate(value: float | None) -> str:
    return "-" if value is None else f"{value:.0f}"


def _span(seconds: float) -> str:
    return f"{seconds:.0f}s" if seconds < 600 else duration(seconds)


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(at))
