"""The controller's side of the planner: it is kept running, and its last word is read every second.

Owns that word: a file that cannot be read changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time

import msgspec

from launcher.control.kept_process import KeptProcess
from launcher.job import Plan
from launcher.planner.word import OFF, Word, caps_of, wanted_workers
from launcher.rundir import Desired, RunDir, read_optional
from workers.controller_messages import SetCaps

log = logging.getLogger("sluice.planner")


class Counsel:
    """`plan`: of the controller's start."""

    def __init__(self, run: RunDir, plan: Plan) -> None:
        self._run = run
        self._mode, self._log = plan.planner, run.log_dir(plan.proxy.proxy) / "planner.log"
        self._word: Word | None = None

    async def keep(self) -> None:
        """The planner's process, until cancelled; at once where nothing is to be planned."""
        if self._mode != OFF:
            await KeptProcess("launcher.planner", self._run.path, self._log).run()

    async def read(self, plan: Plan) -> SetCaps:
        """What the proxy is to be told."""
        try:
            self._word = await asyncio.to_thread(read_optional, self._run.planner, Word)
        except (OSError, msgspec.DecodeError) as fault:
            log.error("%s: %s; all stays as it was said last", self._run.planner, fault)
        proxy = plan.proxy
        return caps_of(self._word, proxy.workers, proxy.pools, time.time())

    def chosen(self, plan: Plan, desired: Desired, target: str) -> Desired:
        """With the workers that the planner has on."""
        workers = wanted_workers(self._word, plan, desired)
        return msgspec.structs.replace(desired, target=target, workers=workers)
