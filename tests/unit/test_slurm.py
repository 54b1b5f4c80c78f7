"""slurm: how its answers are read and its refusals passed on."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

import msgspec
import pytest

from launcher.job import Allocation
from launcher.jobs import JobError, Row, job_name, parse_job_name
from launcher.scheduler import slurm
from launcher.scheduler.slurm import DELIMITER
from tests.unit.planning import planned


def line(*fields: str) -> str:
    return DELIMITER.join(fields)


def test_a_queue_is_read_row_by_row() -> None:
    answer = "\n".join(
        [
            line("7", "PENDING", "Resources", "2026-01-02T03:04:05", "N/A", "", "demo.p-0.g0", "/runs/demo/code/x"),
            line("8", "RUNNING", "None", "2026-01-02T03:04:05", "2026-01-02T05:04:05", "n[1-2]", "demo.d-0.g1", "/r"),
            line("9", "FAILED", "NonZeroExitCode", "N/A", "Unknown", "n1", "a|name with spaces", "/r"),
        ]
    )
    pending, running, failed = slurm.parse_queue(answer + "\n")
    assert (pending.job, pending.state, pending.reason, pending.end_time) == ("7", "PENDING", "Resources", None)
    assert pending.start_time == datetime(2026, 1, 2, 3, 4, 5).timestamp()
    assert running.reason == "" and running.nodes == "n[1-2]"
    assert running.end_time == datetime(2026, 1, 2, 5, 4, 5).timestamp()
    assert failed.ended and not running.ended and not pending.ended
    assert failed.name == "a|name with spaces" and failed.end_time is None


def test_an_empty_queue_has_no_rows() -> None:
    assert slurm.parse_queue("") == []


def test_an_answer_of_another_shape_is_an_error_not_a_guess() -> None:
    with pytest.raises(JobError, match="unexpected"):
        slurm.parse_queue("slurm_load_jobs error: Unable to contact slurm controller")


def test_the_question_is_one_for_all_jobs() -> None:
    command = slurm.queue_command()
    assert command[:4] == ["squeue", "--me", "--noheader", "--states=all"]
    assert command[4].count(DELIMITER) == len(slurm.FORMAT) - 1


def test_names_carry_run_worker_and_generation() -> None:
    assert parse_job_name("my.run", job_name("my.run", "decode-0", 12)) == ("decode-0", 12)
    assert parse_job_name("my", job_name("my.run", "decode-0", 12)) == ("run.decode-0", 12)
    assert parse_job_name("run", "run.controller") is None
    assert parse_job_name("run", "xrun.p.g0") is None


def test_a_run_of_the_same_name_in_another_folder_is_another_run() -> None:
    ours = Row(job="1", name="demo.p-0.g0", state="RUNNING", work_dir="/runs/demo/code/x")
    theirs = Row(job="2", name="demo.p-0.g0", state="RUNNING", work_dir="/other/demo/code/x")
    controller = Row(job="3", name="demo.controller", state="RUNNING", work_dir="/runs/demo/code/x")
    foreign = Row(job="4", name="notebook", state="RUNNING", work_dir="/runs/demo/code/x")
    of_run = [
        row.job for row in (ours, theirs, controller, foreign) if slurm.is_of_run(row, "demo", Path("/runs/demo"))
    ]
    assert of_run == ["1", "3"]


def test_a_job_that_holds_a_whole_run_stands_for_its_controller(monkeypatch: pytest.MonkeyPatch) -> None:
    answer = "\n".join(line(job, "RUNNING", "None", "N/A", "N/A", "n1", "sluice", "/home/me") for job in ("12", "13"))
    monkeypatch.setattr(slurm, "ask", lambda command: answer)
    plan = msgspec.structs.replace(
        planned("+cluster=onebox", "run=demo"), allocation=Allocation(job="12", nodes=(), end_time=None)
    )
    [row] = slurm.plan_rows(plan, Path("/runs/demo"))
    assert (row.job, row.name, row.state) == ("12", "demo.controller", "RUNNING")


def test_a_surrounding_jobs_variables_do_not_reach_sbatch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_GPUS_PER_NODE", "SBATCH_PARTITION", "SRUN_CPUS_PER_TASK", "SUBMITIT_EXECUTOR"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("SLURM_CONF", "/etc/slurm.conf")
    monkeypatch.setenv(slurm.SURROUNDING_JOB, "of a parent")
    slurm.clean_environment()
    assert slurm.surrounding_job() == "x"
    left = {name for name in os.environ if name.startswith(slurm.FOREIGN_PREFIXES)}
    assert left == {"SLURM_CONF", "SLURM_TIME_FORMAT"}


def test_a_machine_without_slurm_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(JobError, match=r"squeue: command not found\n.*login node.*\+cluster=local"):
        slurm.run_rows("demo", tmp_path)


def test_slurms_own_words_are_passed_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    command = tmp_path / "squeue"
    command.write_text("#!/bin/sh\necho 'slurm_load_jobs error: Socket timed out on send/recv operation' >&2\nexit 1\n")
    command.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(JobError, match="Socket timed out") as refused:
        slurm.run_rows("demo", tmp_path)
    assert refused.value.transient
