"""Slurm in virtual time: how long a job waits, how long its worker takes to come, when its node fails.

Pure: told the time, asked for what is due. Owns the jobs and what is drawn for each; whether a worker ends by its own
will or by somebody's is for the driver to say.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import msgspec

from launcher.jobs import Row, job_name

RUN = "twin"
DAY_S = 86_400.0


class Site(msgspec.Struct, frozen=True, kw_only=True):
    """Medians; `spread` of their logarithms."""

    queue_s: float
    start_s: float  # from a job's start until its worker can be proven
    spread: float = 0.5
    walltime_s: float = DAY_S
    failures_per_day: float = 0.0  # of each worker
    seed: int = 1


@dataclass(slots=True)
class VirtualJob:
    id: str
    worker: str
    generation: int
    starts_at: float
    serves_at: float
    fails_at: float
    ends_at: float  # by its walltime
    state: str = "PENDING"
    up: bool = False

    @property
    def key(self) -> tuple[str, int]:
        return self.worker, self.generation


class VirtualSlurm:
    def __init__(self, site: Site) -> None:
        self._site = site
        self._rng = random.Random(site.seed)
        self.jobs: dict[str, VirtualJob] = {}

    def submit(self, worker: str, generation: int, now: float) -> VirtualJob:
        site, job = self._site, str(len(self.jobs) + 1)
        starts_at = now + self._drawn(site.queue_s)
        serves_at = starts_at + self._drawn(site.start_s)
        failing = site.failures_per_day / DAY_S
        fails_at = starts_at + self._rng.expovariate(failing) if failing else math.inf
        self.jobs[job] = VirtualJob(
            job, worker, generation, starts_at, serves_at, fails_at, starts_at + site.walltime_s
        )
        return self.jobs[job]

    def _drawn(self, median_s: float) -> float:
        return median_s * self._rng.lognormvariate(0.0, self._site.spread)

    def pass_to(self, now: float) -> tuple[list[VirtualJob], list[VirtualJob]]:
        """Workers that have come, and workers that are lost with their jobs."""
        come, lost = [], []
        for job in self.live():
            if job.state == "PENDING" and now >= job.starts_at:
                job.state = "RUNNING"
            if job.state == "RUNNING" and now >= min(job.fails_at, job.ends_at):
                job.state = "NODE_FAIL" if job.fails_at < job.ends_at else "TIMEOUT"
                lost.append(job)
            elif job.state == "RUNNING" and not job.up and now >= job.serves_at:
                job.up = True
                come.append(job)
        return come, lost

    def end(self, job: str, state: str) -> VirtualJob:
        self.jobs[job].state = state
        return self.jobs[job]

    def live(self) -> list[VirtualJob]:
        return [job for job in self.jobs.values() if job.state in ("PENDING", "RUNNING")]

    def rows(self) -> tuple[Row, ...]:
        """As squeue tells it."""
        return tuple(
            Row(
                job=job.id,
                name=job_name(RUN, job.worker, job.generation),
                state=job.state,
                start_time=job.starts_at,
                end_time=None if job.state == "PENDING" else job.ends_at,
            )
            for job in self.jobs.values()
        )
