"""A batch from its first request to its last: runs the `Runner` beside the screen, the clock and the user's signals.

Owns when it stops before its end: at its deadline, when the run has ended, when it is told to.
"""

from __future__ import annotations

import asyncio
import signal
import time

from launcher.batch.display import Display
from launcher.batch.http_pool import Pool
from launcher.batch.meter import Meter, Reading
from launcher.batch.pace import Pace
from launcher.batch.progress import Progress
from launcher.batch.run_view import RunView, Seen
from launcher.batch.runner import STOP_GRACE_S, Files, Runner
from launcher.batch.survey import Input, Survey

LOOK_EVERY_S = 2.0
MARGIN_S = 2.0  # before the deadline, for what is left to write
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Drive:
    """`run` once; `core` and `why` hold how it ended."""

    def __init__(self, given: Input, survey: Survey, files: Files, deadline: float | None, display: Display) -> None:
        self._given = given
        self._survey = survey
        self._files = files
        self._deadline = deadline
        self._display = display
        store = files.store
        self.core = Progress(survey.num_lines, store.num_done, store.num_failed, Pace())
        self.meter = Meter(self.core, time.time())
        self.why = ""
        self._seen = Seen()
        self._view: RunView | None = None
        self._look_at = 0.0

    async def run(self, view: RunView) -> None:
        """Raises what `Runner.run` does."""
        self._view = view
        self.meter = Meter(self.core, time.time())
        self._runner = Runner(self._given, self._survey, self._files, self.core, Pool(view.locate))
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._told, signal.Signals(number).name)
        with self._display:
            await self._runner.run(self._watch)

    def reading(self) -> Reading:
        return self.meter.look(time.time(), self._seen.gpu_s)

    def look(self) -> None:
        """At the run, also after its end, at what it has taken."""
        if self._view is not None:
            self._seen = self._view.look()

    async def _watch(self) -> None:
        now = time.time()
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            await asyncio.to_thread(self.look)
            if self._seen.ended:
                self._stop(self._seen.ended, 0.0)
        if self._deadline is not None:
            left_s = self._deadline - MARGIN_S - now
            if left_s <= self.core.drain_s + STOP_GRACE_S:
                self._stop("the deadline", max(0.0, left_s))
        self._display.show(self.reading(), now)

    def _told(self, name: str) -> None:
        """Once more does not wait for what is in flight."""
        if not self.why:
            self._display.say(f"{name}: waiting for what is in flight; once more does not")
        self._stop(name, 0.0 if self.why else None)

    def _stop(self, why: str, within_s: float | None) -> None:
        self.why = self.why or why
        self._runner.stop(within_s)
