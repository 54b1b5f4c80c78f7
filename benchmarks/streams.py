"""What open streams cost one proxy process: `python -m benchmarks.streams [key=value ...]`.

Real processes, keys and CURVE on, the routing that a run has by default, a prompt of its own for each stream, and an
engine that steps slowly. A tenth of the streams and then all of them are open at once, sending as many tokens per
second together, so that only their number differs; each crowd once reading at once and once with slow readers among
it. Owns the experiment and its figures: memory per stream, time between tokens, streams dropped.
"""

from __future__ import annotations

import asyncio
import random
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Annotated

import msgspec
import uvloop

from benchmarks import report
from benchmarks.arguments import Count, Duration
from benchmarks.command import command
from benchmarks.crowd import Plan, Seen, allow_streams, open_all
from benchmarks.direct import engine_spec
from benchmarks.load import Ask, ask, prompt
from benchmarks.processes import Fleet, cpu_s, fleet, rss_mib
from benchmarks.report import say
from launcher.twin.percentiles import percentile
from proxy.spec import RoutingSpec
from workers.spec import EngineSpec

WORKERS = {"any-0": "any"}
ROUTING = RoutingSpec(policy="kv")
TICK_S = 0.005  # between two groups of streams that step
OPENED_PER_S = 800
SETTLE_S = 0.5
PATIENCE_S = 60.0
FEW_OF_ALL = 10


class Options(msgspec.Struct, frozen=True, kw_only=True):
    streams: Annotated[int, msgspec.Meta(ge=FEW_OF_ALL)] = 10_000
    tokens_per_s: Duration = 5_000.0  # of all streams together
    token_chars: Count = 2000
    prompt_chars: Count = 4000
    hold_s: Duration = 15.0  # all are open
    slow_every: Annotated[int, msgspec.Meta(ge=2)] = 10  # one of so many reads slowly
    repeats: Count = 3
    seed: int = 0
    output: str = "bench-results"


@dataclass(frozen=True, slots=True)
class Crowd:
    """One load: how many streams, and what each is."""

    name: str
    streams: int
    options: Options

    @property
    def step_s(self) -> float:
        return self.streams / self.options.tokens_per_s

    @property
    def num_tokens(self) -> int:
        """Of each stream: the first is open until the last has been open for long enough."""
        opening_s = self.streams / OPENED_PER_S + 2 * (SETTLE_S + self.step_s)
        return ceil((opening_s + self.options.hold_s) / self.step_s)

    def plan(self, *, slow: bool) -> Plan:
        life_s = self.num_tokens * self.step_s
        return Plan(
            streams=self.streams,
            first=self.streams // FEW_OF_ALL,
            opened_per_s=OPENED_PER_S,
            settle_s=SETTLE_S,
            slow_every=self.options.slow_every if slow else 0,
            slow_s=life_s,
            timeout_s=2 * life_s + PATIENCE_S,
        )

    def engine(self) -> EngineSpec:
        spec = engine_spec(self.step_s * 1000)
        groups = max(1, round(self.step_s / TICK_S))
        arguments = {"step_groups": groups, "token_chars": self.options.token_chars}
        return msgspec.structs.replace(spec, args=spec.args | arguments)


@dataclass(frozen=True, slots=True)
class Sample:
    seen: Seen
    all_open_at: float
    cpu: float  # of a core, while all are open
    rss_mib: dict[int, float]  # by the number of streams open


def measure(crowd: Crowd, running: Fleet, seed: int, *, slow: bool) -> Sample:
    (proxy_pid,) = running.proxy_pids
    rss: dict[int, float] = {}
    all_open: list[tuple[float, float]] = []  # (time, CPU time) when that begins, and later

    def question(number: int) -> Ask:
        text = prompt(crowd.options.prompt_chars, random.Random(f"{seed} {number}"))
        return ask(running.endpoint, text, crowd.num_tokens)

    def look() -> None:
        all_open.append((time.monotonic(), cpu_s(proxy_pid)))

    def opened(number: int) -> None:
        rss[number] = rss_mib(proxy_pid)
        if number == crowd.streams:
            look()
            asyncio.get_running_loop().call_later(crowd.options.hold_s, look)

    seen = uvloop.run(open_all(running.endpoint, question, crowd.plan(slow=slow), opened))
    for fault, number in seen.faults.most_common(3):
        say(f"dropped: {number} x {fault}")
    (begin, cpu_before), (end, cpu_after) = all_open
    return Sample(seen, begin, (cpu_after - cpu_before) / (end - begin), rss)


