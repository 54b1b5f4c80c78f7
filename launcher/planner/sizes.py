"""How large each pool should be: what is seen of workers, jobs and demand, brought together for `scale`.

Pure: everything is told. Owns the costs by pool.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from launcher.control.lead import lead_of
from launcher.job import Plan
from launcher.jobs import JobRecord
from launcher.planner.forecast import Bucket, Forecast
from launcher.planner.need import Costs, Demand
from launcher.planner.roles import Sight
from launcher.planner.scale import Looked, Need, PoolLook, Scaled, Scaler, Stands, WorkerLook
from proxy.spec import LatencyTargets
from workers.spec import Role

MIN_WITHIN_S = 60.0  # in which what waits is worked off, however fast workers come


@dataclass(frozen=True, slots=True)
class Requests:
    """What the proxy has of them just now."""

    waiting: int = 0
    waiting_tokens: int = 0
    open: int = 0


@dataclass(slots=True)
class _Pool:
    role: Role
    names: tuple[str, ...]
    gpus_each: int
    most: int
    costs: Costs = field(default_factory=Costs)


class Sizes:
    def __init__(self, plan: Plan, wanted: dict[str, tuple[str, ...]], now: float) -> None:
        """`wanted`: of this planner's predecessor."""
        assert plan.scaling is not None
        self.scaling = plan.scaling
        self.gpu_hours = 0.0
        self._targets: LatencyTargets = plan.proxy.routing.targets
        self._requests, self._asked = Requests(), True
        self._computed_s: dict[str, float] = {}
        specs = [planned.spec for planned in plan.workers]
        self._gpus = {spec.worker: spec.num_nodes * spec.gpus_per_node for spec in specs}
        self._pools = {
            spec.pool: _Pool(
                spec.role,
                tuple(other.worker for other in specs if other.pool == spec.pool),
                self._gpus[spec.worker],
                self.scaling.most[spec.pool],
            )
            for spec in specs
        }
        self._scaler = Scaler.restore(self.scaling, max(spec.drain_timeout_s for spec in specs), wanted, now)

    @property
    def wanted(self) -> dict[str, tuple[str, ...]]:
        return self._scaler.wanted

    def look(self, sights: Mapping[str, Sequence[Sight]], requests: Requests, minute: int) -> None:
        """`sights`: of workers that take requests, by pool. Every second or so."""
        for name, pool in self._pools.items():
            pool.costs.look(sights.get(name, ()), minute)
        computed_s = {sight.worker: sight.computed_s for all in sights.values() for sight in all}
        self._asked |= bool(requests.waiting or requests.open) or computed_s != self._computed_s
        self._requests, self._computed_s = requests, computed_s

    def learn(self, minute: int, computed_tokens: float) -> None:
        for pool in self._pools.values():
            if pool.role is not Role.DECODE:
                pool.costs.learn(minute, computed_tokens)

    def decide(self, forecast: Forecast, records: Sequence[JobRecord], since: float, now: float) -> list[Scaled]:
        own = [record for record in records if record.submitted_at >= since and record.worker in self._gpus]
        self.gpu_hours = sum(self._gpus[one.worker] * _ran_s(one, now) for one in own) / 3600
        looked = Looked(
            pools=[self._pool_look(name, pool, forecast, own, now) for name, pool in self._pools.items()],
            gpu_hours=self.gpu_hours,
            live_gpus=sum(self._gpus[record.worker] for record in own if record.ended_at is None),
            asked=self._asked,
            waiting=self._requests.waiting > 0,
        )
        self._asked = False
        return self._scaler.apply(looked, now)

    def _pool_look(
        self, name: str, pool: _Pool, forecast: Forecast, records: Sequence[JobRecord], now: float
    ) -> PoolLook:
        waits = [now - one.submitted_at for one in records if one.ended_at is None and one.started_at is None]
        lead_s = lead_of(name, records, max(waits, default=0.0)).seconds
        return PoolLook(
            pool=name,
            workers=tuple(_stands(worker, records) for worker in pool.names),
            need=self._need(pool, forecast, lead_s) if pool.costs.known else None,
            lead_s=lead_s,
            gpus_each=pool.gpus_each,
        )

    def _need(self, pool: _Pool, forecast: Forecast, lead_s: float) -> Need:
        """Who waits for a worker is no demand that has been counted yet: it comes on top, within the lead, and with
        answers as long as those of late."""
        within_s, now = max(MIN_WITHIN_S, lead_s), forecast.now()
        waiting, counted = self._requests.waiting_tokens / within_s, now.computed + now.cached
        computed, output = (
            (waiting * now.computed / counted, waiting * now.output / counted) if counted else (waiting, 0)
        )

        def number(demand: Bucket) -> int:
            asked = Demand(demand.computed + computed, demand.output + output)
            return pool.costs.workers(pool.role, asked, self._targets, within_s, pool.most)

        return Need(now=number(now), ahead=number(forecast.until(lead_s)))


def _ran_s(record: JobRecord, now: float) -> float:
    if record.started_at is None:
        return record.earlier_s
    return record.earlier_s + max(0.0, (record.ended_at or now) - record.started_at)


def _stands(worker: str, records: Sequence[JobRecord]) -> WorkerLook:
    """By its job that is furthest; those that leave do not count."""
    live = [r for r in records if r.worker == worker and r.ended_at is None and r.draining_at is None]
    found = [WorkerLook(worker, _stands_of(record), record.submitted_at) for record in live]
    return min(found, key=lambda one: (one.stands is not Stands.PROVEN, one.stands), default=WorkerLook(worker))


def _stands_of(record: JobRecord) -> Stands:
    if record.proven_at is not None:
        return Stands.PROVEN
    return Stands.PENDING if record.started_at is None else Stands.STARTED
