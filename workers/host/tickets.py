"""The tickets a prefill worker has handed out and not yet heard of again.

Pure. Owns the count of pinned blocks that every proxy is told. The engine frees the blocks; this only
knows of them, until the proxy says that a ticket was read or released, or its lease has ended.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from workers.protocol import Ticket


@dataclass(slots=True)
class Granted:
    ticket: Ticket
    proxy: str
    expires_at: float


class TicketBook:
    """Times are seconds of the host's monotonic clock."""

    def __init__(self, lease_s: float) -> None:
        self._lease_s = lease_s
        self._open: dict[str, Granted] = {}

    def grant(self, ticket: Ticket, proxy: str, now: float) -> None:
        self._open[ticket.id] = Granted(ticket, proxy, now + self._lease_s)

    def close(self, ticket_id: str) -> None:
        """Closing twice is fine: a lease may have ended first."""
        self._open.pop(ticket_id, None)

    def expire(self, now: float) -> None:
        for ticket_id in [i for i, g in self._open.items() if g.expires_at <= now]:
            del self._open[ticket_id]

    def take_of(self, proxy: str) -> list[Ticket]:
        """All open tickets of a proxy that has gone: nobody will read them."""
        taken = [g.ticket for g in self._open.values() if g.proxy == proxy]
        for ticket in taken:
            del self._open[ticket.id]
        return taken

    def blocks_by_proxy(self) -> Counter[str]:
        blocks: Counter[str] = Counter()
        for granted in self._open.values():
            blocks[granted.proxy] += granted.ticket.num_blocks
        return blocks

    @property
    def num_blocks(self) -> int:
        return sum(g.ticket.num_blocks for g in self._open.values())