# ---------------------------------------------------------------- figures


def crowd_figures(crowd: Crowd, sample: Sample) -> dict[str, float]:
    gaps_s = sample.seen.gaps_s(sample.all_open_at)
    if not gaps_s:
        raise SystemExit(f"{crowd.streams} streams were not all open at once: raise hold_s, or lower tokens_per_s")
    p50, p99 = (percentile(gaps_s, fraction) for fraction in (0.5, 0.99))
    return {
        "streams": crowd.streams,
        "dropped": sample.seen.num_dropped,
        "step_ms": 1e3 * crowd.step_s,
        "itl_p50_ms": 1e3 * p50,
        "itl_p99_ms": 1e3 * p99,
        "itl_p99_over_p50_ms": 1e3 * (p99 - p50),
        "proxy_cpu_percent": 1e2 * sample.cpu,
    }


def memory_figures(sample: Sample) -> dict[str, float]:
    (few, few_mib), (many, many_mib) = sorted(sample.rss_mib.items())
    return {
        "memory.few_open_mib": few_mib,
        "memory.all_open_mib": many_mib,
        "memory.bytes_per_stream": (many_mib - few_mib) * 2**20 / (many - few),
    }


def repeat(options: Options, folder: Path, seed: int) -> dict[str, float]:
    figures: dict[str, float] = {}
    for crowd in (Crowd("few", options.streams // FEW_OF_ALL, options), Crowd("all", options.streams, options)):
        with fleet(folder / crowd.name, WORKERS, crowd.engine(), routing=ROUTING) as running:
            for readers in ("fast", "slow"):
                say(f"{crowd.streams} streams, {'some' if readers == 'slow' else 'no'} slow readers")
                sample = measure(crowd, running, seed, slow=readers == "slow")
                figures |= {f"{crowd.name}.{readers}.{n}": v for n, v in crowd_figures(crowd, sample).items()}
                if (crowd.name, readers) == ("all", "fast"):
                    figures |= memory_figures(sample)
    return figures | ratios(figures)


def ratios(figures: Mapping[str, float]) -> dict[str, float]:
    """1: the time between tokens does not depend on how many streams are open, nor on who else reads slowly."""

    def p99(crowd: str) -> float:
        return figures[f"{crowd}.itl_p99_ms"] / figures[f"{crowd}.step_ms"]

    return {
        "ratio.itl_p99_all_to_few": p99("all.fast") / p99("few.fast"),
        "ratio.itl_p99_slow_to_fast_few": p99("few.slow") / p99("few.fast"),
        "ratio.itl_p99_slow_to_fast_all": p99("all.slow") / p99("all.fast"),
    }


def show(figures: Mapping[str, float]) -> str:
    crowds = ("few.fast", "few.slow", "all.fast", "all.slow")
    names = [name.removeprefix("few.fast.") for name in figures if name.startswith("few.fast.")]
    rows = [[name, *(f"{figures[f'{crowd}.{name}']:.2f}" for crowd in crowds)] for name in names]
    rest = [f"{name}: {value:.3f}" for name, value in figures.items() if name.startswith(("memory.", "ratio."))]
    return "\n".join([report.table(["", *crowds], rows), *rest])


def run(options: Options) -> None:
    allow_streams(options.streams)
    runs = []
    for number in range(options.repeats):
        say(f"repeat {number + 1} of {options.repeats}")
        with tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder:
            runs.append(repeat(options, Path(folder), options.seed + number))
    figures = report.medians(runs)
    result = report.report("streams", figures)
    report.publish(Path(options.output), result, {"options": options, "repeats": runs}, show(figures))


if __name__ == "__main__":
    command(Options, run)
