"""A process's way to what the others show: it asks its parent, and puts the whole together.

Owns the questions that are open. Where there is no parent any more, or it does not answer, a process shows itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from proxy.monitoring.snapshot import Snapshot, merged
from proxy.monitoring.totals import Totals
from proxy.processes.family import Answer, Ask, ChannelToParent

ANSWER_TIMEOUT_S = 2.0  # the parent answers sooner, also for processes that hang

Told = Callable[[Snapshot], None]


class Siblings:
    """`show(since)` makes this process's own snapshot."""

    def __init__(self, parent: ChannelToParent, show: Callable[[int], Snapshot]) -> None:
        self._parent = parent
        self._show = show
        self._open: dict[int, tuple[Snapshot, Told]] = {}
        self._num_questions = 0

    def gather(self, since: int, told: Told) -> None:
        """`told` is called once, soon, with what all processes show together."""
        self._num_questions += 1
        number, own = self._num_questions, self._show(since)
        self._open[number] = own, told
        self._parent.say(Ask(number, since, own))
        asyncio.get_running_loop().call_later(ANSWER_TIMEOUT_S, self.answered, Answer(number, (), Totals()))

    def answered(self, answer: Answer) -> None:
        """The first answer counts."""
        question = self._open.pop(answer.number, None)
        if question is not None:
            own, told = question
            told(merged(own, answer.others, answer.past))
