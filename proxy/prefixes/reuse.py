"""How often prompts have gone on from where a cached prefix ends: what many prompts share stands out from what one
conversation grows, whose every turn ends at a block of its own.

Pure. Owns the counts, few of them: when there are too many all are halved, so that what is no longer used fades.
"""

from __future__ import annotations

MAX_COUNTS = 4096


class Reuse:
    def __init__(self) -> None:
        self._counts: dict[int, int] = {}

    def of(self, block: int) -> int:
        return self._counts.get(block, 0)

    def add(self, block: int) -> None:
        self._counts[block] = self._counts.get(block, 0) + 1
        if len(self._counts) > MAX_COUNTS:
            self._counts = {key: count // 2 for key, count in self._counts.items() if count > 1}
