"""The cheapest split that keeps to the targets: which splits are tried in which order, and what is made of the answers.

Pure but for `try_split`, which replays one. Where a family of splits cannot be cheaper than what was found already, by
arithmetic alone, it is not tried.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from launcher.twin.families import Family
from launcher.twin.splits import Part, Split

STRIDE = 6  # a count that does not suffice grows by a sixth, or by one
LOADS = (1.1, 1.25, 1.5, 2.0)


class Question(NamedTuple):
    """What one replay answers."""

    split: Split
    load: float = 1.0  # times the workload's rate


class Tried(msgspec.Struct, frozen=True, kw_only=True):
    """Latencies at the percentile; where a replay was given up, infinite."""

    split: Split
    ttft_s: float
    itl_s: float
    ttft_of_target: float
    itl_of_target: float

    @property
    def good(self) -> bool:
        return self.worst <= 1

    @property
    def worst(self) -> float:
        return max(self.ttft_of_target, self.itl_of_target)

    @property
    def misses(self) -> str:
        named = (("TTFT", self.ttft_of_target), ("ITL", self.itl_of_target))
        return " and ".join(name for name, part in named if part > 1)


class Search:
    """`tried` holds all that was replayed."""

    def __init__(self, try_split: Callable[[Split], Tried], max_gpus: int) -> None:
        self._try = try_split
        self._max_gpus = max_gpus
        self.tried: dict[Split, Tried] = {}
        self.best: dict[bool, Tried] = {}  # by: it is disaggregated

    def run(self, ordered: Sequence[Family]) -> Tried | None:
        for family in ordered:
            assert family.least is not None
            if family.least.gpus <= self._limit(family):
                self._search(family, family.least)
        return self.chosen

    @property
    def chosen(self) -> Tried | None:
        """With as many GPUs aggregated workers win: there is less to go wrong."""
        return min(
            self.best.values(), key=lambda tried: (tried.split.gpus, tried.split.prefill is not None), default=None
        )

    def _limit(self, family: Family) -> int:
        """What it may cost to be of interest."""
        found = self.chosen
        if found is None:
            return self._max_gpus
        behind = family.prefill is not None and found.split.prefill is None
        return found.split.gpus - (1 if behind else 0)

    def _ask(self, split: Split) -> Tried:
        if split not in self.tried:
            self.tried[split] = self._try(split)
        return self.tried[split]

    def _search(self, family: Family, least: Split) -> None:
        limit = self._limit(family)
        todo, too_few = [least], least.decode.replicas - 1
        while todo:
            split = min(todo, key=lambda each: each.gpus)
            todo.remove(split)
            tried = self._ask(split)
            if tried.good:
                self._keep(self._smallest(family, tried) if split.prefill else self._between(too_few, tried))
                return
            too_few = split.decode.replicas
            todo += [each for each in _larger(tried) if each.gpus <= limit and each not in {*self.tried, *todo}]

    def _between(self, low: int, good: Tried) -> Tried:
        """Of aggregated splits, halving. `low` are too few."""
        layout = good.split.decode.layout
        while good.split.decode.replicas > low + 1:
            middle = self._ask(Split(Part(layout, (low + good.split.decode.replicas) // 2)))
            if middle.good:
                good = middle
            else:
                low = middle.split.decode.replicas
        return good

    def _smallest(self, family: Family, good: Tried) -> Tried:
        """Takes workers away, as long as it keeps to the targets."""
        while True:
            fewer = [self._ask(split) for split in smaller(good.split) if family.possible(split)]
            better = [tried for tried in fewer if tried.good]
            if not better:
                return good
            good = min(better, key=lambda tried: (tried.split.gpus, tried.worst))

    def _keep(self, tried: Tried) -> None:
        key = tried.split.prefill is not None
        if key not in self.best or (tried.split.gpus, tried.worst) < (self.best[key].split.gpus, self.best[key].worst):
            self.best[key] = tried

    def next_cheaper(self, chosen: Tried, ordered: Sequence[Family]) -> Tried | None:
        """That misses least; None: what is cheaper is ruled out by arithmetic."""
        family = next(each for each in ordered if each.holds(chosen.split))
        for split in smaller(chosen.split):
            if family.possible(split):
                self._ask(split)
        cheaper = [tried for tried in self.tried.values() if tried.split.gpus < chosen.split.gpus]
        return min(cheaper, key=lambda tried: (-tried.split.gpus, tried.worst), default=None)


class Found(msgspec.Struct, frozen=True, kw_only=True):
    chosen: Tried | None
    next_cheaper: Tried | None  # or the closest, where nothing was chosen
    best_aggregated: Tried | None
    best_disaggregated: Tried | None
    load_held: float  # times the workload's rate, of those that were tried
    breaks_first: str  # what is missed beyond that; nothing was up to the largest that was tried
    tried: list[Tried]


def find(ask: Callable[[Question], Tried], ordered: Sequence[Family], max_gpus: int) -> Found:
    """The cheapest, and what there is to say of it."""
    search = Search(lambda split: ask(Question(split)), max_gpus)
    chosen = search.run(ordered)
    held, breaks = _margin(ask, chosen.split) if chosen else (0.0, "")
    cheaper = search.next_cheaper(chosen, ordered) if chosen else min(search.tried.values(), key=_worst, default=None)
    return Found(
        chosen=chosen,
        next_cheaper=cheaper,
        best_aggregated=search.best.get(False),
        best_disaggregated=search.best.get(True),
        load_held=held,
        breaks_first=breaks,
        tried=list(search.tried.values()),
    )


def _margin(ask: Callable[[Question], Tried], split: Split) -> tuple[float, str]:
    held = 1.0
    for load in LOADS:
        tried = ask(Question(split, load))
        if not tried.good:
            return held, tried.misses
        held = load
    return held, ""


def _worst(tried: Tried) -> float:
    return tried.worst


def smaller(split: Split) -> Iterator[Split]:
    if split.decode.replicas > 1:
        yield Split(_with(split.decode, -1), split.prefill)
    if split.prefill is not None and split.prefill.replicas > 1:
        yield Split(split.decode, _with(split.prefill, -1))


def _larger(tried: Tried) -> list[Split]:
    """More of what its miss asks for. First tokens may wait for a worker that prefills or for a place to decode."""
    decode, prefill = tried.split.decode, tried.split.prefill
    more = _with(decode, _stride(decode))
    if prefill is None:
        return [Split(more)]
    if tried.ttft_of_target <= 1:
        return [Split(more, prefill)]
    more_prefill = _with(prefill, _stride(prefill))
    if _stride(prefill) > 1:  # of many workers not all mixtures are tried
        return [Split(more if tried.itl_of_target > 1 or math.isinf(tried.ttft_s) else decode, more_prefill)]
    return [Split(decode, more_prefill), Split(more, prefill)]


def _stride(part: Part) -> int:
    return max(1, part.replicas // STRIDE)


def _with(part: Part, more: int) -> Part:
    return Part(part.layout, part.replicas + more)
