"""Offline batches as users run them, on simulated workers: files in, files out, and whatever is killed meanwhile."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from launcher.rundir import RunDir
from launcher.scheduler.local import run_processes
from tests.batching import (
    batch_arguments,
    batch_command,
    is_engine,
    openai_line,
    read_lines,
    text_of,
    texts,
    write_lines,
)
from tests.launching import Launch, environment, launch, nothing_left
from workers.links.proxy_file import read_proxies

SIM = ("+cluster=local", "engine=sim", "run=demo", "pools.decode.max_decodes=16")  # else a batch is over too soon
NUM_REQUESTS = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """With a run that is up in it."""
    folder = tmp_path_factory.mktemp("batch")
    with nothing_left(RunDir(folder / "runs" / "demo")), Launch(folder, *SIM) as launched:
        launched.wait_ready()
        yield folder
        launched.interrupt()
        launched.wait()


@pytest.fixture(scope="module")
def undisturbed(folder: Path) -> dict[str, str]:
    """The texts of all requests, by custom_id."""
    lines = [openai_line(number) for number in range(NUM_REQUESTS)]
    done = batch(folder, write_lines(folder / "all.jsonl", lines), folder / "undisturbed.jsonl")
    assert done.returncode == 0, done.stdout + done.stderr
    return texts(folder / "undisturbed.jsonl")


def batch(folder: Path, input_: Path, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return launch(folder, "run=demo", *batch_arguments(input_, output, *more))


def started(folder: Path, input_: Path, output: Path, *more: str) -> subprocess.Popen[bytes]:
    with (folder / "client.log").open("ab") as log:
        return subprocess.Popen(
            batch_command("demo", input_, output, *more), cwd=folder, env=environment(), stdout=log, stderr=log
        )


def wait_for_results(output: Path, num_bytes: int) -> None:
    """Until the store of this output holds so many."""
    store = output.with_name(f"{output.name}.batch") / "results.log"
    deadline = time.monotonic() + 60
    while not store.exists() or store.stat().st_size < num_bytes:
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_results_come_in_the_inputs_order_and_errors_go_to_their_own_file(
    folder: Path, undisturbed: dict[str, str]
) -> None:
    assert list(undisturbed) == [f"r{number}" for number in range(NUM_REQUESTS)]
    lines = [
        openai_line(0),
        "not json",
        openai_line(1),
        openai_line(1),
        {**openai_line(3), "url": "/v1/files"},
        openai_line(4, model="unknown"),
        openai_line(5, max_tokens=-1),
        {**openai_line(6), "url": "/v1/embeddings", "body": {"input": "of a model that generates"}},
        {"prompt": "plain", "max_tokens": 3},
        {"messages": [{"role": "user", "content": "plain"}], "custom_id": "mine"},
    ]
    output = folder / "mixed.jsonl"
    done = batch(folder, write_lines(folder / "mixed-in.jsonl", lines), output, "batch.parameters.max_tokens=5")
    assert done.returncode == 1, done.stderr
    assert "10 requests, 10 left to do, 3 lines are wrong" in done.stdout
    assert "failed: 4 of 10 done, 6 failed, 0 left" in done.stdout and "\x1b" not in done.stdout
    results = read_lines(output)
    assert [line["custom_id"] for line in results] == ["r0", "r1", "request-9", "mine"]
    assert all(set(line) == {"id", "custom_id", "response", "error"} for line in results)
    assert [text_of(line) for line in results[:2]] == [undisturbed["r0"], undisturbed["r1"]]
    assert [line["response"]["body"]["usage"]["completion_tokens"] for line in results[2:]] == [3, 5]
    errors = read_lines(folder / "mixed.errors.jsonl")
    assert [(line["custom_id"], line["error"]["code"]) for line in errors] == [
        (None, "invalid_json_line"),
        ("r1", "duplicate_custom_id"),
        ("r3", "invalid_url"),
        ("r4", "model_not_found"),
        ("r5", "400"),
        ("r6", "unknown_url"),
    ]
    assert errors[4]["response"]["status_code"] == 400
    assert "in this run tiny generates text" in errors[5]["error"]["message"]
    again = batch(folder, folder / "mixed-in.jsonl", output, "batch.parameters.max_tokens=5")
    assert again.returncode == 1 and "0 left to do" in again.stdout
    assert read_lines(output) == results
    summary = json.loads((folder / "mixed.jsonl.batch" / "summary.json").read_text())
    assert (summary["outcome"], summary["done"], summary["failed"]) == ("failed", 4, 6)


def test_a_changed_input_or_setting_is_refused_and_nothing_is_touched(folder: Path) -> None:
    input_, output = folder / "small.jsonl", folder / "small-out.jsonl"
    write_lines(input_, [{"prompt": "a"}, {"prompt": "b"}])
    assert batch(folder, input_, output, "batch.parameters.max_tokens=2").returncode == 0
    before = output.read_bytes()
    for change, words in (
        (lambda: None, "batch.parameters.max_tokens was 2, is 3"),
        (lambda: write_lines(input_, [{"prompt": "a"}, {"prompt": "B"}]), "request 2"),
    ):
        change()
        argument = "batch.parameters.max_tokens=3" if "max_tokens" in words else "batch.parameters.max_tokens=2"
        refused = batch(folder, input_, output, argument)
        assert refused.returncode == 2 and words in refused.stderr and "Traceback" not in refused.stderr
    assert output.read_bytes() == before


@pytest.mark.parametrize("order", ["input", "finish"])
def test_a_client_killed_at_any_moment_goes_on_and_answers_each_request_once(
    folder: Path, undisturbed: dict[str, str], order: str
) -> None:
    output = folder / f"killed-{order}.jsonl"
    arguments = (folder, folder / "all.jsonl", output, f"batch.order={order}")
    rng = random.Random(order)
    for round_ in range(4):
        client = started(*arguments)
        wait_for_results(output, 20 + 100_000 * round_)
        time.sleep(rng.uniform(0, 0.4))
        client.kill()
        client.wait()
    done = batch(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{NUM_REQUESTS} requests, {NUM_REQUESTS} left" not in done.stdout, "it began anew"
    assert texts(output) == undisturbed
    assert (list(texts(output)) == list(undisturbed)) == (order == "input")
    assert (folder / f"killed-{order}.errors.jsonl").read_text() == ""


def test_a_request_of_a_batch_is_told_how_long_it_waited_and_what_was_cached(folder: Path) -> None:
    run = RunDir(folder / "runs" / "demo")
    url = json.loads(run.endpoint.read_text())["url"]
    for name, waits in (("batch_key", True), ("api_key", False)):
        key = (run.keys / name).read_text()
        body = {"prompt": "as before " * 200, "max_tokens": 2}
        for _ in range(2):
            answer = httpx.post(f"{url}/completions", json=body, headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == 200 and ("x-sluice-waited-s" in answer.headers) == waits
            assert float(answer.headers.get("x-sluice-waited-s", "0")) < 60
        cached = int(answer.headers.get("x-sluice-cached-tokens", "0"))
        assert (cached > 0.9 * answer.json()["usage"]["prompt_tokens"]) == waits


def test_the_same_batch_runs_once_at_a_time(folder: Path, undisturbed: dict[str, str]) -> None:
    output = folder / "held.jsonl"
    client = started(folder, folder / "all.jsonl", output)
    wait_for_results(output, 20)
    refused = batch(folder, folder / "all.jsonl", output)
    assert refused.returncode == 2 and f"process {client.pid} on" in refused.stderr
    assert client.wait() == 0
    assert texts(output) == undisturbed


def test_a_stop_and_a_deadline_end_it_cleanly_and_it_goes_on(folder: Path, undisturbed: dict[str, str]) -> None:
    output = folder / "stopped.jsonl"
    client = started(folder, folder / "all.jsonl", output)
    wait_for_results(output, 20)
    client.send_signal(signal.SIGTERM)
    assert client.wait() == 3
    some = texts(output)
    assert 0 < len(some) < NUM_REQUESTS and some.items() <= undisturbed.items()
    late = batch(folder, folder / "all.jsonl", output, "batch.deadline=5s")
    assert late.returncode in (0, 3) and ("the deadline" in late.stdout) == (late.returncode == 3)
    assert batch(folder, folder / "all.jsonl", output).returncode == 0
    assert texts(output) == undisturbed


def test_a_killed_worker_costs_no_result(folder: Path, undisturbed: dict[str, str]) -> None:
    output = folder / "worker.jsonl"
    run = RunDir(folder / "runs" / "demo")
    client = started(folder, folder / "all.jsonl", output)
    wait_for_results(output, 20)
    victim = next(pid for pid in run_processes(run) if is_engine(pid, "decode-0"))
    os.kill(victim, signal.SIGKILL)
    assert client.wait() == 0, (folder / "client.log").read_text()[-2000:]
    assert texts(output) == undisturbed


def test_a_killed_proxy_costs_no_result(folder: Path, undisturbed: dict[str, str]) -> None:
    output = folder / "proxy.jsonl"
    run = RunDir(folder / "runs" / "demo")
    client = started(folder, folder / "all.jsonl", output)
    wait_for_results(output, 20)
    os.kill(read_proxies(run.proxies)[0].pid, signal.SIGKILL)
    assert client.wait() == 0, (folder / "client.log").read_text()[-2000:]
    assert texts(output) == undisturbed


def test_a_batch_with_a_run_of_its_own_leaves_nothing_running(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "demo")
    lines = [openai_line(number) for number in range(40)]
    arguments = (*SIM, *batch_arguments(write_lines(tmp_path / "in.jsonl", lines), tmp_path / "out.jsonl"))
    with nothing_left(run):
        late = launch(tmp_path, *arguments, "batch.deadline=0s")
        assert late.returncode == 3 and "stopped   the deadline" in late.stdout, late.stdout + late.stderr
        assert run_processes(run) == []
        done = launch(tmp_path, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        assert len(texts(tmp_path / "out.jsonl")) == 40 and "s after the last result" in done.stdout
        assert run_processes(run) == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["run=demo"], "batch.input: give a file"),
        (["run=demo", "batch.input=nothing.jsonl", "batch.output=o"], "there is no file nothing.jsonl"),
        (["run=demo", "batch.input=x", "batch.output=o", "batch.deadline=soon"], "batch.deadline: 'soon' is neither"),
        (["run=none", "batch.input=x", "batch.output=o"], "no such run"),
        (["batch.input=x", "batch.output=o"], "batch needs to know which"),
    ],
)
def test_mistakes_are_told_without_a_traceback(folder: Path, arguments: list[str], words: str) -> None:
    refused = launch(folder, "action=batch", *arguments)
    assert refused.returncode == 2 and words in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_ends_it_with_a_clear_word_and_nothing_is_lost(
    folder: Path, tmp_path: Path, undisturbed: dict[str, str]
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200k", "tmpfs", disk], check=True)
    try:
        output = disk / "out.jsonl"
        full = batch(folder, folder / "all.jsonl", output)
        assert full.returncode == 3 and "No space left on device" in full.stderr, full.stdout + full.stderr
        assert "the same command goes on" in full.stderr and "Traceback" not in full.stderr
        subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
        done = batch(folder, folder / "all.jsonl", output)
        assert done.returncode == 0, done.stdout + done.stderr
        assert f"{NUM_REQUESTS} left to do" not in done.stdout, "what was kept is lost"
        assert texts(output) == undisturbed
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        refused = batch(folder, folder / "all.jsonl", output)
        assert refused.returncode == 3 and "Read-only file system" in refused.stderr
    finally:
        subprocess.run(["umount", disk], check=True)
