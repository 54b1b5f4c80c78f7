"""The controller's side of the planner: it is kept running, and its last word goes to the proxy while it is fresh.

Owns no state: the file is read every second, and a file that cannot be read changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from launcher.control.kept_process import KeptProcess
from launcher.job import Plan
from launcher.planner.word import OFF, Word, caps_of
from launcher.rundir import RunDir, read_optional
from workers.controller_messages import SetCaps

log = logging.getLogger("sluice.planner")

LOOK_S = 1.0


async def keep_planner(run: RunDir, plan: Callable[[], Plan], set_caps: Callable[[SetCaps], None]) -> None:
    """Its process, and what it says. Until cancelled, or at once where nothing is to be planned."""
    first = plan()
    if first.planner == OFF:
        return
    planner = KeptProcess("launcher.planner", run.path, run.log_dir(first.proxy.proxy) / "planner.log")
    async with asyncio.TaskGroup() as group:
        group.create_task(planner.run())
        group.create_task(_obey(run, plan, set_caps))


async def _obey(run: RunDir, plan: Callable[[], Plan], set_caps: Callable[[SetCaps], None]) -> None:
    """Until cancelled. `plan`: of the newest revision."""
    while True:
        try:
            word = await asyncio.to_thread(read_optional, run.planner, Word)
        except (OSError, msgspec.DecodeError) as fault:
            log.error("%s: %s; roles stay as they are", run.planner, fault)
        else:
            proxy = plan().proxy
            set_caps(caps_of(word, proxy.workers, proxy.pools, time.time()))
        await asyncio.sleep(LOOK_S)
