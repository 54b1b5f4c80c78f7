"""What the processes show of themselves, gathered for the one that is asked by a client.

Pure. Owns what each showed last, and what those that have ended had counted: so that no figure ever goes back,
whichever process is asked and whichever has died since.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from proxy.monitoring.snapshot import Snapshot
from proxy.monitoring.totals import Totals
from proxy.processes.family import Answer, Ask, Show, Shown

ANSWER_TIMEOUT_S = 1.0  # then those that hang are shown as they were when they last answered

# To whom, what.
Notice = tuple[int, Show | Answer]


@dataclass(slots=True)
class Question:
    asker: int
    number: int  # by the asker's count
    since: int
    waited_for: set[int]
    give_up_at: float


@dataclass(slots=True)
class Gathering:
    """Processes are known by their numbers."""

    past: Totals = field(default_factory=Totals)
    _shown: dict[int, Snapshot] = field(default_factory=dict)
    _open: dict[int, Question] = field(default_factory=dict)
    _num_questions: int = 0

    def ask(self, asker: int, ask: Ask, others: Iterable[int], now: float) -> list[Notice]:
        self._shown[asker] = ask.own
        self._num_questions += 1
        number = self._num_questions
        question = self._open[number] = Question(asker, ask.number, ask.since, set(others), now + ANSWER_TIMEOUT_S)
        return [(other, Show(number, ask.since)) for other in sorted(question.waited_for)] + self._answers(now)

    def shown(self, process: int, shown: Shown, now: float) -> list[Notice]:
        self._shown[process] = shown.snapshot
        question = self._open.get(shown.number)
        if question is not None:
            question.waited_for.discard(process)
        return self._answers(now)

    def ended(self, process: int, now: float) -> list[Notice]:
        """What it had counted, as far as it was ever shown, stays."""
        last = self._shown.pop(process, None)
        if last is not None:
            self.past.include(last.totals)
        for number, question in list(self._open.items()):
            question.waited_for.discard(process)
            if question.asker == process:
                del self._open[number]
        return self._answers(now)

    def tick(self, now: float) -> list[Notice]:
        return self._answers(now)

    def _answers(self, now: float) -> list[Notice]:
        done = {n: q for n, q in self._open.items() if not q.waited_for or now >= q.give_up_at}
        for number in done:
            del self._open[number]
        return [(question.asker, self._answer(question)) for question in done.values()]

    def _answer(self, question: Question) -> Answer:
        others = tuple(shown for process, shown in self._shown.items() if process != question.asker)
        return Answer(question.number, others, self.past.since(question.since))
