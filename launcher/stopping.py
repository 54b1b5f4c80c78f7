"""Stopping a run, and being sure: no job in Slurm, no process on this machine.

Asks the controller through `desired.json`; where there is none any more, cancels by itself.
"""

from __future__ import annotations

import os
import signal
import time

import msgspec

from launcher.control.ownership import living_owner
from launcher.job import Plan
from launcher.jobs import JobError
from launcher.rundir import STOP, RunDir, read_optional
from launcher.scheduler import local, slurm
from launcher.view.progress import Progress
from launcher.view.run_status import RunStatus

LOOK_EVERY_S = 0.5
# A controller that has just ended is still a completing job for a moment.
COMPLETING_S = 2.0
KILL_GRACE_S = 15.0


class StillThere(Exception):
    """Not everything was gone in time; says what is left."""


def stop_run(run: RunDir, plan: Plan, progress: Progress, timeout_s: float | None) -> None:
    """Returns when nothing of the run is left. Raises StillThere, or JobError where Slurm cannot be asked."""
    deadline = float("inf") if timeout_s is None else time.monotonic() + timeout_s
    run.write_desired(msgspec.structs.replace(run.read_desired(), target=STOP))
    _await_controller(run, progress, deadline)
    if plan.executor != "local" and not _in_its_job(plan):
        _end_jobs(run, plan, progress, deadline)
    if plan.controller is None:
        _end_processes(run, plan, progress, deadline)


def _in_its_job(plan: Plan) -> bool:
    """Whether this process runs in the one job that holds the run, and which ends with the launcher in it."""
    return plan.allocation is not None and plan.allocation.job == slurm.surrounding_job()


def kill_local(run: RunDir) -> None:
    """No more patience: SIGKILL to everything of the run on this machine."""
    for pid in local.run_processes(run):
        local.end_job(pid, force=True)


def _await_controller(run: RunDir, progress: Progress, deadline: float) -> None:
    while (owner := living_owner(run)) is not None:
        status = read_optional(run.status, RunStatus)
        if status is not None:
            progress.show(status)
        _check(deadline, f"the controller, process {owner.pid} on {owner.host}")
        time.sleep(LOOK_EVERY_S)


def _end_jobs(run: RunDir, plan: Plan, progress: Progress, deadline: float) -> None:
    """A Slurm that does not answer for a moment is asked again; one that is not there is an error."""
    time.sleep(COMPLETING_S)
    what = "the jobs of the run: Slurm did not answer"
    while True:
        try:
            rows = [row for row in slurm.plan_rows(plan, run.path) if not row.ended]
            if not rows:
                return
            what = ", ".join(f"{row.name} (job {row.job}, {row.state})" for row in rows)
            for row in rows:
                progress.note(row.name, f"{row.state.lower()}  job {row.job}")
            slurm.cancel([row.job for row in rows])
        except JobError as fault:
            if not fault.transient:
                raise
            progress.note("slurm", str(fault))
        _check(deadline, what)
        time.sleep(plan.poll_interval_s)


def _end_processes(run: RunDir, plan: Plan, progress: Progress, deadline: float) -> None:
    """On this machine, and only what a controller that died left behind: a live one has ended them all."""
    patience_s = max(planned.spec.drain_timeout_s for planned in plan.workers) + KILL_GRACE_S
    kill_at = time.monotonic() + patience_s
    asked: set[int] = set()
    while pids := local.run_processes(run):
        progress.note("left", f"processes {', '.join(map(str, pids))}")
        for pid in pids:
            if time.monotonic() > kill_at:
                local.end_job(pid, force=True)
            elif pid not in asked:
                asked.add(pid)
                _terminate(pid)
        _check(deadline, f"processes {', '.join(map(str, pids))}")
        time.sleep(LOOK_EVERY_S)


def _terminate(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGTERM)
    except ProcessLookupError:
        pass


def _check(deadline: float, what: str) -> None:
    if time.monotonic() > deadline:
        raise StillThere(f"not gone in time: {what}")
