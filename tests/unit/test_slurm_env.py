"""What Slurm tells a task; `squeue` here is a script in its place."""

import os
import platform
import time
from pathlib import Path

import pytest

from workers.agent.slurm_env import SlurmEnv, parse_time, read_slurm_env

IN_A_JOB = {
    "SLURM_JOB_ID": "77",
    "SLURM_RESTART_COUNT": "2",
    "SLURMD_NODENAME": "gpu3",
    "SLURM_NODEID": "1",
    "SLURM_JOB_START_TIME": "1767222000",
    "SLURM_JOB_END_TIME": "1767225600",
}


@pytest.mark.parametrize("text", ["", "N/A", "NONE", "Unknown", "2026-01-01", "-5"])
def test_what_is_no_time_is_no_end(text: str) -> None:
    assert parse_time(text) is None


def test_an_end_is_unix_seconds_or_local_time() -> None:
    assert parse_time("1767225600") == 1767225600.0
    local = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(1767225600))
    assert parse_time(local) == 1767225600.0


def test_outside_slurm_the_job_is_of_our_own_naming() -> None:
    assert read_slurm_env({}) == SlurmEnv(f"local-{os.getpid()}", 0, platform.node(), 0, None)


def test_a_task_without_a_job_of_its_own_starts_by_its_own_first_line() -> None:
    assert read_slurm_env({**IN_A_JOB, "SLUICE_TASK_STARTED": "1767223000"}).start_time == 1767223000.0
    assert read_slurm_env({"SLUICE_TASK_STARTED": "1767223000"}).start_time == 1767223000.0


def test_inside_a_job_all_is_in_the_environment() -> None:
    assert read_slurm_env(IN_A_JOB) == SlurmEnv("77", 2, "gpu3", 1, 1767225600.0, (), 1767222000.0)


@pytest.mark.parametrize(
    ("more", "gpus"),
    [
        ({"SLURM_STEP_GPUS": "2,3", "SLURM_JOB_GPUS": "0,1,2,3", "CUDA_VISIBLE_DEVICES": "0,1"}, (2, 3)),
        ({"SLURM_JOB_GPUS": "4"}, (4,)),
        ({"CUDA_VISIBLE_DEVICES": "0,1"}, ()),
    ],
)
def test_gpus_are_counted_as_the_node_counts_them(more: dict[str, str], gpus: tuple[int, ...]) -> None:
    assert read_slurm_env({**IN_A_JOB, **more}).gpus == gpus


@pytest.mark.parametrize(("visible", "gpus"), [("1,2", (1, 2)), ("", ()), ("GPU-8932f937", ()), ("MIG-1/2,0", ())])
def test_outside_slurm_the_visible_gpus_are_ours(visible: str, gpus: tuple[int, ...]) -> None:
    assert read_slurm_env({"CUDA_VISIBLE_DEVICES": visible}).gpus == gpus


def test_what_slurm_leaves_out_has_its_defaults() -> None:
    environ = {"SLURM_JOB_ID": "77", "SLURM_JOB_END_TIME": "1767225600"}
    assert read_slurm_env(environ) == SlurmEnv("77", 0, platform.node(), 0, 1767225600.0)


def older_slurm(folder: Path, script: str) -> dict[str, str]:
    """A job of a Slurm that does not export its end."""
    squeue = folder / "squeue"
    squeue.write_text(f"#!/bin/sh\n{script}\n")
    squeue.chmod(0o700)
    environ = {**IN_A_JOB, "PATH": str(folder)}
    del environ["SLURM_JOB_END_TIME"]
    return environ


def test_an_older_slurm_is_asked(tmp_path: Path) -> None:
    script = f'echo "$SLURM_TIME_FORMAT $*" > {tmp_path}/asked; echo 1767222000 1767225600'
    found = read_slurm_env(older_slurm(tmp_path, script))
    assert (found.start_time, found.end_time) == (1767222000.0, 1767225600.0)
    assert (tmp_path / "asked").read_text() == "%s --noheader --jobs 77 --format %S %e\n"


@pytest.mark.parametrize("script", ["echo N/A N/A", "echo 'Invalid job id' >&2; exit 1"])
def test_without_an_answer_there_is_no_end(tmp_path: Path, script: str) -> None:
    assert read_slurm_env(older_slurm(tmp_path, script)).end_time is None


def test_without_squeue_there_is_no_end(tmp_path: Path) -> None:
    environ = older_slurm(tmp_path, "")
    (tmp_path / "squeue").unlink()
    assert read_slurm_env(environ).end_time is None
