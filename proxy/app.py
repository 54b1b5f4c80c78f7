"""The proxy itself: HTTP requests in, legs out to workers, answers back. A thin shell around pure cores.

Owns the wiring: which event goes to which core, and what becomes of its effects. The streaming path is
`on_chunk`: one look-up, one write. Knows no Slurm.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import msgspec
import zmq

from proxy import errors, fleet, routes
from proxy import flight_events as ev
from proxy.auth import ApiKeys, authorize
from proxy.clients import Client, HttpClient, ProofClient
from proxy.errors import ApiError, BadRequest, Headers, NotFound, UnknownModel
from proxy.exchange import Exchange
from proxy.fleet import Fleet, Key, Pair, Peer, Worker
from proxy.flight import Flight
from proxy.flights import Flights
from proxy.legs import BadBody, read_body, stateful_because, whole_because
from proxy.link import Links
from proxy.metrics import Metrics
from proxy.prober import Prober, proof_body
from proxy.router import Demand, Router
from proxy.serve import Server
from proxy.spec import ProxySpec
from proxy.view import fleet_json, fleet_view, gauges
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


class Proxy:
    """`server` must be started by the caller with `handle` and `admit`."""

    def __init__(
        self,
        spec: ProxySpec,
        keys: ApiKeys,
        context: zmq.Context[Any],
        address: str,
        port: int,
        curve: CurveKeys,
        zap: Zap,
    ) -> None:
        """Binds the links to `port`, or to any free one where it is taken or 0. Raises zmq.ZMQError."""
        self.spec = spec
        self.server = Server()
        self.fleet = Fleet(spec)
        self.flights = Flights(self.fleet, Router(spec.routing), spec.limits, spec.deadlines)
        self.metrics = Metrics(lambda: gauges(self.fleet, self.flights, self.server.connections))
        self.links = Links(context, address, port, curve, zap, self)
        self._keys = keys
        self._zap = zap
        self._prober = Prober(self.fleet)
        self._clients: dict[int, Client] = {}
        self._streams: dict[int, Stream] = {}
        self._controllers: set[Peer] = set()
        self._jobs: tuple[JobView, ...] = ()
        self._session = secrets.token_hex(3)
        self._num_requests = 0
        self._view_scheduled = False
        self._loop = asyncio.get_running_loop()
        self._timer = self._loop.call_later(TICK_S, self._tick)

    def close(self, reason: str) -> None:
        self._timer.cancel()
        self.links.close(reason)

    # ------------------------------------------------------------ HTTP

    def admit(self, method: str, path: str, headers: list[tuple[bytes, bytes]]) -> errors.Response | None:
        """Refuse before the body is read."""
        try:
            route = routes.find(method, path)
            sent = dict(headers)
            key = self._keys.identify(sent.get(b"authorization"), sent.get(b"x-api-key"))
            authorize(route, key)
            routes.check_headers(headers)
        except ApiError as error:
            self._count("refused", error.status)
            return errors.response(error)
        return None

    def handle(self, exchange: Exchange) -> None:
        route = routes.find(exchange.method, exchange.path)
        if route.inference:
            self._infer(exchange)
        elif route is routes.WORKER_METRICS:
            self._worker_metrics(exchange)
        else:
            status, content_type, body = self._own_route(route.path)
            self._count(route.path, status)
            exchange.respond(status, ((b"content-type", content_type),), body)

    def _own_route(self, path: str) -> tuple[int, bytes, bytes]:
        if path == "/metrics":
            return 200, b"text/plain; version=0.0.4; charset=utf-8", self.metrics.render()
        status, value = 200, self._own_json(path)
        if path == "/ready" and not self.fleet.serving:
            status = 503
        return status, b"application/json", msgspec.json.encode(value)

    def _own_json(self, path: str) -> dict[str, Any]:
        match path:
            case "/health":
                return {"status": "ok"}
            case "/ready":
                return {"serving": self.fleet.serving, "complete": self.fleet.ready}
            case "/fleet":
                return fleet_json(self.fleet, self.flights, self._jobs, self._zap.refusals, self.spec.run, time.time())
            case _:
                return self._models()

    def _models(self) -> dict[str, Any]:
        lengths = [w.capabilities.max_model_len for w in self.fleet.workers.values() if w.capabilities]
        shared = {"object": "model", "created": 0, "owned_by": "sluice", "max_model_len": min(lengths, default=None)}
        return {"object": "list", "data": [{"id": model, **shared} for model in self.spec.models]}

    def _infer(self, exchange: Exchange) -> None:
        client = HttpClient(exchange, self._new_id(), self._count)
        try:
            fields = read_body(exchange.body)
            if fields.model is not None and fields.model not in self.spec.models:
                known = ", ".join(self.spec.models)
                raise UnknownModel(f"the model {fields.model!r} does not exist; this run serves {known}")
            if stateful := stateful_because(fields):
                raise BadRequest(f"{stateful} needs a server that keeps answers; this one does not", param=stateful)
        except BadBody as fault:
            client.reject(BadRequest(str(fault)))
            return
        except ApiError as error:
            client.reject(error)
            return
        tokens = len(fields.prompt) if isinstance(fields.prompt, list) else self._estimate(exchange.body)
        demand = Demand(tokens, whole_because(exchange.path, fields, exchange.body))
        self._launch(exchange, client, demand, streams=fields.stream is True)

    def _estimate(self, body: bytes) -> int:
        return int(len(body) / self.spec.routing.bytes_per_token)

    def _worker_metrics(self, exchange: Exchange) -> None:
        name = routes.worker_name(exchange.path)
        client = HttpClient(exchange, self._new_id(), self._count)
        key = next((key for key, worker in self.fleet.workers.items() if key[0] == name and worker.up), None)
        if key is None:
            client.reject(NotFound(f"no worker {name} is up; see /fleet"))
            return
        exchange.path = "/metrics"
        self._launch(exchange, client, Demand(0, "metrics", forced=(None, key)), streams=True)

    # ------------------------------------------------------------ flights

    def _new_id(self) -> str:
        self._num_requests += 1
        return f"{self._session}-{self._num_requests:x}"

    def _launch(self, exchange: Exchange, client: HttpClient, demand: Demand, *, streams: bool) -> None:
        envelope = Submit(
            rid=0,
            request_id=client.request_id,
            leg=Leg.WHOLE,
            method=exchange.method,
            path=exchange.path,
            query=exchange.query,
            headers=routes.to_engine(exchange.headers),
            body=exchange.body,
        )
        flight = self._fly(envelope, client, demand, streams=streams)
        exchange.on_gone = lambda: self._apply(ev.ClientGone(flight))

    def _fly(self, envelope: Submit, client: Client, demand: Demand, *, streams: bool) -> Flight:
        flight = Flight(self._num_requests, envelope.request_id, envelope, demand, streams)
        self._clients[flight.id] = client
        self._apply(ev.Arrived(flight))
        return flight

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

    def _count(self, path: str, status: int) -> None:
        self.metrics.requests[path, status] += 1

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
            self._jobs = message.jobs
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
            decode = self.fleet.workers[pair[1]]
            assert decode.capabilities is not None
            envelope = Submit(
                rid=0,
                request_id=self._new_id(),
                leg=Leg.WHOLE,
                method="POST",
                path="/v1/completions",
                query=b"",
                headers=((b"content-type", b"application/json"),),
                body=proof_body(self.spec.models[0], decode.capabilities.block_size, secrets.token_hex(2)),
            )
            demand = Demand(self._estimate(envelope.body), None if pair[0] else "proof", forced=pair)
            self._fly(envelope, ProofClient(self._proof_done(pair)), demand, streams=False)

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
