"""What the way through Sluice costs: `python -m benchmarks.proxy [key=value ...]`.

Real processes, keys and CURVE on, engines that do nothing: two workers that serve whole requests
(`whole`), one prefill and one decode worker (`split`), each beside the floor of one `write` per token
and the engine's app called directly, in turns within every repeat. CPU per unit is the figure: on a
shared machine wall time says more about the others. Owns the experiment and its figures.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import uvloop

from benchmarks import report
from benchmarks.arguments import Count
from benchmarks.command import command
from benchmarks.direct import engine_spec
from benchmarks.load import Endpoint, Rhythm, ask, drive, prompt
from benchmarks.measure import (
    SHORT_PROMPT_CHARS,
    Alone,
    CommonOptions,
    Part,
    Sample,
    added_latencies,
    alone_us,
    floor_server,
    latencies,
    measure,
    parts,
)
from benchmarks.picture import draw
from benchmarks.processes import FLEETS, Fleet, fleet, rss_mib
from benchmarks.report import say

MEMORY_MARKS = 20
FLAT_FROM = 0.2  # by then every buffer and table has had its full size


class Options(CommonOptions, frozen=True, kw_only=True):
    requests: Count = 20_000  # of the memory part


# ---------------------------------------------------------------- one repeat


def case_figures(case: str, running: Fleet, part: Part, options: Options, floor: Sample, seed: int) -> dict[str, float]:
    pids = {"proxy": running.proxy_pids, "hosts": running.hosts}
    sample = measure(part, options, running.endpoint, pids, seed)
    split = case == "split"
    (app_us,) = alone_us(part, options, [Alone("instant", 1 if split else len(running.hosts), split)], seed)
    floor_us = floor.per_unit_us("floor", part)
    proxy_us, host_us = sample.per_unit_us("proxy", part), sample.per_unit_us("hosts", part)
    with_host_us = proxy_us + host_us - app_us
    head = f"{case}.{part.name}"
    return {
        f"{head}.proxy_us_per_{part.unit}": proxy_us,
        f"{head}.proxy_and_host_us_per_{part.unit}": with_host_us,
        f"{head}.app_us_per_{part.unit}": app_us,
        f"{head}.proxy_to_floor": proxy_us / floor_us,
        f"{head}.proxy_and_host_to_floor": with_host_us / floor_us,
        **{f"{head}.{name}": value for name, value in added_latencies(sample.outcome, floor.outcome).items()},
    }


def floor_figures(part: Part, floor: Sample) -> dict[str, float]:
    figures = {f"us_per_{part.unit}": floor.per_unit_us("floor", part), **latencies(floor.outcome)}
    return {f"floor.{part.name}.{name}": value for name, value in figures.items()}


def repeat(options: Options, fleets: Mapping[str, Fleet], floor: tuple[Endpoint, int], seed: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    for part in parts(options):
        base = measure(part, options, floor[0], {"floor": [floor[1]]}, seed)
        figures |= floor_figures(part, base)
        for case, running in fleets.items():
            figures |= case_figures(case, running, part, options, base, seed)
    return figures


# ---------------------------------------------------------------- memory


def memory(options: Options, running: Fleet) -> list[tuple[int, float]]:
    """(requests answered, RSS in MiB of the proxy); every other request streams, all want one token."""
    marks = [options.requests * mark // MEMORY_MARKS for mark in range(1, MEMORY_MARKS + 1)]
    curve: list[tuple[int, float]] = []
    num_answered = 0

    def answered() -> None:
        nonlocal num_answered
        num_answered += 1
        while len(curve) < len(marks) and num_answered >= marks[len(curve)]:
            curve.append((num_answered, sum(map(rss_mib, running.proxy_pids))))

    text = prompt(SHORT_PROMPT_CHARS, random.Random(options.seed))
    kinds = [ask(running.endpoint, text, 1, streams=streams) for streams in (True, False)]
    users = [
        [kinds[number // options.streams % 2] for number in range(user, options.requests, options.streams)]
        for user in range(options.streams)
    ]
    at_once = Rhythm(start_s=0.0, pause_s=0.0)
    uvloop.run(drive(running.endpoint, users, at_once, random.Random(options.seed), answered))
    return curve


def memory_figures(curve: Sequence[tuple[int, float]]) -> dict[str, float]:
    first, last = curve[int(len(curve) * FLAT_FROM) - 1], curve[-1]
    return {
        "memory.requests": last[0],
        "memory.rss_at_20_percent_mib": first[1],
        "memory.rss_at_end_mib": last[1],
        "memory.growth_mib": last[1] - first[1],
        "memory.growth_bytes_per_request": (last[1] - first[1]) * 2**20 / max(1, last[0] - first[0]),
    }


# ---------------------------------------------------------------- the whole


def show(figures: Mapping[str, float], options: Options) -> str:
    """Lines of one part: a figure, the floor's where it has one, and each case's."""
    rows = []
    for part in parts(options):
        names = [name.removeprefix(head) for name in figures if name.startswith(head := f"whole.{part.name}.")]
        for name in names:
            floor = name.replace("proxy_us", "us").removeprefix("added_")
            values = [
                figures.get(f"{who}.{part.name}.{name if who != 'floor' else floor}") for who in ("floor", *FLEETS)
            ]
            rows.append([f"{part.name}: {name}", *("" if value is None else f"{value:.2f}" for value in values)])
    return report.table(["", "floor", *FLEETS], rows)


def run(options: Options) -> None:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sluice-bench-")))
        say("starting two fleets")
        engine = engine_spec(options.step_ms)
        fleets = {case: stack.enter_context(fleet(folder / case, workers, engine)) for case, workers in FLEETS.items()}
        floor = stack.enter_context(floor_server(options))
        runs = []
        for number in range(options.repeats):
            say(f"repeat {number + 1} of {options.repeats}")
            runs.append(repeat(options, fleets, floor, options.seed + number))
        say(f"memory over {options.requests} requests")
        curve = memory(options, fleets["whole"])
    figures = report.medians(runs) | memory_figures(curve)
    result = report.report("proxy", figures)
    output = Path(options.output)
    path = report.write(output, result, {"options": options, "repeats": runs, "memory": curve})
    draw(figures, curve, output / "proxy.png")
    print(show(figures, options))
    print("\n".join(f"{name}: {value:.2f}" for name, value in figures.items() if name.startswith("memory.")))
    print(f"written: {path}, {output / 'proxy.png'}")
    print(report.last_line(result))


if __name__ == "__main__":
    command(Options, run)
