"""What Slurm tells a task through its environment, read once. Outside Slurm: a job of our own naming."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Mapping

import msgspec

ASK_TIMEOUT_S = 20.0
LOCAL = "local-"  # a job of our own naming
STARTED = "SLUICE_TASK_STARTED"  # unix time, where the start of the job is not that of the task


class SlurmEnv(msgspec.Struct, frozen=True):
    """Times are unix times. `end_time` is None where nothing ends the job, `start_time` where nobody told."""

    job: str
    restarts: int
    node: str
    node_rank: int
    end_time: float | None
    gpus: tuple[int, ...] = ()  # as the node counts them; empty: none, or Slurm does not tell
    start_time: float | None = None

    @property
    def by_slurm(self) -> bool:
        return not self.job.startswith(LOCAL)


def read_slurm_env(environ: Mapping[str, str] = os.environ) -> SlurmEnv:
    job = environ.get("SLURM_JOB_ID")
    if job is None:
        own = parse_gpus(environ.get("CUDA_VISIBLE_DEVICES", ""))
        return SlurmEnv(f"{LOCAL}{os.getpid()}", 0, platform.node(), 0, None, own, parse_time(environ.get(STARTED, "")))
    start_time, end_time = _times(job, environ)
    return SlurmEnv(
        job=job,
        restarts=int(environ.get("SLURM_RESTART_COUNT", "0")),
        node=environ.get("SLURMD_NODENAME", platform.node()),
        node_rank=int(environ.get("SLURM_NODEID", "0")),
        end_time=end_time,
        # Not CUDA_VISIBLE_DEVICES: behind a device cgroup it counts from 0 in every job.
        gpus=parse_gpus(environ.get("SLURM_STEP_GPUS", environ.get("SLURM_JOB_GPUS", ""))),
        start_time=parse_time(environ[STARTED]) if STARTED in environ else start_time,
    )


def parse_gpus(text: str) -> tuple[int, ...]:
    """`0,1,2,3`; UUIDs and parts of a GPU have no place among them."""
    parts = text.split(",")
    return tuple(map(int, parts)) if all(part.isdigit() for part in parts) else ()


def _times(job: str, environ: Mapping[str, str]) -> tuple[float | None, float | None]:
    """The job's start and end. Older Slurms do not export them: ask once, never again."""
    if "SLURM_JOB_END_TIME" in environ:
        start = environ.get("SLURM_JOB_START_TIME")
        return None if start is None else float(start), float(environ["SLURM_JOB_END_TIME"])
    command = ["squeue", "--noheader", "--jobs", job, "--format", "%S %e"]
    clean = {**environ, "SLURM_TIME_FORMAT": "%s"}
    try:
        answer = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None, None  # an unknown end is a job without a deadline of ours; Slurm still warns by signal
    start, _, end = answer.stdout.strip().partition(" ")
    return parse_time(start), parse_time(end)


def parse_time(text: str) -> float | None:
    """squeue's %S and %e: unix seconds, an ISO local time, or N/A."""
    if text.isdigit():
        return float(text)
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None
