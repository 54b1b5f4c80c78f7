"""Jobs on a real Slurm: handed in through submitit, asked about in one question, cancelled, adopted."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from launcher.control.effects import Cancel, DesiredRead, Done, QueueRead, Submit
from launcher.control.reconcile import Reconciler
from launcher.control.succession import Policy
from launcher.job import JobRequest
from launcher.jobs import JobError, Row, job_name
from launcher.rundir import SERVE, STOP, Desired, RunDir, snapshot_code
from launcher.scheduler import slurm
from launcher.scheduler.submit import submit
from tests.live import wait_for
from tests.onebox import OneBox
from tests.unit.planning import planned

pytestmark = pytest.mark.slurm


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch, onebox: OneBox) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "nonsense")  # as users have it: the script must win
    slurm.clean_environment()


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "runs" / "demo")
    run.create()
    return run


def request(**changes: object) -> JobRequest:
    job = planned("+cluster=onebox", "engine=sim").workers[0].job
    changes.setdefault("interpreter", sys.executable)
    return msgspec.structs.replace(job, **changes)


def hand_in(run: RunDir, command: str, worker: str = "w-0", generation: int = 0, **changes: object) -> str:
    """The path of a job of ours, with a shell command in the agent's place."""
    code = snapshot_code(run)
    name = job_name("demo", worker, generation)
    return submit(run, request(**changes), name, worker, code, os.system, command)


def row_of(run: RunDir, job: str) -> Row:
    [row] = [row for row in slurm.run_rows("demo", run.path) if row.job == job]
    return row


def wait_for_state(run: RunDir, job: str, state: str) -> Row:
    wait_for(lambda: row_of(run, job).state == state, f"job {job} to be {state}", 60)
    return row_of(run, job)


def test_a_job_runs_from_the_snapshot_with_its_gpus_and_nothing_foreign(run: RunDir) -> None:
    told = run.path / "told"
    job = hand_in(run, f"cd . && pwd > {told}; env >> {told}; nproc >> {told}", num_nodes=1, gpus_per_node=2)
    wait_for_state(run, job, "COMPLETED")
    lines = told.read_text().splitlines()
    code_dir = str(next(run.code.iterdir()))
    assert lines[0] == code_dir
    variables = dict(line.split("=", 1) for line in lines if "=" in line)
    assert variables["PYTHONPATH"].split(":")[0] == code_dir
    assert len(variables["CUDA_VISIBLE_DEVICES"].split(",")) == 2
    assert not any(name.startswith("SBATCH_") for name in variables)


