"""What a workload takes of engines of one layout, by arithmetic alone: what is certain before anything is replayed.

Pure. All are lower bounds: prompts find all that was ever computed in their cache, queues are empty, and as many are
decoded together as memory, limits and the time between tokens allow.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import NamedTuple

import msgspec

from launcher.twin.card import Card
from launcher.twin.percentiles import percentile
from launcher.twin.splits import Layout
from launcher.twin.step_model import StepModel
from launcher.twin.traces import leading
from launcher.twin.workload import Workload
from proxy.spec import LatencyTargets

# Of what workers can do by arithmetic, the most that is replayed: behind what is fuller a queue grows that no short
# replay sees.
FULLEST = 0.97


class Needs(msgspec.Struct, frozen=True):
    """Of one layout, workers that are needed at the least; infinite where it cannot keep to a target at all."""

    layout: Layout
    prefill: float  # of those that only compute prompts
    decode: float  # of those that only make answers
    both: float  # of those that do all: steps that do both read the weights once

    def times(self, load: float) -> Needs:
        return Needs(self.layout, load * self.prefill, load * self.decode, load * self.both)


class Idle(NamedTuple):
    """What an engine takes that has nothing else to do: no fleet is faster."""

    ttft_s: float
    itl_s: float


class Load(msgspec.Struct, frozen=True):
    """A workload as arithmetic sees it. What is in flight counts by the time that it is."""

    rate: float
    prompts: list[tuple[int, int]]  # tokens to compute, and tokens that have been computed for others
    num_output: float
    context: float  # that a sequence reads in a step
    own_context: float  # of that, what no other has

    def times(self, rate: float) -> Load:
        return msgspec.structs.replace(self, rate=rate * self.rate)

    @property
    def tokens_per_s(self) -> float:
        """But the first of each answer, which comes with its prompt."""
        return self.rate * (self.num_output - 1)

    @property
    def new_per_s(self) -> float:
        """Tokens of prompts."""
        return self.rate * sum(new for new, _ in self.prompts) / len(self.prompts)

    @property
    def pairs_per_s(self) -> float:
        """Of tokens, that attention computes for prompts."""
        return self.rate * sum(new * (cached + new / 2) for new, cached in self.prompts) / len(self.prompts)


def load_of(workload: Workload) -> Load:
    seen: OrderedDict[int, None] = OrderedDict()
    prompts, read, own = [], 0.0, 0.0
    for request in workload.requests:
        cached = min(leading(request.chain, seen) * workload.block_size, request.num_prompt - 1)
        seen.update(dict.fromkeys(request.chain))
        prompts.append((request.num_prompt - cached, cached))
        context = request.num_prompt + request.num_output / 2
        read += request.num_output * context
        own += request.num_output * (context - cached)
    num_tokens = sum(request.num_output for request in workload.requests)
    return Load(workload.rate, prompts, num_tokens / len(prompts), read / num_tokens, own / num_tokens)


def idle(card: Card, load: Load, fraction: float) -> Idle:
    assert card.model is not None
    return Idle(percentile(prefills_s(card, load), fraction), card.model.decode_step_s(1, load.context))


def needs(layout: Layout, card: Card, load: Load, targets: LatencyTargets, fraction: float) -> Needs:
    assert card.model is not None
    never = float("inf")
    hopeless = percentile(prefills_s(card, load), fraction) > targets.ttft_s
    prefill = never if hopeless else _prefill(card.model, load, card.max_num_batched_tokens)
    most = most_at_once(card, load, targets.itl_s)
    if not most:
        return Needs(layout, prefill, never, never)
    decode = load.tokens_per_s * card.model.decode_step_s(most, most * load.context) / most
    return Needs(layout, prefill, decode, never if hopeless else _both(card.model, load, most))


def prefills_s(card: Card, load: Load) -> list[float]:
    assert card.model is not None
    return [card.model.prefill_s(new, cached, card.max_num_batched_tokens) for new, cached in load.prompts]


def most_at_once(card: Card, load: Load, itl_s: float) -> int:
    """Sequences, that memory, limits and the time between tokens allow."""
    assert card.model is not None
    most = min(card.max_num_seqs, int(card.kv_tokens / load.own_context))
    while most and card.model.decode_step_s(most, most * load.context) > itl_s:
        most -= 1
    return most


def _prefill(model: StepModel, load: Load, budget: int) -> float:
    """Of full steps, however short the prompts are."""
    steps = load.new_per_s / budget
    linear_s = max(steps * model.read_weights_s(budget), model.token_s * load.new_per_s)
    return linear_s + steps * (model.fixed_s + model.chunk_s) + model.pair_s * load.pairs_per_s


def _both(model: StepModel, load: Load, most: int) -> float:
    """Steps are as few as answers need. Whatever the mixture, each reads the weights, and all tokens are computed."""
    steps = load.tokens_per_s / most
    linear_s = max(steps * model.read_weights_s(most), model.token_s * (load.new_per_s + load.tokens_per_s))
    rest_s = model.decode_step_s(most, most * load.context) - model.linear_s(most)
    return linear_s + steps * rest_s + model.pair_s * load.pairs_per_s
