"""The policy `kv`: what each way to serve a request would take, in seconds, and the cheapest of them.

Pure. A prompt is computed whole where it is decoded, or elsewhere and handed over. A way costs the predicted time to
the request's first token, and what it does to the time between tokens: the request's own, and that of those who wait
while its prompt is computed. `routing.targets` say how much the one weighs against the other, and where not all can
keep to them `goodput` says who shall. A full worker that would still be the cheapest is waited for, but for no longer
than that gains: else all that overflows spoils what is kept clear of prompts, or a prefix is computed anew.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence

import msgspec

from proxy.fleet.fleet import Fleet
from proxy.fleet.rates import MOST_BUSY
from proxy.fleet.worker import Key, Worker
from proxy.prefixes.prefix_index import PrefixIndex, Target
from proxy.prefixes.reuse import Reuse
from proxy.routing.caps import has_place, has_room, may_compute, may_decode, may_pin
from proxy.routing.demand import Demand, Reason, Route
from proxy.routing.goodput import Goodput
from proxy.routing.load_policies import cached_tokens
from proxy.spec import RoutingSpec

POLICY = "kv"
# A time between tokens counts little while it is far from its target. Where requests can only be whole, it counts in
# full from this part of the target on; where they may be split, `goodput` says what it costs near it.
NEAR_TARGET = 0.5
FAR_WEIGHT = 0.1
# Predictions are no better than about one pass of an engine.
TOLERANCE_S = 0.02
# A prefix that prompts have gone on from so often for each worker that holds it is hot: one more copy will be used as
# often, so computing it counts for nothing.
REUSES_PER_COPY = 8
# What can only be whole has spared those that decode long enough when it has waited for this part of its target.
PATIENCE = 0.25
# Where nobody is left to decode within the target, a second of prompts on a worker that has been clear of them costs so
# many: else all compute a little, and none becomes clear. By the square of how probable that is: a doubt counts little.
CLEAR = 25.0
# Prompts come in bursts: behind those that wait there will be more, and answers wait for so many times as long.
BURST = 4.0


class _Part(msgspec.Struct):
    """What a worker would do of it. `cost_s` counts what others wait, too."""

    worker: Worker
    cached_tokens: int
    lasting_tokens: int  # or what is hot, where that is more
    cost_s: float
    computes: bool
    ready: bool  # it has room now
    queue_s: float = 0.0
    work_s: float = 0.0  # computing, or receiving KV
    stall_s: float = 0.0
    itl_s: float = 0.0  # of its answer, where it is decoded here


class _Asked(msgspec.Struct, frozen=True):
    """The same for all workers: leading blocks of the prompt that each holds, how many are hot, what a second per
    token counts in seconds of TTFT, and how much it counts that a worker is clear of prompts."""

    demand: Demand
    now: float
    waited_s: float
    blocks: dict[Target, int]
    num_hot: int
    may_split: bool
    itl_weight: float
    clear_weight: float = 0.0


def _num_hot(blocks: Mapping[Target, int], chain: Sequence[int], reuse: Reuse) -> int:
    size = len(chain)
    ends = sorted([min(end, size) for end in blocks.values()])  # what is only promised may go beyond what is known
    for end in sorted(set(ends), reverse=True):
        if end and reuse.of(chain[end - 1]) >= REUSES_PER_COPY * (len(ends) - bisect_left(ends, end)):
            return end
    return 0


class _Way(msgspec.Struct, frozen=True):
    route: Route
    cost_s: float
    ready: bool


class ByTime:
    def __init__(self, spec: RoutingSpec) -> None:
        self._spec = spec
        targets = spec.targets
        self._goodput = Goodput(targets)
        self._itl_weight = targets.ttft_s / targets.itl_s  # of a second per token, in seconds of TTFT

    def place(self, fleet: Fleet, index: PrefixIndex, demand: Demand, now: float, waited_s: float) -> Route | None:
        asked = self._asked(fleet, index, demand, now, waited_s)
        able = [w for w in fleet.decoders if may_decode(w, demand)]
        receiving: list[_Part] = []
        if asked.may_split:
            receiving = [self._receive(worker, asked) for worker in able if fleet.prefillers[worker.key]]
            missed = min((self._goodput.missed(part.itl_s) for part in receiving), default=0.0)
            asked = msgspec.structs.replace(asked, clear_weight=CLEAR * missed**2)
        computing = {worker.key: self._compute(worker, asked) for worker in able if may_compute(worker, demand)}
        way = self._best_whole(computing, asked)
        split = self._best_split(fleet, receiving, computing, asked) if receiving else None
        if way is None or (split is not None and split.cost_s < way.cost_s):
            way = split
        return way.route if way is not None and way.ready else None

    def _asked(self, fleet: Fleet, index: PrefixIndex, demand: Demand, now: float, waited_s: float) -> _Asked:
        blocks, weight = index.leading(demand.chain, demand.marks), self._itl_weight
        may_split = demand.whole_because is None and fleet.can_split
        if not may_split:
            weight *= max(0.0, 1 - waited_s / (PATIENCE * self._spec.targets.ttft_s))
        return _Asked(demand, now, waited_s, blocks, _num_hot(blocks, demand.chain, index.reuse), may_split, weight)

    def _best_whole(self, computing: Mapping[Key, _Part], asked: _Asked) -> _Way | None:
        parts = list(computing.values())
        if asked.may_split:  # there they are asked for again
            parts = [msgspec.structs.replace(part) for part in parts]
        for part in parts:
            self._count_decoding(part, asked)
        if not parts:
            return None
        best = _cheapest(parts, asked.waited_s)
        return _Way(Route(None, best.worker, self._reason(asked.demand, best, None)), best.cost_s, best.ready)

    def _best_split(
        self, fleet: Fleet, receiving: Sequence[_Part], computing: Mapping[Key, _Part], asked: _Asked
    ) -> _Way | None:
        """The best to decode, then the best to compute for it."""
        demand = asked.demand
        receive = _cheapest(receiving, asked.waited_s, packed=True)
        partners = [w for w in fleet.prefillers[receive.worker.key] if may_compute(w, demand)]
        parts = [computing.get(worker.key) or self._compute(worker, asked) for worker in partners]
        if not parts:
            return None
        for part in parts:
            part.ready = part.ready and may_pin(part.worker, demand, self._spec.pinned_fraction)
        compute = _cheapest(parts, asked.waited_s)
        route = Route(compute.worker, receive.worker, self._reason(demand, compute, receive))
        return _Way(route, compute.cost_s + receive.cost_s, compute.ready and receive.ready)

    def _compute(self, worker: Worker, asked: _Asked) -> _Part:
        demand, rates = asked.demand, worker.rates
        cached = cached_tokens(worker, demand, asked.blocks.get((worker.key, 0), 0))
        ready = has_room(worker, demand, demand.num_tokens - cached)
        queue_s, work_s = worker.queue_s(asked.now), rates.prefill.seconds(demand.num_tokens - cached)
        lasting, price_s = cached, work_s
        if asked.num_hot:
            lasting = max(cached, cached_tokens(worker, demand, asked.num_hot))
            price_s = rates.prefill.seconds(demand.num_tokens - lasting)
        cost_s = queue_s + price_s * (1 + self._stall_cost(worker, queue_s, asked))
        if asked.clear_weight and worker.caps.max_decodes:
            cost_s += price_s * asked.clear_weight * (1 - rates.busy(asked.now) / MOST_BUSY)
        return _Part(worker, cached, lasting, cost_s, True, ready, queue_s, work_s, work_s * worker.all_decodes)

    def _stall_cost(self, worker: Worker, queue_s: float, asked: _Asked) -> float:
        """Of a second that answers wait there."""
        if not worker.all_decodes:
            return 0.0
        weight, rates = asked.itl_weight, worker.rates
        if asked.may_split:
            itl_s = rates.itl_s(worker.held_tokens, asked.now)
            weight *= self._goodput.stall_weight(itl_s, itl_s + BURST * queue_s * rates.answer_share.value)
        return weight * _tokens_spoilt(worker)

    def _receive(self, worker: Worker, asked: _Asked) -> _Part:
        demand = asked.demand
        cached = cached_tokens(worker, demand, asked.blocks.get((worker.key, 0), 0))
        work_s = worker.rates.transfer.seconds(demand.num_tokens - cached)
        part = _Part(worker, cached, cached, work_s, False, True, work_s=work_s)
        self._count_decoding(part, asked)
        return part

    def _count_decoding(self, part: _Part, asked: _Asked) -> None:
        """What waits behind its prompt is taken to be as much as waits before it; of what is only decoded here, what
        waits now. Prompts to come are as certain as those of others that stall it, so they weigh as much."""
        worker, rates, demand = part.worker, part.worker.rates, asked.demand
        part.ready = part.ready and has_place(worker, demand)
        waiting_s = part.queue_s + part.work_s if part.computes else worker.queue_s(asked.now)
        step_s = rates.step.seconds(worker.held_tokens + demand.num_tokens)
        # Prompts of late say nothing where none come any more.
        stalls_s = step_s * rates.stalls_per_step(asked.now) if worker.caps.max_prefill_tokens else 0.0
        itl_s = part.itl_s = step_s + stalls_s + waiting_s * rates.answer_share.value
        if not asked.may_split:
            near_s = max(0.0, itl_s - NEAR_TARGET * self._spec.targets.itl_s)
            part.cost_s += asked.itl_weight * (FAR_WEIGHT * itl_s + stalls_s + near_s)
            return
        far_s = FAR_WEIGHT * min(itl_s, self._spec.targets.itl_s)
        part.cost_s += asked.itl_weight * (far_s + self._goodput.stall_weight(itl_s, itl_s) * stalls_s)
        part.cost_s += self._goodput.itl_cost_s(itl_s)
        if not part.computes:  # where it is computed too, prefixes say who is where
            now_s, more_s = rates.step.seconds(worker.held_tokens) + stalls_s, rates.step.each_s * demand.num_tokens
            part.cost_s += self._goodput.others_cost_s(worker.all_decodes, now_s, more_s)

    @staticmethod
    def _reason(demand: Demand, compute: _Part, receive: _Part | None) -> Reason:
        return Reason(
            policy=POLICY,
            why="prefill elsewhere takes less" if receive else demand.whole_because or "whole takes less",
            cached_tokens=compute.cached_tokens,
            compute_tokens=demand.num_tokens - compute.cached_tokens,
            transfer_tokens=demand.num_tokens - receive.cached_tokens if receive else 0,
            queue_s=compute.queue_s,
            compute_s=compute.work_s,
            transfer_s=receive.work_s if receive else 0.0,
            ttft_s=compute.queue_s + compute.work_s + (receive.work_s if receive else 0.0),
            itl_s=receive.itl_s if receive else compute.itl_s,
            stall_s=compute.stall_s,
        )


def _tokens_spoilt(worker: Worker) -> float:
    """The sum of all shares that a token has in an answer which would wait. Who is met decoding has a long answer more
    often than those that come."""
    rates, decodes = worker.rates, worker.all_decodes
    coming = min(worker.num_prompts, decodes)
    return coming * rates.answer_share.value + (decodes - coming) / max(1.0, rates.answer_tokens.value)


def _cheapest(parts: Sequence[_Part], waited_s: float, *, packed: bool = False) -> _Part:
    """Of those that hold as much of the prompt and hardly take longer, who has room, then who has fewest answers to
    make, or most where `packed`: the rest stay clear for prompts; then in turn. Nothing tells how long a full one is
    full: as long again as it has been waited for."""
    for part in parts:
        if not part.ready:
            part.cost_s += waited_s
    best = min(parts, key=lambda part: (part.cost_s, part.worker.last_chosen))
    limit_s = best.cost_s + TOLERANCE_S
    equal = [part for part in parts if part.cost_s <= limit_s and part.lasting_tokens >= best.lasting_tokens]
    sign = -1 if packed else 1
    return min(equal, key=lambda part: (not part.ready, sign * part.worker.all_decodes, part.worker.last_chosen))
