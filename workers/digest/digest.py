"""The digest of an engine's prefix cache: which blocks it holds, by hashes that do not depend on the engine.

Pure. Owns which of the engine's hashes is which of ours, what has changed since it was last told, and when what was
told cannot be continued (the epoch). Never claims a block that may be gone: what is not understood is not told.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from workers.digest import kv_events
from workers.digest.chains import NO_PARENT, Hasher, extra
from workers.digest.kv_feed import Lost, Take


@dataclass(frozen=True, slots=True)
class Changes:
    """Since the last ones. Nothing of an epoch but the last is worth telling: it begins with all that is held."""

    epoch: int
    added: array[int]
    removed: array[int]
    since: float | None  # unix time of the oldest event among them


class HeldBlocks:
    """Of one engine, or of one rank of it. `fault`: why its cache has no digest."""

    def __init__(self, hasher: Hasher, block_size: int) -> None:
        self._hasher = hasher
        self._block_size = block_size
        self._ours: dict[kv_events.Key, int] = {}
        self._more: dict[kv_events.Key, int] = {}  # copies beyond the first
        self._added: dict[int, None] = {}
        self._removed: dict[int, None] = {}
        self._since: float | None = None
        self.epoch = 0
        self.fault: str | None = None

    def __len__(self) -> int:
        return len(self._ours)

    def snapshot(self) -> array[int]:
        return array("Q", self._ours.values())

    def apply(self, told: Take | Lost) -> None:
        if self.fault is not None:
            return
        if isinstance(told, Lost):
            self._clear()
            return
        if self._since is None:
            self._since = told.batch.ts
        for event in told.batch.events:
            if isinstance(event, kv_events.AllBlocksCleared):
                self._clear()
            elif event.medium != kv_events.MEDIUM:
                continue
            elif isinstance(event, kv_events.BlockRemoved):
                self._remove(event)
            elif (fault := self._fault_of(event)) is None:
                self._store(event)
            else:
                self.give_up(fault)
                return

    def give_up(self, fault: str) -> None:
        """There is no digest from here on."""
        self.fault = fault
        self._clear()

    def changes(self) -> Changes:
        """What one turn of the loop has brought, as one."""
        changes = Changes(self.epoch, array("Q", self._added), array("Q", self._removed), self._since)
        self._added, self._removed, self._since = {}, {}, None
        return changes

    def _clear(self) -> None:
        self.epoch += 1
        for blocks in (self._ours, self._more, self._added, self._removed):
            blocks.clear()

    def _fault_of(self, stored: kv_events.BlockStored) -> str | None:
        if stored.kv_cache_spec_kind not in (None, *kv_events.FULL_ATTENTION):
            return f"some of its layers keep {stored.kv_cache_spec_kind} state, not all of a prefix"
        if stored.group_idx:
            return "its layers' caches are several groups"
        if stored.block_size != self._block_size:
            return f"its cache has blocks of {stored.block_size} tokens, not {self._block_size}"
        if len(stored.token_ids) != len(stored.block_hashes) * stored.block_size:
            return "it keeps only parts of a prefix"
        return None

    def _store(self, stored: kv_events.BlockStored) -> None:
        parent = NO_PARENT if stored.parent_block_hash is None else self._ours.get(stored.parent_block_hash)
        if parent is None:  # it went with what was lost
            return
        ours = self._hasher.chain(stored.token_ids, self._block_size, _extras(stored), parent)
        for key, block in zip(stored.block_hashes, ours, strict=True):
            if key in self._ours:
                self._more[key] = self._more.get(key, 0) + 1
                continue
            self._ours[key] = block
            if block in self._removed:
                del self._removed[block]
            else:
                self._added[block] = None

    def _remove(self, removed: kv_events.BlockRemoved) -> None:
        for key in removed.block_hashes:
            if key in self._more:
                self._forget_copy(key)
            elif (block := self._ours.pop(key, None)) is None:
                continue
            elif block in self._added:
                del self._added[block]
            else:
                self._removed[block] = None

    def _forget_copy(self, key: kv_events.Key) -> None:
        self._more[key] -= 1
        if not self._more[key]:
            del self._more[key]


def _extras(stored: kv_events.BlockStored) -> dict[int, bytes]:
    """vLLM tells the adapter's name twice: beside the keys and as the first of them."""
    if stored.extra_keys is None:
        return {}
    first = 0 if stored.lora_name is None else 1
    return {
        number: extra(stored.lora_name, keys[first:])
        for number, keys in enumerate(stored.extra_keys)
        if keys is not None
    }
