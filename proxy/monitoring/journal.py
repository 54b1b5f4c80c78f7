"""What has happened to the workers lately, for people: when, who, what. The logs have the rest.

Pure: unix time is an argument. Memory is bounded.
"""

from __future__ import annotations

from collections import deque

import msgspec

from proxy.fleet.worker import Key

MAX_ENTRIES = 64
MAX_TEXT = 300
# How the news of a worker's end begins: it was asked to, or it was not.
GONE, LOST = "gone", "lost"


class Entry(msgspec.Struct, frozen=True):
    at: float  # unix
    worker: str
    generation: int
    text: str


class Journal:
    """Oldest first."""

    def __init__(self) -> None:
        self.entries: deque[Entry] = deque(maxlen=MAX_ENTRIES)

    def note(self, unix: float, key: Key, text: str) -> None:
        self.entries.append(Entry(round(unix, 1), *key, text.split("\n")[0][:MAX_TEXT]))
