"""What a job is to a run, whoever runs it: its name, its row in the queue, its record in `jobs.json`.

Owns these shapes and the names. Starts nothing and asks nobody: `slurm` and `local` do.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Protocol

import msgspec

from launcher.job import PlannedWorker

CONTROLLER = "controller"

EXITED = "EXITED"  # a local process: submitit's supervisor does not tell how

# Slurm's names, used for local processes too. Whatever is not listed here is still alive or may come back.
ENDED_STATES = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        EXITED,
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    }
)
# Ends that are nobody's fault: the same job may well succeed elsewhere.
INNOCENT_ENDS = frozenset({"BOOT_FAIL", "NODE_FAIL", "PREEMPTED"})
HELD = "Dependency"  # Slurm's reason for a job that waits for another one, not for room
OVERLAP_MIN = 30  # of two jobs of a chain: nobody knows yet how long a start takes, nor the queue
GONE = "GONE"  # the queue no longer knows the job and nobody saw how it ended


class JobError(Exception):
    """The queue could not be asked or refused; the message is for the user."""

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One job as the queue tells it."""

    job: str
    name: str
    state: str
    reason: str = ""
    start_time: float | None = None  # expected while pending
    end_time: float | None = None
    nodes: str = ""
    work_dir: str = ""

    @property
    def ended(self) -> bool:
        return self.state in ENDED_STATES or self.state == GONE

    @property
    def held(self) -> bool:
        return self.state == "PENDING" and self.reason == HELD


class JobRecord(msgspec.Struct, frozen=True, kw_only=True):
    """One entry of `jobs.json`: a job that this run submitted or found, and how it ended."""

    job: str
    name: str
    worker: str
    generation: int
    submitted_at: float
    ended_at: float | None = None
    state: str = ""  # the final one
    reason: str = ""
    started_at: float | None = None
    proven_at: float | None = None  # it could take requests
    revision: int = 0  # of the plan it was submitted under
    draining_at: float | None = None  # it took nothing new from then on
    earlier_s: float = 0.0  # that it ran before Slurm put it back into the queue


class JobSystem(Protocol):
    """Slurm, steps of one job, or processes of this machine. All calls block; all raise JobError."""

    look_every_s: float  # how often `rows` may be asked

    def submit(self, planned: PlannedWorker) -> str:
        """Returns the id of the new job."""

    def rows(self) -> list[Row]:
        """Every job of this run that is still known, in one question."""

    def cancel(self, jobs: Sequence[str], *, force: bool) -> None:
        """`force`: no time to finish anything any more. Jobs that are gone already are no error."""


def job_name(run: str, worker: str, generation: int) -> str:
    return f"{run}.{worker}.g{generation}"


def pool_of(worker: str) -> str:
    """Workers are named POOL-NUMBER."""
    return worker.rpartition("-")[0]


def controller_name(run: str) -> str:
    return f"{run}.{CONTROLLER}"


def parse_job_name(run: str, name: str) -> tuple[str, int] | None:
    """Returns (worker, generation), or None for a job that is not a worker of this run."""
    match = re.fullmatch(re.escape(run) + r"\.(.+)\.g(\d+)", name)
    return (match[1], int(match[2])) if match else None


def starts_after_min(walltime_min: int) -> int:
    """Of a chain, from its predecessor's start on, where there is room for both."""
    return walltime_min - min(OVERLAP_MIN, walltime_min // 2)
