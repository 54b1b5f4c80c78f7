"""OpenAI's own client with its streaming helpers, and vLLM's `bench serve`, unchanged, on simulated engines."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.live import API_KEY, Live, live, sim_engine

ASKED: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 12}
WITH_USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}
# `vllm bench serve`, without the other commands of `vllm`, which the CPU's distribution cannot import.
BENCH_SERVE = """
import argparse
from vllm.benchmarks.serve import add_cli_args, main
parser = argparse.ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    path = tmp_path_factory.mktemp("clients") / "run"
    with live(path, {"prefill-0": sim_engine(), "decode-0": sim_engine()}) as started:
        yield started


@pytest.fixture
def client(run: Live) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{run.url}/v1", api_key=API_KEY, max_retries=0) as opened:
        yield opened


def whole_text(client: openai.OpenAI) -> str:
    """What is streamed has to equal this; the simulated engine's answer depends on the prompt alone."""
    answer = client.chat.completions.create(**ASKED)
    assert answer.usage is not None and answer.usage.completion_tokens == ASKED["max_tokens"]
    text = answer.choices[0].message.content
    assert text
    return text


def test_a_plain_stream_carries_the_whole_answer(client: openai.OpenAI) -> None:
    chunks = list(client.chat.completions.create(stream=True, **ASKED, **WITH_USAGE))
    pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
    assert "".join(pieces) == whole_text(client)
    assert sum(1 for piece in pieces if piece) == ASKED["max_tokens"]
    assert chunks[-1].usage.completion_tokens == ASKED["max_tokens"]


def test_the_stream_helper_sees_events_and_a_final_completion(client: openai.OpenAI) -> None:
    """It takes an answer that ends by its length for a fault: this one ends at a word of its own."""
    words = whole_text(client).split()
    with client.chat.completions.stream(**ASKED, **WITH_USAGE, stop=words[6]) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    text = "".join(event.delta for event in events if event.type == "content.delta")
    [done] = [event for event in events if event.type == "content.done"]
    whole = client.chat.completions.create(**ASKED, stop=words[6])
    assert text == done.content == final.choices[0].message.content == whole.choices[0].message.content
    assert text.split() == words[:6]
    assert final.choices[0].finish_reason == whole.choices[0].finish_reason == "stop"
    assert final.usage == whole.usage


def test_the_stream_helper_reports_an_answer_that_is_cut(client: openai.OpenAI) -> None:
    with (
        client.chat.completions.stream(**ASKED, **WITH_USAGE) as stream,
        pytest.raises(openai.LengthFinishReasonError) as cut,
    ):
        stream.get_final_completion()
    assert cut.value.completion.choices[0].message.content == whole_text(client)
    assert cut.value.completion.usage.completion_tokens == ASKED["max_tokens"]


def test_raw_responses_can_be_streamed(client: openai.OpenAI) -> None:
    create = client.chat.completions.with_streaming_response.create
    with create(stream=True, **ASKED) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    assert lines.pop() == "[DONE]"
    pieces = [json.loads(line)["choices"][0]["delta"].get("content") or "" for line in lines]
    with create(**ASKED) as response:
        whole = response.parse()
    assert "".join(pieces) == whole.choices[0].message.content == whole_text(client)


def test_the_asynchronous_client_streams_several_at_once(run: Live, client: openai.OpenAI) -> None:
    async def text(asynchronous: openai.AsyncOpenAI) -> str:
        stream = await asynchronous.chat.completions.create(stream=True, **ASKED)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def texts() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{run.url}/v1", api_key=API_KEY, max_retries=0) as asynchronous:
            return await asyncio.gather(*(text(asynchronous) for _ in range(8)))

    assert asyncio.run(texts()) == [whole_text(client)] * 8


def test_completions_stream_as_well(client: openai.OpenAI) -> None:
    asked: dict[str, Any] = {"model": "tiny", "prompt": "Hello", "max_tokens": 12}
    streamed = "".join(chunk.choices[0].text for chunk in client.completions.create(stream=True, **asked))
    assert streamed == client.completions.create(**asked).choices[0].text != ""


@pytest.mark.vllm
@pytest.mark.timeout(900)  # importing vLLM takes minutes on a busy machine
@pytest.mark.parametrize(
    ("backend", "endpoint"), [("openai-chat", "/v1/chat/completions"), ("openai", "/v1/completions")]
)
def test_vllm_bench_serve(run: Live, tmp_path: Path, backend: str, endpoint: str) -> None:
    subprocess.run([sys.executable, "-m", "workers.engines.tiny_model", str(tmp_path / "model")], check=True)
    arguments = {
        "backend": backend,
        "base-url": run.url,
        "endpoint": endpoint,
        "model": "tiny",
        "tokenizer": tmp_path / "model",
        "dataset-name": "random",
        "random-input-len": 200,
        "random-output-len": 16,
        "num-prompts": 20,
        "result-dir": tmp_path,
        "result-filename": "result.json",
    }
    options = [f"--{key}={value}" for key, value in arguments.items()]
    ended = subprocess.run(
        [sys.executable, "-c", BENCH_SERVE, *options, "--save-result"],
        env={**os.environ, "OPENAI_API_KEY": API_KEY, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert ended.returncode == 0, (ended.stdout + ended.stderr)[-4000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["completed"], result["failed"], result["total_output_tokens"]) == (20, 0, 20 * 16)
