"""The documentation's commands on a live run, as shown: on this machine, with simulated engines."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from launcher.rundir import RunDir
from launcher.scheduler.local import run_processes
from tests.docs import READ, How, activated, shell, shown_as
from tests.launching import Launch, nothing_left
from tests.live import SOURCE, wait_for


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    run = RunDir(tmp_path / "runs" / "demo")
    with nothing_left(run):
        yield run


def checked_status(text: str) -> None:
    assert "run demo: serving, ready (live)" in text
    assert "prefill-0  ready" in text and "decode-0   ready" in text


def checked_json(text: str) -> None:
    status = json.loads(text)
    assert status["ready"] and {worker["phase"] for worker in status["workers"]} == {"ready"}


def checked_report(text: str) -> None:
    assert "GPU hours" in text and "prefill-0.g0" in text and "decode-0.g0" in text


def checked_report_json(text: str) -> None:
    assert {use["worker"] for use in json.loads(text)["generations"]} == {"prefill-0", "decode-0"}


def checked_log(text: str) -> None:
    assert "agent sluice.agent: ready" in text


def checked_fleet(text: str) -> None:
    assert {worker["worker"] for worker in json.loads(text)["workers"]} == {"prefill-0", "decode-0"}


def checked_metrics(text: str) -> None:
    assert 'sluice_worker_up{generation="0",worker="decode-0"} 1.0' in text


def checked_engine(text: str) -> None:
    assert "vllm:kv_cache_usage_perc{" in text


def checked_proxy_log(text: str) -> None:
    assert "sluice.proxy: serves http" in text


def checked_batch(text: str) -> None:
    assert "complete: 1 of 1 done, 0 failed, 0 left" in text


def checked_restart(text: str) -> None:
    assert "worker by worker, each when its successor serves: prefill-0, decode-0" in text


def checked_stop(text: str) -> None:
    assert "nothing of run demo is left" in text


READY_S = 240.0
LAUNCHER = "python -m launcher "
ENDS: dict[str, Callable[[str], None]] = {
    f"{LAUNCHER}action=status run=demo": checked_status,
    f"{LAUNCHER}action=status run=demo output=json": checked_json,
    f"{LAUNCHER}action=report run=demo": checked_report,
    f"{LAUNCHER}action=report run=demo output=json": checked_report_json,
    f"{LAUNCHER}action=logs run=demo worker=decode-0": checked_log,
    f"{READ} http://HOST:PORT/fleet": checked_fleet,
    f"{READ} http://HOST:PORT/metrics": checked_metrics,
    f"{READ} http://HOST:PORT/workers/decode-0/metrics": checked_engine,
    f"{LAUNCHER}action=logs run=demo worker=proxy-0": checked_proxy_log,
    f"{LAUNCHER}action=batch run=demo batch.input=prompts.jsonl batch.output=results.jsonl": checked_batch,
    f"{LAUNCHER}action=restart run=demo": checked_restart,
    f"{LAUNCHER}action=stop run=demo": checked_stop,
}
LAST = (f"{LAUNCHER}action=restart run=demo", f"{LAUNCHER}action=stop run=demo")  # in this order
FOLLOWS = f"{LAUNCHER}action=logs run=demo worker=decode-0 follow=true"
SERVES = "make serve"


def test_every_shown_command_is_run_here() -> None:
    assert set(shown_as(How.LIVE)) == {*ENDS, FOLLOWS, SERVES}


def test_the_commands_on_a_run_do_what_the_readme_says(tmp_path: Path, run: RunDir) -> None:
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "Hello", "max_tokens": 4}\n')
    with Launch(tmp_path, "+cluster=local", "engine=sim", "run=demo") as launched:
        address = launched.wait_ready().removeprefix("http://").removesuffix("/v1")
        for command in [*(set(shown_as(How.LIVE)) - set(LAST)), *LAST]:
            if command == FOLLOWS:
                follow(command, tmp_path)
            elif command in ENDS:
                answer = shell(command.replace("HOST:PORT", address), tmp_path, PYTHONPATH=str(SOURCE))
                assert answer.returncode == 0, f"{command}\n{answer.stderr}"
                ENDS[command](answer.stdout)
        assert launched.wait() == 0
    assert run_processes(run) == []


def follow(command: str, folder: Path) -> None:
    """Until somebody has seen enough."""
    environment = {**activated(), "PYTHONPATH": str(SOURCE)}
    output = folder / "followed.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(
            ["bash", "-c", command], cwd=folder, env=environment, stdout=file, start_new_session=True
        )
    try:
        wait_for(lambda: "ready" in output.read_text(), "the log's last lines")
        assert process.poll() is None
        os.killpg(process.pid, signal.SIGINT)
        assert process.wait(30) == 0
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.mark.parametrize("engine", ["sim", pytest.param("vllm_cpu", marks=pytest.mark.vllm)])
def test_make_serve_prints_lines_that_work_and_ctrl_c_leaves_nothing(tmp_path: Path, run: RunDir, engine: str) -> None:
    arguments = f"ARGS=engine={engine} run=demo runs_dir={run.path.parent}"
    make = [*SERVES.split(), "--old-file=install", f"BIN={Path(sys.executable).parent}", arguments]
    output = tmp_path / "output.txt"
    with output.open("wb") as file:
        process = subprocess.Popen(make, cwd=SOURCE, stdout=file, stderr=file, start_new_session=True)
    try:
        wait_for(lambda: "Ctrl-C stops it" in output.read_text() or process.poll() is not None, "ready", READY_S)
        lines = output.read_text().splitlines()
        assert "ready" in lines, lines
        [curl] = [line for line in lines if line.startswith("curl ")]
        [python] = [line for line in lines if "import OpenAI" in line and not line.startswith("curl ")]
        assert json.loads(shell(curl, tmp_path).stdout)["choices"][0]["message"]["content"]
        assert shlex.split(python)[0] == sys.executable
        assert shell(python, tmp_path).stdout.strip()
        os.killpg(process.pid, signal.SIGINT)  # as the terminal does: to all of the foreground
        process.wait(60)
        assert "nothing of the run is left" in output.read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
