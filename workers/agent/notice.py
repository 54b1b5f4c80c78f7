"""How long Slurm leaves a worker between a signal and SIGKILL.

A signal does not tell: `scancel`, a requeue and a preemption without grace kill KillWait after SIGTERM; a preemption
with grace and the warning before the walltime leave the job running until its end time, which Slurm has moved. So the
state and the end of the job are asked for when a signal has come, and KillWait before. (slurm.conf(5): KillWait,
GraceTime; scancel(1).)
"""

from __future__ import annotations

import asyncio
import logging
import os
import re
import time

from workers.agent.slurm_env import parse_time

log = logging.getLogger("sluice.agent")

ASK_TIMEOUT_S = 3.0  # Slurm's controller may be busy ending jobs
KILL_WAIT_S = 30.0  # Slurm's own default
KILL_WAIT = re.compile(r"^KillWait\s*=\s*(\d+) sec", re.MULTILINE)
MARGIN_S = 3.0  # before the end: what cannot finish moves
RUNNING = ("RUNNING", "SIGNALING")  # any other state, as CG, is that of a job that Slurm ends


class Notice:
    """Of one job. Without an answer of Slurm's what is known counts."""

    def __init__(self, job: str) -> None:
        self._job = job
        self._kill_wait_s = KILL_WAIT_S

    async def learn(self) -> None:
        if told := KILL_WAIT.search(await ask("scontrol", "show", "config")):
            self._kill_wait_s = float(told[1])

    async def drain_s(self, heard_at: float) -> float:
        """From now on, after a signal that was heard then (unix seconds). Infinite where nothing ends the job."""
        told = await ask("squeue", "--noheader", "--jobs", self._job, "--format", "%T %e")
        left_s = time_left(told, self._kill_wait_s, heard_at)
        log.info("of its job Slurm says: %s; it may drain for %.0f s", told.strip() or "nothing", left_s)
        return max(heard_at + left_s - time.time(), 0.0)


def time_left(told: str, kill_wait_s: float, now: float) -> float:
    """For the drain, by squeue's `%T %e`."""
    state, _, end = told.strip().partition(" ")
    end_time = parse_time(end)
    if state not in RUNNING:
        left_s = kill_wait_s
    elif end_time is None:
        return float("inf")
    else:
        left_s = max(end_time - now, 0.0)
    return left_s - min(MARGIN_S, left_s / 4)


async def ask(*command: str) -> str:
    """Slurm's words; empty if it has none in time."""
    environment = {**os.environ, "SLURM_TIME_FORMAT": "%s"}
    pipe, nothing = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
    try:
        process = await asyncio.create_subprocess_exec(
            *command, stdin=nothing, stdout=pipe, stderr=nothing, env=environment
        )
    except OSError:
        return ""
    try:
        async with asyncio.timeout(ASK_TIMEOUT_S):
            output, _ = await process.communicate()
    except TimeoutError:
        return ""
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return output.decode(errors="replace")
