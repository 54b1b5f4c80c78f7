"""Which workers serve a request: filter by capability and caps, score, pick; the answer carries its reasons.

Pure: reads the fleet, changes nothing. Decode is chosen first; prefill is optional.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from proxy.fleet import Fleet
from proxy.spec import RoutingSpec
from proxy.worker import Pair, Worker


@dataclass(frozen=True, slots=True)
class Demand:
    """What the router knows of a request. `whole_because` is None where prefill and decode may be split."""

    num_tokens: int  # estimated from the prompt's bytes
    whole_because: str | None
    avoid: frozenset[tuple[str, int]] = frozenset()  # workers that failed it
    forced: Pair | None = None  # a proof or a scrape goes where it must, proven or not
    scrape: bool = False  # of an engine's metrics: no work, it takes nobody's place


@dataclass(frozen=True, slots=True)
class Route:
    """`prefill` is None where the decode worker does all of it."""

    prefill: Worker | None
    decode: Worker
    reason: str


Score = Callable[[Worker], float]


def estimated_tokens(body: bytes, spec: RoutingSpec) -> int:
    """A prompt's bytes stand for its tokens until an engine has counted them."""
    return int(len(body) / spec.bytes_per_token)


def least_loaded(worker: Worker) -> float:
    """Work outstanding in tokens: prompts on their way, and a share for each running decode.

    The host counts what has reached it, in the engine's tokens; our own count is ahead of it by one report.
    """
    prompt_tokens = max(worker.all_prefill_tokens, worker.load.prefill_tokens)
    num_requests = max(worker.all_decodes, worker.load.running + worker.load.waiting)
    return prompt_tokens + DECODE_TOKENS * num_requests


# What one running decode weighs against prompt tokens waiting to be computed.
DECODE_TOKENS = 64

POLICIES: dict[str, Score] = {"least_loaded": least_loaded}


class Router:
    """Raises ValueError on an unknown policy, naming the known ones."""

    def __init__(self, spec: RoutingSpec) -> None:
        if spec.policy not in POLICIES:
            raise ValueError(f"unknown routing.policy {spec.policy!r}; known: {', '.join(sorted(POLICIES))}")
        self._spec = spec
        self._score = POLICIES[spec.policy]

    def route(self, fleet: Fleet, demand: Demand) -> Route | None:
        """None: nothing can take it now; it waits."""
        if demand.forced is not None:
            return self._forced(fleet, demand.forced)
        decode = self._pick([w for w in fleet.decoders if self._can_decode(w, demand)])
        if decode is None:
            return None
        why_whole = self._why_whole(demand)
        if why_whole is None:
            partners = [w for w in fleet.prefillers[decode.key] if w.key not in demand.avoid]
            prefill = self._pick([w for w in partners if self._has_room(w, demand) and self._may_pin(w, demand)])
            if prefill is not None:
                return Route(prefill, decode, "least loaded of its role")
            if partners:
                return None  # the prefill workers are busy: waiting is better than disturbing decodes
            why_whole = "no prefill worker is up"
        return Route(None, decode, why_whole) if self._has_room(decode, demand) else None

    def _why_whole(self, demand: Demand) -> str | None:
        if demand.whole_because is None and demand.num_tokens < self._spec.whole_below_tokens:
            return f"short prompt: {demand.num_tokens} tokens estimated"
        return demand.whole_because

    @staticmethod
    def _can_decode(worker: Worker, demand: Demand) -> bool:
        return worker.all_decodes < worker.caps.max_decodes and worker.key not in demand.avoid

    @staticmethod
    def _has_room(worker: Worker, demand: Demand) -> bool:
        """A prompt larger than the cap may run where nothing else does."""
        cap, given = worker.caps.max_prefill_tokens, worker.all_prefill_tokens
        return cap > 0 and (given == 0 or given + demand.num_tokens <= cap)

    def _may_pin(self, worker: Worker, demand: Demand) -> bool:
        """Blocks prefilled and not yet pulled stall a prefill engine when they fill its cache."""
        assert worker.capabilities is not None
        pinned = max(worker.all_pinned_blocks, worker.load.pinned_blocks)
        wanted = -(-demand.num_tokens // worker.capabilities.block_size)
        budget = self._spec.pinned_fraction * worker.capabilities.num_blocks
        return pinned == 0 or pinned + wanted <= budget

    def _pick(self, workers: Sequence[Worker]) -> Worker | None:
        return min(workers, key=lambda w: (self._score(w), w.last_chosen), default=None)

    @staticmethod
    def _forced(fleet: Fleet, pair: Pair) -> Route | None:
        prefill = None if pair[0] is None else fleet.workers.get(pair[0])
        decode = fleet.workers.get(pair[1])
        if decode is None or not decode.up or (pair[0] is not None and (prefill is None or not prefill.up)):
            return None
        return Route(prefill, decode, "it must be this one")
