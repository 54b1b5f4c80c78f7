"""The shell around the digests' core, and what it shows: who is followed, how far behind, how often anew.

Owns nothing but the core. A policy that does not look at what is cached where pays nothing: nobody is asked.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from proxy.fleet.worker import Key, Peer, Worker
from proxy.monitoring.snapshot import Gauge
from proxy.monitoring.totals import Totals
from proxy.prefixes import digests
from proxy.prefixes.digests import Digests
from proxy.prefixes.prefix_index import PrefixIndex
from proxy.routing.router import Router
from proxy.spec import RoutingSpec
from workers.kv_messages import Digest, DigestWanted
from workers.message import Message

Send = Callable[[Key, Message], None]  # to a worker's host


class DigestFollower:
    def __init__(self, index: PrefixIndex, totals: Totals, send: Send, routing: RoutingSpec) -> None:
        self._index = index
        self._totals = totals
        self._send = send
        self._wanted = Router.wants_chain(routing.policy)
        self._core = Digests(index)

    def met(self, peer: Peer, worker: Worker) -> None:
        """One of the worker's links is up; it is the host's that counts."""
        if self._wanted and peer == worker.host and worker.capabilities is not None:
            self._apply(digests.Met(worker.key, worker.capabilities.dp_ranks))

    def told(self, worker: Worker, digest: Digest) -> None:
        self._apply(digests.Told(worker.key, digest))

    def lost(self, key: Key) -> None:
        self._apply(digests.Left(key))

    def _apply(self, event: digests.Event) -> None:
        for want in self._core.apply(event):
            self._totals.num_resyncs += want.again
            self._send(want.key, DigestWanted(want.dp_rank))

    # ------------------------------------------------------------ what is shown

    def shown(self, worker: str, generation: int) -> list[dict[str, Any]]:
        """Of one worker, rank by rank."""
        return [
            {
                "blocks": self._index.blocks_of(target),
                "epoch": followed.epoch,
                "lag_s": round(followed.lag_s, 4),
                "whole": followed.whole,
            }
            for target, followed in self._core.followed.items()
            if target[0] == (worker, generation)
        ]

    def gauges(self) -> list[Gauge]:
        targets = [(_label(target), self._index.blocks_of(target), at) for target, at in self._core.followed.items()]
        named: list[Gauge] = [
            ("sluice_worker_index_blocks", "Blocks it holds, by the index.", [(t, float(n)) for t, n, _ in targets]),
            (
                "sluice_worker_digest_epoch",
                "Times its cache began anew.",
                [(t, float(at.epoch)) for t, _, at in targets],
            ),
            (
                "sluice_worker_digest_lag_seconds",
                "From a change of its cache to its host's word of it.",
                [(t, at.lag_s) for t, _, at in targets],
            ),
        ]
        return [gauge for gauge in named if gauge[2]]


def _label(target: tuple[Key, int]) -> dict[str, str]:
    (worker, generation), dp_rank = target
    return {"worker": worker, "generation": str(generation), "dp_rank": str(dp_rank)}
