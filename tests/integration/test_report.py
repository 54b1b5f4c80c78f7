"""`action=report` on a run whose proxy and engines are killed: every request is in it once."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from launcher.rundir import Endpoint, RunDir, read_optional
from launcher.scheduler.local import descendants, run_processes
from proxy.monitoring.accounts import Book
from tests.launching import Launch, launch, nothing_left
from tests.live import wait_for
from workers.links.proxy_file import read_proxies

ARGUMENTS = ("+cluster=local", "engine=sim", "run=demo", "pools.decode.replicas=2")
SECOND_KEY = "sk-test-second"


@pytest.fixture
def run(tmp_path: Path) -> Iterator[RunDir]:
    run = RunDir(tmp_path / "runs" / "demo")
    with nothing_left(run):
        yield run


def reported(folder: Path) -> dict[str, Any]:
    told = launch(folder, "action=report", "run=demo", "output=json")
    assert told.returncode == 0, told.stderr
    value: dict[str, Any] = json.loads(told.stdout)
    assert value == json.loads((folder / "runs" / "demo" / "report.json").read_text())
    return value


def ask(run: RunDir, key: str, num_tokens: int = 4) -> int:
    endpoint = read_optional(run.endpoint, Endpoint)
    assert endpoint is not None
    body = {"model": "tiny", "prompt": "word " * 50, "max_tokens": num_tokens, "ignore_eos": True}
    headers = {"authorization": f"Bearer {key}"}
    try:
        return httpx.post(f"{endpoint.url}/completions", json=body, headers=headers, timeout=60).status_code
    except httpx.TransportError:
        return 0


def written(run: RunDir) -> int:
    """Requests that a worker was found for."""
    books = [msgspec.json.decode(path.read_bytes(), type=Book) for path in run.accounting.glob("proxy-*.json")]
    return sum(sums.requests - sums.turned_away for book in books for sums in book.keys.values())


def add_key(run: RunDir) -> None:
    path = run.keys / "api_keys.json"
    entry = {"name": "second", "hash": hashlib.sha256(SECOND_KEY.encode()).hexdigest(), "class": "user"}
    path.write_text(json.dumps([*json.loads(path.read_text()), entry]))
    wait_for(lambda: ask(run, SECOND_KEY) == 200, "the second key to be read")


def kill_proxy(run: RunDir) -> None:
    [file] = read_proxies(run.proxies)
    os.kill(file.pid, signal.SIGKILL)
    wait_for(lambda: [one.pid for one in read_proxies(run.proxies)] not in ([], [file.pid]), "another process")


def kill_engine(run: RunDir, worker: str) -> None:
    commands = {pid: Path(f"/proc/{pid}/cmdline").read_text() for pid in run_processes(run)}
    [engine] = [pid for pid, command in commands.items() if f"{worker}.g" in command and "engine_process" in command]
    for pid in descendants(engine):
        os.kill(pid, signal.SIGKILL)


def test_the_report_has_every_request_once_through_deaths(tmp_path: Path, run: RunDir) -> None:
    with Launch(tmp_path, *ARGUMENTS) as launched:
        launched.wait_ready()
        key = (run.keys / "api_key").read_text()
        add_key(run)
        assert [ask(run, key) for _ in range(5)] == [200] * 5
        wait_for(lambda: written(run) == 6, "what was counted to be written")
        kill_proxy(run)
        wait_for(lambda: ask(run, SECOND_KEY) == 200, "the run to answer again", 60)
        assert ask(run, SECOND_KEY, num_tokens=10) == 200
        wait_for(lambda: written(run) == 8, "what was counted to be written")
        kill_engine(run, "decode-1")
        wait_for(lambda: len(run.read_jobs()) > 3, "another life of it")
        wait_for(lambda: ready(tmp_path), "the run to be whole again", 60)
        before = reported(tmp_path)
        launched.interrupt()
        assert launched.wait() == 0

    after = reported(tmp_path)
    for report in (before, after):
        sums = report["keys"]
        answered = {name: sums[name]["requests"] - sums[name]["turned_away"] for name in sums}
        assert answered == {"default": 5, "second": 3}
        assert {name: sums[name]["output_tokens"] for name in sums} == {"default": 20, "second": 18}
    lives = {(use["worker"], use["generation"]): use for use in after["generations"]}
    assert set(lives) == {("prefill-0", 0), ("decode-0", 0), ("decode-1", 0), ("decode-1", 1)}
    assert sum(use["answers"] for use in after["generations"] if use["pool"] == "decode") == 8
    assert all(use["start_s"] > 0 and use["serve_s"] > 0 for use in after["generations"])
    told = [(event["planned"], event["what"], event["who"]) for event in after["events"]]
    assert told.count((False, "proxy process died", "proxy-0.0")) == 1
    assert told.count((False, "worker lost", "decode-1.g0")) == 1
    assert told.count((True, "stop", "decode-1.g1")) == 1
    text = launch(tmp_path, "action=report", "run=demo").stdout
    assert f"{after['totals']['requests']} requests" in text and key not in text and SECOND_KEY not in text


def ready(folder: Path) -> bool:
    return bool(json.loads(launch(folder, "action=status", "run=demo", "output=json").stdout)["ready"])
