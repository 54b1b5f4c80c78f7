"""The order of an engine's numbered batches of KV events: what is missing is asked for again, what is gone is told.

Pure: one mutator, `apply(event, now) -> effects`. The engine publishes to whoever listens, and may lose batches on
the way without a word; it keeps the last ones, and answers with all of them from a number on, then with an end.
"""

from __future__ import annotations

from dataclasses import dataclass

from workers.digest import kv_events

ANSWER_S = 5.0  # a question that is not answered by then is asked again

# ---------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Heard:
    """Published or in answer to a question."""

    number: int
    batch: kv_events.Batch


@dataclass(frozen=True, slots=True)
class Answered:
    """All that the engine still had was heard."""


@dataclass(frozen=True, slots=True)
class Tick:
    """The engine is asked whether the last batches were lost: nothing that follows would show it."""


Event = Heard | Answered | Tick

# ---------------------------------------------------------------- effects


@dataclass(frozen=True, slots=True)
class Ask:
    first: int


@dataclass(frozen=True, slots=True)
class Take:
    """The next batch in order."""

    batch: kv_events.Batch


@dataclass(frozen=True, slots=True)
class Lost:
    """What comes next does not continue what was taken."""


Effect = Ask | Take | Lost


class Feed:
    """`num_losses` counts the times that batches were gone for good."""

    def __init__(self) -> None:
        self._next = 0
        self._early: dict[int, kv_events.Batch] = {}  # heard before their turn
        self._asked_at: float | None = None  # the question that is not answered yet
        self._asked_for: int | None = None  # where the gap was when it was asked about; None: it was a mere check
        self.num_losses = 0

    def apply(self, event: Event, now: float) -> list[Effect]:
        if isinstance(event, Heard):
            effects = self._hear(event)
        elif isinstance(event, Answered):
            self._asked_at = None
            effects = self._give_up() if self._early and self._asked_for == self._next else []
        else:
            effects = []
            if self._asked_at is not None and now - self._asked_at >= ANSWER_S:
                self._asked_at = None
        if self._asked_at is None and (self._early or isinstance(event, Tick)):
            effects.append(self._ask(now))
        return effects

    def _hear(self, heard: Heard) -> list[Effect]:
        if heard.number < self._next:
            return []
        self._early[heard.number] = heard.batch
        return self._take()

    def _take(self) -> list[Effect]:
        effects: list[Effect] = []
        while (batch := self._early.pop(self._next, None)) is not None:
            self._next += 1
            effects.append(Take(batch))
        return effects

    def _give_up(self) -> list[Effect]:
        """The engine was asked for just these and has them no more."""
        self.num_losses += 1
        self._next = min(self._early)
        return [Lost(), *self._take()]

    def _ask(self, now: float) -> Ask:
        self._asked_at = now
        self._asked_for = self._next if self._early else None
        return Ask(self._next)
