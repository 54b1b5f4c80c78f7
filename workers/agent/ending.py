"""Why a worker is to end, and until when it may drain.

Owns both, as several may ask: a person, the controller, the job's clock, Slurm's signals. The first gives the reason;
the nearest end counts, also while the worker drains.
"""

from __future__ import annotations

import asyncio
import math

import msgspec


class Stop(msgspec.Struct, frozen=True):
    """`until` is by the event loop's clock."""

    reason: str
    until: float


class Ending:
    """Asked from anywhere in the agent's loop; one at a time waits for it."""

    def __init__(self) -> None:
        self._stop = Stop("", math.inf)
        self._asked = asyncio.Event()

    @property
    def reason(self) -> str:
        return self._stop.reason

    def ask(self, reason: str, drain_s: float) -> None:
        until = asyncio.get_running_loop().time() + drain_s
        if until < self._stop.until:
            self._stop = Stop(self._stop.reason or reason, until)
            self._asked.set()

    async def nearer(self, than: float = math.inf) -> Stop:
        """Once the worker is to end before that."""
        while self._stop.until >= than:
            self._asked.clear()
            await self._asked.wait()
        return self._stop
