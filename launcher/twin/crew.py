"""Replays beside each other, on the cores there are: each in a process of its own.

Owns these processes. They end with the one that began them, however that ends.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from types import TracebackType

from launcher.twin.capacity_search import Question, Tried
from launcher.twin.foresight import Ask, Found, Search, foreseen

MOST_PROCESSES = 8  # what lies further ahead is often not asked for


class _Helper:
    def __init__(self, replay: Ask) -> None:
        spawning = multiprocessing.get_context("spawn")
        self.connection, theirs = spawning.Pipe()
        self.process: BaseProcess = spawning.Process(target=_serve, args=(theirs, replay), daemon=True)
        self.process.start()
        theirs.close()
        self.doing: Question | None = None

    def begin(self, question: Question) -> None:
        self.doing = question
        with suppress(OSError):  # it has died, which is heard where its answer would be
            self.connection.send(question)

    def take(self) -> Tried | None:
        """None: it has died."""
        self.doing = None
        try:
            tried: Tried = self.connection.recv()
        except (EOFError, OSError):
            return None
        return tried


def _serve(connection: Connection, replay: Ask) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for who waits for the answer
    with suppress(EOFError, BrokenPipeError):  # nobody waits any more
        while True:
            connection.send(replay(connection.recv()))


class Crew:
    """With `num` of 1 there is no process but this one."""

    def __init__(self, replay: Ask, num: int) -> None:
        self._replay = replay
        self._helpers = [_Helper(replay) for _ in range(num if num > 1 else 0)]

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for helper in self._helpers:
            helper.process.terminate()
            helper.process.join()

    def run(self, search: Search[Found]) -> Found:
        known: dict[Question, Tried] = {}
        while todo := foreseen(search, known, max(1, len(self._helpers))):
            known |= self._some(todo)
        return search(known.__getitem__)

    def _some(self, todo: Sequence[Question]) -> dict[Question, Tried]:
        """Some answers, of these or of those that were asked for before."""
        if not self._helpers:
            return {todo[0]: self._replay(todo[0])}
        begun = {helper.doing for helper in self._helpers}
        idle = [helper for helper in self._helpers if helper.doing is None]
        for helper, question in zip(idle, [each for each in todo if each not in begun], strict=False):
            helper.begin(question)
        busy = [helper for helper in self._helpers if helper.doing is not None]
        ready = wait([helper.connection for helper in busy])
        return dict(answer for helper in busy if helper.connection in ready for answer in self._taken(helper))

    def _taken(self, helper: _Helper) -> Iterator[tuple[Question, Tried]]:
        """What it was asked; a helper that has died is done without."""
        question, tried = helper.doing, helper.take()
        if question is not None and tried is not None:
            yield question, tried
        else:
            self._helpers.remove(helper)


def num_useful() -> int:
    return min(MOST_PROCESSES, len(os.sched_getaffinity(0)))
