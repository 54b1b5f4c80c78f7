"""What one proxy is still to be told of a digest: numbered, in pieces, a snapshot first.

Pure. A proxy that does not keep up is not told every change late, but a snapshot when it has room again.
"""

from __future__ import annotations

from array import array
from collections import deque
from typing import TypeAlias

from workers.digest.chains import pack
from workers.digest.digest import Changes, HeldBlocks
from workers.kv_messages import Digest

# Of one message: a proxy takes them in one by one, between its streams.
PIECE_BLOCKS = 8192
MAX_QUEUED_BLOCKS = 1 << 18

Piece: TypeAlias = "tuple[array[int], array[int], float | None]"  # added, removed, since when


class Telling:
    """To one proxy, of one rank's blocks."""

    def __init__(self, held: HeldBlocks, dp_rank: int) -> None:
        self._held = held
        self._dp_rank = dp_rank
        self._epoch = held.epoch
        self._queue: deque[Piece] = deque()
        self._num_queued = 0
        self._seq = 0
        self._anew = True

    @property
    def has_more(self) -> bool:
        return self._anew or bool(self._queue)

    def begin_anew(self) -> None:
        """With a snapshot, made when there is room for it."""
        self._anew = True
        self._queue.clear()
        self._num_queued = 0

    def changed(self, changes: Changes) -> None:
        if changes.epoch != self._epoch or self._num_queued > MAX_QUEUED_BLOCKS:
            self.begin_anew()
        if not self._anew:
            for start in range(0, len(changes.removed), PIECE_BLOCKS):
                self._put(array("Q"), changes.removed[start : start + PIECE_BLOCKS], changes.since)
            self._put_added(changes.added, changes.since)

    def next(self, unix: float) -> Digest:
        """Only if there is more, and with no changes that are still to be told."""
        if snapshot := self._anew:
            self._anew, self._epoch = False, self._held.epoch
            self._put_added(self._held.snapshot(), None)
            if not self._queue:
                self._put(array("Q"), array("Q"), None)
        added, removed, since = self._queue.popleft()
        self._num_queued -= len(added) + len(removed)
        self._seq += 1
        age_s = 0.0 if since is None else max(0.0, unix - since)
        return Digest(self._dp_rank, self._epoch, self._seq, pack(added), pack(removed), snapshot, age_s)

    def _put_added(self, added: array[int], since: float | None) -> None:
        for start in range(0, len(added), PIECE_BLOCKS):
            self._put(added[start : start + PIECE_BLOCKS], array("Q"), since)

    def _put(self, added: array[int], removed: array[int], since: float | None) -> None:
        self._queue.append((added, removed, since))
        self._num_queued += len(added) + len(removed)
