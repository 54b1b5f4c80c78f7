"""The controller's job after this one: asked for in time, made known to the workers, given the run when it may serve.

Owns what is known of that job. Whoever gives the run on acts no more: that is the controller's to keep.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time
from collections.abc import Sequence
from contextlib import suppress

import msgspec

from launcher.control.kept_process import KeptProcess
from launcher.control.ownership import give
from launcher.control.proxy_links import ProxyLinks
from launcher.control.proxy_process import name_before, proxy_process
from launcher.control.renewal import end_of, followers, is_due
from launcher.job import Plan
from launcher.jobs import JobError, Row, controller_name
from launcher.rundir import SOURCE, Endpoint, Owner, RunDir, read_optional
from launcher.scheduler.submit import submit_controller
from launcher.view.run_status import ControllerEnd
from workers.links.proxy_file import ProxyFile, proxy_of, read_proxies
from workers.spec import write_json

log = logging.getLogger("sluice.following")

LOOK_S = 1.0


class Following:
    """`jobs`: of other controllers of the run, whether they are to follow or were followed."""

    def __init__(self, run: RunDir, owner: Owner, proxies: ProxyLinks) -> None:
        self._run = run
        self._owner = owner
        self._proxies = proxies
        self._files: tuple[ProxyFile, ...] = ()
        self.jobs: tuple[Row, ...] = ()
        self._was_due = False

    async def see(self, plan: Plan, rows: Sequence[Row], goes_on: bool) -> ControllerEnd | None:
        """The queue's answer. `goes_on`: the run is not being stopped. Returns what comes after this job."""
        name = controller_name(plan.run)
        self.jobs = followers(rows, name, self._owner.job)
        due = goes_on and not plan.chain_length and (is_outdated(plan) or is_due(rows, self._owner.job, time.time()))
        # By the second answer: the sbatch of a controller that was killed just now may still be on its way.
        was_due, self._was_due = self._was_due, due and not self.jobs
        if was_due and self._was_due:
            try:
                job = await asyncio.to_thread(submit_controller, self._run, plan)
                self.jobs = (Row(job=job, name=name, state="PENDING"),)
            except (JobError, OSError) as fault:
                log.error("nobody follows this controller: %s; it will be tried again", fault)
        return end_of(rows, self.jobs, self._owner.job) if goes_on else None

    async def heir(self, num_processes: int) -> Owner:
        """Returns when there is one whose proxy sees the fleet as ours does."""
        while True:
            await asyncio.sleep(LOOK_S)
            heir = None
            if self.jobs:
                with suppress(OSError, msgspec.DecodeError):
                    heir = await asyncio.to_thread(self._look)
            self._proxies.introduce(self._files if heir is not None else ())
            if heir is not None and len(self._files) >= num_processes and self._proxies.may_follow(self._files):
                return heir

    def _look(self) -> Owner | None:
        heir = read_optional(self._run.heir, Owner)
        if heir is None or all(heir.job != row.job for row in self.jobs):
            return None
        self._files = tuple(file for file in read_proxies(self._run.proxies) if proxy_of(file.id) == heir.proxy)
        return heir

    def give(self, heir: Owner, endpoint: Endpoint) -> None:
        """Raises OwnedByOther, or OSError where the run folder takes no file."""
        write_json(self._run.endpoint, msgspec.structs.replace(endpoint, url=f"{self._files[0].http}/v1"))
        give(self._run, self._owner, heir)
        log.info("given on to job %s", heir.job)


def is_outdated(plan: Plan) -> bool:
    """The plan wants controller and proxy from another snapshot of the code than this runs from."""
    return SOURCE.parent.name == "code" and SOURCE.name != plan.proxy.code


async def see_off(proxy: KeptProcess, ended: asyncio.Event) -> None:
    """The proxy that another one follows finishes what it has, until it is `ended`."""
    both = [asyncio.create_task(proxy.see_off(signal.SIGUSR1)), asyncio.create_task(ended.wait())]
    await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
    for task in both:
        task.cancel()
    await asyncio.gather(*both, return_exceptions=True)


async def finish(run: RunDir, plan: Plan, heir: Owner) -> None:
    """The run was given on by a controller of this job that was killed then: its proxy is still to be seen off."""
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    await see_off(proxy_process(run, plan, name_before(heir.proxy)), ended)
