"""When prefill and decode should be apart: `python -m benchmarks.roles [key=value ...]`.

Goodput, requests per second within both targets, of engines that are all whole, of the same engines split into prefill
and decode workers, and of the router choosing for each request; over timing models, pairs of targets and splits. In
virtual time, as `benchmarks.routing`. Owns the cells and what is printed.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from concurrent.futures import Executor, Future
from pathlib import Path
from typing import NamedTuple

import msgspec

from benchmarks import report
from benchmarks.arguments import BadArgument, Count, Duration, chosen, counts, numbers
from benchmarks.command import command
from benchmarks.report import say
from benchmarks.routing.measure import executor, one, saturation_of
from benchmarks.routing.options import Options as RoutingOptions

TIMINGS = ("additive", "mixed")
WORSE, BETTER = 0.97, 1.05  # what counts as no worse and as better


class Options(msgspec.Struct, frozen=True, kw_only=True):
    trace: str = ""  # as for benchmarks.routing
    start_s: float = 0.0
    length_s: Duration = 1e9
    workers: Count = 8
    policy: str = "kv"
    timings: str = ",".join(TIMINGS)
    targets: str = "0.5/0.1,2/0.05,5/0.025"  # TTFT/ITL in seconds
    splits: str = "2,4,6"  # prefill workers
    load: Duration = 0.7  # of what least_loaded keeps up with, all engines whole
    rate: float = 0.0  # instead of that: how many times as fast as the trace
    seeds: Count = 1
    processes: Count = 1
    output: str = "out/roles"


class Cell(NamedTuple):
    timing: str
    ttft_s: float
    itl_s: float
    split: int


class Goodput(NamedTuple):
    """Requests per second."""

    whole: float
    split: float
    adaptive: float

    @property
    def ratio(self) -> float:
        """To the better of both."""
        return self.adaptive / max(self.whole, self.split, 1e-9)


def cells(options: Options) -> list[Cell]:
    """Raises BadArgument."""
    pairs = [numbers("targets", pair.replace("/", ",")) for pair in options.targets.split(",")]
    if any(len(pair) != 2 for pair in pairs):
        raise BadArgument(f"targets: {options.targets!r} is not a list of TTFT/ITL")
    timings, splits = chosen("timings", options.timings, TIMINGS), counts("splits", options.splits)
    return [
        Cell(timing, ttft_s, itl_s, split)
        for timing, (ttft_s, itl_s), split in itertools.product(timings, pairs, splits)
    ]


def asked(options: Options, cell: Cell, roles: str) -> RoutingOptions:
    """All that are whole are the same, whatever the split, and so are all that can do both."""
    return msgspec.convert(
        {
            "trace": options.trace,
            "start_s": options.start_s,
            "length_s": options.length_s,
            "workers": options.workers,
            "roles": roles,
            "prefill_workers": cell.split if roles == "split" else 1,
            "timing": cell.timing,
            "ttft_s": cell.ttft_s,
            "itl_s": cell.itl_s,
        },
        RoutingOptions,
    )


def measure(options: Options, pool: Executor) -> dict[Cell, Goodput]:
    rates = _rates(options, pool)
    futures: dict[RoutingOptions, list[Future[dict[str, float]]]] = {}

    def ask(cell: Cell, roles: str) -> list[Future[dict[str, float]]]:
        wanted = asked(options, cell, roles)
        if wanted not in futures:
            runs = range(options.seeds)
            futures[wanted] = [pool.submit(one, wanted, options.policy, rates[cell.timing], seed) for seed in runs]
        return futures[wanted]

    runs = {cell: [ask(cell, roles) for roles in ("whole", "split", "adaptive")] for cell in cells(options)}
    found = {}
    for cell, three in runs.items():
        goodputs = [report.medians([f.result() for f in each])["goodput_per_s"] for each in three]
        found[cell] = Goodput(*goodputs)
        say(f"{cell}: {found[cell]} {found[cell].ratio:.3f}")
    return found


def _rates(options: Options, pool: Executor) -> dict[str, float]:
    """By timing."""
    if options.rate:
        return dict.fromkeys(options.timings.split(","), options.rate)
    first = {cell.timing: cell for cell in cells(options)}
    limits = {
        timing: pool.submit(saturation_of, asked(options, cell, "whole"), "least_loaded")
        for timing, cell in first.items()
    }
    return {timing: options.load * limit.result() for timing, limit in limits.items()}


def figures_of(found: Mapping[Cell, Goodput]) -> dict[str, float]:
    ratios = [goodput.ratio for goodput in found.values()]
    figures = {
        f"{cell.timing}.{cell.ttft_s:g}s.{cell.itl_s:g}s.{cell.split}.{name}": value
        for cell, goodput in found.items()
        for name, value in [*goodput._asdict().items(), ("ratio", goodput.ratio)]
    }
    return figures | {
        "worst_ratio": min(ratios),
        "no_worse": sum(ratio >= WORSE for ratio in ratios) / len(ratios),
        "better": sum(ratio >= BETTER for ratio in ratios) / len(ratios),
    }


def show(found: Mapping[Cell, Goodput]) -> str:
    header = ["", "TTFT s", "ITL ms", "prefill workers", "whole/s", "split/s", "adaptive/s", "to the better"]
    rows = [
        [cell.timing, f"{cell.ttft_s:g}", f"{1e3 * cell.itl_s:g}", f"{cell.split}"]
        + [f"{value:.2f}" for value in (*goodput, goodput.ratio)]
        for cell, goodput in found.items()
    ]
    return report.table(header, rows)


def run(options: Options) -> None:
    with executor(options.processes) as pool:
        found = measure(options, pool)
    result = report.report("roles", figures_of(found))
    path = report.write(Path(options.output), result, {"options": options})
    print(show(found))
    print(f"no worse than the better of both in {result.figures['no_worse']:.0%} of cells,", end=" ")
    print(f"better than both in {result.figures['better']:.0%}; at worst {result.figures['worst_ratio']:.2f}")
    print(f"written: {path}")
    print(report.last_line(result))


if __name__ == "__main__":
    command(Options, run)
