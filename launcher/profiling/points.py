"""What is to be measured of an engine, and in which order, so that whenever time is up the points span the whole.

Pure. Prompts at batch 1 over their lengths, short prompts over batches, decoding over concurrency and context.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

import msgspec

SHORTEST_PROMPT = 64
BATCHED_PROMPTS = (64, 256)  # short ones, so that attention within a prompt hardly counts
SHORTEST_CONTEXT = 128
DECODE_STEPS = 32
KV_PART = 0.9  # more would preempt
DEAR_PART = 0.1  # of the time left: who takes longer waits for those that take less

T = TypeVar("T")


class Limits(msgspec.Struct, frozen=True, kw_only=True):
    """Of the engine, as it runs."""

    max_model_len: int
    kv_tokens: int
    max_num_seqs: int
    max_num_batched_tokens: int


class Prefill(msgspec.Struct, frozen=True, tag=True):
    """So many prompts at once."""

    prompt_tokens: int
    batch: int = 1

    @property
    def num_tokens(self) -> int:
        return self.prompt_tokens * self.batch


class Decode(msgspec.Struct, frozen=True, tag=True):
    context_tokens: int
    concurrency: int


Point = Prefill | Decode


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    point: Point
    seconds: float  # of a prefill all of it, else between two tokens of a sequence
    context_tokens: float = 0.0  # of a sequence, on average while it was measured
    num_others: int = 0  # requests of others that the worker had meanwhile


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What a point asks of the engine."""

    num_prompts: int
    prompt_tokens: int
    max_tokens: int


def asked(point: Point, limits: Limits) -> Asked:
    if isinstance(point, Prefill):
        return Asked(num_prompts=point.batch, prompt_tokens=point.prompt_tokens, max_tokens=1)
    # Who has begun decodes on while the others' prompts are computed.
    return Asked(
        num_prompts=point.concurrency,
        prompt_tokens=point.context_tokens,
        max_tokens=min(_decoded(point, limits), limits.max_model_len - point.context_tokens),
    )


def _decoded(point: Decode, limits: Limits) -> int:
    budget = max(1, limits.max_num_batched_tokens - point.concurrency)
    return DECODE_STEPS + point.concurrency + 2 * -(-point.concurrency * point.context_tokens // budget)


def points(limits: Limits) -> list[Point]:
    """The ends of every range first, then what lies between."""
    lists: list[list[Point]] = [
        list(spread([Prefill(size) for size in _doubled(SHORTEST_PROMPT, _longest(limits))])),
        list(spread(list(_batches(limits)))),
        list(_decodes(limits)),
    ]
    turns = itertools.chain.from_iterable(itertools.zip_longest(*lists))
    return list(dict.fromkeys(point for point in turns if point is not None))


def next_point(left: Sequence[Point], measured: Sequence[Measured], left_s: float) -> Point:
    """The first that is not too dear for the time left, by the prompt tokens per second so far; else the cheapest."""
    rates = [m.point.num_tokens / m.seconds for m in measured if isinstance(m.point, Prefill)]
    most_tokens = DEAR_PART * left_s * max(rates, default=0.0)
    affordable = (point for point in left if not rates or prompt_tokens(point) <= most_tokens)
    return next(affordable, min(left, key=prompt_tokens))


def prompt_tokens(point: Point) -> int:
    return point.num_tokens if isinstance(point, Prefill) else point.concurrency * point.context_tokens


def _longest(limits: Limits) -> int:
    return min(limits.max_model_len - 1, int(limits.kv_tokens * KV_PART))


def _batches(limits: Limits) -> Iterator[Prefill]:
    for size in BATCHED_PROMPTS:
        most = min(2 * limits.max_num_batched_tokens, int(limits.kv_tokens * KV_PART)) // size
        yield from (Prefill(size, batch) for batch in _doubled(2, min(most, limits.max_num_seqs)))


def _decodes(limits: Limits) -> Iterator[Decode]:
    most = limits.max_model_len - 3 * DECODE_STEPS
    contexts = list(spread(list(_doubled(SHORTEST_CONTEXT, most, factor=4))))
    sizes = list(spread(list(_doubled(1, limits.max_num_seqs))))
    pairs = itertools.product(range(len(contexts)), range(len(sizes)))
    for context, size in sorted(pairs, key=sum):
        point = Decode(contexts[context], sizes[size])
        tokens = point.context_tokens + _decoded(point, limits)
        if tokens <= limits.max_model_len and tokens * point.concurrency <= limits.kv_tokens * KV_PART:
            yield point


def _doubled(first: int, last: int, factor: int = 2) -> Iterator[int]:
    """And the last itself."""
    size = first
    while size < last:
        yield size
        size *= factor
    if last >= first:
        yield last


def spread(items: Sequence[T]) -> Iterable[T]:
    """First and last, then the middles of what is between."""
    seen: dict[int, None] = dict.fromkeys((0, len(items) - 1) if items else ())
    gaps = [(0, len(items) - 1)]
    for low, high in gaps:
        if high - low > 1:
            middle = (low + high) // 2
            seen[middle] = None
            gaps += [(low, middle), (middle, high)]
    return [items[index] for index in seen]
