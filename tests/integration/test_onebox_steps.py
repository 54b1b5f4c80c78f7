"""slurm/one_allocation.sbatch with simulated engines on a real Slurm: a whole run in one job."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from launcher.rundir import RunDir
from launcher.scheduler import slurm
from launcher.scheduler.local import run_processes
from tests.integration.test_onebox_run import ask, status
from tests.launching import environment, launch, nothing_left
from tests.live import SOURCE, wait_for
from tests.onebox import OneBox

pytestmark = pytest.mark.slurm

SCRIPT = SOURCE / "slurm" / "one_allocation.sbatch"
ARGUMENTS = ("+cluster=onebox", "engine=sim", "run=demo")
# The decode worker lies on both nodes, the prefill worker beside it on the first.
SPLIT = (
    "pools.decode.replicas=1",
    "pools.decode.tensor_parallel=2",
    "pools.decode.nodes=2",
    "cluster.setup=[echo gpus $CUDA_VISIBLE_DEVICES on $SLURMD_NODENAME]",
)
ONE_WORKER = ("~pools.prefill", "pools.decode.role=any", "pools.decode.replicas=1")
SLOW = "pools.decode.engine_args.timing={prefill_ms: [0, 0, 0], decode_ms: [0, 0, 20]}"
NUM_TOKENS = 100  # two seconds
SIZE = ("--nodes=2", "--ntasks-per-node=1", "--cpus-per-task=8", "--gpus-per-node=4", "--time=30")


@pytest.fixture
def run(tmp_path: Path, onebox: OneBox) -> Iterator[RunDir]:
    run = RunDir(tmp_path / "runs" / "demo")
    with nothing_left(run):
        try:
            yield run
        finally:
            slurm.cancel(onebox.jobs())
            wait_for(lambda: onebox.jobs() == [], "Slurm to be empty", 60)


def hand_in(folder: Path, *arguments: str, size: tuple[str, ...] = SIZE) -> str:
    done = subprocess.run(
        ["sbatch", "--parsable", "--open-mode=append", *size, str(SCRIPT), *ARGUMENTS, *arguments],
        cwd=folder,
        env={**environment(), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


def output(folder: Path, job: str) -> str:
    path = folder / f"sluice-{job}.out"
    return path.read_text() if path.exists() else ""


def wait_ready(folder: Path, job: str, times: int = 1) -> None:
    wait_for(lambda: output(folder, job).count("\nready\n") == times, "the run to be ready", 90)


def steps(onebox: OneBox) -> dict[str, str]:
    """Name -> Slurm's id of each step."""
    lines = onebox.ask("squeue", "--noheader", "--steps", "--format=%j %i").splitlines()
    return dict(line.split() for line in lines)


def test_a_run_in_one_job_from_sbatch_to_stop(tmp_path: Path, run: RunDir, onebox: OneBox) -> None:
    job = hand_in(tmp_path, *SPLIT)
    wait_ready(tmp_path, job)
    assert onebox.jobs() == [job] and ask(run) == 200
    shown = status(tmp_path)
    assert shown["source"] == "live" and shown["ready"]
    workers = {worker["worker"]: worker for worker in shown["workers"]}
    assert workers["decode-0"]["job"] == f"{job}.decode-0.g0" and workers["decode-0"]["end_time"]
    told = launch(tmp_path, "action=logs", "run=demo", "worker=prefill-0").stdout
    told += "".join(path.read_text() for path in run.logs.glob("decode-0/*_log.out"))
    taken = re.findall(r"^gpus (\d) on (n\d)$", told, re.MULTILINE)
    assert len(taken) == len(set(taken)) == 3 and {node for _, node in taken} == {"n1", "n2"}, "no GPU is given twice"

    # A worker whose step is killed comes back as a new generation, on its own nodes.
    subprocess.run(["scancel", steps(onebox)["demo.decode-0.g0"]], check=True)
    wait_for(lambda: "demo.decode-0.g1" in steps(onebox), "a new generation of decode-0", 60)
    wait_for(lambda: status(tmp_path)["ready"], "the run to be ready again", 60)
    assert ask(run) == 200

    again = hand_in(tmp_path, size=("--nodes=1", "--cpus-per-task=8", "--gpus-per-node=4", "--time=30"))
    wait_for(lambda: again not in onebox.jobs(), "the second job to end", 60)
    assert "run demo is live: " in output(tmp_path, again)

    stopped = launch(tmp_path, "action=stop", "run=demo")
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert onebox.jobs() == [] and status(tmp_path)["phase"] == "stopped"
    assert "JobState=COMPLETED" in onebox.ask("scontrol", "show", "job", job)
    assert f"the run has stopped; why: {run.logs}/controller/controller.log" in output(tmp_path, job)


