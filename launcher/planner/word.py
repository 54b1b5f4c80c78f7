"""What the planner says and remembers, in `planner.json` of the run folder, and what the controller makes of it.

Owns the file's shape. The planner writes it, whole; whoever starts after it goes on from it.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from launcher.job import Plan
from launcher.jobs import pool_of
from launcher.planner.forecast import Bucket, Interval
from launcher.planner.roles import Pressure, Role
from launcher.planner.scale import Scaled
from launcher.rundir import Desired, RunDir, read_optional
from proxy.spec import PoolCaps
from workers.controller_messages import Expected, SetCaps, WorkerCaps

STALE_S = 60.0  # a planner that has been silent for so long is not obeyed any more
MAX_DECISIONS = 50
OFF, ON = "off", "on"


class Decision(msgspec.Struct, frozen=True, kw_only=True):
    """One worker's role, and the numbers behind it. `done`: not merely advised."""

    at: float
    worker: str
    before: Role
    role: Role
    pressure: Pressure
    done: bool


class Word(msgspec.Struct, frozen=True, kw_only=True):
    written_at: float = 0.0
    mode: str = ""
    roles: dict[str, Role] = {}
    pressure: Pressure | None = None
    demand: dict[str, dict[int, Interval]] = {}  # by kind and minutes ahead: tokens per second
    drift: str = ""
    decisions: tuple[Decision, ...] = ()  # the newest last
    minute: int = 0  # unix time of the newest bucket's beginning
    buckets: tuple[Bucket, ...] = ()
    since: float = 0.0  # unix time of the run's start that the rest is about
    wanted: dict[str, tuple[str, ...]] = {}  # workers, by pool
    gpu_hours: float = 0.0
    scaled: tuple[Scaled, ...] = ()  # the newest last


def read_word(run: RunDir) -> Word | None:
    """None: nobody has planned, or what it wrote is broken."""
    try:
        return read_optional(run.planner, Word)
    except msgspec.DecodeError:
        return None


def wanted_workers(word: Word | None, plan: Plan, desired: Desired) -> tuple[str, ...]:
    """Of those that are desired: the planner's, or as many as at first. A planner's silence ends nobody."""
    if plan.scaling is None:
        return desired.workers
    own = dict(plan.scaling.initial)
    obeyed = word is not None and word.mode == ON and word.since == desired.since
    told = word.wanted if word is not None and obeyed else {}
    names = {pool: [name for name in desired.workers if pool_of(name) == pool] for pool in own}
    return tuple(name for pool, all in names.items() for name in all if name in told.get(pool, all[: own[pool]]))


def caps_of(word: Word | None, workers: Mapping[str, str], pools: Mapping[str, PoolCaps], now: float) -> SetCaps:
    """What the proxy is to be told. `workers`: their pools. No caps where nobody may be obeyed."""
    if word is None or now - word.written_at > STALE_S:
        return SetCaps(())
    told = SetCaps(
        (),
        demand=tuple(
            Expected(kind, minutes, *interval)
            for kind, ahead in word.demand.items()
            for minutes, interval in ahead.items()
        ),
        drift=word.drift,
        wanted=tuple((pool, len(names)) for pool, names in word.wanted.items()),
        gpu_hours=word.gpu_hours,
    )
    if word.mode != ON:
        return told
    moved = [
        WorkerCaps(worker, 0, pools[workers[worker]].max_decodes)
        for worker, role in sorted(word.roles.items())
        if worker in workers and role is Role.DECODE
    ]
    return msgspec.structs.replace(told, workers=tuple(moved))


def movable(workers: Mapping[str, str], pools: Mapping[str, PoolCaps], pairs: tuple[tuple[str, str], ...]) -> set[str]:
    """Who may prefill and decode, for others of its pool too."""
    able = {
        name for name, caps in pools.items() if caps.max_prefill_tokens and caps.max_decodes and (name, name) in pairs
    }
    return {worker for worker, pool in workers.items() if pool in able}
