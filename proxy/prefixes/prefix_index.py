"""Which worker holds which KV block: for a chain of block hashes, how many leading blocks each target has.

Pure, and small: a block costs one dictionary entry, whoever holds it. Its holders are the bits of one shared
integer. A target that is cleared loses its bit at once; its entries go with later changes, a few with each. Knows
nothing of prompts, and of requests only the promise that a target is about to hold some blocks.
"""

from __future__ import annotations

import sys
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import repeat

import msgspec

from proxy.fleet.worker import Key
from proxy.prefixes.reuse import Reuse

Target = tuple[Key, int]  # (worker, dp rank)

# Integers of 60 bits take 32 bytes, those of 64 bits 48: the lowest bits choose the shard.
SHARD_BITS = 6
_LAST_SHARD = (1 << SHARD_BITS) - 1
_KEY_SHIFT = 4
MAX_MASKS = 4096  # sets of holders that are shared
SPARSE_BYTES = 64  # per entry: a dictionary that entries leave and enter grows to more than twice of that

Shard = dict[int, int]

MARK_EVERY = 8  # blocks, and an 8th to a 16th of those before
MAX_MARKED = 1 << 20  # blocks of a chain


def _grid() -> list[int]:
    depths = [MARK_EVERY]
    while depths[-1] < MAX_MARKED:
        depths.append(depths[-1] + max(MARK_EVERY, 1 << depths[-1].bit_length() >> 4))
    return depths


_GRID = _grid()


class Marks(msgspec.Struct, frozen=True):
    """What a prompt is promised by: `hashes[i]` stands for all up to `ends[i]`, in blocks or in bytes."""

    hashes: Sequence[int]
    ends: Sequence[int]
    start: int = 0  # so much more lies before the first end
    blocks_each: float = 1.0  # of one byte

    def depth(self, num: int) -> int:
        """So many blocks the first of these stand for."""
        return int(self.blocks_each * (self.start + self.ends[num - 1])) if num else 0


NO_MARKS = Marks((), ())


def mark_depths(num_blocks: int) -> list[int]:
    """Behind how many blocks of a chain one is looked at: it stands for those before it. The last is among them."""
    return [*_GRID[: bisect_left(_GRID, num_blocks)], num_blocks] if num_blocks else []


def marks_of(chain: Sequence[int]) -> Marks:
    """Of a prompt that is known block by block."""
    depths = mark_depths(len(chain))
    return Marks([chain[depth - 1] for depth in depths], depths)


