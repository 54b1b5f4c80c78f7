"""Streams that can be taken up elsewhere: what is kept of them for that, where the next leg has to begin, and who
is not to do it.

Pure. Owns the bytes of kept bodies. Whether a leg is lost, and who goes on, `flights` decides.
"""

from __future__ import annotations

from collections.abc import Set

import msgspec

from proxy.fleet.fleet import Fleet
from proxy.fleet.worker import Key
from proxy.flights.flight import Flight, LegRecord
from workers.output_ids import ID_BYTES
from workers.protocol import Resume, Start

MAX_RESUMED = 8  # a request that kills its engines must not meet all of them


class Resumables:
    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self.num_bytes = 0

    def keep(self, flight: Flight, start: Start) -> None:
        """Its answer begins. Without tokens beside it, or without room, it is not tried again from here on."""
        num_bytes = len(flight.submit.body)
        flight.created = start.created
        if start.output_ids and self.num_bytes + num_bytes <= self._max_bytes:
            flight.kept_bytes = num_bytes
            self.num_bytes += num_bytes
        else:
            flight.submit = msgspec.structs.replace(flight.submit, body=b"")

    def forget(self, flight: Flight) -> None:
        self.num_bytes -= flight.kept_bytes
        flight.kept_bytes = 0


def unresumable_because(flight: Flight) -> str | None:
    """None: it can be taken up elsewhere."""
    if flight.num_resumed >= MAX_RESUMED:
        return f"it was taken up {MAX_RESUMED} times already"
    return None if flight.kept_bytes else "this answer cannot be continued by another worker"


def resume(flight: Flight, lost: LegRecord) -> None:
    """The next leg starts behind what the client has: to the router it is a longer prompt."""
    flight.num_resumed += 1
    so_far = Resume(bytes(flight.output_ids), flight.num_sent_bytes, flight.created, flight.num_resumed)
    flight.submit = msgspec.structs.replace(flight.submit, resume=so_far, wants_trace=False)
    num_new_tokens = len(flight.output_ids) // ID_BYTES - lost.num_resumed_tokens
    flight.demand = msgspec.structs.replace(flight.demand, num_tokens=flight.demand.num_tokens + num_new_tokens)


def avoided_by(flight: Flight, fleet: Fleet, failed: Set[Key]) -> frozenset[Key]:
    """Never where it has failed, as long as there is anybody else."""
    avoided = flight.demand.avoid | failed
    others = (worker for worker in fleet.workers.values() if worker.up and worker.caps.max_decodes)
    return avoided if any(worker.key not in avoided for worker in others) else frozenset()
