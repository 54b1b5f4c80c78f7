"""Embeddings of a real vLLM: through the proxy and in a batch they are those of the model, and a chat is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from launcher.rundir import RunDir
from tests.batching import batch_arguments, openai_line, read_lines, write_lines
from tests.launching import Launch, launch, nothing_left
from tests.live import wait_for

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]
EMBEDS = ("~pools.prefill", "~pools.decode", "+pools.any={role: any}", "engine.engine_args.runner=pooling")
READY_S = 300.0


def embedding_line(number: int) -> dict[str, Any]:
    body = {"model": "tiny", "input": f"text {number}"}
    return {"custom_id": f"r{number}", "method": "POST", "url": "/v1/embeddings", "body": body}


def test_a_batch_of_embeddings_beside_a_client(tmp_path: Path) -> None:
    run, output = RunDir(tmp_path / "runs" / "real"), tmp_path / "out.jsonl"
    with nothing_left(run), Launch(tmp_path, "+cluster=local", "run=real", *EMBEDS) as launched:
        wait_for(lambda: "\nready\n" in launched.output or launched.process.poll() is not None, "ready", READY_S)
        url = launched.wait_ready()
        lines = [*[embedding_line(number) for number in range(4)], openai_line(4)]
        done = launch(tmp_path, "run=real", *batch_arguments(write_lines(tmp_path / "in.jsonl", lines), output))
        assert done.returncode == 1 and "4 of 5 done, 1 failed, 0 left" in done.stdout, done.stdout + done.stderr
        vectors = [line["response"]["body"]["data"][0]["embedding"] for line in read_lines(output)]
        with openai.OpenAI(base_url=url, api_key=(run.keys / "api_key").read_text()) as client:
            texts = [line["body"]["input"] for line in lines[:4]]
            asked = client.embeddings.create(model="tiny", input=texts, encoding_format="float")
        assert [pytest.approx(one.embedding, abs=1e-4) for one in asked.data] == vectors
        assert max(abs(x - y) for x, y in zip(*vectors[:2], strict=True)) > 0.01, "they do not depend on the text"
        (error,) = read_lines(tmp_path / "out.errors.jsonl")
        assert error["custom_id"] == "r4" and "needs a model that generates text" in error["error"]["message"]
        launched.interrupt()
        assert launched.wait() == 0
