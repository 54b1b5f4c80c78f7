"""Watching a run come up, as a mere viewer: reads `status.json`, and asks Slurm about the controller's job.

Owns nothing. How a launch failed is a `Failure`, whoever found it out.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from launcher.control.effects import Failure
from launcher.job import Plan
from launcher.jobs import CONTROLLER, JobError, controller_name
from launcher.rundir import Endpoint, RunDir, read_optional
from launcher.scheduler import slurm
from launcher.start import Controlled
from launcher.view.progress import Progress
from launcher.view.run_status import STALE_S, RunStatus

LOOK_EVERY_S = 0.5
T = TypeVar("T")


class LaunchFailed(Exception):
    """The run does not come up."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.reason)
        self.failure = failure


def await_ready(
    run: RunDir, plan: Plan, controlled: Controlled, progress: Progress, timeout_s: float | None
) -> Endpoint:
    """Raises LaunchFailed."""
    return _await(run, plan, controlled, progress, timeout_s, lambda status: _endpoint(run, status))


def await_url(run: RunDir, plan: Plan, controlled: Controlled, progress: Progress, timeout_s: float | None) -> str:
    """Where requests can be sent, whether or not a worker is there. Raises LaunchFailed."""
    return _await(run, plan, controlled, progress, timeout_s, lambda status: status.url or None)


def _await(
    run: RunDir,
    plan: Plan,
    controlled: Controlled,
    progress: Progress,
    timeout_s: float | None,
    wanted: Callable[[RunStatus], T | None],
) -> T:
    deadline = float("inf") if timeout_s is None else time.monotonic() + timeout_s
    next_question = 0.0
    while True:
        status = read_optional(run.status, RunStatus)
        if status is not None:
            progress.show(status)
            _check_status(plan, status)
            found = wanted(status)
            if found is not None:
                return found
        _check_process(plan, controlled)
        silent = status is None or time.time() - status.written_at > STALE_S
        if controlled.job and silent and time.monotonic() >= next_question:
            _check_job(run, plan, controlled.job, progress)
            next_question = time.monotonic() + plan.poll_interval_s
        if time.monotonic() > deadline:
            raise LaunchFailed(_controller_failure(plan, "", f"not ready within {timeout_s:.0f} s (timeout_s)"))
        time.sleep(LOOK_EVERY_S)


def _check_status(plan: Plan, status: RunStatus) -> None:
    if status.failure is not None:
        raise LaunchFailed(status.failure)
    if status.ended:
        raise LaunchFailed(_controller_failure(plan, "", "the run was stopped before it was ready"))


def _endpoint(run: RunDir, status: RunStatus) -> Endpoint | None:
    endpoint = read_optional(run.endpoint, Endpoint) if status.ready else None
    return endpoint if endpoint is not None and endpoint.url == status.url else None  # not an earlier proxy's


def _check_process(plan: Plan, controlled: Controlled) -> None:
    if controlled.process is not None and controlled.process.poll() is not None:
        code = controlled.process.returncode
        raise LaunchFailed(_controller_failure(plan, "", f"the controller ended with status {code}"))


def _check_job(run: RunDir, plan: Plan, job: str, progress: Progress) -> None:
    try:
        rows = slurm.run_rows(plan.run, run.path)
    except JobError as fault:
        progress.note("slurm", str(fault))  # the run may well come up all the same
        return
    row = next((row for row in rows if row.job == job), None)
    if row is None:
        raise LaunchFailed(_controller_failure(plan, job, "Slurm no longer knows the job"))
    if row.ended:
        reason = f"the job ended as {row.state}" + (f" ({row.reason})" if row.reason else "")
        raise LaunchFailed(_controller_failure(plan, job, reason))
    reason = f" ({row.reason})" if row.reason else ""
    told = f"queued{reason}" if row.state == "PENDING" else f"{row.state.lower()} on {row.nodes}"
    progress.note(CONTROLLER, f"{told}  job {job}")


def _controller_failure(plan: Plan, job: str, reason: str) -> Failure:
    return Failure(worker=CONTROLLER, job=job, name=controller_name(plan.run), reason=reason)
