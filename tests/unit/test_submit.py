"""submit: what a job's script says, for every cluster that ships, and that a shell agrees with it."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from launcher.config import choices
from launcher.rundir import RunDir
from launcher.scheduler.submit import scripts
from launcher.scheduler.task import task_command
from tests.unit.planning import planned

SLURM_CLUSTERS = [cluster for cluster in choices("cluster") if cluster != "local"]


def scripts_of(*overrides: str) -> dict[str, str]:
    plan = planned(*overrides)
    return scripts(RunDir(Path(plan.run_dir)), plan)


@pytest.mark.parametrize("cluster", SLURM_CLUSTERS)
def test_the_scripts_of_every_cluster(cluster: str, golden: Callable[[str, str], None]) -> None:
    text = "".join(f"# ---- {name}\n{script}\n" for name, script in scripts_of(f"+cluster={cluster}").items())
    golden(f"scripts_{cluster}.txt", text)


def check_with(command: list[str], script: str) -> None:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed; tests/install_slurm.sh does it on Debian")
    checked = subprocess.run(command, input=script, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("cluster", SLURM_CLUSTERS)
@pytest.mark.parametrize("command", [["bash", "-n"], ["shellcheck", "-"]], ids=["bash", "shellcheck"])
def test_a_shell_accepts_every_script(cluster: str, command: list[str]) -> None:
    for script in scripts_of(f"+cluster={cluster}", "cluster.setup=[module load cuda]").values():
        check_with(command, script)


def test_a_script_says_what_slurm_needs() -> None:
    script = scripts_of(
        "+cluster=h100x2", "cluster.partition=gpu", "cluster.account=me", "cluster.setup=[module load x]"
    )["llama-3-3-70b-h100x2.prefill-0.g0"]
    assert script.startswith("#!/bin/bash\n")
    for option in ("partition=gpu", "account=me", "gpus-per-node=8", "ntasks-per-node=1", "nodes=1", "no-requeue"):
        assert f"#SBATCH --{option}\n" in script
    assert "--signal=B:USR1@60\n" in script and "USR2" not in script, "a signal to the step kills the engine"
    assert "wckey" not in script and "nodelist" not in script
    assert script.index("module load x") < script.index("export PYTHONPATH=")
    assert "#SBATCH --chdir=/runs/llama-3-3-70b-h100x2/code/c0de\n" in script
    assert "/venv/bin/python -u -m submitit.core._submit" in script


def test_a_local_jobs_command_sets_up_and_becomes_the_interpreter(tmp_path: Path) -> None:
    (tmp_path / "snap shot").mkdir()
    job = msgspec.structs.replace(
        planned("+cluster=local").workers[0].job, interpreter="/bin/echo", setup=("export GREETING='it works'",)
    )
    command = f"{shlex.join(task_command(job, tmp_path / 'snap shot'))} -m one 'two words'"
    done = subprocess.run(["sh", "-c", f"{command}"], capture_output=True, text=True, check=True)
    assert done.stdout == "-m one two words\n"
