"""How many workers each pool has, and which: ahead of need, within bounds and a budget, without flapping.

Pure: one mutator, `apply(event, now) -> effects`. More as soon as the demand of now or the upper end of the forecast
takes more; fewer only when both have taken fewer for a whole hold, which is never shorter than the time from a worker's
submission to its proof. Jobs that wait go before workers that serve.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import msgspec

from launcher.job import Scaling

HOLD_S = 300.0  # at least
SLACK_S = 90.0  # until a job that was told to go is gone, beyond its drain


class Stands(IntEnum):
    """A worker's furthest job. The order in which workers are kept."""

    STARTED = 0  # to end it would lose its start
    PROVEN = 1
    PENDING = 2
    NONE = 3


class WorkerLook(msgspec.Struct, frozen=True):
    worker: str
    stands: Stands = Stands.NONE
    submitted_at: float = 0.0


class Need(msgspec.Struct, frozen=True, kw_only=True):
    """Workers of one pool: for the demand of now, for the upper end of the forecast of when a new one would serve."""

    now: int
    ahead: int

    @property
    def most(self) -> int:
        return max(self.now, self.ahead)


class PoolLook(msgspec.Struct, frozen=True, kw_only=True):
    """`need` is None where nothing can be said yet."""

    pool: str
    workers: tuple[WorkerLook, ...]  # all that there may be
    need: Need | None
    lead_s: float  # from submission to proof
    gpus_each: int


class Looked(msgspec.Struct, frozen=True, kw_only=True):
    pools: Sequence[PoolLook]
    gpu_hours: float  # of all jobs so far
    live_gpus: int  # that jobs hold or wait for
    asked: bool  # requests are here, or have been since the last look
    waiting: bool  # for a worker


class Scaled(msgspec.Struct, frozen=True, kw_only=True):
    """One decision, and its numbers."""

    at: float
    pool: str
    before: int
    after: int
    why: str
    need: Need | None
    lead_s: float
    gpu_hours: float
    done: bool = True  # not merely advised


@dataclass(slots=True)
class _Pool:
    wanted: tuple[str, ...]
    grew_at: float
    low_since: float | None = None
    low_most: int = 0


