"""What a second core of the proxy costs: `python -m benchmarks.cores [key=value ...]`.

The same load on a proxy of one process and on one of several, side by side, in turns within every repeat. Real
processes, keys and CURVE on, engines that do nothing. The figure is the CPU of all of the proxy's processes together
per unit of work, and with the engine hosts', which speak to each of them. Owns the experiment and its figures.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from benchmarks import report
from benchmarks.arguments import Count
from benchmarks.command import command
from benchmarks.direct import engine_spec
from benchmarks.measure import CommonOptions, Part, latencies, measure, parts
from benchmarks.processes import FLEETS, Fleet, fleet
from benchmarks.report import say


class Options(CommonOptions, frozen=True, kw_only=True):
    processes: Count = 2
    workers: str = "split"  # or whole


def part_figures(part: Part, running: Fleet, options: Options, seed: int) -> dict[str, float]:
    """`busiest`: its share of the proxy's work; 1 / processes where the connections are dealt out evenly."""
    each = {str(pid): [pid] for pid in running.proxy_pids}
    sample = measure(part, options, running.endpoint, each | {"hosts": running.hosts}, seed)
    of_each = [sample.per_unit_us(pid, part) for pid in each]
    return {
        f"proxy_us_per_{part.unit}": sum(of_each),
        f"proxy_and_hosts_us_per_{part.unit}": sum(of_each) + sample.per_unit_us("hosts", part),
        "busiest": max(of_each) / sum(of_each),
        **latencies(sample.outcome),
    }


def repeat(options: Options, proxies: Mapping[str, Fleet], number: int) -> dict[str, float]:
    """Who is first in one repeat is last in the next."""
    figures: dict[str, float] = {}
    names = sorted(proxies, reverse=number % 2 == 1)
    for part in parts(options):
        for name in names:
            measured = part_figures(part, proxies[name], options, options.seed + number)
            figures |= {f"{name}.{part.name}.{figure}": value for figure, value in measured.items()}
        for figure in (f"proxy_us_per_{part.unit}", f"proxy_and_hosts_us_per_{part.unit}"):
            ratio = figures[f"several.{part.name}.{figure}"] / figures[f"one.{part.name}.{figure}"]
            figures[f"ratio.{part.name}.{figure}"] = ratio
    return figures


def show(figures: Mapping[str, float]) -> str:
    names = [name.removeprefix("one.") for name in figures if name.startswith("one.")]
    rows = []
    for name in names:
        ratio = figures.get(f"ratio.{name}")
        cells = [f"{figures[f'{who}.{name}']:.2f}" for who in ("one", "several")]
        rows.append([name.replace(".", ": "), *cells, "" if ratio is None else f"{ratio:.2f}"])
    return report.table(["", "one process", "several", "ratio"], rows)


def run(options: Options) -> None:
    runs = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sluice-bench-")))
        say(f"starting proxies of 1 and of {options.processes} processes")
        engine, workers = engine_spec(options.step_ms), FLEETS[options.workers]
        numbers = {"one": 1, "several": options.processes}
        proxies = {
            name: stack.enter_context(fleet(folder / name, workers, engine, number)) for name, number in numbers.items()
        }
        for number in range(options.repeats):
            say(f"repeat {number + 1} of {options.repeats}")
            runs.append(repeat(options, proxies, number))
    figures = report.medians(runs)
    result = report.report("cores", figures)
    report.publish(Path(options.output), result, {"options": options, "repeats": runs}, show(figures))


if __name__ == "__main__":
    command(Options, run)
