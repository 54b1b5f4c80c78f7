"""Splits of the same layouts, and which of them arithmetic does not rule out.

Pure.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import msgspec

from launcher.twin.needs import Needs
from launcher.twin.splits import Part, Split

EXACT = 1e-9  # workers that rounding may make more of


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

    def holds(self, split: Split) -> bool:
        prefill = None if self.prefill is None else self.prefill.layout
        return (self.decode.layout, prefill) == (split.decode.layout, split.prefill and split.prefill.layout)

    def possible(self, split: Split) -> bool:
        """Not that it is enough."""
        num = 0 if split.prefill is None else split.prefill.replicas
        return split.decode.replicas + EXACT >= self._decode_at_least(num)

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
    """By what they cost at the least; aggregated first where that is the same."""
    found = [Family(each) for each in needs]
    found += [Family(decode, prefill) for decode in needs for prefill in needs]
    able = [
        (family.least.gpus, family.prefill is not None, number, family)
        for number, family in enumerate(found)
        if family.least is not None and (family.prefill is None or handing_over(family.least))
    ]
    return [family for *_, family in sorted(able, key=lambda each: each[:3])]
