"""The shell around the proxy's cores: what comes over links becomes events, effects become messages and answers.

Owns the links, the clients that wait and the streams under way. The streaming path is `on_message` for
a Chunk: one look-up, one write. Knows neither HTTP's routes nor Slurm.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import zmq

from proxy import fleet
from proxy import flight_events as ev
from proxy.clients import Client, ProofClient
from proxy.errors import Headers
from proxy.fleet import Fleet, Key, Pair, Peer, Worker
from proxy.flight import Flight
from proxy.flights import Flights
from proxy.link import Links
from proxy.metrics import Metrics
from proxy.prober import Prober, proof_body
from proxy.router import Demand, Router, estimated_tokens
from proxy.spec import ProxySpec
from proxy.view import fleet_view, gauges
from proxy.zap import Zap
from workers.protocol import (
    Cancelled,
    Chunk,
    ControllerHello,
    Drain,
    DrainWorker,
    End,
    Failed,
    Jobs,
    JobView,
    Leg,
    Load,
    Message,
    Phase,
    Prefilled,
    Register,
    Registered,
    Start,
    Submit,
)
from workers.zmq_loop import CurveKeys

log = logging.getLogger("sluice.proxy")

TICK_S = 0.25
VIEW_DELAY_S = 0.05  # changes that come together are told together


@dataclass(slots=True, eq=False)
class Stream:
    """An answer on its way to a client."""

    flight: Flight
    write: Callable[[bytes], None]


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
    ) -> None:
        """Binds the links to `port`, or to any free one where it is taken or 0. Raises zmq.ZMQError."""
        self.spec = spec
        self.fleet = Fleet(spec)
        self.flights = Flights(self.fleet, Router(spec.routing), spec.limits, spec.deadlines)
        self.metrics = Metrics(lambda: gauges(self.fleet, self.flights, num_connections()))
        self.links = Links(context, address, port, curve, zap, self)
        self.jobs: tuple[JobView, ...] = ()  # the controller's word
        self._prober = Prober(self.fleet)
        self._clients: dict[int, Client] = {}
        self._streams: dict[int, Stream] = {}
        self._controllers: set[Peer] = set()
        self._session = secrets.token_hex(3)
        self._num_requests = 0
        self._view_scheduled = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(TICK_S, self._tick)

    def close(self, reason: str) -> None:
        self._timer.cancel()
        self.links.close(reason)

    # ------------------------------------------------------------ flights

    def new_id(self) -> str:
        self._num_requests += 1
        return f"{self._session}-{self._num_requests:x}"

    def fly(self, envelope: Submit, client: Client, demand: Demand, *, streams: bool) -> Flight:
        """Take a request in; its client hears of it, perhaps before this returns."""
        flight = Flight(self._num_requests, envelope.request_id, envelope, demand, streams)
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
        match effect:
            case ev.Send(worker, message):
                self._send(worker, message)
            case ev.Begin(flight, rid, status, headers):
                self._begin(flight, rid, status, headers)
            case ev.Finish(flight):
                self._take_client(flight).finish()
            case ev.Reject(flight, error):
                self._take_client(flight).reject(error)
            case ev.Break(flight, error):
                log.warning("request %s broken off: %s", flight.request_id, error.message)
                self._take_client(flight).break_off(error)
            case ev.Drop(flight):
                self._take_client(flight)

    def _send(self, key: Key, message: Message) -> None:
        worker = self.fleet.workers.get(key)
        if worker is not None and worker.host is not None:
            self.links.send(worker.host, message)

    def _begin(self, flight: Flight, rid: int, status: int, headers: Headers) -> None:
        client = self._clients[flight.id]
        self._streams[rid] = Stream(flight, client.write)
        self.metrics.first_byte(self._loop.time() - flight.arrived_at)
        assert flight.route is not None
        prefill = flight.route.prefill
        self.metrics.routes["whole" if prefill is None else "split"] += 1
        served_by = [(b"x-sluice-decode", _name(flight.route.decode))]
        if prefill is not None:
            served_by.insert(0, (b"x-sluice-prefill", _name(prefill)))
        client.begin(status, headers, tuple(served_by))

    def _take_client(self, flight: Flight) -> Client:
        if flight.leg is not None:
            self._streams.pop(flight.leg, None)
        return self._clients.pop(flight.id)

    # ------------------------------------------------------------ links

    def on_hello(self, peer: Peer, who: str, hello: Register | ControllerHello) -> None:
        if isinstance(hello, Register):
            self._apply_fleet(fleet.Registering(peer, hello))
            return
        self._controllers.add(peer)
        self.links.send(peer, Registered(self.spec.proxy, hello.protocol))
        self.links.send(peer, fleet_view(self.fleet))

    def on_chunk(self, chunk: Chunk) -> None:
        stream = self._streams.get(chunk.rid)
        if stream is not None:
            stream.flight.progress_at = self._loop.time()
            self.metrics.num_chunks += 1
            stream.write(chunk.data)

    def on_message(self, peer: Peer, message: Any) -> None:
        kind = type(message)
        if peer in self._controllers:
            self._obey(message)
        elif kind in _FLIGHT_EVENTS:
            self._apply(_FLIGHT_EVENTS[kind](message))
        elif kind is Load:
            key = self.fleet.by_peer[peer].key
            self._apply_fleet(fleet.LoadTold(key, message))
            self._apply_all(self._prober.counted(key, message))
        elif kind is Phase:
            self._apply_fleet(fleet.PhaseTold(peer, message.phase, message.detail))
        else:
            self.links.refuse(peer, f"a worker may not send {kind.__name__}", final=True)
            self.on_lost(peer, "it sent what only a controller may")

    def on_lost(self, peer: Peer, reason: str) -> None:
        log.info("link of %s lost: %s", peer.decode(errors="replace"), reason)
        self._controllers.discard(peer)
        self._apply_fleet(fleet.PeerLost(peer, reason))

    def _obey(self, message: Message) -> None:
        """The controller's word."""
        if isinstance(message, Jobs):
            self.jobs = message.jobs
        elif isinstance(message, DrainWorker):
            worker = self.fleet.workers.get((message.worker, message.generation))
            if worker is not None and worker.agent is not None:
                self.links.send(worker.agent, Drain(message.reason, message.timeout_s))

    # ------------------------------------------------------------ fleet

    def _apply_all(self, events: Iterable[fleet.Event]) -> None:
        for event in events:
            self._apply_fleet(event)

    def _apply_fleet(self, event: fleet.Event) -> None:
        for effect in self.fleet.apply(event, self._loop.time()):
            match effect:
                case fleet.Accept(peer, protocol):
                    self.links.send(peer, Registered(self.spec.proxy, protocol))
                case fleet.Refuse(peer, reason, final):
                    self.links.refuse(peer, reason, final=final)
                case fleet.WorkerLost(key, reason):
                    log.warning("worker %s generation %d lost: %s", *key, reason)
                    self._prober.lost(key)
                    self._apply(ev.WorkerGone(key, reason))
                case fleet.Changed():
                    self._tell_change()

    def _tell_change(self) -> None:
        if not self._view_scheduled:
            self._view_scheduled = True
            self._loop.call_later(VIEW_DELAY_S, self._change)

    def _change(self) -> None:
        self._view_scheduled = False
        for peer in self._controllers:
            self.links.send(peer, fleet_view(self.fleet))
        self._prove()
        self._apply(ev.RoomMade())

    def _tick(self) -> None:
        self._timer = self._loop.call_later(TICK_S, self._tick)
        self._apply(ev.Tick())
        self._apply_all(self._prober.tick(self._loop.time()))
        self._prove()

    # ------------------------------------------------------------ proofs

    def _prove(self) -> None:
        for pair in self._prober.due(self._loop.time()):
            envelope = self._proof(pair)
            num_tokens = estimated_tokens(envelope.body, self.spec.routing)
            demand = Demand(num_tokens, None if pair[0] else "proof", forced=pair)
            self.fly(envelope, ProofClient(self._proof_done(pair)), demand, streams=False)

    def _proof(self, pair: Pair) -> Submit:
        decode = self.fleet.workers[pair[1]]
        assert decode.capabilities is not None
        return Submit(
            rid=0,
            request_id=self.new_id(),
            leg=Leg.WHOLE,
            method="POST",
            path="/v1/completions",
            query=b"",
            headers=((b"content-type", b"application/json"),),
            body=proof_body(self.spec.models[0], decode.capabilities.block_size, secrets.token_hex(2)),
        )

    def _proof_done(self, pair: Pair) -> Callable[[str | None], None]:
        def done(fault: str | None) -> None:
            now = self._loop.time()
            if fault is None:
                self._apply_all(self._prober.answered(pair, now))
            else:
                log.warning("proof %s failed: %s", " -> ".join(key[0] for key in pair if key), fault)
                self._apply_all(self._prober.failed(pair, fault, now))

        return done


_FLIGHT_EVENTS: dict[type, Callable[[Any], ev.Event]] = {
    Prefilled: lambda m: ev.PrefillDone(m.rid, m.ticket),
    Start: lambda m: ev.AnswerStarted(m.rid, m.status, m.headers),
    End: lambda m: ev.AnswerEnded(m.rid),
    Failed: lambda m: ev.LegFailed(m.rid, m.reason, m.retryable),
    Cancelled: lambda m: ev.LegCancelled(m.rid),
}


def _name(worker: Worker) -> bytes:
    return worker.key[0].encode()
