"""The batches of the API at work: each runs as the command's do, and goes on after whatever killed this process.

Owns the tasks and the batches' status. A few run at once, the others wait in order.
"""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import closing

from launcher.batch.http_pool import Pool
from launcher.batch.output import Outputs
from launcher.batch.owner import Held, claim
from launcher.batch.pace import Pace
from launcher.batch.progress import Progress
from launcher.batch.request import Defaults
from launcher.batch.run_view import RunView
from launcher.batch.runner import Files, Runner
from launcher.batch.service.objects import BatchObject
from launcher.batch.service.shelf import Shelf
from launcher.batch.source import BadInput
from launcher.batch.store import NotResults, Store
from launcher.batch.survey import Changed, Input, look
from launcher.job import Plan
from launcher.scheduler.slurm import surrounding_job

log = logging.getLogger("sluice.batches")

AT_ONCE = 4
SAVE_EVERY_S = 2.0
AGAIN_S = 10.0


class Working:
    """`begin` what is new, `cancel` what is not wanted any more; `close` leaves the rest to the next process."""

    def __init__(self, shelf: Shelf, plan: Plan, view: RunView) -> None:
        self._shelf = shelf
        self._plan = plan
        self._view = view
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._places = asyncio.Semaphore(AT_ONCE)

    def begin(self, batch: BatchObject) -> None:
        task = asyncio.ensure_future(self._run(batch))
        self._tasks[batch.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(batch.id, None))

    def close(self) -> None:
        for task in tuple(self._tasks.values()):
            task.cancel()

    async def _run(self, batch: BatchObject) -> None:
        async with self._places:
            while not batch.ended:
                try:
                    await self._work(batch)
                except (BadInput, Changed, NotResults) as fault:
                    error = {"code": "invalid_input", "message": str(fault), "param": None, "line": None}
                    batch.errors = {"object": "list", "data": [error]}
                    batch.move("failed", time.time())
                except (OSError, Held) as fault:  # a full disk, or a predecessor that has not ended yet
                    log.error("batch %s: %s; it goes on in %.0f s", batch.id, fault, AGAIN_S)
                    await asyncio.sleep(AGAIN_S)
            await asyncio.to_thread(self._shelf.save, batch)

    async def _work(self, batch: BatchObject) -> None:
        folder = self._shelf.folder(batch)
        folder.path.mkdir(mode=0o700, exist_ok=True)
        ownership = await asyncio.to_thread(claim, folder.path, surrounding_job(), log.info)
        store = await asyncio.to_thread(Store, folder.results)
        with closing(Outputs(folder.output, folder.errors, in_order=True)) as outputs:
            try:
                await asyncio.to_thread(outputs.begin, store)
                await self._answer(batch, Files(store, outputs, ownership))
                await asyncio.to_thread(outputs.end, store)
            finally:
                store.close()
                ownership.release()
        await asyncio.to_thread(self._hand_out, batch)

    async def _answer(self, batch: BatchObject, files: Files) -> None:
        defaults = Defaults(self._plan.proxy.models[0], url=batch.endpoint)
        given = Input((self._shelf.content(batch.input_file_id),), defaults, self._plan.proxy.limits.max_body_bytes)
        survey = await asyncio.to_thread(look, given, files.store)
        if batch.status == "validating":
            batch.move("in_progress", time.time())
        core = Progress(survey.num_lines, files.store.num_done, files.store.num_failed, Pace())
        runner = Runner(given, survey, files, core, Pool(self._view.locate))
        saved_at = 0.0

        async def watch() -> None:
            nonlocal saved_at
            now = time.time()
            if batch.status == "cancelling" or now >= batch.expires_at:
                runner.stop(0.0)
            batch.request_counts = _counts(core)
            if now - saved_at >= SAVE_EVERY_S:
                saved_at = now
                await asyncio.to_thread(self._shelf.save, batch)

        await runner.run(watch)
        batch.request_counts = _counts(core)
        if batch.status == "in_progress":
            batch.move("finalizing" if not core.left + core.num_in_flight else "expired", time.time())

    def _hand_out(self, batch: BatchObject) -> None:
        """The names follow from the batch's: after a crash the same files are handed out again."""
        folder, now, name = self._shelf.folder(batch), time.time(), batch.id.removeprefix("batch_")
        adopt = self._shelf.adopt_file
        if batch.request_counts["completed"]:
            batch.output_file_id = adopt(folder.output, f"file-{name}-output", batch.owner, now).id
        if batch.request_counts["failed"]:
            batch.error_file_id = adopt(folder.errors, f"file-{name}-errors", batch.owner, now).id
        if not batch.ended:
            batch.move({"finalizing": "completed", "cancelling": "cancelled"}[batch.status], now)


def _counts(core: Progress) -> dict[str, int]:
    return {"total": core.figures.total, "completed": core.figures.done, "failed": core.figures.failed}
