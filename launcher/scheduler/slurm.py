"""Slurm's side of a run: one question about all its jobs, and cancelling. Submitting is `submit`'s.

Owns the commands and how their answers are read. Works without sacct: squeue tells how a job ended for as
long as Slurm remembers it (MinJobAge), the records in `jobs.json` do after that.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import msgspec

from launcher.job import Plan
from launcher.jobs import JobError, Row, controller_name, parse_job_name

# Order matters to parse_queue. %Z, the job's working directory, lies in the run folder: two runs of one
# name in two folders do not adopt each other's jobs.
FORMAT = ("%i", "%T", "%r", "%S", "%e", "%N", "%j", "%Z")
DELIMITER = "\x1f"
ANSWER_TIMEOUT_S = 60.0
TRANSIENT = ("Socket timed out", "Unable to contact slurm controller", "temporarily", "try again")
NOT_CONFIGURED = "Could not establish a configuration source"
NO_SLURM = "this machine has no Slurm: start from a login node of the cluster, or use +cluster=local"
# Variables of a surrounding job or of sbatch itself would silently change what a script asks for.
FOREIGN_PREFIXES = ("SLURM_", "SLURMD_", "SRUN_", "SBATCH_", "SUBMITIT_")
KEPT_VARIABLES = ("SLURM_CONF", "SLURM_TIME_FORMAT")
SURROUNDING_JOB = "SLUICE_JOB_ID"  # SLURM_JOB_ID under a name that no command of Slurm reads


def clean_environment() -> None:
    """For processes that submit jobs or steps, at their start: inside a job these would inherit its SLURM_*."""
    if "SLURM_JOB_ID" in os.environ:
        os.environ[SURROUNDING_JOB] = os.environ["SLURM_JOB_ID"]
    for name in list(os.environ):
        if name.startswith(FOREIGN_PREFIXES) and name not in KEPT_VARIABLES:
            del os.environ[name]
    os.environ["SLURM_TIME_FORMAT"] = "standard"


def surrounding_job() -> str:
    """The job around this process, "" outside of one. After `clean_environment`."""
    return os.environ.get(SURROUNDING_JOB, "")


def queue_command() -> list[str]:
    """All states: a job that has just ended is still told, with the way it ended."""
    return ["squeue", "--me", "--noheader", "--states=all", f"--format={DELIMITER.join(FORMAT)}"]


def parse_queue(answer: str) -> list[Row]:
    rows = []
    for line in answer.splitlines():
        fields = line.split(DELIMITER)
        if len(fields) != len(FORMAT):
            raise JobError(f"squeue said something unexpected: {line!r}")
        job, state, reason, start, end, nodes, name, work_dir = fields
        rows.append(
            Row(
                job=job,
                name=name,
                state=state,
                reason="" if reason == "None" else reason,
                start_time=parse_time(start),
                end_time=parse_time(end),
                nodes=nodes,
                work_dir=work_dir,
            )
        )
    return rows


def parse_time(text: str) -> float | None:
    """Slurm's standard format, local time; None for N/A, NONE or Unknown."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def is_of_run(row: Row, run: str, run_dir: Path) -> bool:
    named = row.name == controller_name(run) or parse_job_name(run, row.name) is not None
    return named and Path(row.work_dir).is_relative_to(run_dir)


def run_rows(run: str, run_dir: Path) -> list[Row]:
    """Every job of the run that Slurm still knows, its controller's included. Raises JobError."""
    return [row for row in parse_queue(ask(queue_command())) if is_of_run(row, run, run_dir)]


def plan_rows(plan: Plan, run_dir: Path) -> list[Row]:
    """Every job of a started plan. One that holds the whole run stands for its controller, which it ends with."""
    if plan.allocation is None:
        return run_rows(plan.run, run_dir)
    rows = [row for row in parse_queue(ask(queue_command())) if row.job == plan.allocation.job]
    return [msgspec.structs.replace(row, name=controller_name(plan.run)) for row in rows]


def cancel(jobs: Sequence[str]) -> None:
    """Raises JobError. Slurm itself follows SIGTERM with SIGKILL after its KillWait."""
    if jobs:
        ask(["scancel", "--quiet", *jobs])


def ask(command: Sequence[str]) -> str:
    """Run one Slurm command and return what it prints. Raises JobError with Slurm's own words."""
    return _answered(command).stdout


def try_only(command: Sequence[str]) -> str:
    """`sbatch --test-only` tells on standard error. Raises JobError where Slurm would refuse."""
    return _answered(command).stderr


def _answered(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=ANSWER_TIMEOUT_S,
            check=False,
            stdin=subprocess.DEVNULL,
            env={**os.environ, "SLURM_TIME_FORMAT": "standard"},
        )
    except FileNotFoundError:
        raise missing(command[0]) from None
    except subprocess.TimeoutExpired:
        raise JobError(f"{command[0]} did not answer within {ANSWER_TIMEOUT_S:.0f} s", transient=True) from None
    if done.returncode != 0:
        said = [line.removeprefix(f"{command[0]}: ") for line in done.stderr.strip().splitlines()]
        words = "; ".join(said) or f"exit code {done.returncode}"
        if NOT_CONFIGURED in words:
            raise JobError(f"{command[0]}: {words}\n{NO_SLURM}")
        raise JobError(f"{command[0]}: {words}", transient=is_transient(words))
    return done


def is_transient(words: str) -> bool:
    return any(sign in words for sign in TRANSIENT)


def missing(command: str) -> JobError:
    return JobError(f"{command}: command not found\n{NO_SLURM}")
