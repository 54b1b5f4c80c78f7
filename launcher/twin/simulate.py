"""`action=simulate`: the pools of a plan over a workload in virtual time, through the proxy's own cores.

Thin: puts together plan, workload and prediction. All faults are told at once.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from launcher.job import Plan
from launcher.planning.folders import folders
from launcher.planning.models import ResolvedModel, resolve
from launcher.planning.pools import plan_pools
from launcher.planning.scaling import scaling_of
from launcher.refusal import Refused
from launcher.schema import Config, Output, WorkloadConfig
from launcher.start import plan_run
from launcher.twin.cards import engine_faults, layout_name, make_card, read_profiles
from launcher.twin.prediction import predict, prediction_text, setup_of
from launcher.twin.setup import Setup
from launcher.twin.slurm import Site
from launcher.twin.traces import BadTrace
from launcher.twin.workload import Workload, make_workload, workload_faults


def simulate(config: Config) -> int:
    """Raises Refused. Needs no Slurm and starts nothing."""
    _, faults = read_profiles(config)
    faults += prediction_faults(config)
    try:
        _, plan, model = plan_run(config)
    except Refused as refused:
        raise Refused([*refused.faults, *faults]) from None
    if faults:
        raise Refused(faults)
    say_whose_shape(config, model)
    workload = read_workload(config.workload, config.model.max_model_len)
    prediction = predict(plan, twin_of(config, plan, model, workload.block_size), workload, site_of(config))
    save(config, "simulate.json", prediction)
    if config.output is Output.json:
        print(msgspec.json.encode(prediction).decode())
    else:
        print(prediction_text(prediction))
    return 0


def twin_of(config: Config, plan: Plan, model: ResolvedModel, block_size: int) -> Setup:
    found, _ = read_profiles(config)
    pools, _ = plan_pools(config, model)
    return setup_of(plan, {pool.name: make_card(config, pool, model.shape, found, block_size) for pool in pools})


def prediction_faults(config: Config) -> Iterator[str]:
    yield from workload_faults(config.workload)
    for name in ("queue_s", "start_s", "time_spread", "failures_per_day"):
        value = getattr(config.predict, name)
        if value is not None and value < 0:
            yield f"predict.{name}: {value:g} is less than nothing; use 0 or more"
    if config.predict.queue_s is None and scaling_of(config) is not None:
        yield "predict.queue_s: the planner changes the number of workers; say how long a job waits, 0 for not at all"
    if config.cluster is not None:
        layouts = [layout_name(pool.tensor_parallel, pool.pipeline_parallel) for pool in config.pools.values()]
        yield from engine_faults(config, resolved(config), layouts)


def site_of(config: Config) -> Site | None:
    asked = config.predict
    if asked.queue_s is None or config.cluster is None:
        return None
    return Site(
        queue_s=asked.queue_s,
        start_s=asked.start_s,
        spread=asked.time_spread,
        walltime_s=60.0 * config.cluster.walltime_min,
        failures_per_day=asked.failures_per_day,
        seed=config.workload.seed,
    )


def resolved(config: Config) -> ResolvedModel:
    where = folders(config)
    return resolve(config.model, where.cache, where.hub)


def say_whose_shape(config: Config, model: ResolvedModel) -> None:
    """Who gave the path of another model would take its answer for that one's."""
    if model.described and not config.engine.simulated:
        print(f"{model.missing}; its shape is what model.config_json says", file=sys.stderr)


def read_workload(workload: WorkloadConfig, max_model_len: int) -> Workload:
    try:
        return make_workload(workload, max_model_len)
    except BadTrace as fault:
        raise Refused([f"workload.trace: {fault}"]) from None


def save(config: Config, name: str, value: Any) -> None:
    if config.predict.output is None:
        return
    folder = Path(config.predict.output).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n")
