"""The network between virtual engines: each has a link per direction, and transfers share links fairly.

Pure. A transfer runs at the smaller of its shares at both ends; all rates are worked out anew when one begins or ends.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

NEVER = float("inf")
_DONE_S = 1e-9  # what rounding of the clock leaves


@dataclass(slots=True)
class _Transfer:
    source: str
    target: str
    left_bytes: float
    bytes_per_s: float = 0.0


class Links:
    def __init__(self, bytes_per_s: Mapping[str, float]) -> None:
        self._bytes_per_s = bytes_per_s
        self._transfers: dict[int, _Transfer] = {}
        self._now = 0.0
        self.next_at = NEVER

    def start(self, id: int, source: str, target: str, num_bytes: int, now: float) -> None:
        self._move_on(now)
        self._transfers[id] = _Transfer(source, target, num_bytes)
        self._share(now)

    def stop(self, id: int, now: float) -> None:
        """Nothing happens where it is over."""
        self._move_on(now)
        self._transfers.pop(id, None)
        self._share(now)

    def take_done(self, now: float) -> list[int]:
        """Due at `next_at`."""
        self._move_on(now)
        done = [id for id, transfer in self._transfers.items() if transfer.left_bytes <= transfer.bytes_per_s * _DONE_S]
        for id in done:
            del self._transfers[id]
        self._share(now)
        return done

    def _move_on(self, now: float) -> None:
        for transfer in self._transfers.values():
            transfer.left_bytes -= transfer.bytes_per_s * (now - self._now)
        self._now = now

    def _share(self, now: float) -> None:
        outgoing = Counter(transfer.source for transfer in self._transfers.values())
        incoming = Counter(transfer.target for transfer in self._transfers.values())
        self.next_at = NEVER
        for transfer in self._transfers.values():
            transfer.bytes_per_s = min(
                self._bytes_per_s[transfer.source] / outgoing[transfer.source],
                self._bytes_per_s[transfer.target] / incoming[transfer.target],
            )
            self.next_at = min(self.next_at, now + max(0.0, transfer.left_bytes) / transfer.bytes_per_s)
