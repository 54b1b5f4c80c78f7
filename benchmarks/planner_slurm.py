"""A pool that grows with a ramp on a real Slurm whose queue is full: `rows=slurm_ramp` of `benchmarks.planner`.

Simulated engines, slowed down so that few requests fill them; other jobs hold every GPU and wait before whoever comes.
Then the same requests in the twin, with the waits and starts that were seen. Owns the row and the other jobs.
"""

from __future__ import annotations

import random
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Self

from benchmarks.arguments import Count, Duration
from benchmarks.chaos.onebox import own_slurm
from benchmarks.planner_sizes import Sizes, kept
from benchmarks.processes import ProcessFault
from benchmarks.report import say
from benchmarks.twin_run import asked_of, environment, slower, timing_argument
from launcher.config import load
from launcher.jobs import JobRecord
from launcher.planner.word import read_word
from launcher.rundir import RunDir
from launcher.start import plan_run
from launcher.twin.elastic import Elastic
from launcher.twin.records import Record
from launcher.twin.simulate import twin_of
from launcher.twin.slurm import Site
from launcher.twin.traces import Request, own_chain

BLOCK_SIZE = 16
FILLER = "filler"
LOOK_S = 1.0
RUN = "ramp"


class SlurmRamp(Sizes, frozen=True, kw_only=True):
    slurm_rate: Duration = 1.0  # requests per second at first; three times as many at the end
    slurm_calm_s: Duration = 330.0  # a forecast needs five minutes
    slurm_ramp_s: Duration = 480.0
    slurm_end_s: Duration = 60.0
    slurm_most: Count = 6  # workers
    slurm_prompt: Count = 2000  # tokens
    slurm_answer: Count = 50
    slurm_slower: Duration = 8.0  # engines than by default
    slurm_ahead: Count = 6  # jobs of others that wait, at all times
    slurm_filler_s: Duration = 25.0  # of each of them, give or take a half


class Fillers:
    """Other people's jobs, of one GPU each, from a thread of their own."""

    def __init__(self, asked: SlurmRamp) -> None:
        self._asked = asked
        self._rng = random.Random(asked.seed)
        self._enough = threading.Event()
        self._thread = threading.Thread(target=self._fill, name="fillers")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._enough.set()
        self._thread.join()
        subprocess.run(["scancel", f"--name={FILLER}"], check=False)

    def _fill(self) -> None:
        while not self._enough.wait(LOOK_S):
            asked = ["squeue", "--noheader", f"--name={FILLER}", "--states=PENDING"]
            waiting = subprocess.run(asked, capture_output=True, text=True, check=False).stdout.count("\n")
            for _ in range(waiting, self._asked.slurm_ahead):
                seconds = self._asked.slurm_filler_s * self._rng.uniform(0.5, 1.5)
                job = [f"--job-name={FILLER}", "--nodes=1", "--gpus-per-node=1", "--output=/dev/null"]
                subprocess.run(["sbatch", "--quiet", *job, f"--wrap=sleep {seconds:.0f}"], check=False)


def arguments(asked: SlurmRamp) -> list[str]:
    return [
        "+cluster=onebox",
        "engine=sim",
        f"run={RUN}",
        "~pools.prefill",
        "pools.decode.role=any",
        "pools.decode.replicas=1",
        "model.max_model_len=16384",
        "engine.engine_args.num_blocks=16384",
        timing_argument(slower(asked.slurm_slower)),
        "engine.drain_timeout_s=30",
        "routing.targets.ttft_s=2",
        "routing.targets.itl_s=0.25",
        "planner=on",
        "planner.min_replicas=1",
        f"planner.max_replicas={asked.slurm_most}",
    ]


def requests_of(asked: SlurmRamp) -> list[Request]:
    rng, at_s, requests = random.Random(asked.seed), 0.0, list[Request]()
    end_s = asked.slurm_calm_s + asked.slurm_ramp_s + asked.slurm_end_s

    def rate() -> float:
        return asked.slurm_rate * (1 + 2 * min(1.0, max(0.0, (at_s - asked.slurm_calm_s) / asked.slurm_ramp_s)))

    while (at_s := at_s + rng.expovariate(rate())) < end_s:
        chain = own_chain(len(requests), asked.slurm_prompt, BLOCK_SIZE)
        requests.append(Request(at_s, asked.slurm_prompt, asked.slurm_answer, chain))
    return requests


def launcher(folder: Path, *words: str) -> None:
    """Raises ProcessFault."""
    command = [sys.executable, "-m", "launcher", *words]
    done = subprocess.run(command, cwd=folder, env=environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise ProcessFault(f"launcher {' '.join(words)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def measure_slurm(asked: SlurmRamp) -> dict[str, float]:
    requests = requests_of(asked)
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name:
        folder = Path(name)
        run = RunDir(folder / "runs" / RUN)
        with own_slurm(folder / "slurm", networks=False), Fillers(asked):
            try:
                launcher(folder, *arguments(asked))
                say(f"slurm_ramp: {len(requests)} requests in {requests[-1].at_s:.0f} s")
                live = asked_of(run, requests, BLOCK_SIZE).records
                word, jobs = read_word(run), run.read_jobs()
            finally:
                launcher(folder, "action=stop", f"run={RUN}")
    assert word is not None
    for one in word.scaled:
        say(f"slurm_ramp: {one}")
    return figures_of(asked, live, jobs, folder) | {
        "slurm_ramp.scaled": float(len(word.scaled)),
        "slurm_ramp.gpu_hours": word.gpu_hours,
    }


def figures_of(asked: SlurmRamp, live: Sequence[Record], jobs: Sequence[JobRecord], folder: Path) -> dict[str, float]:
    config = load([*arguments(asked), f"runs_dir={folder}/predicted"])
    _, plan, model = plan_run(config)
    waits = [job.started_at - job.submitted_at for job in jobs if job.started_at is not None]
    starts = [one.proven_at - one.started_at for one in jobs if one.proven_at and one.started_at]
    site = Site(queue_s=median(waits), start_s=median(starts), spread=0.1)
    requests = [record.request for record in live]
    twin = Elastic(plan, twin_of(config, plan, model, BLOCK_SIZE), requests, site)
    targets = plan.proxy.routing.targets
    virtual = twin.run().records
    return {
        "slurm_ramp.requests": float(len(live)),
        "slurm_ramp.good": sum(kept(record, targets) for record in live) / len(live),
        "slurm_ramp.workers": float(len({job.worker for job in jobs})),
        "slurm_ramp.queue_s": median(waits),
        "slurm_ramp.queue_most_s": max(waits),
        "slurm_ramp.start_s": median(starts),
        "slurm_ramp.twin_good": sum(kept(record, targets) for record in virtual) / len(virtual),
        "slurm_ramp.twin_workers": float(twin.operated.most_workers),
    }
