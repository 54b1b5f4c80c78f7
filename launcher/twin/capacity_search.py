"""The cheapest split that keeps to the targets: which splits are tried in which order, and what is made of the answers.

Pure but for `try_split`, which replays one. Where a family of splits cannot be cheaper than what was found already, by
arithmetic alone, it is not tried.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import msgspec

from launcher.twin.families import Family
from launcher.twin.splits import Part, Split

STRIDE = 6  # a count that does not suffice grows by a sixth, or by one
FEW_GPUS = 16
TTFT = "TTFT"
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
        named = ((TTFT, self.ttft_of_target), ("ITL", self.itl_of_target))
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
            self._search(family)
        while self.chosen is not None and (fewer := self._with_one_less(self.chosen, ordered)) is not None:
            self._keep(fewer)
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

    def _search(self, family: Family) -> None:
        """The fewest GPUs of which it has a good split, halving; first, whether it is of interest at all."""
        assert family.least is not None
        sizes = [size for size in range(family.least.gpus, self._limit(family) + 1) if family.splits(size)]
        low, high, found = -1, len(sizes), None
        while low + 1 < high:
            at = self._next(sizes, low) if found is None else (low + high) // 2
            good = self._good_at(family, sizes[at])
            if good is None:
                low = at
            else:
                high, found = at, good
        if found is not None:
            self._keep(found)

    def _next(self, sizes: list[int], low: int) -> int:
        """Before a good one is known. Where another family has one, this has to do it with as many."""
        if self.best:
            return len(sizes) - 1
        least = sizes[low] * (1 + 1 / STRIDE) if low >= 0 else 0
        return next((at for at in range(low + 1, len(sizes)) if sizes[at] >= least), len(sizes) - 1)

    def _good_at(self, family: Family, size: int) -> Tried | None:
        splits = family.splits(size)
        tried = self._ask(splits[0])
        for split in _others(splits, more_to_prefill=tried.ttft_of_target > tried.itl_of_target):
            if tried.good:
                break
            tried = self._ask(split)
        return tried if tried.good else None

    def _with_one_less(self, good: Tried, ordered: Sequence[Family]) -> Tried | None:
        family = _family(good.split, ordered)
        fewer = [self._ask(split) for split in smaller(good.split) if family.possible(split)]
        return min((tried for tried in fewer if tried.good), key=_cost, default=None)

    def _keep(self, tried: Tried) -> None:
        key = tried.split.prefill is not None
        if key not in self.best or _cost(tried) < _cost(self.best[key]):
            self.best[key] = tried

    def next_cheaper(self, chosen: Tried) -> Tried | None:
        """That misses least; None: what is cheaper is ruled out by arithmetic."""
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
    held, breaks = _margin(ask, chosen.split, _family(chosen.split, ordered)) if chosen else (0.0, "")
    cheaper = search.next_cheaper(chosen) if chosen else min(search.tried.values(), key=_worst, default=None)
    return Found(
        chosen=chosen,
        next_cheaper=cheaper,
        best_aggregated=search.best.get(False),
        best_disaggregated=search.best.get(True),
        load_held=held,
        breaks_first=breaks,
        tried=list(search.tried.values()),
    )


def _margin(ask: Callable[[Question], Tried], split: Split, family: Family) -> tuple[float, str]:
    held = 1.0
    for load in LOADS:
        if not family.times(load).possible(split):
            return held, TTFT  # what comes faster than it is served waits ever longer
        tried = ask(Question(split, load))
        if not tried.good:
            return held, tried.misses
        held = load
    return held, ""


def _family(split: Split, ordered: Sequence[Family]) -> Family:
    return next(family for family in ordered if family.holds(split))


def _cost(tried: Tried) -> tuple[int, float]:
    return tried.split.gpus, tried.worst


def _worst(tried: Tried) -> float:
    return tried.worst


def smaller(split: Split) -> Iterator[Split]:
    if split.decode.replicas > 1:
        yield Split(_with(split.decode, -1), split.prefill)
    if split.prefill is not None and split.prefill.replicas > 1:
        yield Split(split.decode, _with(split.prefill, -1))


def _others(splits: Sequence[Split], *, more_to_prefill: bool) -> list[Split]:
    """Beside the first, the most balanced of one size: of few GPUs all; else more of what it misses, and among few
    workers the one with least to prefill, which keeps long prompts from answers, while all others do both."""
    if splits[0].gpus <= FEW_GPUS:
        return list(splits[1:])
    numbers = sorted(splits, key=_num_prefill)
    at = numbers.index(splits[0])
    stride = max(1, at // STRIDE)
    beside = at + stride if more_to_prefill else at - stride
    found = [numbers[beside]] if 0 <= beside < len(numbers) else []
    if stride == 1 and numbers[0] not in {splits[0], *found}:
        found.append(numbers[0])
    return found


def _num_prefill(split: Split) -> int:
    return 0 if split.prefill is None else split.prefill.replicas


def _with(part: Part, more: int) -> Part:
    return Part(part.layout, part.replicas + more)
