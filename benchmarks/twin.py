"""How right the twin is: `python -m benchmarks.twin [key=value ...]`.

What `action=profile` finds of simulated engines beside the times that they were given. Then the same requests in
virtual time and through a run on this machine, at a part of the rate that the twin says can be kept up with: first
simulated engines, then vLLM on one core of the CPU, whose step times `action=profile` has measured just before. Owns
the cases and the comparison.
"""

from __future__ import annotations

import os
import shutil
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec

from benchmarks import report
from benchmarks.arguments import BadArgument, Count, Duration, chosen
from benchmarks.batch_engines import ENGINE_ARGS, ENVIRONMENT
from benchmarks.command import command
from benchmarks.report import say
from benchmarks.routing.saturation import saturation
from benchmarks.twin_run import asked_of, profile, run_of, slower, timing_argument
from launcher.config import load
from launcher.planning.pools import plan_pools
from launcher.start import plan_run
from launcher.twin.cards import make_card, read_profiles
from launcher.twin.figures import STEADY_FROM, growth
from launcher.twin.prediction import setup_of
from launcher.twin.profile import fit, read
from launcher.twin.records import Record
from launcher.twin.replay import Replay
from launcher.twin.setup import Setup
from launcher.twin.simulate import read_workload
from launcher.twin.traces import Request
from workers.engines.sim.args import SimArgs
from workers.engines.tiny_model import write_model

FIRST_LOAD = 0.3
SLOW_PER_S = 0.001  # requests, so few that none meets another


class Options(msgspec.Struct, frozen=True, kw_only=True):
    cases: str = "formulas,sim,vllm"
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


def sim_arguments(options: Options, num_workers: int) -> list[str]:
    return arguments_of(
        options,
        f"{{role: any, replicas: {num_workers}}}",
        "engine=sim",
        "model.max_model_len=16384",
        timing_argument(slower(options.sim_slower)),
    )


def formulas(options: Options, folder: Path) -> dict[str, float]:
    """Medians of what points and the model fitted to them are off, as parts of the engine's own times."""
    with run_of(folder, sim_arguments(options, 1)) as run:
        found = read(kept(profile(folder, run, options.profile_s), options, "sim"))
    timing, model = slower(options.sim_slower), fit(found, SimArgs().max_num_batched_tokens).model
    prefill, decode = list[tuple[float, float]](), list[tuple[float, float]]()
    for isl, ttft_ms in zip(found.prefill_isl, found.prefill_ttft, strict=True):
        true_s = sum(timing.pass_s(size, 0, 0.0) for size in chunks(int(isl), SimArgs().max_num_batched_tokens))
        fitted_s = model.prefill_s(int(isl), 0, SimArgs().max_num_batched_tokens)
        prefill.append((ttft_ms / 1000 / true_s, fitted_s / true_s))
    for usage, context, itl_ms in zip(found.x_kv_usage, found.y_context_length, found.z_itl, strict=True):
        true_s, kv_tokens = timing.pass_s(0, 1, usage), usage * found.max_kv_tokens
        decode.append((itl_ms / 1000 / true_s, model.decode_step_s(round(kv_tokens / context), kv_tokens) / true_s))
    return {
        f"formulas.{name}.{way}_error": statistics.median(abs(ratio[index] - 1) for ratio in ratios)
        for name, ratios in (("prefill", prefill), ("decode", decode))
        for index, way in enumerate(("points", "fit"))
    }


def kept(profile: Path, options: Options, name: str) -> Path:
    """The profile, with its points and curves, beside the results."""
    folder = Path(options.output) / f"profile_{name}"
    shutil.copytree(profile.parent, folder, dirs_exist_ok=True)
    return profile


def chunks(num_tokens: int, budget: int) -> list[int]:
    return [min(budget, num_tokens - start) for start in range(0, num_tokens, budget)]


def simulated(options: Options, folder: Path) -> dict[str, float]:
    arguments = sim_arguments(options, options.sim_workers)
    with run_of(folder, arguments) as run:
        twin = Twin(folder, arguments, options, options.sim_tokens)
        return compared("sim", twin, lambda requests: asked_of(run, requests, twin.block_size).records, options)


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
        measured = kept(profile(folder, run, options.profile_s), options, "vllm")
        twin = Twin(folder, [*arguments, f"predict.profiles.tp1={measured}"], options, options.vllm_tokens)
        return compared("vllm", twin, lambda requests: asked_of(run, requests, twin.block_size).records, options)


CASES = {"formulas": formulas, "sim": simulated, "vllm": real}


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


def text(figures: dict[str, float]) -> str:
    """What has been compared, then what else was measured."""
    compared = [key.split(".live_to_twin.") for key in figures if ".live_to_twin." in key]
    rows = [
        [f"{name} {key}", *(f"{figures[f'{name}.{way}.{key}']:.3f}" for way in ("live", "twin", "live_to_twin"))]
        for name, key in compared
    ]
    others = [f"{key}: {value:.1%}" for key, value in figures.items() if key.endswith("_error")]
    return "\n".join([report.table(["", "live", "twin", "ratio"], rows), *others])


def run(options: Options) -> None:
    names = chosen("cases", options.cases, CASES)
    figures: dict[str, float] = {}
    for name in names:
        with tempfile.TemporaryDirectory(prefix="sluice-bench-") as folder:
            figures |= CASES[name](options, Path(folder))
    result = report.report("twin", figures)
    report.publish(Path(options.output), result, {"options": options}, text(figures))


if __name__ == "__main__":
    command(Options, run)
