"""Doctor and new-cluster on a real Slurm, as the README shows them: real limits, real jobs, real NIXL in them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from launcher.rundir import RunDir
from launcher.scheduler import slurm
from tests.docs import How, copy_checkout, shell, shown_as
from tests.launching import Launch, launch
from tests.live import wait_for
from tests.onebox import OneBox

pytestmark = pytest.mark.slurm

LAUNCHER = "python -m launcher "
NEW = f"{LAUNCHER}action=new-cluster name=mysite"
BARE = f"{LAUNCHER}action=doctor"
LOOK = f"{LAUNCHER}action=doctor +cluster=mysite"
SUBMIT = f"{LAUNCHER}action=doctor +cluster=mysite submit=true"
QUICK = ("action=doctor", "+cluster=onebox", "engine=sim", "submit=true", "controller.poll_interval_s=1")


@pytest.fixture(autouse=True)
def empty(tmp_path: Path, onebox: OneBox) -> Iterator[None]:
    """A failing test leaves no job."""
    slurm.clean_environment()
    yield
    for run in tmp_path.glob("**/runs/doctor_*"):
        slurm.cancel([row.job for row in slurm.run_rows(run.name, RunDir(run).path) if not row.ended])
    wait_for(lambda: onebox.jobs() == [], "Slurm to be empty", 60)


def report(folder: Path, name: str = "onebox") -> dict[str, Any]:
    read: dict[str, Any] = json.loads((folder / "runs" / f"doctor_{name}" / "doctor.json").read_text())
    return read


def seen(found: dict[str, Any], topic: str) -> list[tuple[str, str]]:
    return [(each["level"], each["seen"]) for each in found["findings"] if each["topic"] == topic]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    return copy_checkout(tmp_path / "sluice")


def run(checkout: Path, command: str) -> subprocess.CompletedProcess[str]:
    return shell(command, checkout, PYTHONPATH=str(checkout))


def test_a_new_cluster_as_the_readme_shows_it(checkout: Path) -> None:
    assert set(shown_as(How.SITE)) == {NEW, BARE, LOOK, SUBMIT}
    bare = run(checkout, BARE)
    assert bare.returncode == 0 and "gpu (default), no time limit, 3 idle nodes of 8 CPUs, 19 GB, 4 fake" in bare.stdout
    assert "action=new-cluster" in bare.stdout

    new = run(checkout, NEW)
    path = checkout / "conf/cluster/mysite.yaml"
    assert new.returncode == 0 and str(path) in new.stdout and SUBMIT.removeprefix("python ") in new.stdout
    text = path.read_text()
    assert "partition: gpu" in text and "gpus_per_node: 4" in text and "#   low, no time limit" in text
    plan = run(checkout, f"{LAUNCHER}+cluster=mysite action=plan")
    assert plan.returncode == 0 and "#SBATCH --job-name=" in plan.stdout
    again = run(checkout, NEW)
    assert again.returncode == 2 and "exists and is left alone" in again.stderr and path.read_text() == text

    look = run(checkout, LOOK)
    assert look.returncode == 0, look.stdout + look.stderr
    found = report(checkout, "mysite")
    assert [level for level, _ in seen(found, "jobs")] == ["ok"] * 3  # prefill, decode and controller
    assert seen(found, "gres") == [
        ("ok", "one GPU is granted with cluster.gres=null, cluster.gres=gpu, cluster.gres=gpu:fake")
    ]

    submit = run(checkout, f"{SUBMIT} controller.poll_interval_s=1")  # an engine for GPUs, and the GPUs are fake
    assert submit.returncode == 1
    found = report(checkout, "mysite")
    assert [level for level, words in seen(found, "engine gpu") if "there is no NVIDIA driver" in words] == [
        "fault"
    ] * 2
    assert {each["topic"] for each in found["findings"] if each["level"] == "fault"} == {"engine gpu"}


@pytest.mark.vllm
def test_nodes_with_the_real_engine_and_a_real_transfer(tmp_path: Path) -> None:
    arguments = [each for each in QUICK if not each.startswith("engine=")]
    done = launch(tmp_path, *arguments, "output=json")
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found == report(tmp_path) and found["submitted"] and len(found["jobs"]) == 1
    [(level, words)] = seen(found, "job gpu")
    assert level == "ok" and words.endswith("ran on n1, n2")
    within, across = [words for level, words in seen(found, "KV gpu") if level == "ok"]
    assert "NIXL moved memory within n1" in within and "NIXL moved memory from n1 to n2" in across
    engine = [words for level, words in seen(found, "engine gpu") if level == "ok"]
    assert "n1: vLLM 0.32.0, CUDA_VISIBLE_DEVICES=0" in engine and any("imported vLLM in" in words for words in engine)
    [(level, words)] = seen(found, "sbatch gpu")
    assert level == "ok" and "submitted from n1" in words
    [(level, words)] = seen(found, "network gpu")
    assert level == "ok" and "lo 127.0.0.1" in words and "lo is used" in words
    assert [level for level, _ in seen(found, "files gpu")] == ["ok", "ok"]
    [(_, words)] = seen(found, "ports")
    assert "n1: " in words and "of Sluice's 12000 ports (20000-32000) are free" in words
    assert "n2 has reported" in done.stderr


def test_faults_of_a_configuration_are_all_told(tmp_path: Path) -> None:
    done = launch(
        tmp_path,
        *("action=doctor", "+cluster=onebox", "engine=sim", "cluster.gres=gpu:h100", "cluster.mem_gb=99"),
        *("controller.partition=lwo", "runs_dir=elsewhere", "engine.block_size=0"),
    )
    assert done.returncode == 1
    assert "cluster.gres=gpu:fake" in done.stdout and "cluster.mem_gb=19" in done.stdout
    assert "controller.partition=low" in done.stdout
    assert (tmp_path / "elsewhere/doctor_onebox/doctor.json").exists()


def test_a_job_that_fails_gives_its_last_words_and_one_that_is_refused_slurms(tmp_path: Path) -> None:
    broken = launch(tmp_path, *QUICK, "cluster.setup=[echo out of order, exit 3]")
    assert broken.returncode == 1
    [(level, words)] = seen(report(tmp_path), "job gpu")
    assert level == "fault" and "ended as FAILED" in words and "out of order" in words
    refused = launch(tmp_path, *QUICK, "partitions=[nope]")
    [(level, words)] = seen(report(tmp_path), "job nope")
    assert refused.returncode == 0 and level == "warning" and "invalid partition" in words.lower()
    assert "\n" not in words


def test_a_job_that_waits_is_told_why_and_ctrl_c_cancels_it(tmp_path: Path, onebox: OneBox) -> None:
    taken = onebox.ask("sbatch", "--parsable", "--nodes=3", "--exclusive", "--output=/dev/null", "--wrap=sleep 1000")
    try:
        with Launch(tmp_path, *QUICK) as waiting:
            wait_for(lambda: "is queued (Resources)" in waiting.output, "Slurm's reason", 60)
            assert "Ctrl-C leaves and cancels it" in waiting.output
            waiting.interrupt()
            assert waiting.wait() == 130
            assert "was pending (Resources) and is cancelled" in waiting.output
            wait_for(lambda: onebox.jobs() == [taken], "the check's job to be gone", 60)
        short = launch(tmp_path, *QUICK, "timeout_s=3")
        assert short.returncode == 0 and seen(report(tmp_path), "job gpu")[0][0] == "warning"
    finally:
        onebox.ask("scancel", taken)
