"""`python -m launcher +cluster=local` with simulated engines: up, looked at, and gone without a trace."""

from __future__ import annotations

import json
import os
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.local import run_processes
from launcher.ownership import living_owner
from launcher.rundir import RunDir
from tests.launching import Launch, launch, nothing_left

ARGUMENTS = ("+cluster=local", "engine=sim", "run=demo")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    run = RunDir(tmp_path / "runs" / "demo")
    with nothing_left(run):
        yield run


def test_a_run_comes_up_answers_is_looked_at_and_stops_with_ctrl_c(tmp_path: Path, run: RunDir) -> None:
    with Launch(tmp_path, *ARGUMENTS) as launched:
        url = launched.wait_ready()
        curl = next(line for line in launched.output.splitlines() if line.startswith("curl "))
        answer = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True).stdout
        assert json.loads(answer)["choices"][0]["message"]["content"]
        python = next(line for line in launched.output.splitlines() if "import OpenAI" in line)
        assert subprocess.run(["bash", "-c", python], capture_output=True, text=True, check=True).stdout.strip()

        endpoint = json.loads(run.endpoint.read_text())
        assert endpoint == {"url": url, "api_key_file": str(run.keys / "api_key"), "models": ["tiny"]}
        assert stat.S_IMODE(run.path.stat().st_mode) == 0o700

        shown = launch(tmp_path, "action=status", "run=demo", "output=json")
        status = json.loads(shown.stdout)
        assert status["source"] == "live" and status["ready"]
        assert [(worker["worker"], worker["phase"]) for worker in status["workers"]] == [
            ("prefill-0", "ready"),
            ("decode-0", "ready"),
        ]
        assert "ready" in launch(tmp_path, "action=logs", "run=demo", "worker=decode-0").stdout

        again = launch(tmp_path, *ARGUMENTS)
        assert again.returncode == 2 and "run demo is live" in again.stderr and "action=stop" in again.stderr

        launched.interrupt()
        assert launched.wait() == 0
        assert "nothing of the run is left" in launched.output
    assert run_processes(run) == []
    after = launch(tmp_path, "action=status", "run=demo")
    assert "run demo: stopped" in after.stdout


def test_stop_from_another_terminal_ends_the_launcher_too(tmp_path: Path, run: RunDir) -> None:
    with Launch(tmp_path, *ARGUMENTS) as launched:
        launched.wait_ready()
        stopped = launch(tmp_path, "action=stop", "run=demo")
        assert stopped.returncode == 0, stopped.stderr
        assert launched.wait() == 0
    assert run_processes(run) == []


def test_a_killed_launcher_takes_the_run_along(tmp_path: Path, run: RunDir) -> None:
    with Launch(tmp_path, *ARGUMENTS) as launched:
        launched.wait_ready()
        launched.process.kill()
        launched.wait()
    # nothing_left waits for the rest


def test_a_killed_controller_is_noticed_and_the_run_ended(tmp_path: Path, run: RunDir) -> None:
    with Launch(tmp_path, *ARGUMENTS) as launched:
        launched.wait_ready()
        owner = living_owner(run)
        assert owner is not None
        os.kill(owner.pid, signal.SIGKILL)
        assert launched.wait() == 1
        assert "the controller ended" in launched.output
    assert run_processes(run) == []


def test_a_stopped_run_starts_again_with_new_generations_and_the_same_keys(tmp_path: Path, run: RunDir) -> None:
    keys = set()
    for generation in range(2):
        with Launch(tmp_path, *ARGUMENTS) as launched:
            launched.wait_ready()
            status = json.loads(launch(tmp_path, "action=status", "run=demo", "output=json").stdout)
            assert {worker["generation"] for worker in status["workers"]} == {generation}
            keys.add((run.keys / "api_key").read_text())
            launched.interrupt()
            assert launched.wait() == 0
    assert len(keys) == 1


def test_a_failed_launch_names_the_job_and_shows_the_end_of_its_log(tmp_path: Path, run: RunDir) -> None:
    failed = launch(tmp_path, *ARGUMENTS, "engine.environment.PYTHONHOME=/nonexistent")
    assert failed.returncode == 1
    assert "-0.g0 (job " in failed.stderr and "the job ended as" in failed.stderr
    assert "the last lines of" in failed.stderr and "No module named 'encodings'" in failed.stderr
    assert run_processes(run) == []
    assert not run.endpoint.exists()
    assert json.loads(launch(tmp_path, "action=status", "run=demo", "output=json").stdout)["phase"] == "failed"


def test_a_proxy_that_cannot_start_ends_the_launch(tmp_path: Path, run: RunDir) -> None:
    failed = launch(tmp_path, *ARGUMENTS, "proxy.tls_cert=/nonexistent", "proxy.tls_key=/nonexistent")
    assert failed.returncode == 1 and "proxy" in failed.stderr
    assert run_processes(run) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["action=status", "run=nothing"], "no such run"),
        (["+cluster=onebox", "engine=sim", "run=demo"], "no Slurm"),
        (["+cluster=nowhere"], "local"),
        ([], "choose a cluster"),
    ],
)
def test_the_users_mistakes_are_told_without_a_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    refused = launch(tmp_path, *arguments)
    assert refused.returncode == 2
    assert words in refused.stderr and "Traceback" not in refused.stderr
    assert list(tmp_path.iterdir()) == []
