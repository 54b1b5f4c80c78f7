"""A run's jobs as processes of this machine, through submitit's local executor: no Slurm, no scheduler.

Owns these processes: each job is submitit's small supervisor with the worker agent below it. They live in the
session of the controller, apart from the terminal, so that a Ctrl-C reaches the launcher alone.
"""

from __future__ import annotations

import os
import shlex
import signal
from collections.abc import Sequence
from pathlib import Path

from submitit import LocalExecutor
from submitit.local.local import LocalJob

from launcher.job import Plan, PlannedWorker
from launcher.jobs import EXITED, Row, job_name
from launcher.rundir import RunDir
from launcher.scheduler.submit import run_worker
from launcher.scheduler.task import task_command

# submitit's supervisor ends its job after this; a local run ends with its terminal instead.
NO_TIMEOUT_MIN = 365 * 24 * 60
LOOK_EVERY_S = 1.0
MODULES = {
    "launcher.batch.service",
    "launcher.control.controller",
    "launcher.control.supervisor",
    "proxy",
    "proxy.processes.process",
    "submitit.core._submit",
    "submitit.local._local",
    "workers",
    "workers.host.engine_process",
    "workers.agent.probe",
    "workers.staging.staging_process",
}
STATES = {"RUNNING": "RUNNING", "FINISHED": EXITED, "INTERRUPTED": "FAILED"}


class LocalJobs:
    """A `JobSystem`. It knows the jobs that it started itself."""

    look_every_s = LOOK_EVERY_S

    def __init__(self, run: RunDir, plan: Plan) -> None:
        self._run = run
        self._gpus = _share_gpus(plan)
        self._jobs: dict[str, tuple[str, LocalJob[None]]] = {}

    def submit(self, planned: PlannedWorker) -> str:
        spec = planned.spec
        command = task_command(planned.job, self._run.code_dir(spec.code))
        executor = LocalExecutor(self._run.log_dir(spec.worker), python=shlex.join(command))
        executor.update_parameters(
            timeout_min=NO_TIMEOUT_MIN,
            gpus_per_node=spec.gpus_per_node,
            visible_gpus=self._gpus.get(spec.worker, ()),
            stderr_to_stdout=True,
        )
        job = executor.submit(run_worker, str(self._run.worker_spec(spec.worker, spec.generation)))
        self._jobs[job.job_id] = (job_name(spec.run, spec.worker, spec.generation), job)
        return str(job.job_id)

    def rows(self) -> list[Row]:
        return [Row(job=job_id, name=name, state=STATES[job.state]) for job_id, (name, job) in self._jobs.items()]

    def cancel(self, jobs: Sequence[str], *, force: bool) -> None:
        for job_id in jobs:
            if job_id in self._jobs and self._jobs[job_id][1].state == "RUNNING":
                end_job(int(job_id), force=force)


def end_job(pid: int, *, force: bool) -> None:
    """SIGTERM goes through submitit's supervisor to the agent, which drains; SIGKILL has to find everyone."""
    for target in descendants(pid) if force else [pid]:
        try:
            os.kill(target, signal.SIGKILL if force else signal.SIGTERM)
        except ProcessLookupError:
            continue


def run_processes(run: RunDir) -> list[int]:
    """Processes of this machine that belong to the run, whoever started them and whatever became of that one."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                arguments = [os.fsdecode(part) for part in (entry / "cmdline").read_bytes().split(b"\0")]
            except (FileNotFoundError, ProcessLookupError):
                continue
            if MODULES.intersection(arguments) and any(Path(part).is_relative_to(run.path) for part in arguments):
                found.append(int(entry.name))
    return found


def descendants(pid: int) -> list[int]:
    """The process and all below it, parents first."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def _share_gpus(plan: Plan) -> dict[str, tuple[int, ...]]:
    """This machine's GPUs, one worker after the other: there is no scheduler that would do it."""
    shares, first = {}, 0
    for planned in plan.workers:
        spec = planned.spec
        shares[spec.worker] = tuple(range(first, first + spec.gpus_per_node))
        first += spec.gpus_per_node
    return shares
