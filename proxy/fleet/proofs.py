"""Proofs carried out: what the prober finds due goes through the workers like anybody's request.

Owns the prober and the proofs' requests. What is due and what counts is the prober's to say, the result the fleet's.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Iterable

from proxy.fleet.fleet import Fleet
from proxy.fleet.fleet_events import Event
from proxy.fleet.prober import Prober, proof
from proxy.fleet.worker import Key, Pair
from proxy.http.clients import Client, ProofClient
from proxy.routing.router import Demand, estimated_tokens
from proxy.spec import ProxySpec
from workers.protocol import Load, Submit

log = logging.getLogger("sluice.proxy")

NewId = Callable[[], str]
Fly = Callable[[Submit, Client, Demand], object]
Report = Callable[[Iterable[Event]], None]


class Proofs:
    """`report` takes what has been found out to the fleet."""

    def __init__(self, spec: ProxySpec, fleet: Fleet, new_id: NewId, fly: Fly, report: Report) -> None:
        self._spec = spec
        self._fleet = fleet
        self._new_id = new_id
        self._fly = fly
        self._report = report
        self._prober = Prober(fleet)
        self._loop = asyncio.get_running_loop()

    def prove(self) -> None:
        for pair in self._prober.due(self._loop.time()):
            envelope = self._envelope(pair)
            num_tokens = estimated_tokens(envelope.body, self._spec.routing)
            demand = Demand(num_tokens, None if pair[0] else "proof", forced=pair)
            self._fly(envelope, ProofClient(self._done(pair)), demand)

    def counted(self, decode: Key, load: Load) -> None:
        self._report(self._prober.counted(decode, load))

    def lost(self, key: Key) -> None:
        self._prober.lost(key)

    def tick(self) -> None:
        self._report(self._prober.tick(self._loop.time()))

    def _envelope(self, pair: Pair) -> Submit:
        capabilities = self._fleet.workers[pair[1]].capabilities
        assert capabilities is not None
        return proof(self._new_id(), self._spec.models[0], capabilities, secrets.token_hex(2))

    def _done(self, pair: Pair) -> Callable[[str | None], None]:
        def done(fault: str | None) -> None:
            now = self._loop.time()
            if fault is None:
                self._report(self._prober.answered(pair, now))
            else:
                log.warning("proof %s failed: %s", " -> ".join(key[0] for key in pair if key), fault)
                self._report(self._prober.failed(pair, fault, now))

        return done
