"""The requests in flight: the life of each, from arrival to its one end.

Pure: one mutator, `apply(event, now) -> effects`; no clock, socket or log. Owns the queue, the legs on
the wire and the open tickets; moves load in the fleet's records. It never sees a chunk of an answer:
the shell passes those straight to the client once `Begin` has named the leg.

    queued -> prefill -> decode -> streaming -> (ended)
       '--------------------^          a whole request skips prefill
    queued | prefill | decode -> queued: tried again elsewhere, while nothing was sent to the client
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from enum import Enum

import msgspec

from proxy.errors import ApiError, Deadline, NoWorker, QueueFull, WorkerFailed
from proxy.fleet import Fleet, Key, Worker
from proxy.router import Demand, Route, Router
from proxy.spec import Deadlines, Limits
from workers.protocol import Cancel, Leg, Message, Release, Submit, Ticket, TicketClosed

MAX_ATTEMPTS = 3
RETRY_AFTER_S = 5


class State(Enum):
    QUEUED = "queued"
    PREFILL = "prefill"
    DECODE = "decode"
    STREAMING = "streaming"
    ENDED = "ended"


NEXT: dict[State, frozenset[State]] = {
    State.QUEUED: frozenset({State.PREFILL, State.DECODE, State.ENDED}),
    State.PREFILL: frozenset({State.DECODE, State.QUEUED, State.STREAMING, State.ENDED}),
    State.DECODE: frozenset({State.STREAMING, State.QUEUED, State.ENDED}),
    State.STREAMING: frozenset({State.ENDED}),
    State.ENDED: frozenset(),
}


@dataclass(slots=True, eq=False)
class Flight:
    """One request. `progress_at` is touched by the shell when bytes arrive for its client."""

    id: int
    request_id: str
    submit: Submit  # the envelope every leg starts from
    demand: Demand
    streams: bool
    state: State = State.QUEUED
    arrived_at: float = 0.0
    progress_at: float = 0.0
    attempts: int = 0
    route: Route | None = None
    leg: int | None = None  # rid on the wire
    ticket: str | None = None
    last_failure: str = ""
    story: list[str] = field(default_factory=list)

    def move(self, state: State, now: float) -> None:
        self.story.append(f"{self.state.value}@{now:.3f}")
        if state not in NEXT[self.state]:
            raise RuntimeError(f"request {self.request_id}: no step to {state.value} after {' '.join(self.story)}")
        self.state, self.progress_at = state, now


@dataclass(slots=True)
class LegRecord:
    """One leg on the wire, kept until its worker has had the last word, also when nobody waits for it."""

    flight: Flight
    kind: str
    worker: Worker
    prefill_tokens: int  # counted on `worker` until the first answer
    # Where a decode place is held. A prefill leg holds its decode worker's: once prefilled, it must not wait.
    place: Worker | None
    ticket: str | None = None
    cancelled: bool = False


@dataclass(slots=True)
class OpenTicket:
    ticket: Ticket
    holder: Key
    received_at: float


# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Arrived:
    flight: Flight


@dataclass(frozen=True, slots=True)
class PrefillDone:
    rid: int
    ticket: Ticket | None


@dataclass(frozen=True, slots=True)
class AnswerStarted:
    rid: int
    status: int
    headers: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class AnswerEnded:
    rid: int


@dataclass(frozen=True, slots=True)
class LegFailed:
    rid: int
    reason: str
    retryable: bool
    status: int


@dataclass(frozen=True, slots=True)
class LegCancelled:
    rid: int


@dataclass(frozen=True, slots=True)
class ClientGone:
    flight: Flight


@dataclass(frozen=True, slots=True)
class WorkerGone:
    key: Key
    reason: str


@dataclass(frozen=True, slots=True)
class RoomMade:
    """The fleet has changed: something may fit now."""


@dataclass(frozen=True, slots=True)
class Tick:
    """Time has passed."""


Event = (
    Arrived
    | PrefillDone
    | AnswerStarted
    | AnswerEnded
    | LegFailed
    | LegCancelled
    | ClientGone
    | WorkerGone
    | RoomMade
    | Tick
)

# ---------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class Send:
    worker: Key
    message: Message


@dataclass(frozen=True, slots=True)
class Begin:
    """The answer's head goes to the client; its chunks follow under `rid`."""

    flight: Flight
    rid: int
    status: int
    headers: tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Finish:
    flight: Flight


