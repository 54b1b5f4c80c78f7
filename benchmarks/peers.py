"""What Sluice costs beside other relays: `python -m benchmarks.peers [key=value ...]`.

The peers are installed from the package index and stand before engines that speak HTTP; Sluice, keys and CURVE on,
stands before workers. All get the same load in turns within every repeat. The cost of a unit is the CPU of the
relay and of the engines' processes, less that of the engine called in process: both sides pay for the way from
the engine to the client, and neither for the tokens. Everyone is at its cheapest; Sluice also as it comes, with the
policy that looks at caches. Owns the experiment.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import msgspec

from benchmarks import report
from benchmarks.arguments import Count, chosen
from benchmarks.command import command
from benchmarks.measure import (
    SHORT_PROMPT_CHARS,
    Alone,
    CommonOptions,
    Part,
    Sample,
    added_latencies,
    alone_us,
    latencies,
    measure,
    parts,
)
from benchmarks.peer_figures import SLUICES, ratios, show
from benchmarks.peer_picture import draw
from benchmarks.peer_programs import PEERS, PeerFault, install
from benchmarks.processes import FLEETS
from benchmarks.report import say
from benchmarks.targets import AT_ONCE, Floor, Target, first_fault, floor_engines, kib_per_stream, peer, sluice

SATURATION_ROUNDS = 10
SATURATION_USERS = 2  # for each stream of the other parts
PARTS = ("streams", "steady", "prompts", "saturation", "memory")


def cache_folder() -> str:
    return str(Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sluice-peers")


class Options(CommonOptions, frozen=True, kw_only=True):
    repeats: Count = 5
    peers: str = ",".join((*PEERS, *SLUICES))
    cases: str = ",".join(FLEETS)
    parts: str = ",".join(PARTS)
    venvs: str = msgspec.field(default_factory=cache_folder)


# ---------------------------------------------------------------- what runs


class Bench:
    """The targets, and why some are left out, wholly or of a part."""

    def __init__(self, options: Options, floor: Floor) -> None:
        self.options = options
        self.floor = floor
        self.targets: list[Target] = []
        self.faults: dict[str, str] = {}

    def start(self, stack: ExitStack, names: list[str], cases: list[str], folder: Path) -> None:
        for name in names:
            say(f"starting {name}")
            if name in SLUICES:
                self.targets += [stack.enter_context(sluice(name, case, folder, self.options)) for case in cases]
            else:
                self._start_peer(stack, name, cases, folder)

    def _start_peer(self, stack: ExitStack, name: str, cases: list[str], folder: Path) -> None:
        left = [f"{name}.{case}" for case in cases]
        try:
            programs = install(PEERS[name], Path(self.options.venvs).expanduser())
        except PeerFault as fault:
            for label in left:
                self._give_up(label, str(fault))
            return
        for label, case in zip(left, cases, strict=True):
            try:
                self.targets.append(stack.enter_context(peer(PEERS[name], case, programs, folder, self.floor)))
            except PeerFault as fault:
                self._give_up(label, str(fault))

    def _give_up(self, what: str, reason: str) -> None:
        say(f"{what} is left out: {reason}")
        self.faults[what] = reason

    def _in_turns(self, number: int, part: str) -> Iterator[Target]:
        """Who is first in one repeat is last in the next."""
        shift = number % max(1, len(self.targets))
        for target in self.targets[shift:] + self.targets[:shift]:
            if f"{target.label}.{part}" not in self.faults:
                yield target

    def memory(self) -> dict[str, float]:
        """Before all else: a relay keeps the room that it once had."""
        figures = {}
        for target in self._in_turns(0, "memory"):
            with self._forgiving(target, "memory"):
                figures[f"{target.label}.memory.kib_per_stream"] = kib_per_stream(target, self.options)
        return figures

    def repeat(self, wanted: list[str], number: int) -> dict[str, float]:
        figures: dict[str, float] = {}
        for part in parts(self.options):
            if part.name in wanted:
                figures |= self._part(part, number)
        if "saturation" in wanted:
            figures |= self._saturation(number)
        return figures

    def _part(self, part: Part, number: int) -> dict[str, float]:
        seed = self.options.seed + number
        base = measure(part, self.options, self.floor.endpoints[0], {"floor": [self.floor.pids[0]]}, seed)
        named = {f"us_per_{part.unit}": base.per_unit_us("floor", part), **latencies(base.outcome)}
        figures = {f"floor.{part.name}.{name}": value for name, value in named.items()}
        alone = self._alone(part, seed)
        for target in self._in_turns(number, part.name):
            with self._forgiving(target, part.name):
                sample = measure(part, self.options, target.endpoint, target.pids, seed)
                named = cost(sample, part, alone.get((target.alone, target.case)))
                named |= latencies(sample.outcome) | added_latencies(sample.outcome, base.outcome)
                figures |= {f"{target.label}.{part.name}.{name}": value for name, value in named.items()}
        return figures

    def _saturation(self, number: int) -> dict[str, float]:
        options = msgspec.structs.replace(self.options, streams=SATURATION_USERS * self.options.streams)
        part = Part("saturation", "request", SATURATION_ROUNDS, 1, SHORT_PROMPT_CHARS, AT_ONCE)
        figures = {}
        for target in self._in_turns(number, part.name):
            with self._forgiving(target, part.name):
                outcome = measure(part, options, target.endpoint, target.pids, options.seed + number).outcome
                figures[f"{target.label}.saturation.requests_per_s"] = outcome.num_requests / outcome.duration_s
        return figures

    def _alone(self, part: Part, seed: int) -> dict[tuple[str | None, str], float]:
        kinds = sorted({(target.alone, target.case) for target in self.targets if target.alone is not None})
        engines = [Alone(engine, 1 if case == "split" else 2, case == "split") for engine, case in kinds]
        return dict(zip(kinds, alone_us(part, self.options, engines, seed), strict=True))

    @contextmanager
    def _forgiving(self, target: Target, part: str) -> Iterator[None]:
        """A peer that fails has no more turns in this part; what it did before that counts."""
        try:
            yield
        except ExceptionGroup as faults:
            if target.name in SLUICES:
                raise
            self._give_up(f"{target.label}.{part}", first_fault(faults))


def cost(sample: Sample, part: Part, alone_us: float | None) -> dict[str, float]:
    """Where an engine cannot be had alone, what it takes to send is not told from what it takes to generate, and
    the relay alone is counted."""
    relay_us, engines_us = (sample.per_unit_us(process, part) for process in ("relay", "engines"))
    figures = {
        f"us_per_{part.unit}": relay_us if alone_us is None else relay_us + engines_us - alone_us,
        f"relay_us_per_{part.unit}": relay_us,
        f"engines_us_per_{part.unit}": engines_us,
    }
    return figures if alone_us is None else figures | {f"engine_alone_us_per_{part.unit}": alone_us}


# ---------------------------------------------------------------- the whole


def run(options: Options) -> None:
    known = (*PEERS, *SLUICES)
    wanted_peers = chosen("peers", options.peers, known)
    names = [name for name in known if name in wanted_peers]
    cases = chosen("cases", options.cases, FLEETS)
    wanted = chosen("parts", options.parts, PARTS)
    runs = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sluice-bench-")))
        bench = Bench(options, stack.enter_context(floor_engines(options)))
        bench.start(stack, names, cases, folder)
        say("memory" if "memory" in wanted else "warming up")
        memory = bench.memory()  # the streams that it opens are also what warms everyone up
        for number in range(options.repeats):
            say(f"repeat {number + 1} of {options.repeats}")
            runs.append(bench.repeat(wanted, number))
    runs = [run | ratios(run) | (memory if "memory" in wanted else {}) for run in runs]
    figures = report.medians(runs)
    measured = {target.name for target in bench.targets}
    result = report.report("peers", figures, {name: PEERS[name].version for name in PEERS if name in measured})
    output = Path(options.output)
    path = report.write(output, result, {"options": options, "repeats": runs, "left_out": bench.faults})
    draw(figures, output / "peers.png")
    print(show(figures))
    for what, reason in bench.faults.items():
        print(f"left out: {what}: {reason}")
    print(f"written: {path}, {output / 'peers.png'}")
    print(report.last_line(result))


if __name__ == "__main__":
    command(Options, run)
