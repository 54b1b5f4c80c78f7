"""`python -m launcher.control.controller RUN_DIR`: keeps a run as `desired.json` says, as long as the run lives.

Owns the run's jobs and its proxy process. A thin shell around `reconcile`: it reads files, asks the queue and
hears the fleet, and lets effects be carried out (`outgoing`). Everything that may hang (shared files, Slurm's
commands) runs in threads. Never touches a request.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import signal
import sys
import time
from pathlib import Path

import msgspec
import uvloop

from launcher.control.diary import Diary
from launcher.control.effects import (
    DesiredRead,
    Event,
    FleetSeen,
    ProxyDied,
    QueueRead,
    Record,
    Tick,
)
from launcher.control.following import Following, finish, see_off
from launcher.control.heir import Heir, followed, predecessor
from launcher.control.kept_process import KeptProcess
from launcher.control.outgoing import Outgoing
from launcher.control.ownership import OwnedByOther, claim
from launcher.control.proxy_links import ProxyLinks
from launcher.control.proxy_process import name_of, proxy_process, renew_spec
from launcher.control.reconcile import Reconciler
from launcher.control.reporter import Reporter
from launcher.control.restoring import job_system, policy_of, restore, revisions_of
from launcher.job import Plan
from launcher.jobs import JobError, JobSystem
from launcher.planner.obeying import Counsel
from launcher.rundir import STOP, Desired, Owner, RunDir
from launcher.scheduler import slurm
from launcher.scheduler.steps import stop_at
from launcher.view.status import jobs_message
from workers.logs import start_logging

log = logging.getLogger("sluice.controller")

TICK_S = 1.0


class PlanMissing(Exception):
    """The run folder holds another plan than the one that is wanted."""


class Controller:
    """`run` returns when the run has stopped, or when another controller has taken it over. `proxy`: one that lives
    already."""

    def __init__(
        self,
        run: RunDir,
        plan: Plan,
        owner: Owner,
        core: Reconciler,
        jobs: JobSystem,
        proxy: KeptProcess | None = None,
    ) -> None:
        self._run = run
        self._plan = plan
        self._owner = owner
        self._core = core
        self._jobs = jobs
        self._finished = asyncio.Event()
        self._ended = asyncio.Event()  # there is no time for anything any more
        self._stop_asked = False
        self._name = name_of(plan, owner)
        self._proxy = proxy or proxy_process(run, plan, self._name)
        self._proxy.on_death = self._proxy_died
        self._proxies = ProxyLinks(run, plan.run, self._name, lambda view: self._apply(FleetSeen(view)))
        self._counsel = Counsel(run, plan)
        self._outgoing = Outgoing(run, jobs, self._proxies, core.book, self._apply, self._done)
        self._outgoing.know(plan)
        self._following = Following(run, owner, self._proxies)
        self._diary = Diary(run, owner)
        self._reporter = Reporter(run, plan, owner, core, self._proxies, self._diary)

    async def run(self) -> None:
        log_folder = self._run.log_dir(self._plan.proxy.proxy)
        batches = KeptProcess("launcher.batch.service", self._run.path, log_folder / "batches.log")
        try:
            async with asyncio.TaskGroup() as group:
                work = (
                    self._read_desired,
                    self._ask_queue,
                    self._outgoing.carry_out,
                    self._report,
                    self._hand_on,
                    self._proxies.run,
                    self._proxy.run,
                    batches.run,
                    self._counsel.keep,
                )
                tasks = [group.create_task(part()) for part in work]
                await self._finished.wait()
                for task in tasks:
                    task.cancel()
        finally:
            self._proxies.close("the controller ends")
        await self._reporter.last_words()
        if self._outgoing.given:
            await see_off(self._proxy, self._ended)

    def stop(self, why: str) -> None:
        """Stop the whole run, whatever `desired.json` says."""
        log.info("stopping the run: %s", why)
        self._stop_asked = True
        if self._core.desired is not None:
            self._apply(DesiredRead(msgspec.structs.replace(self._core.desired, target=STOP)))

    def leave(self, why: str) -> None:
        """End without touching the jobs: the next controller adopts them."""
        log.info("leaving the run as it is: %s", why)
        self._diary.end(why)
        self._ended.set()
        self._finished.set()

    async def _report(self) -> None:
        await self._reporter.run()
        async with self._outgoing.order:
            if not self._outgoing.given:
                self.leave("another controller has taken it over")

    # ------------------------------------------------------------ what comes in

    def _apply(self, event: Event) -> None:
        self._diary.see(event, time.time())
        for effect in self._core.apply(event, time.time()):
            self._diary.see(effect, time.time())
            log.log(logging.DEBUG if isinstance(effect, Record) else logging.INFO, "%s", effect)
            self._outgoing.put(effect)
        self._proxies.tell(jobs_message(self._plan, self._core))

    async def _read_desired(self) -> None:
        """A file that cannot be read just now changes nothing."""
        while True:
            self._proxies.set_caps(await self._counsel.read(self._plan))
            try:
                desired = await asyncio.to_thread(self._run.read_desired)
                if desired.revision != self._plan.revision:
                    desired = await self._with_plan(desired)
            except (OSError, msgspec.DecodeError, PlanMissing) as fault:
                log.error("%s: %s; going on as before", self._run.desired, fault)
                self._apply(Tick())
            else:
                goal = STOP if self._stop_asked else desired.target
                revisions = {planned.spec.worker: planned.revision for planned in self._plan.workers}
                self._apply(DesiredRead(self._counsel.chosen(self._plan, desired, goal), revisions))
            await asyncio.sleep(TICK_S)

    async def _with_plan(self, desired: Desired) -> Desired:
        """A new plan is there before it is wanted; whoever wrote it may have ended in between."""
        plan = await asyncio.to_thread(self._run.read_plan)
        if plan.revision < desired.revision:
            raise PlanMissing(f"revision {desired.revision} is wanted, {self._run.plan} is revision {plan.revision}")
        if self._name != plan.proxy.proxy:
            await asyncio.to_thread(renew_spec, self._run, plan, self._name)
        self._plan = self._reporter.plan = plan
        self._core.policy = policy_of(plan)
        self._outgoing.know(plan)
        workers = tuple(planned.spec.worker for planned in plan.workers)
        return msgspec.structs.replace(desired, revision=plan.revision, workers=workers)

    async def _ask_queue(self) -> None:
        while True:
            asked_at = time.time()
            try:
                rows = await asyncio.to_thread(self._jobs.rows)
            except JobError as fault:
                log.error("%s", fault)
                self._reporter.queue_fault = str(fault)
            else:
                self._reporter.queue_fault = ""
                news = await asyncio.to_thread(revisions_of, self._run, self._plan, rows, self._core.book.revisions)
                self._apply(QueueRead(tuple(rows), asked_at, news))
                if self._plan.controller is not None and self._owner.job:
                    self._reporter.end = await self._following.see(self._plan, rows, not self._core.stopping)
            await asyncio.sleep(self._jobs.look_every_s * random.uniform(1.0, 1.2))

    def _proxy_died(self, reason: str, deaths: int) -> None:
        self._apply(ProxyDied(self._plan.proxy.proxy, reason, deaths))

    # ------------------------------------------------------------ the end

    async def _done(self) -> None:
        self._diary.end("the run has stopped")
        await self._outgoing.cancel([row.job for row in self._following.jobs], force=False)
        self._finished.set()

    async def _hand_on(self) -> None:
        """To the controller of the job after this one. What is not carried out by then is for that one to find."""
        while not self._outgoing.given:
            heir = await self._following.heir(self._plan.proxy.processes)
            async with self._outgoing.order:
                if self._core.stopping or not self._core.served:
                    continue
                try:
                    await asyncio.to_thread(self._following.give, heir, self._reporter.endpoint(""))
                except (OSError, OwnedByOther) as fault:
                    log.error("cannot give the run on: %s; it will be tried again", fault)
                    continue
                self._outgoing.given = True
                self._proxy.leave_alone()
                self._diary.end(f"job {heir.job} follows")
                self._finished.set()


async def follow(run: RunDir, plan: Plan, job: str, other: Owner) -> None:
    """Be `other`'s heir, then what it was. SIGTERM: not even the heir."""
    heir = Heir(run, plan, job, other)
    waiting = asyncio.create_task(heir.inherit())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, waiting.cancel)
    try:
        owner = await waiting
    except asyncio.CancelledError:
        log.info("ended before the run was given on")
        return
    await main(run, run.read_plan(), owner, heir.proxy)