@dataclass(slots=True)
class Scaler:
    """`drain_s`: how long a worker may take to go."""

    scaling: Scaling
    drain_s: float
    _pools: dict[str, _Pool] = field(default_factory=dict)
    _asked_at: float | None = None

    @classmethod
    def restore(cls, scaling: Scaling, drain_s: float, wanted: dict[str, tuple[str, ...]], now: float) -> Scaler:
        """What was wanted holds for a hold at least: nobody knows when it grew."""
        return cls(scaling, drain_s, {name: _Pool(names, now) for name, names in wanted.items()})

    @property
    def wanted(self) -> dict[str, tuple[str, ...]]:
        return {name: pool.wanted for name, pool in self._pools.items()}

    def apply(self, event: Looked, now: float) -> list[Scaled]:
        for look in event.pools:
            names = tuple(one.worker for one in look.workers)
            self._pools.setdefault(look.pool, _Pool(names[: self.scaling.initial[look.pool]], now))
        starting = any(one.stands is not Stands.PROVEN for look in event.pools for one in self._own(look))
        if self._asked_at is None or event.asked or starting:
            self._asked_at = now
        scaled = []
        committed = 0  # GPUs of this look's decisions
        for look in event.pools:
            size, why = self._size(look, event, committed, now)
            before = len(self._pools[look.pool].wanted)
            committed += max(0, size - before) * look.gpus_each
            if size != before:
                scaled.append(self._set(look, size, why, event, now))
        return scaled

    def _own(self, look: PoolLook) -> list[WorkerLook]:
        return [one for one in look.workers if one.worker in self._pools[look.pool].wanted]

    def _size(self, look: PoolLook, event: Looked, committed: int, now: float) -> tuple[int, str]:
        size = len(self._pools[look.pool].wanted)
        if size and self._spent(event):
            return 0, "the GPU-hour budget is spent"
        if not size:
            wake = self.scaling.least[look.pool] if event.waiting else 0
            return self._affordable(look, event, committed, wake, "requests wait")
        idle_s = self.scaling.idle_to_zero_s
        if idle_s is not None and self._asked_at is not None and now - self._asked_at >= idle_s:
            return 0, f"no request for {idle_s:g} s"
        if look.need is None:
            return size, ""
        more, low = self._clamped(look, look.need.most), self._lowest(look, size, now)
        if more > size:
            why = "demand" if look.need.now >= look.need.ahead else "forecast"
            return self._affordable(look, event, committed, more, why)
        return (low, "less demand for long enough") if low < size else (size, "")

    def _lowest(self, look: PoolLook, size: int, now: float) -> int:
        """What has been enough for a whole hold."""
        assert look.need is not None
        pool, hold_s = self._pools[look.pool], max(HOLD_S, look.lead_s)
        low = self._clamped(look, look.need.most)
        if low >= size:
            pool.low_since = None
            return size
        if pool.low_since is None:
            pool.low_since, pool.low_most = now, low
        pool.low_most = max(pool.low_most, low)
        held = now - pool.low_since >= hold_s and now - pool.grew_at >= hold_s
        return pool.low_most if held else size

    def _clamped(self, look: PoolLook, number: int) -> int:
        return min(self.scaling.most[look.pool], max(self.scaling.least[look.pool], number))

    # ------------------------------------------------------------ the budget

    def _spent(self, event: Looked) -> bool:
        """Or will be by the time that all are gone."""
        budget = self.scaling.budget_gpu_hours
        return budget is not None and event.gpu_hours + self._to_leave(event.live_gpus) >= budget

    def _to_leave(self, gpus: int) -> float:
        return gpus * (self.drain_s + SLACK_S) / 3600

    def _affordable(self, look: PoolLook, event: Looked, committed: int, size: int, why: str) -> tuple[int, str]:
        """As many as can start and serve for a hold yet."""
        before, budget = len(self._pools[look.pool].wanted), self.scaling.budget_gpu_hours
        if budget is None or size <= before:
            return size, why
        for number in range(size, before, -1):
            gpus = event.live_gpus + committed + (number - before) * look.gpus_each
            hours = gpus * (look.lead_s + HOLD_S) / 3600 + self._to_leave(gpus)
            if event.gpu_hours + hours < budget:
                return number, why
        return before, ""

    # ------------------------------------------------------------ who

    def _set(self, look: PoolLook, size: int, why: str, event: Looked, now: float) -> Scaled:
        pool = self._pools[look.pool]
        before = len(pool.wanted)
        if size > before:
            pool.grew_at = now
        pool.low_since = None
        pool.wanted = _chosen(look.workers, pool.wanted, size)
        return Scaled(
            at=now,
            pool=look.pool,
            before=before,
            after=size,
            why=why,
            need=look.need,
            lead_s=look.lead_s,
            gpu_hours=event.gpu_hours,
        )


def _chosen(workers: Sequence[WorkerLook], wanted: tuple[str, ...], size: int) -> tuple[str, ...]:
    """Of those that are wanted the ones furthest on, of equals the youngest that serve; then those without a job."""
    kept = sorted((one for one in workers if one.worker in wanted), key=_kept_before)
    others = sorted((one for one in workers if one.worker not in wanted), key=lambda one: one.stands is not Stands.NONE)
    chosen = {one.worker for one in [*kept, *others][:size]}
    return tuple(one.worker for one in workers if one.worker in chosen)


def _kept_before(one: WorkerLook) -> tuple[int, float]:
    waits = one.stands in (Stands.PENDING, Stands.NONE)
    return one.stands, one.submitted_at if waits else -one.submitted_at
