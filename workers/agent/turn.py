"""This worker's turn to read its model from the shared file system, as its agent stands to it.

Owns the state that every proxy is told, and the wait. Decides nothing: the first process of the proxy hands out.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from workers.protocol import Turn

log = logging.getLogger("sluice.agent")

LOOK_EVERY_S = 1.0
ALONE_S = 120.0  # a proxy that is started again is found much sooner


class OwnTurn:
    """`state` is a word of `Turn`."""

    def __init__(self, alone_s: float = ALONE_S, look_every_s: float = LOOK_EVERY_S) -> None:
        self.state = Turn.NONE
        self._alone_s = alone_s
        self._look_every_s = look_every_s
        self._asked_at = 0.0
        self._given = asyncio.Event()

    @property
    def waited_s(self) -> float:
        return time.monotonic() - self._asked_at if self.state == Turn.WAITS else 0.0

    def ask(self) -> None:
        self.state, self._asked_at = Turn.WAITS, time.monotonic()

    async def come(self, linked: Callable[[], bool]) -> None:
        """Returns once it may read. Who has no proxy for long reads all the same: it could wait for ever."""
        heard_at = time.monotonic()
        while not self._given.is_set():
            heard_at = time.monotonic() if linked() else heard_at
            if time.monotonic() - heard_at > self._alone_s:
                log.warning("no proxy for %.0f s: not waiting for a turn any longer", self._alone_s)
                break
            try:
                async with asyncio.timeout(self._look_every_s):
                    await self._given.wait()
            except TimeoutError:
                pass
        self.state = Turn.READS

    def give(self) -> None:
        """A proxy's word. Where nobody waits it came too late."""
        if self.state == Turn.WAITS:
            self._given.set()

    def end(self) -> bool:
        """The model is read, or will not be. True: this is news."""
        news, self.state = self.state != Turn.NONE, Turn.NONE
        return news