async def main(run: RunDir, plan: Plan, owner: Owner, proxy: KeptProcess | None = None) -> None:
    controller = Controller(run, plan, owner, restore(run, plan), job_system(run, plan), proxy)
    loop = asyncio.get_running_loop()
    # In a job of its own it may be preempted or requeued: that must not take the run's workers along.
    end = controller.stop if plan.controller is None else controller.leave
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, signal.Signals(number).name)
    if plan.executor == "local":
        _end_with_parent(loop, controller)
    if plan.allocation is not None and plan.allocation.end_time is not None:
        left_s = stop_at(plan, plan.allocation.end_time, time.time()) - time.time()
        loop.call_later(left_s, controller.stop, "the job's walltime ends")
    await controller.run()


def _end_with_parent(loop: asyncio.AbstractEventLoop, controller: Controller) -> None:
    """Standard input is a pipe from the launcher: it ends however the launcher ends, SIGKILL included."""

    def readable() -> None:
        if not os.read(sys.stdin.fileno(), 1 << 10):
            loop.remove_reader(sys.stdin.fileno())
            controller.stop("the launcher is gone")

    loop.add_reader(sys.stdin.fileno(), readable)


def start(run: RunDir) -> int:
    job = os.environ.get("SLURM_JOB_ID", "")
    slurm.clean_environment()
    listener = start_logging("controller")
    try:
        plan = run.read_plan()
        if (heir := followed(run, job)) is not None:
            uvloop.run(finish(run, plan, heir))
        elif (other := predecessor(run, plan, job)) is not None:
            uvloop.run(follow(run, plan, job, other))
        else:
            owner = claim(run, plan.allocation.job if plan.allocation else job)
            uvloop.run(main(run, plan, owner))
        return 0
    except OwnedByOther as fault:
        log.error("%s", fault)
        return 2
    finally:
        listener.stop()


if __name__ == "__main__":
    raise SystemExit(start(RunDir(Path(sys.argv[1]))))
