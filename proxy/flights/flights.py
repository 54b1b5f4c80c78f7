"""All requests in flight: from arrival to the one end of each.

Pure: one mutator, `apply(event, now) -> effects`; no clock, socket or log. Owns the queue and the legs
on the wire; `given_work` counts what they are to their workers. It never sees a chunk of an answer: the shell passes
those straight to the client once `Begin` or `Continue` has named the leg.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

import msgspec

from proxy.errors import ApiError, Deadline, NoWorker, WorkerFailed
from proxy.fleet.fleet import Fleet
from proxy.fleet.worker import Key
from proxy.flights import flight_events as ev
from proxy.flights import given_work
from proxy.flights.admission import RETRY_AFTER_S, Admission
from proxy.flights.flight import Flight, LegRecord, State
from proxy.flights.open_tickets import Notice, OpenTickets
from proxy.flights.placing import Placing
from proxy.flights.resuming import Resumables, avoided_by, resume, unresumable_because
from proxy.flights.waiting import Waiting
from proxy.prefixes.prefix_index import PrefixIndex
from proxy.routing.router import Route, Router
from proxy.spec import Deadlines, Limits
from workers.kv_messages import Computed
from workers.output_ids import ID_BYTES
from workers.protocol import Cancel, Cancelled, End, Failed, Leg, Prefilled, Start, Ticket

MAX_ATTEMPTS = 3
NUM_DECIDED = 16


class Flights:
    """All requests of this proxy."""

    def __init__(self, fleet: Fleet, index: PrefixIndex, router: Router, limits: Limits, deadlines: Deadlines) -> None:
        self._fleet = fleet
        self._index = index
        self._router = router
        self._deadlines = deadlines
        self._shortest_s = min(msgspec.structs.astuple(deadlines))
        self._next_rid = 0
        self.queue = Waiting()
        self._admission = Admission(self.queue, fleet, limits, deadlines)
        self._placing = Placing(fleet, index, router, self.queue)
        self.open: dict[int, Flight] = {}
        self.legs: dict[int, LegRecord] = {}
        self.tickets = OpenTickets(fleet)
        self.decided: deque[tuple[str, Route]] = deque(maxlen=NUM_DECIDED)  # the last, for people who look
        self.resumables = Resumables(limits.max_total_resumable_bytes)
        self._out: list[ev.Effect] = []

    def apply(self, event: ev.Event, now: float) -> list[ev.Effect]:
        if self.queue:
            self._placing.look(now, may_make_room=self._may_make_room(event))
        _HANDLERS[type(event)](self, event, now)
        if self.queue:
            self._place_queued(now)
        effects, self._out = self._out, []
        return effects

    # ------------------------------------------------------------ arriving and being placed

    def _may_make_room(self, event: ev.Event) -> bool:
        """Arrivals do not. Of an answer's beginning one word does: that its ticket is read, or its prompt computed."""
        if isinstance(event, Computed | Start):
            leg = self.legs.get(event.rid)
            return leg is not None and (leg.computed_at is None if leg.ticket is None else isinstance(event, Start))
        return not isinstance(event, ev.Arrived)

    def _room_made(self, event: ev.RoomMade, now: float) -> None:
        """The queue is looked at after every event."""

    def _arrive(self, event: ev.Arrived, now: float) -> None:
        flight = event.flight
        flight.arrived_at = flight.progress_at = now
        self.open[flight.id] = flight
        if not flight.of_batch and flight.demand.forced is None:
            self._placing.online_at = now
        if flight.demand.forced is not None:
            self._start_forced(flight, now)
        elif not self._fleet.serving and not self._fleet.awaited:
            self._fail(flight, NoWorker("no worker is ready to answer", retry_after_s=RETRY_AFTER_S), now)
        elif self.queue or (route := self._placing.first(flight, now)) is None:
            for refused, error in self._admission.admit(flight, now):
                self._fail(refused, error, now)
        else:  # nobody is before it: its turn need not be worked out
            self._start(flight, route, now)

    def _start_forced(self, flight: Flight, now: float) -> None:
        route = self._router.route(self._fleet, self._index, flight.demand, now)
        if route is None:
            self._fail(flight, NoWorker("a worker of this pair is not up", retry_after_s=RETRY_AFTER_S), now)
        else:
            self._start(flight, route, now)

    def _place_queued(self, now: float) -> None:
        """Those whose turn it is, one after the other, until none of them fits."""
        while (placed := self._placing.next(now)) is not None:
            self.queue.of(placed[0]).take(placed[0])
            self._start(*placed, now)

    def _start(self, flight: Flight, route: Route, now: float) -> None:
        flight.route = route
        flight.attempts += 1
        self.decided.append((flight.request_id, route))
        given_work.take_place(flight, route)
        if route.prefill is None:
            self._send_answering_leg(flight, None, now)
            return
        flight.move(State.PREFILL, now)
        leg = LegRecord(flight, Leg.PREFILL, route.prefill, route.reason.compute_tokens, route.decode)
        self._send_leg(leg, None, self._deadlines.prefill_s, now)

    def _send_answering_leg(self, flight: Flight, ticket: Ticket | None, now: float) -> None:
        """The leg whose answer is the client's; its decode place is held already."""
        assert flight.route is not None
        decode = flight.route.decode
        flight.move(State.DECODE, now)
        if ticket is None:
            place = None if flight.demand.scrape else decode
            leg = LegRecord(flight, Leg.WHOLE, decode, flight.route.reason.compute_tokens, place)
        else:
            leg = LegRecord(flight, Leg.DECODE, decode, 0, decode, ticket.id)
        self._send_leg(leg, ticket, None, now)

    def _send_leg(self, leg: LegRecord, ticket: Ticket | None, deadline_s: float | None, now: float) -> None:
        self._next_rid += 1
        rid = leg.flight.leg = self._next_rid
        leg.num_resumed_tokens = len(leg.flight.output_ids) // ID_BYTES
        self.legs[rid] = leg
        given_work.begin(leg, rid, self._index, now)
        submit = msgspec.structs.replace(leg.flight.submit, rid=rid, leg=leg.kind, ticket=ticket, deadline_s=deadline_s)
        self._out.append(ev.Send(leg.worker.key, submit))

    def promised(self, key: Key) -> bool:
        """Whether prompts are computed elsewhere whose decode legs will come to this worker."""
        return any(leg.place is not None and leg.place.key == key != leg.worker.key for leg in self.legs.values())

    # ------------------------------------------------------------ answers of workers

    def _take_leg(self, rid: int) -> LegRecord | None:
        """The worker's last word on a leg: its load is given back. None: the leg was lost before."""
        leg = self.legs.pop(rid, None)
        if leg is not None:
            given_work.end(leg, self._index)
        return leg

    def _prompt_computed(self, computed: Computed, now: float) -> None:
        leg = self.legs.get(computed.rid)
        if leg is not None:
            self._leg_computed(leg, computed, now)

    def _leg_computed(self, leg: LegRecord, told: Computed | Prefilled | Start, now: float) -> None:
        """A decode leg computes only the last token of its prompt."""
        if leg.kind != Leg.DECODE and not leg.flight.begun:
            leg.flight.cached_tokens = told.num_cached_tokens
        given_work.computed(leg, told.num_prompt_tokens - told.num_cached_tokens, self._index, now)

    def _prefill_done(self, done: Prefilled, now: float) -> None:
        rid, ticket = done.rid, done.ticket
        leg = self.legs.get(rid)
        place = leg.place if leg is not None and not leg.cancelled else None
        if leg is not None and place is not None:
            leg.place = None  # the answering leg takes it over
        if leg is not None:
            self._leg_computed(leg, done, now)
        self._take_leg(rid)
        ticket_id = None
        if ticket is not None:
            self.tickets.open(ticket)
            ticket_id = ticket.id
        if leg is None or place is None:
            self._notify(self.tickets.release(ticket_id))
            return
        if not place.answers:
            given_work.leave_place(leg.flight, place)
            self._notify(self.tickets.release(ticket_id))
            self._again(leg.flight, "the decode worker went away during prefill", now)
            return
        self._send_answering_leg(leg.flight, ticket, now)

    def _answer_started(self, start: Start, now: float) -> None:
        leg = self.legs.get(start.rid)
        if leg is None or leg.cancelled:
            return
        if start.num_prompt_tokens:
            self._leg_computed(leg, start, now)
        else:
            given_work.computed(leg, None, self._index, now)
        if leg.ticket is not None:
            self._notify(self.tickets.read(leg.ticket))
        flight = leg.flight
        flight.move(State.STREAMING, now)
        flight.attempts = 0
        flight.output_ids += start.output_ids
        flight.num_sent_bytes += len(start.data)
        if flight.begun:
            self._out.append(ev.Continue(flight, start))
        else:
            flight.begun = True
            self.resumables.keep(flight, start)
            self._out.append(ev.Begin(flight, start))

    def _answer_ended(self, end: End, now: float) -> None:
        leg = self._take_leg(end.rid)
        if leg is None:
            return
        self._notify(self.tickets.read(leg.ticket))
        given_work.answered(leg, end.num_output_tokens - leg.num_resumed_tokens, now)
        if not leg.cancelled:
            self._end(leg.flight, now)
            self._out.append(ev.Finish(leg.flight, end.data))

    def _leg_failed(self, failed: Failed, now: float) -> None:
        leg = self._take_leg(failed.rid)
        if leg is None:
            return
        self._notify(self.tickets.release(leg.ticket))
        if leg.cancelled:
            return
        flight = leg.flight
        why = f"worker {leg.worker.key[0]}: {failed.reason}"
        streaming = flight.state is State.STREAMING
        final = unresumable_because(flight) if streaming and failed.retryable else None
        if not failed.retryable or final is not None:
            self._fail(flight, WorkerFailed(why if final is None else f"{why}; {final}"), now)
            return
        if streaming:
            self._out.append(ev.Suspend(flight, failed.rid))
            resume(flight, leg)
        self._again(flight, why, now, avoid=leg.worker.key)

    def _leg_cancelled(self, cancelled: Cancelled, now: float) -> None:
        leg = self._take_leg(cancelled.rid)
        if leg is not None:
            self._notify(self.tickets.release(leg.ticket))

    # ------------------------------------------------------------ ends

    def _again(self, flight: Flight, why: str, now: float, avoid: Key | None = None) -> None:
        """Try elsewhere, and whole once hand-overs have failed. Where nobody serves it waits for somebody."""
        flight.leg = None
        if flight.attempts >= MAX_ATTEMPTS or flight.demand.forced is not None:
            self._fail(flight, WorkerFailed(f"{why} (attempt {flight.attempts} of {MAX_ATTEMPTS})"), now)
            return
        if not (flight.begun or self._fleet.serving or self._fleet.awaited):
            self._fail(flight, NoWorker(f"{why}; no other worker is ready", retry_after_s=RETRY_AFTER_S), now)
            return
        avoided = avoided_by(flight, self._fleet, set() if avoid is None else {avoid})
        whole = flight.demand.whole_because
        if flight.attempts == MAX_ATTEMPTS - 1 and whole is None:
            whole = "hand-overs failed"
        flight.demand = msgspec.structs.replace(flight.demand, avoid=avoided, whole_because=whole)
        flight.route = None
        flight.move(State.QUEUED, now)
        self.queue.of(flight).again(flight)

    def _fail(self, flight: Flight, error: ApiError, now: float) -> None:
        self._end(flight, now)
        self._out.append(ev.Break(flight, error) if flight.begun else ev.Reject(flight, error))

    def _end(self, flight: Flight, now: float) -> None:
        flight.move(State.ENDED, now)
        self.open.pop(flight.id, None)
        self.resumables.forget(flight)

    def _client_gone(self, event: ev.ClientGone, now: float) -> None:
        flight = event.flight
        if flight.state is not State.ENDED:
            self._withdraw(flight)
            self._end(flight, now)
            self._out.append(ev.Drop(flight))

    def _withdraw(self, flight: Flight) -> None:
        """Take back whatever runs for it; the worker's acknowledgement gives back the load."""
        if flight.state is State.QUEUED:
            self.queue.of(flight).remove(flight)
        leg = self.legs.get(flight.leg) if flight.leg is not None else None
        if leg is not None and not leg.cancelled:
            leg.cancelled = True
            assert flight.leg is not None
            self._out.append(ev.Send(leg.worker.key, Cancel(flight.leg)))

    def _worker_gone(self, event: ev.WorkerGone, now: float) -> None:
        key, reason = event.key, event.reason
        lost = set(self.tickets.lost_with(key))
        for leg in [leg for leg in self.legs.values() if leg.ticket in lost and not leg.cancelled]:
            # A decode leg that still waits for these blocks would only find out seconds later.
            self._withdraw(leg.flight)
            self._again(leg.flight, f"its prefill worker is gone: {reason}", now)
        for rid, flight in [(rid, leg.flight) for rid, leg in self.legs.items() if leg.worker.key == key]:
            # A batch finds out by itself which of its requests its workers die of.
            self._leg_failed(Failed(rid, reason, retryable=not flight.of_batch), now)
        for flight in self.queue:
            if flight.demand.avoid:
                flight.demand = msgspec.structs.replace(flight.demand, avoid=avoided_by(flight, self._fleet, set()))

    def _notify(self, notices: list[Notice]) -> None:
        self._out += [ev.Send(worker, message) for worker, message in notices]

    # ------------------------------------------------------------ deadlines

    def _pass_deadlines(self, tick: ev.Tick, now: float) -> None:
        silent_since = now - self._shortest_s  # most have been heard of later, and there may be 10,000
        silent = [flight for flight in self.open.values() if flight.progress_at < silent_since]
        for flight in silent:
            if now - flight.progress_at > self._limit_s(flight):
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
        if state is State.QUEUED:
            error: ApiError = NoWorker(f"waited {limit_s:.0f} s for a free worker", retry_after_s=RETRY_AFTER_S)
        else:
            error = Deadline(f"{state.value} took more than {limit_s:.0f} s")
        self._fail(flight, error, now)


_HANDLERS: dict[type[ev.Event], Callable[[Flights, Any, float], None]] = {
    ev.Arrived: Flights._arrive,
    Computed: Flights._prompt_computed,
    Prefilled: Flights._prefill_done,
    Start: Flights._answer_started,
    End: Flights._answer_ended,
    Failed: Flights._leg_failed,
    Cancelled: Flights._leg_cancelled,
    ev.ClientGone: Flights._client_gone,
    ev.WorkerGone: Flights._worker_gone,
    ev.RoomMade: Flights._room_made,
    ev.Tick: Flights._pass_deadlines,
}