class PrefixIndex:
    """Hashes are unsigned 64-bit integers; an unknown target holds nothing."""

    def __init__(self) -> None:
        self._held: list[Shard] = [{} for _ in range(_LAST_SHARD + 1)]
        self._promised: Shard = {}
        self.reuse = Reuse()
        self._masks: dict[int, int] = {}  # each set of holders once, however many blocks have it
        self._slots: dict[Target, int] = {}
        self._targets: dict[int, Target] = {}
        self._num_of: dict[int, int] = {}  # blocks by slot
        self._live = 0  # bits of all slots in use
        self._dead: list[tuple[int, int]] = []  # (bit, shards to sweep until it may be used again)
        self._next_shard = 0

    @property
    def num_blocks(self) -> int:
        """Entries, those of cleared targets included until they are swept."""
        return sum(len(shard) for shard in self._held)

    def blocks_of(self, target: Target) -> int:
        slot = self._slots.get(target)
        return 0 if slot is None else self._num_of[slot]

    # ------------------------------------------------------------ what targets hold

    def store(self, target: Target, hashes: Iterable[int]) -> None:
        self._tidy()
        slot = self._slot(target)
        bit, held, masks, num_new = 1 << slot, self._held, self._masks, 0
        for block in hashes:
            shard, key = held[block & _LAST_SHARD], block >> _KEY_SHIFT
            mask = shard.get(key, 0)
            if not mask & bit:
                num_new += 1
                shard[key] = masks.setdefault(mask | bit, mask | bit)
        self._num_of[slot] += num_new

    def remove(self, target: Target, hashes: Iterable[int]) -> None:
        """Of a block that the target does not hold this says nothing new."""
        self._tidy()
        slot = self._slots.get(target)
        if slot is None:
            return
        bit, held, masks, num_gone = 1 << slot, self._held, self._masks, 0
        for block in hashes:
            shard, key = held[block & _LAST_SHARD], block >> _KEY_SHIFT
            mask = shard.get(key, 0)
            if mask & bit:
                num_gone += 1
                if mask == bit:
                    del shard[key]
                else:
                    shard[key] = masks.setdefault(mask ^ bit, mask ^ bit)
        self._num_of[slot] -= num_gone

    def clear(self, target: Target) -> None:
        """It holds nothing any more, and nothing that it was promised."""
        slot = self._slots.pop(target, None)
        if slot is not None:
            del self._targets[slot], self._num_of[slot]
            self._live &= ~(1 << slot)
            self._dead.append((1 << slot, _LAST_SHARD + 1))
        self._tidy()

    # ------------------------------------------------------------ what they are about to hold

    def promise(self, target: Target, marks: Marks) -> None:
        """A request on its way there will make it hold this prompt; `keep` ends that."""
        bit, promised = 1 << self._slot(target), self._promised
        for part in marks.hashes:
            promised[part] = promised.get(part, 0) | bit

    def keep(self, target: Target, marks: Marks) -> None:
        """From here on only what the target says counts."""
        slot, promised = self._slots.get(target), self._promised
        others = self._live if slot is None else self._live & ~(1 << slot)
        for part in marks.hashes:
            if mask := promised.pop(part, 0) & others:
                promised[part] = mask

    # ------------------------------------------------------------ the question

    def leading(self, chain: Sequence[int], marks: Marks = NO_MARKS) -> dict[Target, int]:
        """How many leading blocks each target holds or is promised; those without any are left out.

        Engines give up the last blocks of a prompt first: who holds a block is taken to hold those before it, and
        only where a target's blocks end each is looked at. What is promised ends at a mark.
        """
        found: dict[Target, int] = {}
        self._find_promised(marks, found)
        held, still, past = self._held, self._live, 0
        for at in mark_depths(len(chain)):
            block = chain[at - 1]
            mask = held[block & _LAST_SHARD].get(block >> _KEY_SHIFT, 0)
            if still & mask != still:
                lost = still & ~mask
                still ^= lost
                self._find_ends(lost, chain, past, at, found)
                if not still:
                    return found
            past = at
        self._note(still, past, found)
        return found

    def _find_promised(self, marks: Marks, found: dict[Target, int]) -> None:
        still = self._live
        for number, mask in enumerate(map(self._promised.get, marks.hashes, repeat(0))):
            if still & mask != still:
                self._note(still & ~mask, marks.depth(number), found)
                still &= mask
                if not still:
                    return
        self._note(still, marks.depth(len(marks.ends)), found)

    def _find_ends(self, bits: int, chain: Sequence[int], past: int, end: int, found: dict[Target, int]) -> None:
        """Of targets that lack the last of these blocks."""
        for depth in range(past, end):
            block = chain[depth]
            lost = bits & ~self._held[block & _LAST_SHARD].get(block >> _KEY_SHIFT, 0)
            if lost:
                self._note(lost, depth, found)
                bits ^= lost
                if not bits:
                    return

    def _note(self, bits: int, depth: int, found: dict[Target, int]) -> None:
        while bits and depth:
            lowest = bits & -bits
            target = self._targets[lowest.bit_length() - 1]
            found[target] = max(depth, found.get(target, 0))
            bits ^= lowest

    # ------------------------------------------------------------ slots

    def _slot(self, target: Target) -> int:
        slot = self._slots.get(target)
        if slot is None:
            used = self._live | sum(bit for bit, _ in self._dead)
            slot = (~used & (used + 1)).bit_length() - 1
            self._slots[target], self._targets[slot], self._num_of[slot] = slot, target, 0
            self._live |= 1 << slot
        return slot

    def _tidy(self) -> None:
        """One shard per change: at no time does the loop stand still for all of them."""
        if len(self._masks) > MAX_MASKS:
            self._masks = {}  # those in use live on, and are shared anew from here
        if self._dead:
            self._drop_dead(self._held[self._next_shard])
            if any(left == 1 for _, left in self._dead):
                self._drop_dead(self._promised)
            self._dead = [(bit, left - 1) for bit, left in self._dead if left > 1]
        shard = self._held[self._next_shard]
        if sys.getsizeof(shard) > SPARSE_BYTES * (len(shard) + 1):
            self._held[self._next_shard] = dict(shard)
        self._next_shard = (self._next_shard + 1) & _LAST_SHARD

    def _drop_dead(self, shard: Shard) -> None:
        live, masks = self._live, self._masks
        for key, mask in [(key, mask) for key, mask in shard.items() if mask & ~live]:
            if mask & live:
                shard[key] = masks.setdefault(mask & live, mask & live)
            else:
                del shard[key]
