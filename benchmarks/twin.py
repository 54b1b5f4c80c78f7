"""How right the twin is: `python -m benchmarks.twin [key=value ...]`.

The same requests in virtual time and through a run on this machine, at a part of the rate that the twin says can be
kept up with. First simulated engines, whose step times are known; then vLLM on one core of the CPU, whose step times
`action=profile` has measured just before. Owns the cases and the comparison.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import report
from benchmarks.arguments import BadArgument, Count, Duration
from benchmarks.batch_engines import ENGINE_ARGS, ENVIRONMENT
from benchmarks.command import command
from benchmarks.routing.measure import say
from benchmarks.routing.saturation import saturation
from benchmarks.twin_run import asked_of, profile, run_of
from launcher.config import load
from launcher.planning.pools import plan_pools
from launcher.start import plan_run
from launcher.twin.cards import make_card, read_profiles
from launcher.twin.figures import STEADY_FROM, growth
from launcher.twin.prediction import setup_of
from launcher.twin.records import Record
from launcher.twin.replay import Replay
from launcher.twin.setup import Setup
from launcher.twin.simulate import read_workload
from launcher.twin.traces import Request
from workers.engines.sim.events import Timing
from workers.engines.tiny_model import write_model

FIRST_LOAD = 0.3
SLOW_PER_S = 0.001  # requests, so few that none meets another


class Options(msgspec.Struct, frozen=True, kw_only=True):
    cases: str = "sim,vllm"
    load: Duration = 0.5
    requests: Count = 300
    routing: str = "kv"
    sim_workers: Count = 3
    sim_slower: Duration = 4.0  # than by default, so that what this machine adds is a small part
    sim_tokens: str = "2000/100"  # mean prompt and answer
    vllm_tokens: str = "300/40"
    vllm_core: int = -1  # that the engine has; -1: the last one
    profile_s: Duration = 90.0
    layers: Count = 8  # of the model that vLLM runs
    width: Count = 512
    seed: int = 1
    output: str = "out/twin"


class Twin:
    """The run that these arguments plan, in virtual time."""

    def __init__(self, folder: Path, arguments: Sequence[str], options: Options, tokens: str) -> None:
        prompt, answer = (float(part) for part in tokens.split("/"))
        workload = [f"workload.prompt_tokens={prompt}", f"workload.output_tokens={answer}"]
        workload += [f"workload.requests={options.requests}", f"workload.seed={options.seed}"]
        config = load([*arguments, f"runs_dir={folder}/predicted", "action=simulate", *workload])
        found, faults = read_profiles(config)
        if faults:
            raise BadArgument("\n".join(faults))
        _, plan, model = plan_run(config)
        made = read_workload(config.workload, config.model.max_model_len)
        self.block_size = made.block_size
        pools, _ = plan_pools(config, model)
        cards = {pool.name: make_card(config, pool, model.shape, found, made.block_size) for pool in pools}
        self.setup: Setup = setup_of(plan, cards)
        self._requests = made.requests  # one per second

    def requests(self, rate: float) -> list[Request]:
        return [replace(request, at_s=request.at_s / rate) for request in self._requests]

    def records(self, rate: float) -> Sequence[Record]:
        return Replay(self.setup, self.requests(rate)).run().records

    def saturation(self) -> float:
        alone_s = statistics.fmean(record.end_s - record.request.at_s for record in self.records(SLOW_PER_S))
        return saturation(lambda rate: growth(self.records(rate)), FIRST_LOAD * len(self.setup.workers) / alone_s)


def figures_of(records: Sequence[Record]) -> dict[str, float]:
    """Before that the router learns how fast the engines are, and a live one has learned something from proofs."""
    records = records[int(STEADY_FROM * len(records)) :]
    ttft = [record.ttft_s for record in records]
    itl = [1e3 * gap for record in records if (gap := record.itl_s) is not None]
    span_s = max(record.end_s for record in records) - records[0].request.at_s
    return {
        "ttft_mean_s": statistics.fmean(ttft),
        "ttft_median_s": statistics.median(ttft),
        "itl_mean_ms": statistics.fmean(itl),
        "itl_median_ms": statistics.median(itl),
        "output_tokens_per_s": sum(record.request.num_output for record in records) / span_s,
    }


# ---------------------------------------------------------------- the cases


def arguments_of(options: Options, pool: str, *more: str) -> list[str]:
    return [
        "+cluster=local",
        f"routing={options.routing}",
        "~pools.prefill",
        "~pools.decode",
        f"+pools.any={pool}",
        *more,
    ]


def simulated(options: Options, folder: Path) -> dict[str, float]:
    timing = Timing()
    slower = {
        name: [part * options.sim_slower for part in getattr(timing, name)] for name in ("prefill_ms", "decode_ms")
    }
    given = ",".join(f"{name}:[{','.join(str(part) for part in parts)}]" for name, parts in slower.items())
    arguments = arguments_of(
        options,
        f"{{role: any, replicas: {options.sim_workers}}}",
        "engine=sim",
        "model.max_model_len=16384",
        f"+engine.engine_args.timing={{{given}}}",
    )
    with run_of(folder, arguments) as run:
        twin = Twin(folder, arguments, options, options.sim_tokens)
        return compared("sim", twin, lambda requests: asked_of(run, requests, twin.block_size), options)


def real(options: Options, folder: Path) -> dict[str, float]:
    core = max(os.sched_getaffinity(0)) if options.vllm_core < 0 else options.vllm_core
    sizes = {
        "hidden_size": options.width,
        "intermediate_size": 11 * options.width // 4,
        "num_hidden_layers": options.layers,
        "num_key_value_heads": 8,
    }
    write_model(folder / "model", sizes)
    arguments = arguments_of(
        options,
        "{role: any}",
        f"model.path={folder / 'model'}",
        "model.generate=null",
        "model.max_model_len=2048",
        f"cluster.engine_prefix=[taskset,--cpu-list,'{core}']",
        *(f"model.config_json.{key}={value}" for key, value in sizes.items()),
        *(f"engine.environment.{key}='{value}'" for key, value in ENVIRONMENT.items()),
        *(f"engine.engine_args.{key}={value}" for key, value in ENGINE_ARGS.items() if key != "dtype"),
        f"model.engine_args.vllm.dtype={ENGINE_ARGS['dtype']}",
    )
    with run_of(folder, arguments) as run:
        say("vllm: profile")
        measured = profile(folder, run, options.profile_s)
        twin = Twin(folder, [*arguments, f"predict.profiles.tp1={measured}"], options, options.vllm_tokens)
        return compared("vllm", twin, lambda requests: asked_of(run, requests, twin.block_size), options)


CASES = {"sim": simulated, "vllm": real}


def compared(
    name: str, twin: Twin, ask: Callable[[Sequence[Request]], list[Record]], options: Options
) -> dict[str, float]:
    limit = twin.saturation()
    rate = options.load * limit
    say(f"{name}: {rate:.2f} of {limit:.2f} requests per second, for {options.requests / rate:.0f} s")
    both: dict[str, Any] = {"live": figures_of(ask(twin.requests(rate))), "twin": figures_of(twin.records(rate))}
    figures = {f"{name}.{way}.{key}": value for way, found in both.items() for key, value in found.items()}
    ratios = {f"{name}.live_to_twin.{key}": value / both["twin"][key] for key, value in both["live"].items()}
    return figures | ratios | {f"{name}.rate": rate}


def table(figures: dict[str, float], names: Sequence[str]) -> str:
    rows = [
        [f"{name} {key}", *(f"{figures[f'{name}.{way}.{key}']:.3f}" for way in ("live", "twin", "live_to_twin"))]
        for name in names
        for key in ("ttft_mean_s", "ttft_median_s", "itl_mean_ms", "itl_median_ms", "output_tokens_per_s")
    ]
    return report.table(["", "live", "twin", "ratio"], rows)


def run(options: Options) -> None:
    names = options.cases.split(",")
    if wrong := [name for name in names if name not in CASES]:
        raise BadArgument(f"cases: {wrong[0]!r} is not one of {', '.join(CASES)}")
    figures: dict[str, float] = {}
    for name in names:
        with tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder:
            figures |= CASES[name](options, Path(folder))
    result = report.report("twin", figures)
    report.publish(Path(options.output), result, {"options": options}, table(figures, names))


if __name__ == "__main__":
    command(Options, run)
