"""One load on some processes, and what it took of them.

Owns the parts of the experiment and the reading of CPU clocks around them. Everyone gets the same load:
the floor, the proxies, and the engine's app called directly.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import uvloop

from benchmarks import processes
from benchmarks.arguments import Count, Duration
from benchmarks.direct import DirectCost
from benchmarks.floor import MODEL
from benchmarks.load import Ask, Endpoint, Outcome, Rhythm, ask, drive, prompt
from benchmarks.processes import cpu_s
from launcher.twin.percentiles import percentile

STREAM_ROUNDS = 2  # streams that each user reads, one after the other
START_STEPS = 25
PROMPT_ROUNDS = 12
PROMPT_TOKENS = 4
SHORT_PROMPT_CHARS = 200


class CommonOptions(msgspec.Struct, frozen=True, kw_only=True):
    streams: Count = 128
    tokens: Count = 100
    step_ms: Duration = 20.0
    prompt_chars: Count = 16_000
    repeats: Count = 3
    seed: int = 0
    output: str = "bench-results"


@dataclass(frozen=True, slots=True)
class Part:
    """One load, the same for everyone."""

    name: str
    unit: str
    rounds: int
    tokens: int
    prompt_chars: int
    rhythm: Rhythm


@dataclass(frozen=True, slots=True)
class Sample:
    """What a part took of some processes. `of` names a unit's share in microseconds."""

    outcome: Outcome
    cpu_s: dict[str, float]

    def per_unit_us(self, process: str, part: Part) -> float:
        units = self.outcome.num_tokens if part.unit == "token" else self.outcome.num_requests
        return self.cpu_s[process] / units * 1e6


def parts(options: CommonOptions) -> tuple[Part, ...]:
    """All streams in step, as relays are usually measured; then at all times, as users come; then long prompts."""
    step_s = options.step_ms / 1000
    dense = Rhythm(start_s=step_s, pause_s=step_s)
    steady = Rhythm(start_s=START_STEPS * step_s, pause_s=step_s, staggered=True)
    return (
        Part("streams", "token", STREAM_ROUNDS, options.tokens, SHORT_PROMPT_CHARS, dense),
        Part("steady", "token", STREAM_ROUNDS, options.tokens, SHORT_PROMPT_CHARS, steady),
        Part("prompts", "request", PROMPT_ROUNDS, PROMPT_TOKENS, options.prompt_chars, dense),
    )


def users_of(part: Part, options: CommonOptions, endpoint: Endpoint, rng: random.Random) -> list[list[Ask]]:
    """Half of each prompt is shared by all, as system prompts are."""
    shared = prompt(part.prompt_chars // 2, rng)
    num_own_chars = part.prompt_chars - len(shared)
    return [
        [
            ask(endpoint, shared + prompt(num_own_chars, rng), num_tokens)
            for num_tokens in part.rhythm.lengths(part.rounds, part.tokens, rng)
        ]
        for _ in range(options.streams)
    ]


def measure(
    part: Part, options: CommonOptions, endpoint: Endpoint, pids: Mapping[str, Sequence[int]], seed: int
) -> Sample:
    def cpu() -> dict[str, float]:
        return {name: sum(map(cpu_s, of)) for name, of in pids.items()}

    rng = random.Random(seed)
    users = users_of(part, options, endpoint, rng)
    before = cpu()
    outcome = uvloop.run(drive(endpoint, users, part.rhythm, rng))
    after = cpu()
    return Sample(outcome, {name: after[name] - before[name] for name in pids})


class Alone(NamedTuple):
    """An engine called in process, with the streams that one of several has."""

    engine: str
    num_engines: int
    split: bool


def alone_us(part: Part, options: CommonOptions, engines: Sequence[Alone], seed: int) -> list[float]:
    """CPU per unit of each; at the same time, as they are idle for most of it."""
    running: list[subprocess.Popen[bytes]] = []
    try:
        running += [_start_alone(part, options, engine, seed) for engine in engines]
        costs = [msgspec.json.decode(process.communicate()[0], type=DirectCost) for process in running]
    finally:
        processes.end(running)
    return [cost.cpu_s / (cost.num_tokens if part.unit == "token" else cost.num_requests) * 1e6 for cost in costs]


def _start_alone(part: Part, options: CommonOptions, alone: Alone, seed: int) -> subprocess.Popen[bytes]:
    arguments = {
        "engine": alone.engine,
        "streams": -(-options.streams // alone.num_engines),
        "tokens": part.tokens,
        "step_ms": options.step_ms,
        "prompt_chars": part.prompt_chars,
        "rounds": part.rounds,
        "start_s": part.rhythm.start_s,
        "pause_s": part.rhythm.pause_s,
        "staggered": str(part.rhythm.staggered).lower(),
        "seed": seed,
        "split": str(alone.split).lower(),
    }
    words = [f"{key}={value}" for key, value in arguments.items()]
    return processes.start("benchmarks.direct", *words, output=subprocess.PIPE)


def latencies(outcome: Outcome) -> dict[str, float]:
    return {
        f"{name}_p{percent}_ms": 1e3 * percentile(values, percent / 100)
        for name, values in (("ttft", outcome.ttft_s), ("itl", outcome.gaps_s))
        for percent in (50, 99)
    }


def added_latencies(outcome: Outcome, floor: Outcome) -> dict[str, float]:
    base = latencies(floor)
    return {f"added_{name}": value - base[name] for name, value in latencies(outcome).items()}


@contextmanager
def floor_server(options: CommonOptions, *, role: str = "any") -> Iterator[tuple[Endpoint, int]]:
    """And the process behind it."""
    arguments = (f"step_ms={options.step_ms}", f"role={role}")
    process = processes.start("benchmarks.floor", *arguments, output=subprocess.PIPE)
    try:
        assert process.stdout is not None
        with process.stdout as output:
            yield Endpoint(host="127.0.0.1", port=int(output.readline()), model=MODEL), process.pid
    finally:
        processes.end([process])
