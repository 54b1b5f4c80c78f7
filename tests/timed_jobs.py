"""A run's jobs as processes of this machine that end at a walltime, like Slurm's: for tests of what outlives a job."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

from launcher.job import PlannedWorker
from launcher.jobs import Row, job_name
from launcher.rundir import RunDir
from launcher.scheduler.local import end_job
from tests.live import SOURCE


@dataclass(slots=True)
class Timed:
    name: str
    process: subprocess.Popen[bytes]
    start_time: float
    end_time: float
    cancelled: bool = False

    @property
    def state(self) -> str:
        status = self.process.poll()
        if status is None:
            return "RUNNING"
        if self.cancelled:
            return "CANCELLED"
        return "COMPLETED" if status == 0 else "TIMEOUT" if time.time() >= self.end_time else "FAILED"


class TimedJobs:
    """A `JobSystem`. Agents are told of their job as Slurm tells them."""

    look_every_s = 1.0

    def __init__(self, run: RunDir, life_s: float) -> None:
        self._run = run
        self._life_s = life_s
        self._jobs: dict[str, Timed] = {}

    def submit(self, planned: PlannedWorker) -> str:
        spec, job, now = planned.spec, str(len(self._jobs) + 1), time.time()
        end = now + self._life_s
        slurm = {"SLURM_JOB_ID": job, "SLURM_JOB_START_TIME": f"{now:.0f}", "SLURM_JOB_END_TIME": f"{end:.0f}"}
        log = self._run.log_dir(spec.worker)
        log.mkdir(exist_ok=True)
        with (log / f"{job}_0_log.out").open("ab") as output:
            process = subprocess.Popen(
                [sys.executable, "-m", "workers", str(self._run.worker_spec(spec.worker, spec.generation))],
                env={**os.environ, "PYTHONPATH": str(SOURCE), **slurm},
                stdout=output,
                stderr=output,
                stdin=subprocess.DEVNULL,
            )
        self._jobs[job] = Timed(job_name(spec.run, spec.worker, spec.generation), process, now, end)
        return job

    def rows(self) -> list[Row]:
        for job in self._jobs.values():
            if job.state == "RUNNING" and time.time() >= job.end_time:
                end_job(job.process.pid, force=True)
        return [
            Row(job=number, name=job.name, state=job.state, start_time=job.start_time, end_time=job.end_time)
            for number, job in self._jobs.items()
        ]

    def cancel(self, jobs: Sequence[str], *, force: bool) -> None:
        for job in (self._jobs[number] for number in jobs):
            if job.state == "RUNNING":
                job.cancelled = True
                if force:
                    end_job(job.process.pid, force=True)
                else:
                    job.process.send_signal(signal.SIGTERM)
