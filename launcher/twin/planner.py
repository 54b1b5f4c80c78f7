"""The planner's cores in virtual time: they are shown what the planner's process asks the proxy for.

Pure. Owns the minutes' tokens; the cores are those that run live.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from launcher.job import Plan
from launcher.jobs import JobRecord
from launcher.planner import roles
from launcher.planner.forecast import BUCKET_S, Bucket, Forecast
from launcher.planner.roles import Role, Roles, Sight
from launcher.planner.scale import Scaled
from launcher.planner.sizes import Requests, Sizes
from launcher.planner.word import ON, Word, caps_of, movable
from proxy.fleet.fleet import Fleet
from proxy.fleet.fleet_events import caps_told
from proxy.flights.flights import Flights
from proxy.monitoring.view import pressure_json
from proxy.spec import PoolCaps

SIZE_S = 5.0


class VirtualPlanner:
    """Of a plan with `planner=on`; `look` as Replay has it."""

    def __init__(self, plan: Plan) -> None:
        self._proxy = plan.proxy
        self._able = movable(plan.proxy.workers, plan.proxy.pools, plan.proxy.pairs)
        self._roles = Roles(plan.proxy.routing.targets)
        self.forecast = Forecast()
        self.sizes = None if plan.scaling is None else Sizes(plan, {}, 0.0)
        self.scaled: list[Scaled] = []
        self.moved: list[tuple[float, str, Role]] = []
        self._minute, self._tokens = 0, [0.0] * len(Bucket._fields)
        self._sized_at = 0.0

    def look(self, fleet: Fleet, flights: Flights, now: float) -> Mapping[str, PoolCaps] | None:
        self._pass_minutes(now)
        sights: dict[str, list[Sight]] = {}
        for worker in fleet.workers.values():
            if worker.up:
                sights.setdefault(worker.pool, []).append(msgspec.convert(pressure_json(worker, now), Sight))
        waiting = sum(flight.demand.num_tokens for flight in flights.queue)
        if self.sizes is not None:
            self.sizes.look(sights, Requests(len(flights.queue), waiting, len(flights.open)), self._minute)
        movers = {sight.worker: sight for pool in sights.values() for sight in pool if sight.worker in self._able}
        moves = self._roles.apply(roles.Looked(list(movers.values()), waiting), now)
        self.moved += [(now, move.worker, move.role) for move in moves]
        return self._caps(self._roles.roles, now) if moves else None

    def _caps(self, told: dict[str, Role], now: float) -> Mapping[str, PoolCaps]:
        word = Word(written_at=now, mode=ON, roles=told)
        return caps_told(caps_of(word, self._proxy.workers, self._proxy.pools, now)).caps

    def ended(self, computed: int, cached: int, output: int) -> None:
        """A request has been answered."""
        for which, number in enumerate((computed, cached, output)):
            self._tokens[which] += number

    def _pass_minutes(self, now: float) -> None:
        while now >= self._minute + BUCKET_S:
            bucket = Bucket(*(number / BUCKET_S for number in self._tokens))
            self.forecast.add(bucket)
            if self.sizes is not None:
                self.sizes.learn(self._minute, bucket.computed * BUCKET_S)
            self._minute, self._tokens = self._minute + BUCKET_S, [0.0] * len(Bucket._fields)

    def wanted(self, records: Sequence[JobRecord], now: float) -> set[str]:
        """Of all there may be."""
        if self.sizes is None:
            return set(self._proxy.workers)
        if now - self._sized_at >= SIZE_S or not self.sizes.wanted:
            self._sized_at = now
            self.scaled += self.sizes.decide(self.forecast, records, float("-inf"), now)
        return {worker for names in self.sizes.wanted.values() for worker in names}
