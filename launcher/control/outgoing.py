"""What goes out of a controller: submissions, cancellations, records on disk, words to workers.

Owns their order, one effect after the other, and that nothing goes out once the run is another controller's. What has
become of an effect is told as an event. Decides nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

import msgspec

from launcher.control.effects import (
    Cancel,
    Done,
    Drain,
    Effect,
    Event,
    GiveUp,
    Record,
    Submit,
    SubmitRefused,
    Submitted,
)
from launcher.control.job_book import JobBook
from launcher.control.proxy_links import ProxyLinks
from launcher.job import Plan, PlannedWorker
from launcher.jobs import JobError, JobRecord, JobSystem
from launcher.rundir import RunDir
from workers.controller_messages import DrainWorker
from workers.spec import write_json

log = logging.getLogger("sluice.controller")

AGAIN_S = 1.0


class Outgoing:
    """`order` is held while an effect is carried out. `given`: to another controller, so that this one acts no more."""

    def __init__(
        self,
        run: RunDir,
        jobs: JobSystem,
        proxies: ProxyLinks,
        book: JobBook,
        tell: Callable[[Event], None],
        done: Callable[[], Awaitable[None]],
    ) -> None:
        self._run = run
        self._jobs = jobs
        self._proxies = proxies
        self._book = book
        self._tell = tell
        self._done = done
        self._planned: dict[tuple[str, int], PlannedWorker] = {}
        self._effects: asyncio.Queue[Effect] = asyncio.Queue()
        self.order = asyncio.Lock()
        self.given = False

    def know(self, plan: Plan) -> None:
        """Workers of earlier plans may still be submitted, by their revision."""
        self._planned |= {(planned.spec.worker, planned.revision): planned for planned in plan.workers}

    def put(self, effect: Effect) -> None:
        self._effects.put_nowait(effect)

    async def carry_out(self) -> None:
        """One effect after the other: a record is on disk before the next submission."""
        while True:
            effect = await self._effects.get()
            async with self.order:
                if not self.given:
                    await self._act(effect)

    async def _act(self, effect: Effect) -> None:
        match effect:
            case Submit(worker, generation, revision):
                await self._submit(worker, generation, self._planned[worker, revision])
            case Cancel(job, force):
                await self.cancel([job], force)
            case Record(records):
                await self._record(records)
            case Drain(worker, generation, reason, timeout_s):
                self._proxies.say(DrainWorker(worker, generation, reason, timeout_s))
            case GiveUp(failure):
                log.error("giving up: %s: %s", failure.name, failure.reason)
            case Done():
                await self._done()

    async def _record(self, records: Sequence[JobRecord]) -> None:
        """Where the run folder takes no file just now, what holds by then is written later."""
        try:
            await asyncio.to_thread(self._run.write_jobs, list(records))
        except OSError as fault:
            log.error("%s: %s; it will be tried again", self._run.jobs, fault)
            asyncio.get_running_loop().call_later(AGAIN_S, lambda: self.put(Record(self._book.records())))

    async def _submit(self, worker: str, generation: int, planned: PlannedWorker) -> None:
        spec = msgspec.structs.replace(planned.spec, generation=generation, revision=planned.revision)
        planned = msgspec.structs.replace(planned, spec=spec)
        try:
            # The file is the intent: a successor of this controller never uses the generation again.
            await asyncio.to_thread(write_json, self._run.worker_spec(worker, generation), spec)
            job = await asyncio.to_thread(self._jobs.submit, planned)
        except JobError as fault:
            self._tell(SubmitRefused(worker, generation, str(fault), fault.transient))
        except OSError as fault:
            self._tell(SubmitRefused(worker, generation, f"cannot write to the run folder: {fault}", transient=True))
        else:
            self._tell(Submitted(worker, generation, job))

    async def cancel(self, jobs: Sequence[str], force: bool) -> None:
        try:
            await asyncio.to_thread(self._jobs.cancel, jobs, force=force)
        except JobError as fault:
            log.error("%s; it will be tried again", fault)
