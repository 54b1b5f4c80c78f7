"""Policies that give each worker a score, whatever else could be done: the lowest is taken, and equals take turns.

Pure: randomness is an argument. Decode is chosen first; every prompt that may be split is, where a prefill worker is
up for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random

from proxy.fleet.fleet import Fleet
from proxy.fleet.worker import Worker
from proxy.prefixes.prefix_index import PrefixIndex
from proxy.routing.caps import has_place, has_room, may_decode, may_pin
from proxy.routing.demand import Demand, Reason, Route
from proxy.spec import RoutingSpec

Score = Callable[[Worker], float]
# For one request: how workers are scored to compute its prompt (also all of it), and only to decode it.
Scores = Callable[[Fleet, PrefixIndex, Demand, Random], tuple[Score, Score]]


def least_loaded(worker: Worker) -> float:
    """Work outstanding in tokens: prompts on their way, and a share for each running decode.

    The host counts what has reached it, in the engine's tokens; our own count is ahead of it by one report.
    """
    prompt_tokens = max(worker.all_prefill_tokens, worker.load.prefill_tokens)
    num_requests = max(worker.all_decodes, worker.load.running + worker.load.waiting)
    return prompt_tokens + DECODE_TOKENS * num_requests


# What one running decode weighs against prompt tokens waiting to be computed.
DECODE_TOKENS = 64


def _least_loaded(fleet: Fleet, index: PrefixIndex, demand: Demand, random: Random) -> tuple[Score, Score]:
    return least_loaded, least_loaded


def _round_robin(fleet: Fleet, index: PrefixIndex, demand: Demand, random: Random) -> tuple[Score, Score]:
    return _equal, _equal


def _equal(worker: Worker) -> float:
    return 0.0


def _random(fleet: Fleet, index: PrefixIndex, demand: Demand, random: Random) -> tuple[Score, Score]:
    def score(worker: Worker) -> float:
        return random.random()

    return score, score


def _dynamo(fleet: Fleet, index: PrefixIndex, demand: Demand, random: Random) -> tuple[Score, Score]:
    """The published cost of NVIDIA Dynamo's KV router at its defaults, in blocks.

    Prompt tokens waiting and those of this prompt, less what is cached, and the blocks of all that decodes there.
    Where prefill and decode are two workers' the decode worker is chosen by load alone. Blocks that requests
    share count for each of them.
    """
    held = index.leading(demand.chain, demand.marks)

    def cost(worker: Worker, cached_blocks: int) -> float:
        assert worker.capabilities is not None
        size = worker.capabilities.block_size
        prefill_blocks = (worker.all_prefill_tokens + demand.num_tokens) / size
        decode_blocks = (worker.held_tokens + demand.num_tokens) / size
        return max(0.0, prefill_blocks - cached_blocks) + decode_blocks

    return lambda worker: cost(worker, held.get((worker.key, 0), 0)), lambda worker: cost(worker, 0)


SCORES: dict[str, Scores] = {
    "least_loaded": _least_loaded,
    "round_robin": _round_robin,
    "random": _random,
    "dynamo": _dynamo,
}
SEE_THE_CACHE = frozenset({"dynamo"})


class ByScore:
    """Places by one kind of scores."""

    def __init__(self, policy: str, scores: Scores, spec: RoutingSpec, random: Random) -> None:
        self._policy = policy
        self._spec = spec
        self._scores = scores
        self._random = random

    def place(self, fleet: Fleet, index: PrefixIndex, demand: Demand, now: float, waited_s: float) -> Route | None:
        score, decode_score = self._scores(fleet, index, demand, self._random)
        why_whole = self._why_whole(fleet, demand)
        able = [w for w in fleet.decoders if may_decode(w, demand) and has_place(w, demand)]
        if why_whole is not None:  # one that is full is passed over: the score need not know of caps
            able = [w for w in able if has_room(w, demand, demand.num_tokens)]
        decode = _pick(able, score if why_whole is not None else decode_score)
        if decode is None:
            return None
        if why_whole is None:
            partners = [w for w in fleet.prefillers[decode.key] if w.key not in demand.avoid]
            free = [w for w in partners if self._may_prefill(w, demand)]
            prefill = _pick(free, score)
            if prefill is not None:
                return Route(prefill, decode, self._reason(index, demand, prefill, "the best of their roles"))
            if partners:
                return None  # the prefill workers are busy: waiting is better than disturbing decodes
            why_whole = "no prefill worker is up"
        if not has_room(decode, demand, demand.num_tokens):
            return None
        return Route(None, decode, self._reason(index, demand, decode, why_whole))

    def _why_whole(self, fleet: Fleet, demand: Demand) -> str | None:
        if demand.whole_because is None and demand.num_tokens < self._spec.whole_below_tokens:
            return f"short prompt: {demand.num_tokens} tokens estimated"
        if demand.whole_because is None and not fleet.can_split:
            return "no prefill worker is up"
        return demand.whole_because

    def _may_prefill(self, worker: Worker, demand: Demand) -> bool:
        return has_room(worker, demand, demand.num_tokens) and may_pin(worker, demand, self._spec.pinned_fraction)

    def _reason(self, index: PrefixIndex, demand: Demand, worker: Worker, why: str) -> Reason:
        cached = 0
        if self._policy in SEE_THE_CACHE:
            cached = cached_tokens(worker, demand, index.leading(demand.chain, demand.marks).get((worker.key, 0), 0))
        return Reason(self._policy, why, cached, demand.num_tokens - cached)


def cached_tokens(worker: Worker, demand: Demand, num_blocks: int) -> int:
    """The last token of a prompt is always computed: the first of the answer follows from it."""
    assert worker.capabilities is not None
    return max(0, min(num_blocks * worker.capabilities.block_size, demand.num_tokens - 1))


def _pick(workers: Sequence[Worker], score: Score) -> Worker | None:
    return min(workers, key=lambda w: (score(w), w.last_chosen), default=None)
