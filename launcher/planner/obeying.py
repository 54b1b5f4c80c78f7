"""The controller's side of the planner: what it has written last goes to the proxy, for as long as it is not stale.

Owns no state: the file is read every second, and a file that cannot be read changes nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

import msgspec

from launcher.job import Plan
from launcher.planner.word import Word, caps_of
from launcher.rundir import RunDir, read_optional
from workers.controller_messages import SetCaps

log = logging.getLogger("sluice.planner")

LOOK_S = 1.0


async def obey(run: RunDir, plan: Callable[[], Plan], set_caps: Callable[[SetCaps], None]) -> None:
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
