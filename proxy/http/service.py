"""What all connections of a server share: its handler, its limits, and who is connected.

Owns the bounds that hold for all of them together: how many there are, the bytes of their requests, the
bytes that they have not read. Who has to go when a bound is reached is decided here. Reads and writes
nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from enum import IntEnum
from operator import itemgetter
from typing import Protocol

from proxy.http.exchange import Exchange
from proxy.http.request_reader import Admit, Bodies
from proxy.spec import Limits

log = logging.getLogger(__name__)

Handler = Callable[[Exchange], None]

LINGER_S = 5.0  # for a refused or closed client to take its answer


class Phase(IntEnum):
    """What is awaited from the client; each has a time limit, which stands still during service."""

    NEW = 0  # its first request
    IDLE = 1  # another request
    HEAD = 2  # the rest of a head
    BODY = 3  # the rest of a body
    LINGER = 4  # nothing: what comes is thrown away until it has read its refusal
    CLOSING = 5  # nothing: what was written is flushed


class Member(Protocol):
    """A connection."""

    transport: asyncio.Transport
    deadline: float

    def expire(self) -> None:
        """The deadline has passed."""

    def cut_off(self) -> None:
        """It does not read what there is for it."""

    def close_if_idle(self) -> None:
        """Nothing is awaited of it but another request."""


class Service:
    def __init__(self, handler: Handler, admit: Admit, limits: Limits) -> None:
        self.handler = handler
        self.admit = admit
        self.limits = limits
        self.bodies = Bodies(limits)
        self.draining = False
        self.connections: set[Member] = set()
        # Those of which no request is admitted or in service; the first has waited longest.
        self.waiting: dict[Member, None] = {}
        self.num_shed = 0
        self.emptied = asyncio.Event()
        of_phase = {
            Phase.NEW: limits.header_timeout_s,
            Phase.IDLE: limits.idle_timeout_s,
            Phase.HEAD: limits.header_timeout_s,
            Phase.BODY: limits.body_timeout_s,
            Phase.LINGER: LINGER_S,
            Phase.CLOSING: LINGER_S,
        }
        self.time_limits_s = tuple(of_phase[phase] for phase in Phase)

    def make_room(self) -> bool:
        """For one more connection: many that do nothing must not keep out one that has something to ask."""
        if len(self.connections) < self.limits.max_connections:
            return True
        longest = next(iter(self.waiting), None)
        if longest is None:
            return False
        self.num_shed += 1
        longest.transport.abort()
        self.forget(longest)
        return True

    def forget(self, connection: Member) -> None:
        self.waiting.pop(connection, None)
        self.connections.discard(connection)
        if not self.connections:
            self.emptied.set()

    def sweep(self, now: float) -> None:
        """Once in a while: whatever is not worth a timer of its own."""
        for connection in list(self.connections):
            if connection.deadline < now:
                connection.expire()
        self._bound_unsent()
        if self.num_shed:
            most = self.limits.max_connections
            log.warning(
                "%d waiting connections closed for new ones: %d are the most (proxy.limits)", self.num_shed, most
            )
            self.num_shed = 0

    def _bound_unsent(self) -> None:
        """Each slow reader has a bound of its own; this is for very many of them."""
        unsent = [(size, c) for c in self.connections if (size := c.transport.get_write_buffer_size())]
        excess = sum(size for size, _ in unsent) - self.limits.max_total_unsent_bytes
        if excess <= 0:
            return
        for size, connection in sorted(unsent, key=itemgetter(0), reverse=True):
            connection.cut_off()
            excess -= size
            if excess <= 0:
                return
