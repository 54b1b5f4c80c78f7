"""A worker agent by itself, as Slurm starts it, without a proxy: how it ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.live import Live, replaced, sim_engine
from workers.lifecycle import DRAINING, LOADING, READY, STOPPED

LIFE_S = 12  # half of it is more than enough to load


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Live]:
    started = Live(tmp_path / "run")
    try:
        yield started
    finally:
        started.stop()


def test_it_drains_by_itself_before_its_job_ends(run: Live) -> None:
    end_time = int(time.time()) + LIFE_S
    run.start_worker("decode-0", sim_engine(), SLURM_JOB_ID="77", SLURM_JOB_END_TIME=str(end_time))
    assert run.processes["decode-0"].wait(60) == 0
    told = [line.split("sluice.agent: ")[1] for line in run.log("decode-0").splitlines() if "sluice.agent: " in line]
    assert told[0].startswith("the job's walltime ends in ")
    assert [line.split(":")[0] for line in told[1:]] == [LOADING, READY, DRAINING, STOPPED]
    assert told[-2:] == ["draining: walltime", "stopped: walltime"]


def test_an_engine_that_fails_at_start_ends_it_with_the_reason(run: Live) -> None:
    run.start_worker("decode-0", replaced(sim_engine(), args={"fail_at_start": "no memory for the weights"}))
    assert run.processes["decode-0"].wait(60) == 1
    _, story = run.log("decode-0").split("failed: the engine process ended by itself while loading", 1)
    assert "no memory for the weights" in story
