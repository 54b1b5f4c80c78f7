"""The proxy's own routes: what it says of itself and its fleet. Anything that an engine answers is not here.

Owns how each is put together; what they say is `view`'s, `overview`'s, `targets`' and `metrics`'.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from proxy.dispatch import Dispatch
from proxy.errors import JSON_TYPE, Response
from proxy.http.exchange import Exchange
from proxy.http.page import page
from proxy.models import models_json
from proxy.monitoring.counsel import counsel_gauges
from proxy.monitoring.metrics import Scrape
from proxy.monitoring.overview import overview_json, since_of
from proxy.monitoring.snapshot import Snapshot
from proxy.monitoring.targets import asked_host, targets_json
from proxy.monitoring.view import fleet_json, gauges
from proxy.processes.siblings import Told
from proxy.spec import ProxySpec
from proxy.zap import Zap

METRICS_TYPE = (b"content-type", b"text/plain; version=0.0.4; charset=utf-8")
NOT_KEPT = (b"cache-control", b"no-store")


NO_HISTORY = 1 << 40  # nothing has happened since then
Respond = Callable[[Response], None]
Gather = Callable[[int, Told], None]


class OwnRoutes:
    """Any process answers for all: what they show together is gathered first."""

    def __init__(self, spec: ProxySpec, process: str, zap: Zap, dispatch: Dispatch) -> None:
        self._spec = spec
        self._process = process
        self._zap = zap
        self._dispatch = dispatch
        self._page = page()

    def answer(self, exchange: Exchange, gather: Gather, respond: Respond) -> None:
        """At once or soon. Raises BadRequest."""
        fleet = self._dispatch.fleet
        match exchange.path:
            case "/":
                respond(self._page)
            case "/metrics":
                gather(NO_HISTORY, lambda all: respond((200, (METRICS_TYPE, NOT_KEPT), _scrape(all))))
            case "/metrics/targets":
                tls, workers = self._spec.tls_cert is not None, fleet.workers.values()
                host = asked_host(exchange.headers)
                respond(_json(targets_json(host, tls=tls, run=self._spec.run, proxy=self._spec.proxy, workers=workers)))
            case "/health":
                respond(_json({"status": "ok"}))
            case "/ready":
                gather(NO_HISTORY, lambda all: respond(_ready(all)))
            case "/fleet":
                gather(NO_HISTORY, lambda all: respond(_json(all.fleet)))
            case "/overview":
                since = since_of(exchange.query)
                gather(since, lambda all: respond(_json(overview_json(all, self._spec, since=since, unix=time.time()))))
            case _:
                respond(_json(models_json(self._spec, fleet)))

    def snapshot(self, since: int) -> Snapshot:
        """Of this process; of the last hour what begins at `since` or later."""
        dispatch, now = self._dispatch, asyncio.get_running_loop().time()
        num_connections = dispatch.num_connections()
        fleet = fleet_json(
            dispatch.fleet,
            dispatch.flights,
            dispatch.turns,
            dispatch.board.jobs,
            self._zap.refusals,
            self._spec.run,
            now=now,
            unix=time.time(),
        )
        process = {
            "process": self._process,
            "pid": os.getpid(),
            "takes_connections": dispatch.serves,
            "workers": sum(worker.up for worker in dispatch.fleet.workers.values()),
            "connections": num_connections,
            "open_requests": len(dispatch.flights.open),
            "open_streams": dispatch.num_streams,
            "memory_mib": _memory_mib(),
        }
        for worker in fleet["workers"]:
            worker["digests"] = dispatch.digests.shown(worker["worker"], worker["generation"])
        return Snapshot(
            fleet={**fleet, "processes": [process]},
            totals=dispatch.totals.since(since),
            gauges=[
                *gauges(dispatch.fleet, dispatch.flights, self._process, num_connections),
                *dispatch.digests.gauges(),
                *counsel_gauges(dispatch.board.counsel),
            ],
            journal=list(dispatch.journal.entries),
            gpus_per_node=dispatch.board.gpus_per_node,
            controller_silent_s=dispatch.board.silence_s(now),
        )


def _memory_mib() -> float:
    """Of this process, now."""
    num_pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(num_pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def _scrape(all: Snapshot) -> bytes:
    return Scrape(all.totals, all.gauges).render()


def _ready(all: Snapshot) -> Response:
    serving = all.fleet["serving"]
    return _json({"serving": serving, "complete": all.fleet["ready"]}, 200 if serving else 503)


def _json(value: Any, status: int = 200) -> Response:
    return status, (JSON_TYPE, NOT_KEPT), msgspec.json.encode(value)
