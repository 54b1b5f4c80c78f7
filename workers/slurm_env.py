"""What Slurm tells a task through its environment, read once. Outside Slurm: a job of our own naming."""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Mapping

import msgspec

ASK_TIMEOUT_S = 20.0


class SlurmEnv(msgspec.Struct, frozen=True):
    """`end_time` is unix time, None where nothing ends the job."""

    job: str
    restarts: int
    node: str
    node_rank: int
    end_time: float | None


def read_slurm_env(environ: Mapping[str, str] = os.environ) -> SlurmEnv:
    job = environ.get("SLURM_JOB_ID")
    if job is None:
        return SlurmEnv(f"local-{os.getpid()}", 0, platform.node(), 0, None)
    return SlurmEnv(
        job=job,
        restarts=int(environ.get("SLURM_RESTART_COUNT", "0")),
        node=environ.get("SLURMD_NODENAME", platform.node()),
        node_rank=int(environ.get("SLURM_NODEID", "0")),
        end_time=_end_time(job, environ),
    )


def _end_time(job: str, environ: Mapping[str, str]) -> float | None:
    """Older Slurms do not export it: ask once, never again."""
    if "SLURM_JOB_END_TIME" in environ:
        return float(environ["SLURM_JOB_END_TIME"])
    command = ["squeue", "--noheader", "--jobs", job, "--format", "%e"]
    clean = {**environ, "SLURM_TIME_FORMAT": "%s"}
    try:
        answer = subprocess.run(command, env=clean, capture_output=True, text=True, timeout=ASK_TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None  # an unknown end is a job without a deadline of ours; Slurm still warns by signal
    text = answer.stdout.strip()
    return parse_end_time(text)


def parse_end_time(text: str) -> float | None:
    """squeue's %e: unix seconds, an ISO local time, or N/A."""
    if text.isdigit():
        return float(text)
    try:
        return time.mktime(time.strptime(text, "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None
