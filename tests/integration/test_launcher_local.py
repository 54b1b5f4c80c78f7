"""`python -m launcher +cluster=local` with simulated engines: up, looked at, and gone without a trace."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.control.ownership import living_owner
from launcher.rundir import RunDir, code_hash
from launcher.scheduler.local import run_processes
from tests.launching import Launch, command, environment, launch, nothing_left
from tests.live import wait_for

ARGUMENTS = ("+cluster=local", "engine=sim", "run=demo")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    run = RunDir(tmp_path / "runs" / "demo")
    with nothing_left(run):
        yield run


def test_a_run_comes_up_answers_stops_with_ctrl_c_and_starts_again(tmp_path: Path, run: RunDir) -> None:
    with Launch(tmp_path, *ARGUMENTS) as launched:
        url = launched.wait_ready()
        check_pasted(launched.output)
        endpoint = json.loads(run.endpoint.read_text())
        assert endpoint == {"url": url, "api_key_file": str(run.keys / "api_key"), "models": ["tiny"]}
        assert stat.S_IMODE(run.path.stat().st_mode) == 0o700
        assert looked_at(tmp_path) == {"prefill-0": ("ready", 0), "decode-0": ("ready", 0)}
        again = launch(tmp_path, *ARGUMENTS)
        assert again.returncode == 2 and "run demo is live" in again.stderr and "action=stop" in again.stderr

        launched.interrupt()
        assert launched.wait() == 0
        assert "nothing of the run is left" in launched.output
        assert "\x1b" not in launched.output, "no terminal, no colours"
    assert run_processes(run) == []
    assert "run demo: stopped" in launch(tmp_path, "action=status", "run=demo").stdout

    key = (run.keys / "api_key").read_text()
    with Launch(tmp_path, *ARGUMENTS) as launched:
        launched.wait_ready()
        assert looked_at(tmp_path) == {"prefill-0": ("ready", 1), "decode-0": ("ready", 1)}
        assert (run.keys / "api_key").read_text() == key
        check_logs(tmp_path)
        for _ in range(2):
            stopped = launch(tmp_path, "action=stop", "run=demo")  # from another terminal; twice is no error
            assert stopped.returncode == 0, stopped.stderr
        assert launched.wait() == 0
    assert run_processes(run) == []


def test_a_restart_replaces_worker_by_worker_and_a_smaller_run_drains(tmp_path: Path, run: RunDir) -> None:
    with Launch(tmp_path, *ARGUMENTS, "pools.decode.replicas=2") as launched:
        launched.wait_ready()
        lost = launch(tmp_path, "action=restart", "run=demo", "engine.drain_timeout_s=9")
        assert lost.returncode == 2 and "engine.drain_timeout_s" in lost.stderr and "+cluster=" in lost.stderr
        other = launch(tmp_path, *ARGUMENTS, "action=restart", "engine.block_size=64")
        assert other.returncode == 2 and "engine: block_size: is 32, asked for 64; that needs a new run" in other.stderr

        newer = newer_checkout(tmp_path, run)
        again = launch(tmp_path, "action=restart", "run=demo", "code=current", source=newer)
        assert again.returncode == 0 and "prefill-0, decode-0, decode-1" in again.stdout, again.stderr
        names = ("prefill-0", "decode-0", "decode-1")
        wait_for(lambda: seen(tmp_path) == {(name, "ready", 1) for name in names}, "all to be followed", 90)
        agents = [pid for pid in run_processes(run) if "workers" in words_of(pid)]
        assert len(agents) == len(names)
        assert {str(Path(f"/proc/{pid}/cwd").readlink()) for pid in agents} == {str(run.code_dir(code_hash(newer)))}

        old = launch(tmp_path, *ARGUMENTS, "action=restart")
        assert old.returncode == 2 and "the checkout is not the run's code any more" in old.stderr, old.stderr
        smaller = launch(tmp_path, *ARGUMENTS, "action=restart", source=newer)
        assert smaller.returncode == 0 and "to drain and end: decode-1" in smaller.stdout, smaller.stderr
        assert "each when its successor serves" not in smaller.stdout, "the others are as they were"
        wait_for(lambda: seen(tmp_path) == {(name, "ready", 1) for name in names[:2]}, "decode-1 to end", 60)
        assert json.loads(launch(tmp_path, "action=status", "run=demo", "output=json").stdout)["ready"]
        launched.interrupt()
        assert launched.wait() == 0


def newer_checkout(folder: Path, run: RunDir) -> Path:
    """The run's own code, a line longer."""
    (snapshot,) = run.code.iterdir()
    newer = shutil.copytree(snapshot, folder / "newer")
    with (newer / "workers" / "__init__.py").open("a") as file:
        file.write("# newer\n")
    return newer


def words_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/cmdline").read_text().split("\0")


def seen(folder: Path) -> set[tuple[str, str, int]]:
    """Every life of every worker."""
    status = json.loads(launch(folder, "action=status", "run=demo", "output=json").stdout)
    return {(worker["worker"], worker["phase"], worker["generation"]) for worker in status["workers"]}


def check_pasted(output: str) -> None:
    curl = next(line for line in output.splitlines() if line.startswith("curl "))
    answer = subprocess.run(["bash", "-c", curl], capture_output=True, text=True, check=True).stdout
    assert json.loads(answer)["choices"][0]["message"]["content"]
    python = next(line for line in output.splitlines() if "import OpenAI" in line)
    assert subprocess.run(["bash", "-c", python], capture_output=True, text=True, check=True).stdout.strip()


def looked_at(folder: Path) -> dict[str, tuple[str, int]]:
    """Phase and generation, by worker."""
    status = json.loads(launch(folder, "action=status", "run=demo", "output=json").stdout)
    assert status["source"] == "live" and status["ready"]
    return {worker["worker"]: (worker["phase"], worker["generation"]) for worker in status["workers"]}


def check_logs(folder: Path) -> None:
    """The newest life's, with a word on the others; a reader that has seen enough is no error to tell."""
    shown = launch(folder, "action=logs", "run=demo", "worker=decode-0")
    assert "ready" in shown.stdout and re.search(r"earlier, or of other ranks: \d+_0_log.out", shown.stderr)
    typo = launch(folder, "action=logs", "run=demo", "worker=decod-0")
    assert typo.returncode == 2 and "there are controller, decode-0, prefill-0, proxy-0" in typo.stderr
    closed = [*command("action=logs", "run=demo", "worker=decode-0"), "|", "true"]
    piped = subprocess.run(["bash", "-c", " ".join(closed)], cwd=folder, env=environment(), capture_output=True)
    assert b"Traceback" not in piped.stderr and b"Exception" not in piped.stderr


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
    assert failed.returncode == 1 and "proxy.tls_cert, tls_key: /nonexistent, /nonexistent on " in failed.stderr
    assert run_processes(run) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["action=status", "run=nothing"], "no such run"),
        (["+cluster=onebox", "engine=sim", "run=demo"], "no Slurm"),
        (["+cluster=nowhere"], "local"),
        ([], "choose a cluster"),
        (["status"], "write action=status"),
        (["+cluster=local", "engine=sim", "runs_dir=/proc/nowhere"], "/proc/nowhere: No such file or directory"),
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
