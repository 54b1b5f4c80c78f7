"""One batch from its input to its results: the shell around `progress`.

Owns the loop: lines are read when the core wants them, answers become events, effects become requests and records.
Results count once they are on disk; what is lost before that runs again. Ends when all is done, when it is told to
stop, or when the disk refuses.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec

from launcher.batch.answers import Answer
from launcher.batch.http_pool import Pool
from launcher.batch.output import Outputs
from launcher.batch.owner import BEAT_S, Ownership
from launcher.batch.progress import Answered, Ended, Event, Progress, Read, Send, Stop, Tick
from launcher.batch.request import Request
from launcher.batch.source import BadInput
from launcher.batch.store import Store
from launcher.batch.survey import Changed, Input, Survey, read_again

TICK_S = 0.25
FLUSH_S = 1.0
STOP_GRACE_S = 1.0  # on top of what an answer may take


class Files(msgspec.Struct, frozen=True):
    """What is written."""

    store: Store
    outputs: Outputs
    ownership: Ownership


class Runner:
    """`stop` may be called at any time; `run` then returns once what is in flight has ended, or in time."""

    def __init__(self, given: Input, survey: Survey, files: Files, core: Progress, pool: Pool) -> None:
        self._blocks = read_again(given, survey)
        self._files = files
        self._core = core
        self._pool = pool
        self._loop = asyncio.get_running_loop()
        self._over = asyncio.Event()
        self._give_up_at = float("inf")
        self._fault: BadInput | Changed | None = None

    def stop(self, within_s: float | None = None) -> None:
        """`within_s` None: as long as an answer may take, by what was seen."""
        grace_s = self._core.drain_s + STOP_GRACE_S if within_s is None else within_s
        self._give_up_at = min(self._give_up_at, self._loop.time() + grace_s)
        self._apply(Stop())

    async def run(self, watch: Callable[[], Awaitable[None]]) -> None:
        """`watch` is called every tick. Raises OSError, Held, Changed or BadInput; what was written stays."""
        try:
            await self._until_over(watch)
        finally:
            self._over.set()
            self._pool.close()
        await self._flush()
        if self._fault is not None:
            raise self._fault

    async def _until_over(self, watch: Callable[[], Awaitable[None]]) -> None:
        flush_at, beat_at = self._loop.time() + FLUSH_S, self._loop.time() + BEAT_S
        while not self._over.is_set() and self._loop.time() < self._give_up_at:
            self._feed()
            self._apply(Tick())
            await watch()
            if self._loop.time() >= flush_at:
                await self._flush()
                flush_at = self._loop.time() + FLUSH_S
            if self._loop.time() >= beat_at:
                await asyncio.to_thread(self._files.ownership.beat)
                beat_at = self._loop.time() + BEAT_S
            with suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):
                    await self._over.wait()

    def _feed(self) -> None:
        """A changed input ends the batch as a stop does: what is in flight is still kept."""
        key_of = self._files.store.key_of
        try:
            while self._core.wants_more:
                block = next(self._blocks, None)
                if block is None:
                    self._apply(Ended())
                    return
                self._apply(Read(tuple([item for item in block if key_of(item.ordinal) is None])))
        except (BadInput, Changed) as fault:
            self._fault = fault
            self.stop()

    def _answered(self, request: Request, answer: Answer) -> None:
        if not self._over.is_set():
            self._apply(Answered(request.ordinal, answer))

    def _apply(self, event: Event) -> None:
        for effect in self._core.apply(event, self._loop.time()):
            if isinstance(effect, Send):
                self._pool.send(effect.request, self._answered)
            else:
                self._files.store.append(effect.ordinal, effect.key, effect.line, ok=effect.ok)
        if self._core.finished:
            self._over.set()

    async def _flush(self) -> None:
        files = self._files
        files.ownership.check()
        if data := files.store.take():
            await asyncio.to_thread(files.store.write, data)
        await asyncio.to_thread(files.outputs.follow, files.store)