def test_a_site_may_want_jobs_without_the_login_shell_s_variables(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OF_THE_LOGIN_SHELL", "1")
    told = run.path / "told"
    setup = ("export OF_THE_SITE=1",)
    job = hand_in(run, f"env > {told}", setup=setup, additional={**request().additional, "export": "NONE"})
    wait_for(lambda: row_of(run, job).ended, "the job to end", 60)
    assert row_of(run, job).state == "COMPLETED"
    variables = dict(line.split("=", 1) for line in told.read_text().splitlines() if "=" in line)
    assert variables["OF_THE_SITE"] == "1" and "PYTHONPATH" in variables
    assert "OF_THE_LOGIN_SHELL" not in variables


def test_a_pending_job_says_why_and_a_running_one_until_when(run: RunDir, onebox: OneBox) -> None:
    first = hand_in(run, "sleep 1000", "w-0", num_nodes=3, gpus_per_node=4)
    running = wait_for_state(run, first, "RUNNING")
    assert running.nodes == "n[1-3]" and running.end_time is not None and running.end_time > time.time()
    second = hand_in(run, "sleep 1000", "w-1", num_nodes=1, gpus_per_node=4)
    wait_for(lambda: row_of(run, second).reason in ("Resources", "Priority"), "Slurm's reason", 60)
    assert row_of(run, second).state == "PENDING"
    slurm.cancel([first, second, "999999"])
    assert wait_for_state(run, first, "CANCELLED").ended
    assert wait_for_state(run, second, "CANCELLED").ended


def test_how_a_job_failed_is_told_and_its_log_is_there(run: RunDir) -> None:
    job = hand_in(run, "echo out of order; kill -9 $PPID")
    row = wait_for_state(run, job, "FAILED")
    assert row.reason == "NonZeroExitCode"
    assert "out of order" in (run.log_dir("w-0") / f"{job}_0_log.out").read_text()


def test_a_refused_job_is_named_with_slurms_words(run: RunDir) -> None:
    with pytest.raises(JobError, match=r"demo\.w-0\.g0.*[Ii]nvalid partition") as refused:
        hand_in(run, "true", slurm={"partition": "no-such"})
    assert not refused.value.transient
    with pytest.raises(JobError, match="node configuration is not available"):
        hand_in(run, "true", gpus_per_node=99)


def test_the_warning_before_the_walltime_does_not_end_the_job(run: RunDir, onebox: OneBox) -> None:
    job = hand_in(run, "sleep 1000")
    wait_for_state(run, job, "RUNNING")
    log = run.log_dir("w-0") / f"{job}_0_log.out"
    wait_for(lambda: log.exists() and "Loading pickle" in log.read_text(), "the task to run", 60)
    onebox.ask("scancel", "--batch", "--signal=USR1", job)
    time.sleep(2)
    assert row_of(run, job).state == "RUNNING"
    slurm.cancel([job])
    wait_for_state(run, job, "CANCELLED")


def test_two_runs_of_one_name_do_not_see_each_other(run: RunDir, tmp_path: Path) -> None:
    other = RunDir(tmp_path / "others" / "demo")
    other.create()
    ours, theirs = hand_in(run, "sleep 1000"), hand_in(other, "sleep 1000")
    assert [row.job for row in slurm.run_rows("demo", run.path)] == [ours]
    assert [row.job for row in slurm.run_rows("demo", other.path)] == [theirs]
    slurm.cancel([ours, theirs])
    wait_for_state(run, ours, "CANCELLED")
    wait_for_state(other, theirs, "CANCELLED")


def test_a_new_controller_adopts_what_runs_and_stops_it(run: RunDir) -> None:
    """Its predecessor died after sbatch and before jobs.json."""
    job = hand_in(run, "sleep 1000", "w-0", generation=3)
    core = Reconciler.restore("demo", [], {"w-0": 3, "w-1": -1}, served=False, policy=Policy(drain_s=1.0))
    core.apply(DesiredRead(Desired(target=SERVE, workers=("w-0", "w-1"), since=0.0)), time.time())
    asked_at = time.time()
    effects = core.apply(QueueRead(tuple(slurm.run_rows("demo", run.path)), asked_at), asked_at)
    assert [effect for effect in effects if isinstance(effect, Submit)] == [Submit("w-1", 0)]
    assert core.book.live[job].record.generation == 3
    core.apply(DesiredRead(Desired(target=STOP, workers=(), since=0.0)), time.time())
    slurm.cancel([job])
    wait_for_state(run, job, "CANCELLED")


def test_stop_ends_only_when_slurm_holds_nothing(run: RunDir) -> None:
    job = hand_in(run, "trap '' TERM; sleep 3", "w-0")
    wait_for_state(run, job, "RUNNING")
    core = Reconciler.restore("demo", [], {"w-0": 0}, served=True, policy=Policy(drain_s=1.0))
    core.apply(DesiredRead(Desired(target=STOP, workers=("w-0",), since=0.0)), time.time())
    effects = core.apply(QueueRead(tuple(slurm.run_rows("demo", run.path)), time.time()), time.time())
    assert Cancel(job, force=False) in effects and Done() not in effects
    slurm.cancel([job])
    wait_for_state(run, job, "CANCELLED")
    asked_at = time.time()
    assert Done() in core.apply(QueueRead(tuple(slurm.run_rows("demo", run.path)), asked_at), asked_at)
    assert subprocess.run(["squeue", "-h"], capture_output=True, text=True).stdout == ""
