"""How good the forecast of demand is: `python -m benchmarks.forecast [key=value ...]`.

Mean absolute error of the demand in the five minutes that begin now, to that of a forecast that says what was last.
On traces, by path, and on made-up demand that has a trend or has none. Owns the series and what is printed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median

import msgspec

from benchmarks import report
from benchmarks.arguments import Count
from benchmarks.command import command
from launcher.planner.forecast import BUCKET_S, WINDOW, Bucket, Series
from launcher.twin.traces import BadTrace, leading_cached, read

WARM_UP = 15  # buckets; before that both know hardly anything
TRENDING = ("ramp", "day")
NOISE = ("steady", "bursty")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    traces: str = ""  # paths, with commas between; nothing: only what is made up
    hours: Count = 6
    seeds: Count = 10
    first_seed: int = 1000
    output: str = "out/forecast"


def _ramp(x: float) -> float:
    """In each third to three times as much, and back."""
    return 3 - 2 * abs(2 * (3 * x % 1) - 1)


def _day(x: float) -> float:
    return 1 + 0.8 * math.sin(4 * math.pi * x)


def _spike(x: float) -> float:
    """Twice from nothing much to four times as much within a twentieth of the time, and slowly back."""
    since = x % 0.5
    return 1 + 3 * min(1.0, since / 0.05) * math.exp(-max(0.0, since - 0.05) / 0.1)


def _steady(x: float) -> float:
    return 1.0


SHAPES: dict[str, tuple[Callable[[float], float], float]] = {
    "ramp": (_ramp, 0.1),
    "day": (_day, 0.1),
    "spike": (_spike, 0.1),
    "steady": (_steady, 0.2),
    "bursty": (_steady, 0.8),
    "walk": (_steady, 0.1),
}


def made_up(shape: str, hours: int, seed: int) -> list[float]:
    """Tokens per second, by bucket: the shape, times noise of its own (walk: times noise that adds up)."""
    mean, noise = SHAPES[shape]
    rng, number, level = random.Random(f"{shape} {seed}"), hours * 3600 // BUCKET_S, 0.0
    values = []
    for bucket in range(number):
        off = rng.gauss(0.0, noise)
        level = level + off if shape == "walk" else off
        values.append(1e4 * mean(bucket / number) * math.exp(level))
    return values


def of_trace(path: Path) -> dict[str, list[float]]:
    """By kind of demand; cached is what an endless cache would have."""
    requests = read(path)
    sums = [[0.0] * len(Bucket._fields) for _ in range(int(requests[-1].at_s // BUCKET_S) + 1)]
    for request, cached in zip(requests, leading_cached(requests), strict=True):
        bucket = sums[int(request.at_s // BUCKET_S)]
        bucket[0] += (request.num_prompt - cached) / BUCKET_S
        bucket[1] += cached / BUCKET_S
        bucket[2] += request.num_output / BUCKET_S
    return {kind: [bucket[which] for bucket in sums[:-1]] for which, kind in enumerate(Bucket._fields)}


def errors(values: Sequence[float]) -> tuple[float, float]:
    """Mean absolute errors: the forecast's, and that of what was last."""
    series, ours, last = Series(), [], []
    for number, value in enumerate(values[:-WINDOW], 1):
        series.add(value)
        if number >= WARM_UP:
            actual = fmean(values[number : number + WINDOW])
            ours.append(abs(series.forecast()[WINDOW].mean - actual))
            last.append(abs(fmean(values[number - WINDOW : number]) - actual))
    return fmean(ours), fmean(last)


def ratio(values: Sequence[float]) -> float:
    ours, last = errors(values)
    return ours / last if last else 1.0


def measure(options: Options) -> dict[str, float]:
    seeds = range(options.first_seed, options.first_seed + options.seeds)
    found = {name: median(ratio(made_up(name, options.hours, s)) for s in seeds) for name in SHAPES}
    for path in filter(None, options.traces.split(",")):
        for kind, values in of_trace(Path(path)).items():
            if any(values):
                found[f"{Path(path).stem}.{kind}"] = ratio(values)
    return found


def figures_of(found: Mapping[str, float]) -> dict[str, float]:
    worst = {"trending_worst": max(found[n] for n in TRENDING), "noise_worst": max(found[n] for n in NOISE)}
    return {**found, **worst}


def run(options: Options) -> None:
    try:
        found = measure(options)
    except (OSError, BadTrace) as fault:
        raise SystemExit(f"traces: {fault}") from None
    result = report.report("forecast", figures_of(found))
    report.publish(
        Path(options.output),
        result,
        {"options": options},
        report.table(["demand", "error to last value's"], [[name, f"{value:.3f}"] for name, value in found.items()]),
    )


if __name__ == "__main__":
    command(Options, run)
