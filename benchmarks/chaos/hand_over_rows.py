"""Rows where parts go as planned: at their walltime, for a restart, for a smaller run, by scancel."""

from __future__ import annotations

import random
import time
from collections.abc import Callable

from benchmarks.chaos.dying import kill
from benchmarks.chaos.row import Row
from benchmarks.chaos.stage import RUN, Stage, StageFault
from launcher.jobs import controller_name
from launcher.scheduler import slurm

DECODE = "decode-0"
GENERATION_S = 120.0  # a hand-over of each worker, at the shortest walltime that Slurm has
KILLS, KILLED_EVERY_S = 4, 2.0
SHORT_LIFE = ("cluster.walltime_min=1", "controller.walltime_min=60", "engine.drain_timeout_s=5")
# The workers take all GPUs of the one node on which they may run.
CROWDED = ("cluster.nodes=1", '+cluster.sbatch.exclude="n[2-3]"', "proxy.deadlines.queue_s=60")


def walltime(stage: Stage) -> None:
    for number in range(stage.options.generations):
        stage.until_followed(stage.serving(), f"hand-over {number + 1} at walltime", GENERATION_S)


def rolling_restart(stage: Stage) -> None:
    before = stage.serving()
    stage.restart()
    stage.until_followed(before, "the rolling restart")


def scale_down(stage: Stage) -> None:
    half = max(1, stage.options.replicas // 2)
    wanted = {f"{pool}-{index}" for pool in ("prefill", "decode") for index in range(half)}
    stage.restart(f"pools.prefill.replicas={half}", f"pools.decode.replicas={half}")
    stage.until(lambda: {worker["worker"] for worker in stage.fleet()["workers"]} == wanted, "half of the workers")


def scancel(worker: str) -> Callable[[Stage], None]:
    """What Slurm does to a job that is cancelled or preempted with grace."""

    def happen(stage: Stage) -> None:
        before = {worker: stage.serving()[worker]}
        slurm.cancel([stage.job(worker)])
        stage.until_followed(before, f"a successor of {worker}")

    return happen


def scancel_long(stage: Stage) -> None:
    """Streams outlast the time that Slurm leaves: the worker itself ends them, and they go on elsewhere."""
    job = stage.job(DECODE)
    scancel(DECODE)(stage)
    stage.until(lambda: stage.has_stopped(DECODE, job), f"{DECODE} to end before Slurm kills it")


def proxy_hand_over(stage: Stage) -> None:
    """At the walltime of the controller's job: another job's proxy serves before this one's has gone."""
    before, url = stage.controller_job(), stage.url()
    stage.until(lambda: stage.url() != url, "another proxy's address")
    stage.until(lambda: stage.controller_job() != before, "the end of the job before")
    if stage.ask(url) is not None:
        raise StageFault(f"{url} still answers")


def controller_killed(stage: Stage) -> None:
    """In the middle of a rolling restart: as soon as a successor is in the queue. Its job starts another one."""
    before = stage.serving()
    num_jobs = len(stage.rows())
    stage.restart()
    stage.until(lambda: len(stage.rows()) > num_jobs, "a successor's job")
    stage.until(lambda: kill(stage.controllers()[:1]), "a controller")
    stage.until_followed(before, "the rolling restart, by another controller")
    submitted_once(stage)


def controllers_killed(stage: Stage) -> None:
    """While one gives the run to the other, either of them, at moments that the seed says."""
    chance = random.Random(stage.options.seed)
    before, url = stage.controller_job(), stage.url()
    stage.until(stage.run.heir.exists, "a controller that is to follow")
    for _ in range(KILLS):
        stage.until(lambda: kill(either(chance, stage.controllers())), "a controller")
        time.sleep(chance.uniform(0.0, KILLED_EVERY_S))
    stage.until(lambda: stage.url() != url, "another proxy's address")
    stage.until(lambda: before not in {row.job for row in stage.rows()}, "the end of the job before")
    stage.until(lambda: len(stage.controllers()) == 1 and stage.fleet()["ready"], "one controller of a whole run")
    submitted_once(stage)


def either(chance: random.Random, pids: list[int]) -> list[int]:
    """One of them, if there is one."""
    return chance.sample(pids, len(pids))[:1]


def submitted_once(stage: Stage) -> None:
    names = [row.name for row in slurm.run_rows(RUN, stage.run.path) if row.name != controller_name(RUN)]
    if len(names) != len(set(names)):
        raise StageFault(f"a job was submitted twice: {sorted(names)}")


ROWS = {
    "walltime": Row(walltime, 0.2, SHORT_LIFE),
    "drain_first": Row(walltime, None, (*SHORT_LIFE, "cluster.drain_first=true", "proxy.deadlines.queue_s=60")),
    "rolling_restart": Row(rolling_restart, 0.2),
    "crowded_restart": Row(rolling_restart, None, CROWDED),
    "scale_down": Row(scale_down, 0.2),
    "proxy_hand_over": Row(proxy_hand_over, 0.2, ("controller.walltime_min=2",)),
    "scancel_prefill": Row(scancel("prefill-0"), 1.0),
    "controller_killed": Row(controller_killed, 0.2),
    "controllers_killed": Row(controllers_killed, 0.2, ("controller.walltime_min=2",)),
    "scancel_decode": Row(scancel(DECODE), 1.0),
    "scancel_decode_long": Row(scancel_long, 1.0, ("engine.drain_timeout_s=120",), tokens=600),
}
