"""Who of those that wait is placed next, and where.

Pure. A decision costs more than all else that the proxy does for a request, and it is looked after every event who fits
now. So who has been refused is asked for again only when something has happened that may have made room for it, or
after a while: predictions change with time.
"""

from __future__ import annotations

import msgspec

from proxy.fleet.fleet import Fleet
from proxy.flights.flight import Flight
from proxy.flights.waiting import Waiting
from proxy.prefixes.prefix_index import PrefixIndex
from proxy.routing.router import Route, Router

YIELD_S = 60.0  # after a request that is not of a batch, batches leave room for the next
AGAIN_S = 0.02  # about one pass of an engine: predictions are no better


class Placing:
    def __init__(self, fleet: Fleet, index: PrefixIndex, router: Router, queue: Waiting) -> None:
        self._fleet = fleet
        self._index = index
        self._router = router
        self._queue = queue
        self.online_at = float("-inf")  # the last request that is not of a batch
        self._num_chances = 0
        self._chance_at = float("-inf")

    def look(self, now: float, *, may_make_room: bool) -> None:
        """Something has happened."""
        if may_make_room or now >= self._chance_at + AGAIN_S:
            self._num_chances += 1
            self._chance_at = now

    def next(self, now: float) -> tuple[Flight, Route] | None:
        for flight in self._queue.turns(now):
            if flight.refused_at_chance == self._num_chances:
                continue
            route = self._place(flight, now)
            if route is not None:
                return flight, route
        return None

    def first(self, flight: Flight, now: float) -> Route | None:
        """Nobody waits before it. None: it fits nowhere now."""
        self._chance_at = now
        return self._place(flight, now)

    def _place(self, flight: Flight, now: float) -> Route | None:
        if flight.of_batch:
            flight.demand = msgspec.structs.replace(flight.demand, yields=now - self.online_at < YIELD_S)
        route = self._router.route(self._fleet, self._index, flight.demand, now, now - flight.arrived_at)
        if route is None:
            flight.refused_at_chance = self._num_chances
        return route
