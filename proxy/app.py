"""The proxy's HTTP side: who may ask for what, the way to its own routes, and requests handed on to be dispatched.

Owns no state: keys, fleet and requests have their owners. Bodies are read for the few fields that
routing needs and travel on as they came.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from msgspec import structs

from proxy import errors, routes
from proxy.auth import ApiKeys, Key, authorize
from proxy.dispatch import Dispatch
from proxy.errors import ApiError, BadRequest, Forbidden, NotFound, NoWorker, Unauthorized
from proxy.fleet.worker import Key as WorkerKey
from proxy.flights.admission import RETRY_AFTER_S
from proxy.flights.legs import BadBody, BodyFields, read_body, stateful_because, whole_because
from proxy.forward import Forward
from proxy.header_names import EXPLAIN, POLICY, WORKER
from proxy.http.clients import HttpClient
from proxy.http.exchange import Exchange
from proxy.models import check_model, check_task
from proxy.own_routes import OwnRoutes
from proxy.prefixes.prompt_key import PromptKey, Raw, fields_of
from proxy.prefixes.prompts import NOTHING_SEEN, Seen
from proxy.processes.siblings import Siblings
from proxy.routes import Route
from proxy.routing.explain import policy_of
from proxy.routing.router import Demand, Router, estimated_tokens
from proxy.spec import ProxySpec
from workers.protocol import Leg, Submit

BATCH_PRIORITY = 1  # engines serve lower numbers first


class App:
    """`admit` and `handle` are what the HTTP server calls."""

    def __init__(
        self, spec: ProxySpec, keys: ApiKeys, dispatch: Dispatch, own_routes: OwnRoutes, siblings: Siblings
    ) -> None:
        self._spec = spec
        self._keys = keys
        self._dispatch = dispatch
        self._own_routes = own_routes
        self._siblings = siblings
        self._forward = Forward(Path(spec.run_dir))
        self._policy = spec.routing.policy

    def admit(self, exchange: Exchange) -> errors.Response | None:
        """Refuse before the body is read."""
        headers = exchange.headers
        try:
            route = routes.find(exchange.method, exchange.path)
            key = self._keys.identify(headers.get(b"authorization"), headers.get(b"x-api-key"))
            authorize(route, key)
            routes.check_headers(headers)
            exchange.key_hash = None if key is None else key.hash
        except ApiError as error:
            self._count("refused", error.status)
            return errors.response(error)
        return None

    def handle(self, exchange: Exchange) -> None:
        route = routes.find(exchange.method, exchange.path)
        if route.inference:
            self._infer(exchange, route)
        elif route is routes.WORKER_METRICS:
            self._worker_metrics(exchange)
        elif route.forwarded:
            self._pass_on(exchange, route)
        else:
            self._own(exchange)

    def _pass_on(self, exchange: Exchange, route: Route) -> None:
        def respond(response: errors.Response) -> None:
            self._count(route.path, response[0])
            exchange.respond(*response)

        key = self._key(exchange)
        if key is None:  # it was taken out of the table while the body came
            respond(errors.response(Unauthorized("unknown API key")))
            return
        self._forward.pass_on(exchange, key.name, respond)

    def _key(self, exchange: Exchange) -> Key | None:
        return self._keys.of_hash(exchange.key_hash)

    def _own(self, exchange: Exchange) -> None:
        def respond(response: errors.Response) -> None:
            self._count(exchange.path, response[0])
            exchange.respond(*response)

        try:
            self._own_routes.answer(exchange, self._siblings.gather, respond)
        except ApiError as error:
            respond(errors.response(error))

    def _infer(self, exchange: Exchange, route: Route) -> None:
        client = HttpClient(exchange, self._dispatch.new_id(), self._count)
        try:
            policy = policy_of(exchange.headers.get(POLICY), self._spec.routing)
            apart = fields_of(exchange.body) if Router.wants_chain(policy or self._policy) else {}
            fields = read_body(exchange.body, apart)
            check_model(fields.model, self._spec, self._dispatch.fleet)
            check_task(route, fields.model or self._spec.models[0], self._dispatch.fleet)
            if stateful := stateful_because(fields):
                raise BadRequest(f"{stateful} needs a server that keeps answers; this one does not", param=stateful)
            named = self._named_worker(exchange)
        except BadBody as fault:
            client.reject(BadRequest(str(fault)))
            return
        except ApiError as error:
            client.reject(error)
            return
        seen = self._look(exchange, apart, fields)
        whole = whole_because(route, fields, exchange.body)
        if seen.known is None:
            demand = Demand(self._estimate(exchange.body, fields.prompt), whole, policy=policy)
        else:
            known = seen.known
            demand = Demand(known.num_tokens, whole, chain=known.chain, marks=known.marks, policy=policy)
        if named is not None:
            demand = structs.replace(demand, whole_because="it names its worker", forced=(None, named))
        if EXPLAIN in exchange.headers:
            demand = structs.replace(demand, explain=True)
        self._launch(exchange, client, demand, route.path, streams=fields.stream is True, prompt=seen.key)

    def _look(self, exchange: Exchange, apart: dict[str, Raw], fields: BodyFields) -> Seen:
        """Only for a policy that asks where the KV lies, and has the body taken apart: it costs time."""
        loaded = self._dispatch.fleet.any_loaded() if apart else None
        if loaded is None:
            return NOTHING_SEEN
        look = self._dispatch.prompts.look
        return look(exchange.path, exchange.query, apart, fields.model, fields.prompt, loaded)

    def _estimate(self, body: bytes, prompt: Any) -> int:
        return len(prompt) if isinstance(prompt, list) else estimated_tokens(body, self._spec.routing)

    def _worker_metrics(self, exchange: Exchange) -> None:
        """The engine's own page. Not a user's request: it counts neither as load nor as latency."""
        name = routes.worker_name(exchange.path) or ""
        exchange.path = routes.WORKER_METRICS.path  # how it is counted: one series, not one per name
        client = HttpClient(exchange, self._dispatch.new_id(), self._count)
        try:
            up = self._life_of(name)
        except ApiError as error:
            client.reject(error)
            return
        demand = Demand(0, "metrics", forced=(None, up), scrape=True)
        self._launch(exchange, client, demand, "/metrics", streams=True)

    def _named_worker(self, exchange: Exchange) -> WorkerKey | None:
        """What measures a worker says which one: beside its caps and everybody's turns, so not for any key."""
        name = exchange.headers.get(WORKER)
        if name is None:
            return None
        key = self._key(exchange)
        if key is None or key.kind != "operator":
            raise Forbidden(f"{WORKER.decode()}: only a key of the class operator may name the worker")
        return self._life_of(name.decode("latin-1"))

    def _life_of(self, name: str) -> WorkerKey:
        """Of a worker's lives the newest that is up. Raises ApiError."""
        lives = [worker for worker in self._dispatch.fleet.workers.values() if worker.key[0] == name]
        if not lives and name not in self._spec.workers:
            raise NotFound(f"this run has no worker {name}; see /fleet")
        up = [worker.key for worker in lives if worker.up]
        if not up:
            raise NoWorker(f"worker {name} is not ready; see /fleet", retry_after_s=RETRY_AFTER_S)
        return max(up)

    def _launch(
        self,
        exchange: Exchange,
        client: HttpClient,
        demand: Demand,
        path: str,
        *,
        streams: bool,
        prompt: PromptKey | None = None,
    ) -> None:
        key = self._key(exchange)  # None: it was taken out while the body came
        envelope = Submit(
            rid=0,
            request_id=client.request_id,
            leg=Leg.WHOLE,
            method=exchange.method,
            path=path,
            query=exchange.query,
            headers=routes.to_engine(exchange.headers),
            body=exchange.body,
            wants_trace=prompt is not None,
            wants_ids=streams and demand.whole_because is None,
            priority=BATCH_PRIORITY if key is not None and key.kind == "batch" else 0,
        )
        flight = self._dispatch.fly(envelope, client, demand, streams=streams, account="" if key is None else key.name)
        flight.prompt = prompt
        exchange.on_gone = lambda: self._dispatch.leave(flight)

    def _count(self, path: str, status: int) -> None:
        self._dispatch.totals.answered(path, status)
