"""The blocks of one simulated engine: how many are free, which prefixes are cached, and which go next.

Pure. A block with a hash is known by it, all others are only counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class Cache:
    def __init__(self, num_blocks: int) -> None:
        self.num_blocks = num_blocks
        self.num_free = num_blocks
        self._refs: dict[int, int] = {}  # cached and in use
        # Cached and not in use, oldest first. A plain dictionary walks over deleted entries to find its first.
        self._lru: OrderedDict[int, None] = OrderedDict()
        self._evicted: list[int] = []

    @property
    def num_available(self) -> int:
        return self.num_free + len(self._lru)

    @property
    def num_used(self) -> int:
        return self.num_blocks - self.num_free - len(self._lru)

    @property
    def usage(self) -> float:
        return self.num_used / self.num_blocks

    def find(self, chain: Sequence[int], limit: int) -> int:
        """How many leading blocks are cached."""
        refs, lru = self._refs, self._lru
        found = 0
        for block in chain:
            if found == limit or (block not in refs and block not in lru):
                break
            found += 1
        return found

    def num_unused(self, blocks: Iterable[int]) -> int:
        lru = self._lru
        return sum(block in lru for block in blocks)

    def share(self, blocks: Iterable[int]) -> None:
        """Use blocks that are cached."""
        refs, lru = self._refs, self._lru
        for block in blocks:
            if block in lru:
                del lru[block]
                refs[block] = 1
            else:
                refs[block] += 1

    def allocate(self, count: int) -> None:
        """Blocks without a hash, at the price of those unused for longest."""
        missing = count - self.num_free
        self.num_free -= count
        if missing > 0:
            oldest = self._lru.popitem
            self._evicted += [oldest(last=False)[0] for _ in range(missing)]
            self.num_free = 0

    def name(self, blocks: Iterable[int]) -> list[int]:
        """Blocks in use have become full. Returns those that were not cached; the others stay nameless copies."""
        refs, lru = self._refs, self._lru
        new = [block for block in blocks if block not in refs and block not in lru]
        for block in new:
            refs[block] = 1
        return new

    def drop(self, blocks: Sequence[int], num_nameless: int) -> None:
        """A sequence's last block is the first to go."""
        refs, lru = self._refs, self._lru
        self.num_free += num_nameless
        for block in reversed(blocks):
            if refs[block] == 1:
                del refs[block]
                lru[block] = None
            else:
                refs[block] -= 1

    def take_evicted(self) -> list[int]:
        """What has left the cache since the last call."""
        evicted, self._evicted = self._evicted, []
        return evicted