@dataclass(frozen=True, slots=True)
class Reject:
    """Nothing was sent yet: a real status."""

    flight: Flight
    error: ApiError


@dataclass(frozen=True, slots=True)
class Break:
    """The answer has begun and cannot be completed."""

    flight: Flight
    error: ApiError


@dataclass(frozen=True, slots=True)
class Drop:
    """The client has left; nobody is told anything."""

    flight: Flight


Effect = Send | Begin | Finish | Reject | Break | Drop


class Flights:
    """All requests of this proxy."""

    def __init__(self, fleet: Fleet, router: Router, limits: Limits, deadlines: Deadlines) -> None:
        self._fleet = fleet
        self._router = router
        self._limits = limits
        self._deadlines = deadlines
        self._next_rid = 0
        self.queue: deque[Flight] = deque()
        self.open: dict[int, Flight] = {}
        self.legs: dict[int, LegRecord] = {}
        self.tickets: dict[str, OpenTicket] = {}
        self._out: list[Effect] = []

    def apply(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Arrived(flight):
                self._arrive(flight, now)
            case PrefillDone(rid, ticket):
                self._prefill_done(rid, ticket, now)
            case AnswerStarted(rid, status, headers):
                self._answer_started(rid, status, headers, now)
            case AnswerEnded(rid):
                self._answer_ended(rid, now)
            case LegFailed():
                self._leg_failed(event, now)
            case LegCancelled(rid):
                self._leg_cancelled(rid)
            case ClientGone(flight):
                self._client_gone(flight, now)
            case WorkerGone(key, reason):
                self._worker_gone(key, reason, now)
            case RoomMade():
                pass
            case Tick():
                self._pass_deadlines(now)
        self._place_queued(now)
        effects, self._out = self._out, []
        return effects

    # ------------------------------------------------------------ arriving and being placed

    def _arrive(self, flight: Flight, now: float) -> None:
        flight.arrived_at = flight.progress_at = now
        self.open[flight.id] = flight
        if flight.demand.forced is not None:
            self._start_forced(flight, now)
        elif not self._fleet.serving:
            self._fail(flight, NoWorker("no worker is ready to answer", retry_after_s=RETRY_AFTER_S), now)
        elif len(self.queue) >= self._limits.max_queued:
            full = f"{len(self.queue)} requests wait already"
            self._fail(flight, QueueFull(full, retry_after_s=RETRY_AFTER_S), now)
        else:
            self.queue.append(flight)

    def _start_forced(self, flight: Flight, now: float) -> None:
        route = self._router.route(self._fleet, flight.demand)
        if route is None:
            self._fail(flight, NoWorker("a worker of this pair is not up", retry_after_s=RETRY_AFTER_S), now)
        else:
            self._start(flight, route, now)

    def _place_queued(self, now: float) -> None:
        """In order: a request that fits nowhere yet is not overtaken, so none starves."""
        while self.queue:
            route = self._router.route(self._fleet, self.queue[0].demand)
            if route is None:
                return
            self._start(self.queue.popleft(), route, now)

    def _start(self, flight: Flight, route: Route, now: float) -> None:
        flight.route = route
        flight.attempts += 1
        route.decode.num_decodes += 1
        if route.prefill is None:
            self._send_answering_leg(flight, None, now)
            return
        flight.move(State.PREFILL, now)
        leg = LegRecord(flight, Leg.PREFILL, route.prefill, flight.demand.num_tokens, route.decode)
        self._send_leg(leg, None, self._deadlines.prefill_s)

    def _send_answering_leg(self, flight: Flight, ticket: Ticket | None, now: float) -> None:
        """The leg whose answer is the client's; its decode place is held already."""
        assert flight.route is not None
        decode = flight.route.decode
        flight.move(State.DECODE, now)
        if ticket is None:
            leg = LegRecord(flight, Leg.WHOLE, decode, flight.demand.num_tokens, decode)
        else:
            leg = LegRecord(flight, Leg.DECODE, decode, 0, decode, ticket.id)
        self._send_leg(leg, ticket, None)

    def _send_leg(self, leg: LegRecord, ticket: Ticket | None, deadline_s: float | None) -> None:
        self._next_rid += 1
        rid = leg.flight.leg = self._next_rid
        self.legs[rid] = leg
        leg.worker.prefill_tokens += leg.prefill_tokens
        leg.worker.last_chosen = rid
        submit = msgspec.structs.replace(leg.flight.submit, rid=rid, leg=leg.kind, ticket=ticket, deadline_s=deadline_s)
        self._out.append(Send(leg.worker.key, submit))

    # ------------------------------------------------------------ answers of workers

    def _take_leg(self, rid: int) -> LegRecord | None:
        """The worker's last word on a leg: its load is given back. None: the leg was lost before."""
        leg = self.legs.pop(rid, None)
        if leg is not None:
            self._give_back(leg)
        return leg

    @staticmethod
    def _give_back(leg: LegRecord) -> None:
        leg.worker.prefill_tokens -= leg.prefill_tokens
        leg.prefill_tokens = 0
        if leg.place is not None:
            leg.place.num_decodes -= 1
            leg.place = None

    def _prefill_done(self, rid: int, ticket: Ticket | None, now: float) -> None:
        leg = self.legs.get(rid)
        place = leg.place if leg is not None and not leg.cancelled else None
        if leg is not None and place is not None:
            leg.place = None  # the answering leg takes it over
        self._take_leg(rid)
        if ticket is not None:
            self._open_ticket(ticket, now)
        if leg is None or place is None:
            self._release(ticket)
            return
        if not place.up:
            place.num_decodes -= 1
            self._release(ticket)
            self._again(leg.flight, "the decode worker went away during prefill", now)
            return
        leg.flight.ticket = ticket.id if ticket is not None else None
        self._send_answering_leg(leg.flight, ticket, now)

    def _answer_started(self, rid: int, status: int, headers: tuple[tuple[bytes, bytes], ...], now: float) -> None:
        leg = self.legs.get(rid)
        if leg is None or leg.cancelled:
            return
        leg.worker.prefill_tokens -= leg.prefill_tokens
        leg.prefill_tokens = 0
        self._ticket_read(leg)
        leg.flight.move(State.STREAMING, now)
        self._out.append(Begin(leg.flight, rid, status, headers))

    def _answer_ended(self, rid: int, now: float) -> None:
        leg = self._take_leg(rid)
        if leg is None:
            return
        self._ticket_read(leg)
        if not leg.cancelled:
            self._end(leg.flight, now)
            self._out.append(Finish(leg.flight))

    def _leg_failed(self, failed: LegFailed, now: float) -> None:
        leg = self._take_leg(failed.rid)
        if leg is None:
            return
        self._ticket_unread(leg)
        if leg.cancelled:
            return
        flight = leg.flight
        error = WorkerFailed(f"worker {leg.worker.key[0]}: {failed.reason}")
        if flight.state is State.STREAMING:
            self._end(flight, now)
            self._out.append(Break(flight, error))
        elif failed.retryable:
            self._again(flight, error.message, now, avoid=leg.worker.key)
        else:
            self._fail(flight, error, now)

    def _leg_cancelled(self, rid: int) -> None:
        leg = self._take_leg(rid)
        if leg is not None:
            self._ticket_unread(leg)

    # ------------------------------------------------------------ ends

    def _again(self, flight: Flight, why: str, now: float, avoid: Key | None = None) -> None:
        """Nothing was sent yet: try elsewhere, and whole once hand-overs have failed."""
        flight.last_failure = why
        flight.leg = flight.ticket = None
        if flight.attempts >= MAX_ATTEMPTS or flight.demand.forced is not None:
            self._fail(flight, WorkerFailed(f"{why} (attempt {flight.attempts} of {MAX_ATTEMPTS})"), now)
            return
        if not self._fleet.serving:
            self._fail(flight, NoWorker(f"{why}; no other worker is ready", retry_after_s=RETRY_AFTER_S), now)
            return
        avoided = flight.demand.avoid | ({avoid} if avoid is not None else set())
        others = [w for w in self._fleet.workers.values() if w.up and w.caps.max_decodes and w.key not in avoided]
        whole = flight.demand.whole_because
        if flight.attempts == MAX_ATTEMPTS - 1 and whole is None:
            whole = "hand-overs failed"
        flight.demand = replace(flight.demand, avoid=avoided if others else frozenset(), whole_because=whole)
        flight.route = None
        flight.move(State.QUEUED, now)
        self.queue.appendleft(flight)

    def _fail(self, flight: Flight, error: ApiError, now: float) -> None:
        self._end(flight, now)
        self._out.append(Reject(flight, error))

    def _end(self, flight: Flight, now: float) -> None:
        flight.move(State.ENDED, now)
        self.open.pop(flight.id, None)

    def _client_gone(self, flight: Flight, now: float) -> None:
        if flight.state is not State.ENDED:
            self._withdraw(flight)
            self._end(flight, now)
            self._out.append(Drop(flight))

    def _withdraw(self, flight: Flight) -> None:
        """Take back whatever runs for it; the worker's acknowledgement gives back the load."""
        if flight.state is State.QUEUED:
            self.queue.remove(flight)
        leg = self.legs.get(flight.leg) if flight.leg is not None else None
        if leg is not None and not leg.cancelled:
            leg.cancelled = True
            assert flight.leg is not None
            self._out.append(Send(leg.worker.key, Cancel(flight.leg)))

    def _worker_gone(self, key: Key, reason: str, now: float) -> None:
        for ticket_id in [i for i, t in self.tickets.items() if t.holder == key]:
            self._ticket_lost(ticket_id, reason, now)
        for rid in [r for r, leg in self.legs.items() if leg.worker.key == key]:
            self._leg_failed(LegFailed(rid, reason, True, 500), now)

    def _ticket_lost(self, ticket_id: str, reason: str, now: float) -> None:
        """Its holder is dead: a decode leg that still waits for it would only find out seconds later."""
        del self.tickets[ticket_id]
        for leg in list(self.legs.values()):
            if leg.ticket == ticket_id and not leg.cancelled and leg.flight.state is State.DECODE:
                flight = leg.flight
                self._withdraw(flight)
                self._again(flight, f"its prefill worker is gone: {reason}", now)

    # ------------------------------------------------------------ tickets

    def _open_ticket(self, ticket: Ticket, now: float) -> None:
        holder = (ticket.worker, ticket.generation)
        worker = self._fleet.workers.get(holder)
        if worker is not None:
            self.tickets[ticket.id] = OpenTicket(ticket, holder, now)
            worker.pinned_blocks += ticket.num_blocks

    def _close_ticket(self, ticket_id: str) -> OpenTicket | None:
        found = self.tickets.pop(ticket_id, None)
        if found is not None and found.holder in self._fleet.workers:
            self._fleet.workers[found.holder].pinned_blocks -= found.ticket.num_blocks
        return found

    def _ticket_read(self, leg: LegRecord) -> None:
        """The engine has taken it over: it frees the holder's blocks itself."""
        found = self._close_ticket(leg.ticket) if leg.ticket is not None else None
        if found is not None and found.holder in self._fleet.workers:
            self._out.append(Send(found.holder, TicketClosed(found.ticket.id)))

    def _ticket_unread(self, leg: LegRecord) -> None:
        """The leg ended before its first output. Even a ticket that the engine had taken over may still be pinned:
        releasing one that is free already does no harm.
        """
        if leg.ticket is not None and leg.ticket in self.tickets:
            self._release(self.tickets[leg.ticket].ticket)

    def _release(self, ticket: Ticket | None) -> None:
        """Nobody will read it: its holder frees the blocks."""
        found = self._close_ticket(ticket.id) if ticket is not None else None
        if found is not None and found.holder in self._fleet.workers:
            self._out.append(Send(found.holder, Release(found.ticket)))

    # ------------------------------------------------------------ deadlines

    def _pass_deadlines(self, now: float) -> None:
        for flight in [f for f in self.open.values() if now - f.progress_at > self._limit_s(f)]:
            self._expire(flight, now)

    def _limit_s(self, flight: Flight) -> float:
        deadlines = self._deadlines
        match flight.state:
            case State.QUEUED:
                return deadlines.queue_s
            case State.PREFILL:
                return deadlines.prefill_s
            case State.DECODE:
                return deadlines.first_token_s if flight.streams else deadlines.answer_s
            case _:
                return deadlines.between_tokens_s

    def _expire(self, flight: Flight, now: float) -> None:
        state, limit_s = flight.state, self._limit_s(flight)
        self._withdraw(flight)
        self._end(flight, now)
        if state is State.QUEUED:
            error: ApiError = NoWorker(f"waited {limit_s:.0f} s for a free worker", retry_after_s=RETRY_AFTER_S)
        else:
            error = Deadline(f"{state.value} took more than {limit_s:.0f} s")
        self._out.append(Break(flight, error) if state is State.STREAMING else Reject(flight, error))
