"""A trace through the proxy's own cores and virtual engines, in virtual time.

Owns the clock and what lies between the cores: it is what `proxy/dispatch.py` and the engine hosts are in a live run.
Fleet, index, router and flights are those that serve.
"""

from __future__ import annotations

import heapq
import itertools
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from launcher.twin.links import Links
from launcher.twin.records import Record, Replayed
from launcher.twin.setup import NO_LIMITS, Setup
from launcher.twin.traces import Request
from proxy.fleet.fleet import Fleet
from proxy.fleet.fleet_events import CapsTold, LoadTold
from proxy.fleet.worker import Key
from proxy.flights import flight_events as fe
from proxy.flights.flight import Flight
from proxy.flights.flights import Flights
from proxy.prefixes.prefix_index import PrefixIndex, marks_of
from proxy.routing.load_policies import SCORES, Scores
from proxy.routing.router import Demand, Route, Router
from proxy.spec import Deadlines, PoolCaps
from workers.engines.sim.work import Arrive, Effect, Ended, Fetch, Read, Release, Stored, Tick, Work
from workers.kv_messages import Computed
from workers.message import Message
from workers.output_ids import ID_BYTES
from workers.protocol import BEAT_INTERVAL_S, End, Leg, Load, Prefilled, Start, Submit, Ticket, TicketClosed

PATIENT = Deadlines(queue_s=float("inf"))  # nobody is turned away
LOOK_S = 1.0
Look = Callable[[Fleet, Flights, float], Mapping[str, PoolCaps] | None]
ENVELOPE = Submit(0, "", Leg.WHOLE, "POST", "/v1/completions", b"", (), b" ")
ONE_TOKEN = bytes(ID_BYTES)


class _TimedRouter(Router):
    """Notes what each decision costs."""

    decision_s: list[float]

    def route(self, *args: Any, **kwargs: Any) -> Route | None:
        start = time.thread_time()
        route = super().route(*args, **kwargs)
        self.decision_s.append(time.thread_time() - start)
        return route


