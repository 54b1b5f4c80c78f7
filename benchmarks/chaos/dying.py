"""The run's controllers die by SIGKILL again and again while something else happens."""

from __future__ import annotations

import os
import random
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress

from benchmarks.chaos.stage import Stage
from benchmarks.report import say

EVERY_S = (1.0, 12.0)


@contextmanager
def controllers_dying(stage: Stage) -> Iterator[None]:
    enough = threading.Event()
    killer = threading.Thread(target=_kill, args=(stage, enough), name="killer")
    killer.start()
    try:
        yield
    finally:
        enough.set()
        killer.join()


def kill(pids: Iterable[int]) -> int:
    """How many were there still."""
    num_kills = 0
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
            num_kills += 1
    return num_kills


def _kill(stage: Stage, enough: threading.Event) -> None:
    """At moments that the seed says; the first one soon, so that each event has one."""
    chance = random.Random(stage.options.seed)
    num_kills, next_s = 0, chance.uniform(0.0, EVERY_S[0])
    while not enough.wait(next_s):
        num_kills += kill(stage.controllers())
        next_s = chance.uniform(*EVERY_S)
    say(f"{num_kills} controllers were killed meanwhile")
