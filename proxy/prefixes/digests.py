"""What hosts tell of their caches, brought into the index: piece by piece in order, or asked for anew.

Pure: one mutator, `apply(event) -> effects`. Owns how far each target has been followed. The index claims nothing of a
target that cannot be followed any more.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from proxy.fleet.worker import Key
from proxy.prefixes.prefix_index import PrefixIndex, Target
from workers.digest.chains import unpack
from workers.kv_messages import Digest

# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Met:
    """A worker's host has registered, in a session of its own."""

    key: Key
    dp_ranks: int


@dataclass(frozen=True, slots=True)
class Told:
    key: Key
    digest: Digest


@dataclass(frozen=True, slots=True)
class Left:
    """Its engine, or the link to it, is gone."""

    key: Key


Event = Met | Told | Left

# ---------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class Want:
    """A snapshot, and what changes after it. `again`: what was told does not fit together."""

    key: Key
    dp_rank: int
    again: bool


@dataclass(slots=True)
class Followed:
    """How far. `whole`: the index holds what the host has told, not less."""

    epoch: int = 0
    seq: int = 0
    whole: bool = False
    lag_s: float = 0.0  # between a change in the engine and the host's word


class Digests:
    """Of all targets whose hosts have registered."""

    def __init__(self, index: PrefixIndex) -> None:
        self._index = index
        self._followed: dict[Target, Followed] = {}

    @property
    def followed(self) -> Mapping[Target, Followed]:
        return self._followed

    def apply(self, event: Event) -> list[Want]:
        match event:
            case Told(key, digest):
                return self._follow((key, digest.dp_rank), digest)
            case Met(key, dp_ranks):
                self._leave(key)
                for rank in range(dp_ranks):
                    self._followed[key, rank] = Followed()
                return [Want(key, rank, False) for rank in range(dp_ranks)]
            case Left(key):
                self._leave(key)
                return []

    def _leave(self, key: Key) -> None:
        for target in [target for target in self._followed if target[0] == key]:
            del self._followed[target]
            self._index.clear(target)

    def _follow(self, target: Target, digest: Digest) -> list[Want]:
        at = self._followed.get(target)
        if at is None:  # a rank that nobody asked for
            return []
        if digest.snapshot:
            self._index.clear(target)
            at.epoch, at.seq, at.whole = digest.epoch, digest.seq, True
        elif not at.whole:  # on its way before the snapshot
            return []
        elif (digest.epoch, digest.seq) != (at.epoch, at.seq + 1):
            return self._lose(target, at)
        at.seq, at.lag_s = digest.seq, digest.age_s
        self._index.remove(target, unpack(digest.removed))
        self._index.store(target, unpack(digest.added))
        return []

    def _lose(self, target: Target, at: Followed) -> list[Want]:
        self._index.clear(target)
        at.whole = False
        return [Want(*target, True)]
