"""The policy `kv`: what each way to serve a request would take, in seconds, and the cheapest of them.

Pure. A prompt is computed whole where it is decoded, or elsewhere and handed over; for each the time to its first
token is predicted, and how much longer those that decode there would wait for their next ones.
"""

from __future__ import annotations

from proxy.caps import can_decode, has_room, may_pin
from proxy.demand import Demand, Reason, Route
from proxy.fleet import Fleet
from proxy.load_policies import cached_tokens
from proxy.prefix_index import PrefixIndex, Target
from proxy.spec import RoutingSpec
from proxy.worker import Worker

Held = dict[Target, int]
POLICY = "kv"


class ByTime:
    def __init__(self, spec: RoutingSpec) -> None:
        self._spec = spec

    def place(self, fleet: Fleet, index: PrefixIndex, demand: Demand, now: float) -> Route | None:
        held = index.leading(demand.chain) if demand.chain else {}
        able = [w for w in fleet.decoders if can_decode(w, demand)]
        ways = [self._whole(w, demand, held, now) for w in able if has_room(w, demand.num_tokens)]
        if demand.whole_because is None and demand.num_tokens >= self._spec.whole_below_tokens and fleet.can_split:
            ways += self._splits(fleet, able, demand, held, now)
        best = min(ways, key=lambda way: (way[0], way[1].decode.last_chosen), default=None)
        return None if best is None else best[1]

    def _whole(self, worker: Worker, demand: Demand, held: Held, now: float) -> tuple[float, Route]:
        cached = cached_tokens(worker, demand, held.get((worker.key, 0), 0))
        queue_s, compute_s = worker.queue_s(now), worker.rates.prefill.seconds(demand.num_tokens - cached)
        stall_s = compute_s * worker.all_decodes
        reason = Reason(
            POLICY,
            demand.whole_because or "takes the least time",
            cached,
            demand.num_tokens - cached,
            queue_s=queue_s,
            compute_s=compute_s,
            ttft_s=queue_s + compute_s,
            itl_s=worker.rates.itl.value,
            stall_s=stall_s,
        )
        return self._cost(queue_s, compute_s, 0.0, stall_s), Route(None, worker, reason)

    def _splits(
        self, fleet: Fleet, able: list[Worker], demand: Demand, held: Held, now: float
    ) -> list[tuple[float, Route]]:
        ways = []
        for decode in able:
            there = cached_tokens(decode, demand, held.get((decode.key, 0), 0))
            for prefill in fleet.prefillers[decode.key]:
                if prefill.key in demand.avoid or not has_room(prefill, demand.num_tokens):
                    continue
                if not may_pin(prefill, demand, self._spec.pinned_fraction):
                    continue
                cached = cached_tokens(prefill, demand, held.get((prefill.key, 0), 0))
                compute_s = prefill.rates.prefill.seconds(demand.num_tokens - cached)
                queue_s = prefill.queue_s(now)
                transfer_s = decode.rates.transfer.seconds(demand.num_tokens - there)
                stall_s = compute_s * prefill.all_decodes
                reason = Reason(
                    POLICY,
                    "prefill elsewhere takes less time",
                    cached,
                    demand.num_tokens - cached,
                    demand.num_tokens - there,
                    queue_s,
                    compute_s,
                    transfer_s,
                    queue_s + compute_s + transfer_s,
                    decode.rates.itl.value,
                    stall_s,
                )
                cost = self._cost(queue_s, compute_s, transfer_s, stall_s)
                ways.append((cost, Route(prefill, decode, reason)))
        return ways

    def _cost(self, queue_s: float, compute_s: float, transfer_s: float, stall_s: float) -> float:
        return queue_s + compute_s + transfer_s
