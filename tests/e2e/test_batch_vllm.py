"""A batch on real vLLM: killed and run again, each request once, and greedy texts that nothing has changed."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path

import pytest

from launcher.rundir import RunDir
from launcher.scheduler.local import run_processes
from tests.batching import batch_arguments, is_engine, openai_line, read_lines, texts, write_lines
from tests.launching import Launch, launch, nothing_left
from tests.live import wait_for
from workers.links.proxy_file import read_proxies

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
NUM_REQUESTS = 200
READY_S = 400.0


def store_bytes(output: Path) -> int:
    """Of the results that a batch has kept so far."""
    store = output.with_name(f"{output.name}.batch") / "results.log"
    return store.stat().st_size if store.exists() else 0


def test_client_worker_and_proxy_are_killed_in_one_batch_and_its_texts_stay_the_same(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "real")
    lines = [openai_line(number) for number in range(NUM_REQUESTS)]
    input_ = write_lines(tmp_path / "in.jsonl", lines)
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    moments = [random.Random(7).uniform(low, low + 0.2) for low in (0.05, 0.35, 0.65)]
    with nothing_left(run), Launch(tmp_path, "+cluster=local", "run=real") as launched:
        wait_for(lambda: "\nready\n" in launched.output or launched.process.poll() is not None, "ready", READY_S)
        assert "\nready\n" in launched.output, launched.output
        first = launch(tmp_path, "run=real", *batch_arguments(input_, whole))
        assert first.returncode == 0, first.stdout + first.stderr

        def wait_for_part(client: Launch, part: float) -> None:
            wait_for(lambda: store_bytes(killed) > part * store_bytes(whole), f"{part:.0%} of the results", 120)
            assert client.process.poll() is None, client.output

        same = ("run=real", *batch_arguments(input_, killed), f"runs_dir={tmp_path / 'runs'}")
        for folder in ("first", "again"):
            (tmp_path / folder).mkdir()
        with Launch(tmp_path / "first", *same) as client:
            wait_for_part(client, moments[0])
            client.process.kill()
            client.wait()
        with Launch(tmp_path / "again", *same) as client:
            wait_for_part(client, moments[1])
            os.kill(next(pid for pid in run_processes(run) if is_engine(pid, "decode-0")), signal.SIGKILL)
            wait_for_part(client, moments[2])
            os.kill(read_proxies(run.proxies)[0].pid, signal.SIGKILL)
            assert client.process.wait(300) == 0, client.output
        assert texts(killed) == texts(whole) and len(texts(whole)) == NUM_REQUESTS
        wanted = {line["custom_id"]: line["body"]["max_tokens"] for line in lines}
        for line in read_lines(whole):
            assert line["response"]["body"]["usage"]["completion_tokens"] <= wanted[line["custom_id"]]
        launched.interrupt()
        assert launched.process.wait(120) == 0
