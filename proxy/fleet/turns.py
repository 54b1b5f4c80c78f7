"""Whose turn it is to read a model from the shared file system: so many workers at once, in the order of asking.

Pure: one mutator, `apply(event, now) -> the workers that have a turn from now on`. Agents tell every process of the
proxy how they stand, so each keeps the account; only the first hands out, and it waits a moment before it begins:
workers that read already may still be on their way to it. Who reads without having been let is counted like the rest.
"""

from __future__ import annotations

from dataclasses import dataclass

from proxy.fleet.worker import Key
from workers.protocol import Turn

SETTLE_S = 5.0  # of a proxy that was started again, until its workers are back


@dataclass(frozen=True, slots=True)
class Told:
    """By the worker's agent: a word of `Turn`. `waited_s`: how long it has been asking, whomever."""

    key: Key
    turn: str
    waited_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Gone:
    key: Key


@dataclass(frozen=True, slots=True)
class First:
    """Whether this process is the one that hands out."""

    first: bool


@dataclass(frozen=True, slots=True)
class Looked:
    """Time has passed."""


Event = Told | Gone | First | Looked


class Turns:
    """`max_loading` at once."""

    def __init__(self, max_loading: int) -> None:
        self._max_loading = max_loading
        self._hands_out_at: float | None = None  # None: another process does
        self._asked_at: dict[Key, float] = {}  # of those that wait
        self._reading: set[Key] = set()

    def apply(self, event: Event, now: float) -> list[Key]:
        match event:
            case Told(key, turn, waited_s):
                self._tell(key, turn, now - waited_s)
            case Gone(key):
                self._tell(key, Turn.NONE, now)
            case First(first) if first != (self._hands_out_at is not None):
                self._hands_out_at = now + SETTLE_S if first else None
        return self._given(now)

    def before(self, key: Key) -> int | None:
        """How many wait in front of this one. None: it does not wait."""
        order = self._order
        return order.index(key) if key in order else None

    def reads(self, key: Key) -> bool:
        return key in self._reading

    @property
    def _order(self) -> list[Key]:
        return sorted(self._asked_at, key=lambda key: (self._asked_at[key], key))

    def _tell(self, key: Key, turn: str, asked_at: float) -> None:
        if turn == Turn.WAITS:
            if key not in self._reading:  # else its word and ours have crossed
                self._asked_at.setdefault(key, asked_at)
            return
        self._asked_at.pop(key, None)
        if turn == Turn.READS:
            self._reading.add(key)
        else:
            self._reading.discard(key)

    def _given(self, now: float) -> list[Key]:
        if self._hands_out_at is None or now < self._hands_out_at or not self._asked_at:
            return []
        given = self._order[: max(0, self._max_loading - len(self._reading))]
        for key in given:
            self._tell(key, Turn.READS, now)
        return given
