"""Splits of the same layouts, and which of them arithmetic does not rule out.

Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import msgspec

from launcher.twin.needs import Needs
from launcher.twin.splits import Layout, Part, Split

EXACT = 1e-9  # workers that rounding may make more of
DEARER = 1.05  # in GPUs


class Family(msgspec.Struct, frozen=True):
    decode: Needs
    prefill: Needs | None = None

    @property
    def least(self) -> Split | None:
        """None: no number of them can do it."""
        if self.prefill is None:
            return _split(self.decode, self.decode.both) if math.isfinite(self.decode.both) else None
        if not math.isfinite(self.prefill.prefill + self.decode.decode):
            return None
        numbers = range(1, 1 + _count(self.prefill.prefill))
        needed = {number: self._decode_at_least(number) for number in numbers}
        parts = {number: Part(self.prefill.layout, number) for number in numbers if math.isfinite(needed[number])}
        pairs = [_split(self.decode, needed[number], part) for number, part in parts.items()]
        return min(pairs, key=lambda split: (split.gpus, split.decode.gpus))

    def times(self, load: float) -> Family:
        return Family(self.decode.times(load), self.prefill and self.prefill.times(load))

    def holds(self, split: Split) -> bool:
        prefill = None if self.prefill is None else self.prefill.layout
        return (self.decode.layout, prefill) == (split.decode.layout, split.prefill and split.prefill.layout)

    def possible(self, split: Split) -> bool:
        """Not that it is enough."""
        num = 0 if split.prefill is None else split.prefill.replicas
        return split.decode.replicas + EXACT >= self._decode_at_least(num)

    def splits(self, gpus: int) -> list[Split]:
        """Of exactly so many, the most balanced first: those whose fuller part is least full."""
        if self.prefill is None:
            count, rest = divmod(gpus, self.decode.layout.gpus)
            found = [] if rest else [Split(Part(self.decode.layout, count))]
        else:
            found = list(self._pairs(gpus, self.prefill.layout))
        return sorted(filter(self.possible, found), key=self._fullness)

    def _pairs(self, gpus: int, layout: Layout) -> Iterator[Split]:
        for number in range(1, gpus // layout.gpus + 1):
            count, rest = divmod(gpus - number * layout.gpus, self.decode.layout.gpus)
            if count and not rest:
                yield Split(Part(self.decode.layout, count), Part(layout, number))

    def _fullness(self, split: Split) -> float:
        num = 0 if split.prefill is None else split.prefill.replicas
        decode = self._decode_at_least(num) / split.decode.replicas
        return decode if self.prefill is None else max(decode, min(1.0, self.prefill.prefill / num))

    def _decode_at_least(self, num_prefill: int) -> float:
        """Prompts that no prefill worker has time for are computed where they are decoded."""
        if self.prefill is None:
            return self.decode.both
        rest = max(0.0, 1 - num_prefill / self.prefill.prefill)
        if not math.isfinite(self.decode.both):
            # It would compute each of them too late; of a few that is allowed.
            return self.decode.decode if num_prefill >= int(self.prefill.prefill) else math.inf
        spared = (1 - rest) * self.decode.prefill
        return max(self.decode.decode, self.decode.both - spared)


def _split(decode: Needs, num_decode: float, prefill: Part | None = None) -> Split:
    return Split(Part(decode.layout, _count(num_decode)), prefill)


def _count(needed: float) -> int:
    return max(1, math.ceil(needed - EXACT))


def families(needs: Sequence[Needs], handing_over: Callable[[Split], bool]) -> list[Family]:
    """By what they cost at the least; aggregated first where that is the same. Of layouts to prefill in, those that
    compute prompts dearer are left out: there is nothing else to them."""
    able = [Family(each) for each in needs]
    for decode in needs:
        pairs = [Family(decode, prefill) for prefill in needs]
        pairs = [pair for pair in pairs if pair.least is not None and handing_over(pair.least)]
        dearest = DEARER * min(map(_prefill_gpus, pairs), default=0.0)
        able += [pair for pair in pairs if _prefill_gpus(pair) <= dearest]
    ordered = [
        (family.least.gpus, family.prefill is not None, number, family)
        for number, family in enumerate(able)
        if family.least is not None
    ]
    return [family for *_, family in sorted(ordered, key=lambda each: each[:3])]


def _prefill_gpus(family: Family) -> float:
    assert family.prefill is not None
    return family.prefill.prefill * family.prefill.layout.gpus
