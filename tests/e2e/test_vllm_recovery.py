"""Real vLLM: streams that outlive the engine that made them, as if one engine had made all of each."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.e2e.conftest import Real, vllm_engine
from tests.e2e.test_vllm_answers import TOOL, prompt
from tests.e2e.test_vllm_faults import engine_core, proven
from tests.integration.test_path import quiet
from tests.live import Live, wait_for
from tests.streaming import Answer, Streaming

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

LONG: dict[str, Any] = {"max_tokens": 1200, "temperature": 0, "ignore_eos": True}
USAGE: dict[str, Any] = {"stream_options": {"include_usage": True}}
SAMPLED: dict[str, Any] = {"prompt": prompt(706, 90), "max_tokens": 1000, "temperature": 1.0, "ignore_eos": True}
CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": prompt(700, 150)}]}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "a completion": ("/v1/completions", {"prompt": prompt(701, 120), **USAGE}),
    "a chat": ("/v1/chat/completions", CHAT | USAGE),
    "a chat that may call tools": ("/v1/chat/completions", CHAT | USAGE | {"tools": [TOOL], "tool_choice": "auto"}),
    "usage with every event": (
        "/v1/completions",
        {"prompt": prompt(702, 90), "stream_options": {"include_usage": True, "continuous_usage_stats": True}},
    ),
    "stop strings": ("/v1/completions", {"prompt": prompt(703, 90), "stop": ["never said by anyone"], **USAGE}),
    "a repetition penalty": ("/v1/completions", {"prompt": prompt(704, 90), "repetition_penalty": 1.3, **USAGE}),
    "a bias": ("/v1/completions", {"prompt": prompt(705, 90), "logit_bias": {"65": 3.0}, **USAGE}),
    "a short prompt": ("/v1/completions", {"prompt": "def", **USAGE}),
}


@pytest.fixture
def victim(real: Real) -> Iterator[str]:
    """One more decode worker, to be lost."""
    generations = [int(path.stem.split(".")[1]) for path in (real.run.path / "specs").glob("decode-1.*.json")]
    real.run.start_worker("decode-1", vllm_engine(real.model), generation=max(generations, default=-1) + 1, index=11)
    wait_for(lambda: "decode-1" in proven(real.run), "the further worker to be proven", 240.0)
    yield "decode-1"
    real.run.kill("decode-1")
    wait_for(lambda: quiet(real.run), "requests and tickets to end", 120.0)


def start(run: Live, kind: str, **more: Any) -> Streaming:
    path, body = KINDS[kind]
    return Streaming(run, path, after=20, **LONG, **body, **more)


def kill_core(run: Live, worker: str) -> None:
    engine_core(run, worker).kill()


def kill_host(run: Live, worker: str) -> None:
    os.kill(run.engine_pid(worker), signal.SIGKILL)


@pytest.mark.parametrize("kill", [kill_core, kill_host])
def test_streams_go_on_token_for_token(real: Real, victim: str, kill: Callable[[Live, str], None]) -> None:
    alone = {kind: start(real.run, kind) for kind in KINDS}
    undisturbed = {kind: stream.end() for kind, stream in alone.items()}
    streams = {(kind, turn): start(real.run, kind) for kind in KINDS for turn in (1, 2)}
    lost = {key for key, stream in streams.items() if stream.decode == victim}
    lost -= {key for key, stream in streams.items() if stream.ended}
    kill(real.run, victim)
    answers = {key: stream.end() for key, stream in streams.items()}
    assert len(lost) >= len(KINDS) // 2
    for (kind, turn), answer in answers.items():
        assert answer.as_in_one_piece == undisturbed[kind].as_in_one_piece, kind
        assert len(answer.ids) == len(answer.created) == 1
        assert ("sluice" in answer.last) == ((kind, turn) in lost), kind
    pauses = sorted(answers[key].pause_s for key in lost)
    print(f"{len(lost)} streams went on; their longest pauses: {pauses[0]:.2f} to {pauses[-1]:.2f} s")


def test_a_sampled_stream_goes_on_and_says_so(real: Real, victim: str) -> None:
    streams = [Streaming(real.run, after=20, **SAMPLED, **USAGE) for _ in range(4)]
    lost = [stream for stream in streams if stream.decode == victim and not stream.ended]
    kill_host(real.run, victim)
    for stream in streams:
        answer = stream.end()
        told = {"resumed": 1, "resampled": True} if stream in lost else None
        assert answer.last.get("sluice") == told
        assert answer.done and answer.usage is not None and answer.usage["completion_tokens"] == 1000
    assert lost


NOT_CONTINUED: dict[str, dict[str, Any]] = {
    "logprobs": {"logprobs": 1},
    "a presence penalty": {"presence_penalty": 0.5},
    "structured output": {"structured_outputs": {"regex": "[a-z ]{2000,}"}},
    "bad words": {"bad_words": ["lambda"]},
}


def begun_at(run: Live, worker: str, **body: Any) -> Streaming:
    """A stream that this worker decodes; those that come to another one end by themselves."""
    for _ in range(4):
        stream = Streaming(run, after=20, prompt=prompt(707, 90), max_tokens=1500, ignore_eos=True, **body)
        if stream.decode == worker:
            return stream
    raise AssertionError(f"no stream of four came to {worker}")


def test_what_cannot_be_continued_exactly_ends_in_a_clear_error(real: Real, victim: str) -> None:
    streams = {kind: begun_at(real.run, victim, **asked) for kind, asked in NOT_CONTINUED.items()}
    kill_host(real.run, victim)
    for kind, stream in streams.items():
        answer: Answer = stream.end()
        assert answer.error is not None and victim in answer.error["message"], kind
        assert "cannot be continued" in answer.error["message"], kind
        assert not answer.done
