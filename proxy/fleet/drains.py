"""Drains that the controller asks for: the worker takes nothing new at once, and its agent is told a little later.

Pure. An agent that drains ends as soon as its engine is idle; a request whose prompt is still being computed elsewhere
is not there yet. So the word waits until nothing is promised to the worker any more, but no longer than the drain.
"""

from __future__ import annotations

from proxy.fleet.fleet import Fleet
from proxy.fleet.fleet_events import Leaving
from proxy.fleet.worker import Key, Peer
from proxy.flights.flights import Flights
from workers.controller_messages import DrainWorker
from workers.protocol import Drain


class Drains:
    """Asked again for the same worker, it does nothing new."""

    def __init__(self, fleet: Fleet, flights: Flights) -> None:
        self._fleet = fleet
        self._flights = flights
        self._asked: dict[Key, tuple[Drain, float]] = {}

    def ask(self, drain: DrainWorker, now: float) -> list[Leaving]:
        key = (drain.worker, drain.generation)
        if key not in self._fleet.workers:
            return []
        self._asked.setdefault(key, (Drain(drain.reason, drain.timeout_s), now))
        return [] if self._fleet.workers[key].told_to_leave else [Leaving(key)]

    def due(self, now: float) -> list[tuple[Peer, Drain]]:
        """Agents to tell now; each is told once, with the time that is left."""
        told = []
        for key, (drain, asked_at) in list(self._asked.items()):
            left_s = asked_at + drain.timeout_s - now
            if left_s > 0 and self._flights.promised(key):
                continue
            del self._asked[key]
            worker = self._fleet.workers.get(key)
            if worker is not None and worker.agent is not None:
                told.append((worker.agent, Drain(drain.reason, max(0.0, left_s))))
        return told
