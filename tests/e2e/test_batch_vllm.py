"""A batch on real vLLM: killed and run again, each request once, and greedy texts that nothing has changed."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from launcher.rundir import RunDir
from tests.batching import batch_arguments, openai_line, read_lines, texts, write_lines
from tests.launching import Launch, launch, nothing_left
from tests.live import wait_for

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(900)]
NUM_REQUESTS = 40
READY_S = 400.0


def test_a_killed_batch_goes_on_with_the_same_texts(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "runs" / "real")
    lines = [openai_line(number) for number in range(NUM_REQUESTS)]
    input_ = write_lines(tmp_path / "in.jsonl", lines)
    with nothing_left(run), Launch(tmp_path, "+cluster=local", "routing=kv", "run=real") as launched:
        wait_for(lambda: "\nready\n" in launched.output or launched.process.poll() is not None, "ready", READY_S)
        assert "\nready\n" in launched.output, launched.output
        whole = launch(tmp_path, "run=real", *batch_arguments(input_, tmp_path / "whole.jsonl"))
        assert whole.returncode == 0, whole.stdout + whole.stderr
        killed = ("run=real", *batch_arguments(input_, tmp_path / "killed.jsonl"))
        folder = tmp_path / "client"
        folder.mkdir()
        with Launch(folder, *killed, f"runs_dir={tmp_path / 'runs'}") as client:
            store = tmp_path / "killed.jsonl.batch" / "results.log"
            wait_for(lambda: store.exists() and store.stat().st_size > 20, "a result", 60)
            time.sleep(0.3)
            client.process.kill()
            client.wait()
        again = launch(tmp_path, *killed)
        assert again.returncode == 0, again.stdout + again.stderr
        assert texts(tmp_path / "killed.jsonl") == texts(tmp_path / "whole.jsonl")
        wanted = {line["custom_id"]: line["body"]["max_tokens"] for line in lines}
        for line in read_lines(tmp_path / "whole.jsonl"):
            assert line["response"]["body"]["usage"]["completion_tokens"] <= wanted[line["custom_id"]]
        launched.interrupt()
        assert launched.process.wait(120) == 0
