"""Pools that grow and shrink, in the twin: a ramp to three times the load, and an hour of noise under a budget.

The controller's, planner's and proxy's own cores, and Slurm's queue in virtual time. Owns the two cases.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import msgspec

from benchmarks.arguments import Count, Duration
from benchmarks.report import say
from launcher.config import load
from launcher.schema import Config
from launcher.start import plan_run
from launcher.twin.elastic import Elastic
from launcher.twin.records import Record
from launcher.twin.simulate import twin_of
from launcher.twin.slurm import Site
from launcher.twin.traces import Request, own_chain
from proxy.spec import LatencyTargets

BLOCK_SIZE = 256
SPREAD = 0.5  # of the logarithms of lengths


class Sizes(msgspec.Struct, frozen=True, kw_only=True):
    sizes_rate: float = 2.0  # requests per second at first; 0: leave all of this out
    calm_s: Duration = 1200.0  # before the ramp; after it as long as is left of an hour
    ramp_s: Duration = 1500.0
    hour_s: Duration = 3600.0
    most: Count = 8
    queue_s: Duration = 120.0
    start_s: Duration = 90.0
    prompt_tokens: Count = 6000
    output_tokens: Count = 400
    seed: int = 1


def arrivals(asked: Sizes, rate: Callable[[float], float], end_s: float, seed: int) -> list[Request]:
    """A Poisson process with a rate that moves."""
    rng, at_s, requests = random.Random(seed), 0.0, list[Request]()
    while (at_s := at_s + rng.expovariate(max(1e-3, rate(at_s)))) < end_s:
        num_prompt, num_output = (
            max(16, round(mean * rng.lognormvariate(-(SPREAD**2) / 2, SPREAD)))
            for mean in (asked.prompt_tokens, asked.output_tokens)
        )
        requests.append(Request(at_s, num_prompt, num_output, own_chain(len(requests), num_prompt, BLOCK_SIZE)))
    return requests


def config_of(asked: Sizes, replicas: int, *more: str) -> Config:
    return load(
        [
            "+cluster=h100x1",
            "model=llama-3.1-8b",
            "run=ramp",
            "~pools.prefill",
            "pools.decode.role=any",
            "pools.decode.tensor_parallel=1",
            f"pools.decode.replicas={replicas}",
            *more,
        ]
    )


def replayed(asked: Sizes, requests: Sequence[Request], replicas: int, *more: str) -> tuple[Elastic, float]:
    config = config_of(asked, replicas, *more)
    _, plan, model = plan_run(config)
    site = Site(queue_s=asked.queue_s, start_s=asked.start_s, spread=0.1)
    elastic = Elastic(plan, twin_of(config, plan, model, BLOCK_SIZE), requests, site)
    records = elastic.run().records
    targets = plan.proxy.routing.targets
    return elastic, sum(kept(record, targets) for record in records) / len(records)


def kept(record: Record, targets: LatencyTargets) -> bool:
    return record.ttft_s <= targets.ttft_s and (record.itl_s or 0.0) <= targets.itl_s


def measure_sizes(asked: Sizes) -> dict[str, float]:
    return {**_ramp(asked, asked.seed), **_noise(asked, asked.seed)} if asked.sizes_rate else {}


def _ramp(asked: Sizes, seed: int) -> dict[str, float]:
    def rate(at_s: float) -> float:
        return asked.sizes_rate * (1 + 2 * min(1.0, max(0.0, (at_s - asked.calm_s) / asked.ramp_s)))

    requests = arrivals(asked, rate, asked.hour_s, seed)
    first = max(1, asked.most // 4)
    ours, good = replayed(
        asked, requests, first, "planner=on", "planner.min_replicas=1", f"planner.max_replicas={asked.most}"
    )
    say(f"ramp: {good:.1%} of {len(requests)} within targets, {ours.operated}")
    most, most_good = replayed(asked, requests, asked.most)
    return {
        "ramp.good": good,
        "ramp.most_good": most_good,
        "ramp.workers": ours.operated.most_workers,
        "ramp.gpu_hours_to_most": ours.operated.gpu_hours / most.operated.gpu_hours,
    }


def _noise(asked: Sizes, seed: int) -> dict[str, float]:
    rng = random.Random(seed)
    levels = [2 * asked.sizes_rate * math.exp(rng.gauss(0.0, 0.5)) for _ in range(int(asked.hour_s // 60) + 1)]
    requests = arrivals(asked, lambda at_s: levels[int(at_s // 60)], asked.hour_s, seed)
    budget = asked.most * asked.hour_s / 3600
    keys = ("planner=on", "planner.min_replicas=1", f"planner.max_replicas={asked.most}")
    ours, good = replayed(asked, requests, asked.most // 2, *keys, f"planner.budget_gpu_hours={budget}")
    young = ours.operated.drained_young
    say(f"noise: {good:.1%} of {len(requests)} within targets, {ours.operated}")
    return {
        "noise.good": good,
        "noise.submitted": ours.operated.submitted,
        "noise.drained": ours.operated.drained,
        "noise.drained_young": max(young.values(), default=0),
        "noise.budget_used": ours.operated.gpu_hours / budget,
    }
