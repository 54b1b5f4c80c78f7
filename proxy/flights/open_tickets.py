"""The tickets this proxy holds: KV blocks pinned on a prefill worker until they are read or released.

Pure. Owns the table, and what it counts on the fleet's records. A ticket is closed once: read by the
engine it was given to, released because nobody will read it, or lost with its holder.
"""

from __future__ import annotations

from collections.abc import Iterator

from proxy.fleet.fleet import Fleet
from proxy.fleet.worker import Key
from workers.message import Message
from workers.protocol import Release, Ticket, TicketClosed

# To the holder, if it is still there.
Notice = tuple[Key, Message]


class OpenTickets:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._open: dict[str, Ticket] = {}

    def __len__(self) -> int:
        return len(self._open)

    def __iter__(self) -> Iterator[Ticket]:
        return iter(self._open.values())

    def open(self, ticket: Ticket) -> None:
        """A holder that has gone meanwhile took its blocks along."""
        holder = self._fleet.workers.get(holder_of(ticket))
        if holder is not None:
            self._open[ticket.id] = ticket
            holder.pinned_blocks += ticket.num_blocks

    def read(self, ticket_id: str | None) -> list[Notice]:
        """The engine has its first output: it has read the blocks, and their holder freed them."""
        ticket = self._close(ticket_id)
        return [] if ticket is None else [(holder_of(ticket), TicketClosed(ticket.id))]

    def release(self, ticket_id: str | None) -> list[Notice]:
        """Nobody will read it: its holder is to free the blocks. Of one that was freed already this does no harm."""
        ticket = self._close(ticket_id)
        return [] if ticket is None else [(holder_of(ticket), Release(ticket))]

    def lost_with(self, holder: Key) -> list[str]:
        """The holder is dead; returns its tickets, which are closed now."""
        lost = [ticket.id for ticket in self if holder_of(ticket) == holder]
        for ticket_id in lost:
            self._close(ticket_id)
        return lost

    def _close(self, ticket_id: str | None) -> Ticket | None:
        ticket = self._open.pop(ticket_id, None) if ticket_id is not None else None
        if ticket is None:
            return None
        holder = self._fleet.workers.get(holder_of(ticket))
        if holder is not None:
            holder.pinned_blocks -= ticket.num_blocks
        return ticket


def holder_of(ticket: Ticket) -> Key:
    return (ticket.worker, ticket.generation)