class Replay:
    """Of one trace, once: `run`."""

    def __init__(
        self,
        setup: Setup,
        requests: Sequence[Request],
        scores: Mapping[str, Scores] = SCORES,
        look: Look | None = None,
        names: Iterable[str] | None = None,
        deadlines: Deadlines = PATIENT,
    ) -> None:
        """`look`: may move roles every LOOK_S; None: no change. `names`: workers that are up; none: all."""
        self._over = False  # before its end
        self._setup = setup
        self._requests = requests
        self._fleet = setup.fleet(names)
        self._index = PrefixIndex()
        self._router = _TimedRouter(setup.routing, random.Random(0), scores)
        self._router.decision_s = []
        self._flights = Flights(self._fleet, self._index, self._router, NO_LIMITS, deadlines)
        self._engines = {key: setup.card(key).engine() for key in self._fleet.workers}
        self._links = Links({name: setup.card((name, 0)).link_bytes_per_s for name in setup.workers})
        self._todo: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()
        self._records = [Record(request) for request in requests]
        self._legs: dict[int, tuple[Key, Submit, Work]] = {}  # rid -> worker key, envelope, work
        self._received: dict[Key, int] = dict.fromkeys(self._engines, 0)
        self._num_open = len(requests)
        self._look = look
        # As live: who does not look at what is cached is not told.
        self._sees_cache = Router.wants_chain(setup.routing.policy)

    def run(self) -> Replayed:
        if self._look is not None:
            self._at(LOOK_S, self._move_roles, self._look)
        for number, request in enumerate(self._requests):
            self._at(request.at_s, self._arrive, number)
        for number, key in enumerate(self._engines):
            self._at(BEAT_INTERVAL_S * number / len(self._engines), self._beat, key)
        now = 0.0
        while self._num_open and not self._over:
            now, _, step, arguments = heapq.heappop(self._todo)
            step(*arguments, now)
        return Replayed(
            records=self._records,
            workers=[key[0] for key in self._engines],
            decision_s=self._router.decision_s,
            num_preemptions=sum(engine.num_preemptions for engine in self._engines.values()),
            complete=not self._num_open,
            block_size=self._setup.block_size,
            end_s=now,
        )

    def _at(self, at: float, step: Callable[..., None], *arguments: Any) -> None:
        heapq.heappush(self._todo, (at, next(self._order), step, arguments))

    # ------------------------------------------------------------ the proxy

    def _arrive(self, number: int, now: float) -> None:
        request = self._requests[number]
        chain = request.chain if self._sees_cache else ()
        demand = Demand(request.num_prompt, None, chain=chain, marks=marks_of(chain))
        flight = Flight(number, str(number), ENVELOPE, demand, streams=True)
        self._tell(fe.Arrived(flight), now)

    def _tell(self, event: fe.Event, now: float) -> None:
        for effect in self._flights.apply(event, now):
            if isinstance(effect, fe.Send):
                self._send(effect, now)
            elif isinstance(effect, fe.Begin):
                self._begun(effect.flight, now)
            elif isinstance(effect, fe.Finish):
                self._finished(effect.flight, now)
            else:
                self._break(effect, now)

    def _begun(self, flight: Flight, now: float) -> None:
        self._records[flight.id].begin(now, flight.route)

    def _finished(self, flight: Flight, now: float) -> None:
        self._records[flight.id].end_s = now
        self._num_open -= 1

    def _break(self, effect: fe.Effect, now: float) -> None:
        raise RuntimeError(f"no request may fail here: {effect}")

    def _move_roles(self, look: Look, now: float) -> None:
        moved = look(self._fleet, self._flights, now)
        if moved is not None:
            self._fleet.apply(CapsTold(moved), now)
            self._tell(fe.RoomMade(), now)
        self._at(now + LOOK_S, self._move_roles, look)

    def _beat(self, key: Key, now: float) -> None:
        if key not in self._engines:
            return
        engine, received = self._engines[key], self._received[key]
        load = Load(
            running=engine.num_running,
            waiting=engine.num_waiting,
            pinned_blocks=engine.num_held_blocks,
            prefill_tokens=engine.unread_tokens,
            kv_tokens_received=received,
            kv_used=engine.cache.usage,
        )
        self._fleet.apply(LoadTold(key, load), now)
        self._tell(fe.RoomMade(), now)
        self._at(now + BEAT_INTERVAL_S, self._beat, key)

    # ------------------------------------------------------------ the hosts

    def _send(self, send: fe.Send, now: float) -> None:
        message, key = send.message, send.worker
        if isinstance(message, Submit):
            flight = self._flights.legs[message.rid].flight
            request, prefill = self._records[flight.id].request, message.leg == Leg.PREFILL
            num_made = 0 if message.resume is None else len(flight.output_ids) // ID_BYTES
            work = Work(
                id=message.rid,
                chain=request.chain,
                num_prompt=request.num_prompt + num_made,
                num_output=1 if prefill else request.num_output - num_made,
                hold=prefill,
                remote=self._is_computed(flight, message),
            )
            self._legs[message.rid] = (key, message, work)
            self._took(key, self._engines[key].apply(work, now), now)
        elif not isinstance(message, TicketClosed):
            self._take_back(key, message, now)

    def _is_computed(self, flight: Flight, submit: Submit) -> bool:
        """Its KV lies elsewhere."""
        return submit.leg == Leg.DECODE

    def _take_back(self, key: Key, message: Message, now: float) -> None:
        raise RuntimeError(f"every ticket is read here: {message}")

    def _tick(self, key: Key, due: float, now: float) -> None:
        engine = self._engines.get(key)
        if engine is not None and engine.next_at == due:  # else something came between
            self._took(key, engine.apply(Tick(), now), now)

    def _took(self, key: Key, effects: list[Effect], now: float) -> None:
        """An engine has made a step: what it holds, what it says, and when it is due."""
        engine = self._engines[key]
        evicted = engine.cache.take_evicted()
        if self._sees_cache:
            for effect in effects:
                if isinstance(effect, Stored):
                    self._index.store((key, 0), effect.keys)
            if evicted:
                self._index.remove((key, 0), evicted)
        if engine.next_at != float("inf"):
            self._at(engine.next_at, self._tick, key, engine.next_at)
        for effect in effects:
            if isinstance(effect, Read) and not effect.again:
                self._first(effect, now)
            elif isinstance(effect, Ended):
                self._ended(effect.id, now)
            elif isinstance(effect, Fetch):
                self._fetch(key, effect, now)

    def _first(self, first: Read, now: float) -> None:
        if first.id not in self._legs:
            return
        submit = self._legs[first.id][1]
        flight = self._flights.legs[first.id].flight
        if submit.leg != Leg.DECODE:
            self._records[flight.id].num_cached = first.num_cached
        if submit.leg != Leg.PREFILL:
            self._tell(Computed(first.id, self._legs[first.id][2].num_prompt, first.num_cached), now)
            self._tell(Start(first.id, 200, (), output_ids=ONE_TOKEN), now)

    def _ended(self, rid: int, now: float) -> None:
        if rid not in self._legs:
            return
        key, submit, work = self._legs[rid]
        leg = self._flights.legs[rid]
        num_cached = self._records[leg.flight.id].num_cached
        if submit.leg == Leg.PREFILL:
            blocks = -(-work.num_prompt // self._setup.block_size)
            ticket = Ticket(str(rid), key[0], key[1], b"", blocks, work.num_prompt)
            self._tell(Prefilled(rid, ticket, work.num_prompt, num_cached), now)
            return
        del self._legs[rid]
        request = self._records[leg.flight.id].request
        self._tell(End(rid, request.num_prompt, num_cached, request.num_output), now)

    def _fetch(self, key: Key, fetch: Fetch, now: float) -> None:
        ticket = self._legs[fetch.id][1].ticket
        assert ticket is not None
        num_bytes = self._engines[key].config.timing.kv_bytes(fetch.num_tokens)
        self._received[key] += fetch.num_tokens
        self._links.start(fetch.id, ticket.worker, key[0], num_bytes, now)
        self._at(self._links.next_at, self._transferred, self._links.next_at)

    def _transferred(self, due: float, now: float) -> None:
        if self._links.next_at != due:
            return
        for rid in self._links.take_done(now):
            key, submit, _ = self._legs[rid]
            ticket = submit.ticket
            assert ticket is not None
            holder = self._legs.pop(int(ticket.id))[0]
            self._took(holder, self._engines[holder].apply(Release(int(ticket.id)), now), now)
            self._took(key, self._engines[key].apply(Arrive(rid), now), now)
        if self._links.next_at != float("inf"):
            self._at(self._links.next_at, self._transferred, self._links.next_at)
