"""A controller whose job runs while another one's still does: it is to follow that one.

Keeps a proxy of its own, says so in `heir.json`, and waits until the run is given to it, or is nobody's any more. Until
then it acts on nothing else: no job, no status, no word to a worker.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from contextlib import suppress

import msgspec

from launcher.control.kept_process import KeptProcess
from launcher.control.ownership import living_owner, take, this_process, was_heard
from launcher.control.proxy_process import name_of, next_name, proxy_process, write_spec
from launcher.job import Plan
from launcher.rundir import Owner, RunDir, read_optional
from workers.spec import write_json

log = logging.getLogger("sluice.heir")

LOOK_S = 1.0
# Of a controller that was killed: its job starts another one, which goes on before this.
PATIENCE_S = 15.0


def predecessor(run: RunDir, plan: Plan, job: str) -> Owner | None:
    """The controller that this one is to follow. One that was killed just now is about to be started again."""
    owner = read_optional(run.owner, Owner)
    if plan.controller is None or not job or owner is None or owner.job in ("", job):
        return None
    return owner if living_owner(run) is not None or was_heard(run, owner) else None


def followed(run: RunDir, job: str) -> Owner | None:
    """The controller to which this job has given the run on."""
    owner = read_optional(run.owner, Owner)
    return owner if owner is not None and job and owner.after == job else None


class Heir:
    """Of the run of `other`."""

    def __init__(self, run: RunDir, plan: Plan, job: str, other: Owner) -> None:
        self._run = run
        self._owner = this_process(job, next_name(name_of(plan, other)), other.job)
        write_spec(run, plan, self._owner.proxy, any_port=other.host == socket.gethostname())
        self.proxy: KeptProcess = proxy_process(run, plan, self._owner.proxy)

    async def inherit(self) -> Owner:
        """Returns once the run is this one's. Cancelled, or where somebody else has it: its proxy has ended. Raises
        OwnedByOther."""
        log.info("job %s has the run: keeping a proxy beside its own", self._owner.after)
        keeping = asyncio.create_task(self.proxy.run())
        try:
            owner = await self._wait()
            self.proxy.leave_alone()
            return owner
        finally:
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)
            with suppress(OSError):
                self._run.heir.unlink()

    async def _wait(self) -> Owner:
        await asyncio.to_thread(write_json, self._run.heir, self._owner)
        seen_at = time.monotonic()
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                owner = await asyncio.to_thread(read_optional, self._run.owner, Owner)
                if owner is not None and owner.id == self._owner.id:
                    log.info("job %s has given the run on", self._owner.after)
                    return owner
                if await asyncio.to_thread(living_owner, self._run) is not None:
                    seen_at = time.monotonic()
                elif owner is None or time.monotonic() - seen_at > PATIENCE_S:
                    log.warning("the run is nobody's: taking it")
                    return await asyncio.to_thread(take, self._run, self._owner)
            except (OSError, msgspec.DecodeError) as fault:
                log.error("%s: %s; looking again", self._run.owner, fault)