def test_a_plan_that_does_not_fit_is_refused_before_anything_starts(
    tmp_path: Path, run: RunDir, onebox: OneBox
) -> None:
    small = ("--nodes=1", "--gpus-per-node=1", "--cpus-per-task=2", "--time=30")
    job = hand_in(tmp_path, *SPLIT, size=small)
    wait_for(lambda: onebox.jobs() == [], "the job to end", 60)
    faults = output(tmp_path, job).splitlines()
    assert [fault.partition(":")[0] for fault in faults] == [
        "cluster.nodes",
        "cluster.gpus_per_node",
        "cluster.cpus_per_node",
    ]
    assert f"take 2 GPUs, n1 of job {job} has 1; use sbatch --gpus-per-node=2" in faults[1]
    assert not run.path.exists()


@contextmanager
def stream(run: RunDir) -> Iterator[Iterator[str]]:
    """A client that reads a slow answer, from its first token on."""
    endpoint = json.loads(run.endpoint.read_text())
    headers = {"authorization": f"Bearer {Path(endpoint['api_key_file']).read_text()}"}
    body = {"model": "tiny", "prompt": "word " * 20, "max_tokens": NUM_TOKENS, "stream": True}
    with httpx.stream("POST", f"{endpoint['url']}/completions", json=body, headers=headers, timeout=60) as answer:
        lines = (line for line in answer.iter_lines() if line)
        assert next(lines).startswith("data: {")
        yield lines


def test_a_job_that_is_queued_again_serves_again_and_scancel_drains_and_leaves_nothing(
    tmp_path: Path, run: RunDir, onebox: OneBox
) -> None:
    job = hand_in(tmp_path, *ONE_WORKER, SLOW, size=("--requeue", *SIZE))
    wait_ready(tmp_path, job)
    onebox.ask("scontrol", "requeue", job)
    wait_ready(tmp_path, job, times=2)
    assert ask(run) == 200
    assert {worker["generation"] for worker in status(tmp_path)["workers"]} == {1}

    with stream(run) as lines:
        slurm.cancel([job])
        assert list(lines)[-1] == "data: [DONE]", "within Slurm's KillWait everything finishes what it has"
    wait_for(lambda: onebox.jobs() == [] and not run_processes(run), "all of the job to end", 60)
    assert status(tmp_path)["phase"] in ("stopped", "lost")
    assert launch(tmp_path, "action=stop", "run=demo").returncode == 0


def test_a_job_whose_controller_dies_ends_and_leaves_nothing(tmp_path: Path, run: RunDir, onebox: OneBox) -> None:
    job = hand_in(tmp_path, *ONE_WORKER)
    wait_ready(tmp_path, job)
    os.kill(json.loads(run.owner.read_text())["pid"], signal.SIGKILL)
    wait_for(lambda: onebox.jobs() == [] and not run_processes(run), "all of the job to end", 60)
    assert "the controller ended with status -9: stopping the run" in output(tmp_path, job)
    assert "JobState=FAILED" in onebox.ask("scontrol", "show", "job", job)
    shown = launch(tmp_path, "action=status", "run=demo").stdout
    assert "run demo: lost (Slurm, asked just now; status.json, " in shown
    assert launch(tmp_path, "action=stop", "run=demo").returncode == 0
