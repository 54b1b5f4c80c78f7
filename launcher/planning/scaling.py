"""How many workers the planner may have: what was asked for, and what cannot be.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launcher.job import Scaling
from launcher.planning.pools import PoolPlan, most_replicas
from launcher.schema import Config, PlannerMode
from workers.spec import Role

KEYS = ("min_replicas", "max_replicas", "budget_gpu_hours", "idle_to_zero_s")


def scaling_of(config: Config) -> Scaling | None:
    planner = config.planner
    if planner.mode is PlannerMode.off or not any(getattr(planner, key) is not None for key in KEYS):
        return None
    return Scaling(
        initial={name: pool.replicas for name, pool in config.pools.items()},
        least={
            name: pool.replicas if planner.min_replicas is None else planner.min_replicas
            for name, pool in config.pools.items()
        },
        most={name: most_replicas(config, pool) for name, pool in config.pools.items()},
        budget_gpu_hours=planner.budget_gpu_hours,
        idle_to_zero_s=planner.idle_to_zero_s,
    )


def scaling_faults(config: Config, pools: Sequence[PoolPlan]) -> Iterator[str]:
    """Empty where nothing of it was asked for."""
    planner = config.planner
    given = [key for key in KEYS if getattr(planner, key) is not None]
    if not given:
        return
    if planner.mode is PlannerMode.off:
        yield f"planner.{given[0]}: nobody plans; use planner=on or planner=advise"
    for key in given:
        if not getattr(planner, key) > 0:
            yield f"planner.{key}: {getattr(planner, key):g} is too little; use more than 0, or null"
    for name, pool in config.pools.items():
        if planner.max_replicas is not None and planner.max_replicas < pool.replicas:
            yield f"planner.max_replicas: {planner.max_replicas}, but pools.{name}.replicas is {pool.replicas}"
        if planner.min_replicas is not None and planner.min_replicas > pool.replicas:
            yield f"planner.min_replicas: {planner.min_replicas}, but pools.{name}.replicas is {pool.replicas}"
    if planner.budget_gpu_hours is not None and not any(pool.gpus_per_node for pool in pools):
        yield "planner.budget_gpu_hours: no worker holds a GPU; use null"
    for leg, other in (("prefill", Role.DECODE), ("decode", Role.PREFILL)):
        able = [pool.name for pool in pools if pool.role is not other]
        if len(able) > 1:
            yield (
                f"planner.{given[0]}: {' and '.join(able)} share the {leg}s, so it cannot be said which of them needs"
                " workers; use one pool with the role any, or one for prefill and one for decode"
            )
