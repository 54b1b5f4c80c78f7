"""The paged KV memory of the simulated engine: ref-counted blocks and an LRU prefix cache over them.

Pure. Owns which block is referenced, cached or free, and what each block really holds. Knows no request.
A block has a key (what the cache takes it for) and a content (what was last computed or copied into it):
a late reader finds the content of whoever has the block by then, as on a real device.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

NO_KEY = 0
_MASK = (1 << 64) - 1


def chain(parent: int, token_ids: Iterable[int]) -> int:
    """The rolling 64-bit hash of a prefix. Integers hash without a seed: the same in every process."""
    return hash((parent, *token_ids)) & _MASK


class BlockPool:
    """Every block is in exactly one of: referenced, cached (`_lru`), free (`_free`)."""

    def __init__(self, num_blocks: int) -> None:
        self.refs = [0] * num_blocks
        self.keys = [NO_KEY] * num_blocks
        self.contents = [0] * num_blocks
        self._by_key: dict[int, int] = {}
        self._free = list(range(num_blocks - 1, -1, -1))
        # Oldest first. Of a plain dictionary the first entry is found by walking over those deleted.
        self._lru: OrderedDict[int, None] = OrderedDict()
        self._evicted: list[int] = []

    @property
    def num_available(self) -> int:
        return len(self._free) + len(self._lru)

    @property
    def usage(self) -> float:
        return 1 - self.num_available / len(self.refs)

    def find(self, keys: Iterable[int]) -> list[int]:
        """The blocks of the longest cached prefix."""
        found = []
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                break
            found.append(block)
        return found

    def num_unreferenced(self, blocks: Iterable[int]) -> int:
        return sum(self.refs[block] == 0 for block in blocks)

    def reference(self, blocks: Iterable[int]) -> None:
        """Share blocks that `find` returned."""
        for block in blocks:
            self._lru.pop(block, None)
            self.refs[block] += 1

    def allocate(self, num_blocks: int) -> list[int]:
        """Blocks for new content; their old content stays until it is overwritten."""
        assert num_blocks <= self.num_available, "the scheduler checks before it allocates"
        blocks = []
        for _ in range(num_blocks):
            block = self._free.pop() if self._free else self._evict()
            self.refs[block] = 1
            blocks.append(block)
        return blocks

    def _evict(self) -> int:
        block, _ = self._lru.popitem(last=False)
        key, self.keys[block] = self.keys[block], NO_KEY
        del self._by_key[key]
        self._evicted.append(key)
        return block

    def fill(self, block: int, key: int, content: int) -> bool:
        """A full block was computed or copied. True if it is the first one with this key."""
        self.contents[block] = content
        if key in self._by_key:
            return False
        self._by_key[key] = block
        self.keys[block] = key
        return True

    def drop(self, blocks: Sequence[int]) -> None:
        """Give up one reference each. A sequence's last block is the first to be evicted."""
        for block in reversed(blocks):
            self.refs[block] -= 1
            if self.refs[block] == 0:
                if self.keys[block] == NO_KEY:
                    self._free.append(block)
                else:
                    self._lru[block] = None

    def take_evicted(self) -> list[int]:
        """The keys that left the cache since the last call."""
        evicted, self._evicted = self._evicted, []
        return evicted
