"""All that a process has counted since its start, and what those before it have: it only ever grows.

Pure. Plain integers, here and in `traffic`: the streaming path must not pay for labels and locks.
"""

from __future__ import annotations

import msgspec

from proxy.monitoring.history import History
from proxy.monitoring.traffic import Traffic, add


class Totals(msgspec.Struct):
    """`requests` by (path, status)."""

    requests: dict[tuple[str, int], int] = msgspec.field(default_factory=dict)
    num_chunks: int = 0
    num_resyncs: int = 0  # of workers' digests
    num_resumed: int = 0  # streams taken up elsewhere
    traffic: Traffic = msgspec.field(default_factory=Traffic)

    def answered(self, path: str, status: int) -> None:
        add(self.requests, (path, status), 1)

    def since(self, start: int) -> Totals:
        """The same, but of the last hour only what begins at `start` or later."""
        history = History([interval for interval in self.traffic.history.intervals if interval.start >= start])
        return msgspec.structs.replace(self, traffic=msgspec.structs.replace(self.traffic, history=history))

    def include(self, other: Totals) -> None:
        """What another process has counted."""
        for answer, number in other.requests.items():
            add(self.requests, answer, number)
        self.num_chunks += other.num_chunks
        self.num_resyncs += other.num_resyncs
        self.num_resumed += other.num_resumed
        self.traffic.include(other.traffic)
