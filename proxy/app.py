"""The proxy's HTTP side: who may ask for what, its own routes, and requests handed on to be dispatched.

Owns no state: keys, fleet and requests have their owners. Bodies are read for the few fields that
routing needs and travel on as they came.
"""

from __future__ import annotations

import time
from typing import Any

import msgspec

from proxy import errors, routes
from proxy.auth import ApiKeys, authorize
from proxy.clients import HttpClient
from proxy.dispatch import Dispatch
from proxy.errors import ApiError, BadRequest, NotFound, UnknownModel
from proxy.exchange import Exchange
from proxy.legs import BadBody, read_body, stateful_because, whole_because
from proxy.router import Demand, estimated_tokens
from proxy.routes import Route
from proxy.spec import ProxySpec
from proxy.view import fleet_json
from proxy.zap import Zap
from workers.protocol import Leg, Submit


class App:
    """`admit` and `handle` are what the HTTP server calls."""

    def __init__(self, spec: ProxySpec, keys: ApiKeys, zap: Zap, dispatch: Dispatch) -> None:
        self._spec = spec
        self._keys = keys
        self._zap = zap
        self._dispatch = dispatch

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
            self._infer(exchange, route)
        elif route is routes.WORKER_METRICS:
            self._worker_metrics(exchange)
        else:
            status, content_type, body = self._own_route(route.path)
            self._count(route.path, status)
            exchange.respond(status, ((b"content-type", content_type),), body)

    def _own_route(self, path: str) -> tuple[int, bytes, bytes]:
        if path == "/metrics":
            return 200, b"text/plain; version=0.0.4; charset=utf-8", self._dispatch.metrics.render()
        status, value = 200, self._own_json(path)
        if path == "/ready" and not self._dispatch.fleet.serving:
            status = 503
        return status, b"application/json", msgspec.json.encode(value)

    def _own_json(self, path: str) -> dict[str, Any]:
        match path:
            case "/health":
                return {"status": "ok"}
            case "/ready":
                return {"serving": self._dispatch.fleet.serving, "complete": self._dispatch.fleet.ready}
            case "/fleet":
                return fleet_json(
                    self._dispatch.fleet,
                    self._dispatch.flights,
                    self._dispatch.jobs,
                    self._zap.refusals,
                    self._spec.run,
                    time.time(),
                )
            case _:
                return self._models()

    def _models(self) -> dict[str, Any]:
        length = min((loaded.max_model_len for loaded in self._dispatch.fleet.loaded()), default=None)
        shared = {"object": "model", "created": 0, "owned_by": "sluice", "max_model_len": length}
        return {"object": "list", "data": [{"id": model, **shared} for model in self._model_ids()]}

    def _model_ids(self) -> list[str]:
        """The run's own names, and the adapters that its engines have loaded."""
        adapters = [model for loaded in self._dispatch.fleet.loaded() for model in loaded.models]
        return list(dict.fromkeys([*self._spec.models, *adapters]))

    def _check_adapter(self, model: Any) -> None:
        if model not in (known := self._model_ids()):
            raise UnknownModel(f"the model {model!r} does not exist; this run serves {', '.join(known)}")

    def _infer(self, exchange: Exchange, route: Route) -> None:
        client = HttpClient(exchange, self._dispatch.new_id(), self._count)
        try:
            fields = read_body(exchange.body)
            if fields.model is not None and fields.model not in self._spec.models:
                self._check_adapter(fields.model)
            if stateful := stateful_because(fields):
                raise BadRequest(f"{stateful} needs a server that keeps answers; this one does not", param=stateful)
        except BadBody as fault:
            client.reject(BadRequest(str(fault)))
            return
        except ApiError as error:
            client.reject(error)
            return
        tokens = (
            len(fields.prompt)
            if isinstance(fields.prompt, list)
            else estimated_tokens(exchange.body, self._spec.routing)
        )
        demand = Demand(tokens, whole_because(route, fields, exchange.body))
        self._launch(exchange, client, demand, streams=fields.stream is True)

    def _worker_metrics(self, exchange: Exchange) -> None:
        name = routes.worker_name(exchange.path)
        client = HttpClient(exchange, self._dispatch.new_id(), self._count)
        key = next((key for key, worker in self._dispatch.fleet.workers.items() if key[0] == name and worker.up), None)
        if key is None:
            client.reject(NotFound(f"no worker {name} is up; see /fleet"))
            return
        exchange.path = "/metrics"
        self._launch(exchange, client, Demand(0, "metrics", forced=(None, key)), streams=True)

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
        flight = self._dispatch.fly(envelope, client, demand, streams=streams)
        exchange.on_gone = lambda: self._dispatch.leave(flight)

    def _count(self, path: str, status: int) -> None:
        self._dispatch.metrics.requests[path, status] += 1
