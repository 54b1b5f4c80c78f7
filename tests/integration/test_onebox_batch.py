"""slurm/batch.sbatch with simulated engines on a real Slurm: the job ends with the batch; a cancelled one goes on."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.rundir import RunDir
from launcher.scheduler import slurm
from tests.batching import openai_line, texts, write_lines
from tests.integration.test_onebox_steps import ARGUMENTS, ONE_WORKER, SIZE
from tests.launching import environment, nothing_left
from tests.live import SOURCE, wait_for
from tests.onebox import OneBox

pytestmark = pytest.mark.slurm

NUM_REQUESTS = 300


@pytest.fixture
def run(tmp_path: Path, onebox: OneBox) -> Iterator[RunDir]:
    run = RunDir(tmp_path / "runs" / "demo")
    with nothing_left(run):
        try:
            yield run
        finally:
            slurm.cancel(onebox.jobs())
            wait_for(lambda: onebox.jobs() == [], "Slurm to be empty", 60)


def hand_in(folder: Path) -> Path:
    """Returns where its output goes."""
    script = str(SOURCE / "slurm" / "batch.sbatch")
    batch = ("batch.input=in.jsonl", "batch.output=out.jsonl")
    done = subprocess.run(
        ["sbatch", "--parsable", *SIZE, script, *ARGUMENTS, *ONE_WORKER, *batch],
        cwd=folder,
        env={**environment(), "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        check=True,
    )
    return folder / f"sluice-batch-{done.stdout.strip()}.out"


def test_a_job_for_a_batch_ends_with_it_and_a_cancelled_one_goes_on(
    tmp_path: Path, run: RunDir, onebox: OneBox
) -> None:
    write_lines(tmp_path / "in.jsonl", [openai_line(number) for number in range(NUM_REQUESTS)])
    store = tmp_path / "out.jsonl.batch" / "results.log"
    told = hand_in(tmp_path)
    wait_for(lambda: store.exists() and store.stat().st_size > 20, "some results", 90)
    slurm.cancel(onebox.jobs())
    wait_for(lambda: onebox.jobs() == [], "the job to end", 60)
    told = hand_in(tmp_path)
    wait_for(lambda: told.exists() and onebox.jobs() == [], "the job to end by itself", 120)
    assert f"complete: {NUM_REQUESTS} of {NUM_REQUESTS} done" in told.read_text(), told.read_text()
    assert f"{NUM_REQUESTS} left to do" not in told.read_text(), "it began anew"
    assert len(texts(tmp_path / "out.jsonl")) == NUM_REQUESTS
