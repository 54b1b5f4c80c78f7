"""The shell around the proxy's cores: what comes over links becomes events, effects become messages and answers.

Owns the links and the clients that wait. The streaming path, `on_chunk`, is that of `streams`. Knows neither
HTTP's routes nor Slurm.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import zmq

from proxy.fleet import fleet_events, turns
from proxy.fleet.drains import Drains
from proxy.fleet.fleet import Fleet
from proxy.fleet.job_board import JobBoard
from proxy.fleet.proofs import Proofs
from proxy.fleet.turns import Turns
from proxy.fleet.worker import Key, Peer
from proxy.flights import flight_events as ev
from proxy.flights.flight import Flight
from proxy.flights.flights import Flights
from proxy.flights.streams import Stream, Streams
from proxy.http.clients import Client
from proxy.link import Links
from proxy.monitoring.accounts import Accounts
from proxy.monitoring.journal import GONE, LOST, Journal
from proxy.monitoring.totals import Totals
from proxy.monitoring.view import fleet_view
from proxy.prefixes.digest_follower import DigestFollower
from proxy.prefixes.prefix_index import PrefixIndex
from proxy.prefixes.prompts import Prompts
from proxy.processes.family import Family
from proxy.processes.relatives import Relatives
from proxy.routing.explain import headers_for_batch, headers_of
from proxy.routing.router import Demand, Router
from proxy.spec import ProxySpec
from proxy.zap import Zap
from workers.beat import next_mark
from workers.controller_messages import ControllerHello, DrainWorker, Jobs, SetCaps
from workers.kv_messages import Computed, Digest, PromptTrace
from workers.links.zmq_loop import CurveKeys
from workers.message import Message
from workers.protocol import (
    PROTOCOL,
    Cancelled,
    End,
    Failed,
    Load,
    Phase,
    Prefilled,
    Register,
    Start,
    Submit,
    YourTurn,
)

log = logging.getLogger("sluice.proxy")

TICK_S = 0.25
OK = 200
VIEW_DELAY_S = 0.05  # changes that come together are told together


class Dispatch:
    """All requests and all peers of one proxy."""

    def __init__(
        self,
        spec: ProxySpec,
        context: zmq.Context[Any],
        address: str,
        port: int,
        curve: CurveKeys,
        zap: Zap,
        num_connections: Callable[[], int],
        accounts: Accounts,
        prompts: Prompts,
    ) -> None:
        """Binds the links to `port`, or to any free one where it is taken or 0. Raises zmq.ZMQError."""
        self.spec = spec
        self.fleet = Fleet(spec)
        self.index = PrefixIndex()
        self.prompts = prompts
        router = Router(spec.routing, random.Random())
        self.flights = Flights(self.fleet, self.index, router, spec.limits, spec.deadlines)
        self.num_connections = num_connections
        self.totals = Totals()
        self.traffic = self.totals.traffic
        self.accounts = accounts
        self.digests = DigestFollower(self.index, self.totals, self._send, spec.routing)
        self._streams = Streams(self.totals)
        self.on_chunk = self._streams.on_chunk
        silence_s = spec.deadlines.node_silence_s
        self.links = Links(context, address, port, keys=curve, zap=zap, node_silence_s=silence_s, listener=self)
        self.board = JobBoard()
        self.journal = Journal()
        self._proofs = Proofs(spec, self.fleet, self.new_id, partial(self.fly, streams=False), self._apply_all)
        self.turns = Turns(spec.max_loading)
        self._drains = Drains(self.fleet, self.flights)
        self._clients: dict[int, Client] = {}
        self._session = secrets.token_hex(3)
        self._num_requests = 0
        self._view_scheduled = False
        self._relatives = Relatives(spec.proxy)
        self.serves = False  # it takes connections
        self.on_change: Callable[[], None] = lambda: None  # the fleet is different now
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_at(next_mark(self._loop.time(), TICK_S), self._tick)

    def close(self, reason: str) -> None:
        self._timer.cancel()
        self.links.close(reason)

    @property
    def num_streams(self) -> int:
        return len(self._streams)

    # ------------------------------------------------------------ this process among others

    def meet(self, family: Family) -> None:
        """Peers hear of the other processes from us."""
        if self._relatives.met(family):
            self._introduce()
        self._apply_fleet(fleet_events.ProvenElsewhere(family.proven))
        self._apply_turns(turns.First(self._relatives.proves))

    def _introduce(self) -> None:
        for peer in (*self.fleet.by_peer, *self.board.controllers):
            self.links.send(peer, self._relatives.registered(PROTOCOL))

    def serve(self) -> None:
        """It takes connections from now on: what it sees counts for the controller."""
        self.serves = True
        self._tell_controllers()

    def retire(self) -> None:
        """It takes no more: what it sees does not count."""
        self.serves = False
        for peer in tuple(self.board.controllers):
            self.links.refuse(peer, "this process is leaving", final=False)
            self.board.left(peer, self._loop.time())

    def _tell_controllers(self) -> None:
        if self.serves:
            for peer in self.board.controllers:
                self.links.send(peer, fleet_view(self.fleet, self.turns))

    # ------------------------------------------------------------ flights

    def new_id(self) -> str:
        self._num_requests += 1
        return f"{self._session}-{self._num_requests:x}"

    def fly(self, envelope: Submit, client: Client, demand: Demand, *, streams: bool, account: str = "") -> Flight:
        """Take a request in; its client hears of it, perhaps before this returns."""
        flight = Flight(self._num_requests, envelope.request_id, envelope, demand, streams, account)
        self._clients[flight.id] = client
        self._apply(ev.Arrived(flight))
        return flight

    def leave(self, flight: Flight) -> None:
        """Its client has gone."""
        self._apply(ev.ClientGone(flight))

    def _apply(self, event: ev.Event) -> None:
        for effect in self.flights.apply(event, self._loop.time()):
            self._act(effect)

    def _act(self, effect: ev.Effect) -> None:
        if isinstance(effect, ev.Send):  # not `match`: there is one of each of these three per request
            self._send(effect.worker, effect.message)
        elif isinstance(effect, ev.Begin):
            self._begin(effect.flight, effect.start)
        elif isinstance(effect, ev.Finish):
            self._take_client(effect.flight).finish(effect.data)
        elif isinstance(effect, ev.Suspend):
            self._streams.suspend(effect.rid)
        elif isinstance(effect, ev.Continue):
            self._streams.go_on(effect.start, effect.flight)
        elif isinstance(effect, ev.Reject):
            self._count_failure(effect)
            self._take_client(effect.flight).reject(effect.error)
        elif isinstance(effect, ev.Break):
            self._count_failure(effect)
            log.warning("request %s broken off: %s", effect.flight.request_id, effect.error.message)
            self._take_client(effect.flight).break_off(effect.error)
        else:
            self.accounts.left(effect.flight)
            self._take_client(effect.flight)

    def _send(self, key: Key, message: Message) -> None:
        worker = self.fleet.workers.get(key)
        if worker is not None and worker.host is not None:
            self.links.send(worker.host, message)

    def _begin(self, flight: Flight, start: Start) -> None:
        client = self._clients[flight.id]
        now = self._loop.time()
        self._streams.begin(start.rid, Stream(flight, client.write, start.status, now))
        if start.status == OK:
            self.traffic.began(flight, now, time.time())
        assert flight.route is not None
        served_by = headers_of(flight.route, flight.demand)
        if flight.of_batch:
            served_by += headers_for_batch(flight.waited_s, flight.cached_tokens)
        client.begin(start.status, start.headers, served_by, start.data)

    def _count_end(self, end: End) -> None:
        stream = self._streams.get(end.rid)
        if stream is not None:
            self.accounts.answered(stream.flight, stream.status, end)
        if stream is not None and stream.status == OK:
            self.traffic.ended(stream.flight, stream.began_at, end, self._loop.time(), time.time())

    def _count_failure(self, effect: ev.Reject | ev.Break) -> None:
        self.traffic.failed(effect.flight, time.time())
        self.accounts.failed(effect)

    def _take_client(self, flight: Flight) -> Client:
        self._streams.end(flight)
        return self._clients.pop(flight.id)

    # ------------------------------------------------------------ links

    def on_hello(self, peer: Peer, who: str, hello: Register | ControllerHello) -> None:
        if isinstance(hello, Register):
            self._apply_fleet(fleet_events.Registering(peer, hello))
            return
        self.board.joined(peer)
        self.links.send(peer, self._relatives.registered(hello.protocol))
        self._tell_controllers()

    def on_message(self, peer: Peer, message: Any) -> None:
        kind = type(message)
        if peer in self.board.controllers:
            self._obey(message)
        elif kind in _OF_A_LEG:
            if kind is End:
                self._count_end(message)
            self._apply(message)
        elif kind is PromptTrace:
            self.prompts.traced(self.flights.legs.get(message.rid), message)
        elif kind is Digest:
            self.digests.told(self.fleet.by_peer[peer], message)
        elif kind is Load:
            key = self.fleet.by_peer[peer].key
            self._apply_fleet(fleet_events.LoadTold(key, message))
            if self.flights.queue:  # what other proxies gave it may have ended
                self._apply(ev.RoomMade())
            self._proofs.counted(key, message)
        elif kind is Phase:
            worker = self.fleet.by_peer[peer]
            if message.phase != worker.phase:  # the stages of a start are told by /fleet
                self.journal.note(time.time(), worker.key, ": ".join(filter(None, (message.phase, message.detail))))
            self.accounts.told(worker, message, self.flights, time.time())
            self._apply_turns(turns.Told(worker.key, message.turn, message.waited_s))
            self._apply_fleet(fleet_events.PhaseTold(peer, message.phase, message.detail, message.stages))
        else:
            self.links.refuse(peer, f"a worker may not send {kind.__name__}", final=True)
            self.on_lost(peer, "it sent what only a controller may")

    def on_lost(self, peer: Peer, reason: str, *, as_asked: bool = False) -> None:
        log.info("link of %s lost: %s", peer.decode(errors="replace"), reason)
        self.board.left(peer, self._loop.time())
        self._apply_fleet(fleet_events.PeerLost(peer, reason, as_asked))

    def _obey(self, message: Message) -> None:
        if isinstance(message, Jobs):
            self.board.told(message)
            self._apply_fleet(fleet_events.RunTold(message.wanted, message.serves))
            if self._relatives.followed(message.successors):
                self._introduce()
        elif isinstance(message, SetCaps):
            self.board.counsel = message
            self._apply_fleet(fleet_events.caps_told(message))
        elif isinstance(message, DrainWorker):
            self._apply_all(self._drains.ask(message, self._loop.time()))
            self._drain_due()

    def _drain_due(self) -> None:
        for peer, drain in self._drains.due(self._loop.time()):
            self.links.send(peer, drain)

    # ------------------------------------------------------------ fleet

    def _apply_all(self, events: Iterable[fleet_events.Event]) -> None:
        for event in events:
            self._apply_fleet(event)

    def _apply_fleet(self, event: fleet_events.Event) -> None:
        for effect in self.fleet.apply(event, self._loop.time()):
            match effect:
                case fleet_events.Accept(peer, protocol):
                    self.links.send(peer, self._relatives.registered(protocol))
                    self.digests.met(peer, self.fleet.by_peer[peer])
                case fleet_events.Refuse(peer, reason, final):
                    self.links.refuse(peer, reason, final=final)
                case fleet_events.WorkerLost(key, reason, as_asked):
                    end = GONE if as_asked else LOST
                    log.log(logging.INFO if as_asked else logging.WARNING, "worker %s.%d %s: %s", *key, end, reason)
                    self.journal.note(time.time(), key, f"{end}: {reason}")
                    self._proofs.lost(key)
                    self.digests.lost(key)
                    self._apply_turns(turns.Gone(key))
                    with self.accounts.loss(key, f"{end}: {reason}", self.flights, time.time()):
                        self._apply(ev.WorkerGone(key, reason))
                case fleet_events.Changed():
                    self._tell_change()

    def _apply_turns(self, event: turns.Event) -> None:
        for key in self.turns.apply(event, self._loop.time()):
            worker = self.fleet.workers.get(key)
            if worker is not None and worker.agent is not None:
                self.links.send(worker.agent, YourTurn())
            self._tell_change()

    def _tell_change(self) -> None:
        if not self._view_scheduled:
            self._view_scheduled = True
            self._loop.call_later(VIEW_DELAY_S, self._change)

    def _change(self) -> None:
        self._view_scheduled = False
        self._tell_controllers()
        self.on_change()
        self._prove()
        self._apply(ev.RoomMade())

    def _tick(self) -> None:
        self._timer = self._loop.call_at(next_mark(self._loop.time(), TICK_S), self._tick)
        self._apply(ev.Tick())
        self._proofs.tick()
        self._apply_turns(turns.Looked())
        self._prove()
        self._drain_due()

    def _prove(self) -> None:
        if self._relatives.proves:
            self._proofs.prove()


_OF_A_LEG = frozenset({Computed, Prefilled, Start, End, Failed, Cancelled})
