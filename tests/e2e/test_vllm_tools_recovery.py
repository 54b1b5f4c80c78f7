"""Real vLLM with its parsers: thoughts and calls of tools outlive the engine that made them, as in one piece.

The model recites. That other streams go on token for token, on real attention, is told in test_vllm_recovery.py.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import PATIENT, VLLM_FLAGS, vllm_engine
from tests.e2e.test_vllm_answers import TOOL
from tests.e2e.test_vllm_faults import engine_core
from tests.integration.test_path import quiet
from tests.live import Live, live, wait_for
from tests.reciting_model import write_reciting_model
from tests.streaming import Streaming

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

PARTS = 500
THOUGHTS = [f"thought {number}; " for number in range(PARTS)]
THOUGHT = "".join(THOUGHTS)
ARGUMENTS = {f"place{number}": number for number in range(PARTS)}
# As of a model whose template begins the thoughts: where "<think>" comes along with more, vLLM takes it for a thought.
PIECES = [
    *(*THOUGHTS, "</think>", "Let me look. ", "<tool_call>", '{"name": "weather", "arguments": {'),
    *(f'"{name}": {value}, ' for name, value in ARGUMENTS.items()),
    *(
        '"city": "Bern"}',
        "}",
        "</tool_call>",
        "\n<tool_call>",
        '{"name": "weather", "arguments": {"city": "Oslo"',
        "}}\n</tool_call>",
    ),
]
ASKED: dict[str, Any] = {
    "messages": [{"role": "user", "content": "What is the weather like?"}],
    "tools": [TOOL],
    "temperature": 0,
    "max_tokens": 3000,
    "stream_options": {"include_usage": True},
}
VICTIM = "decode-0"
STILL_S = 2.0
MAX_STREAMS = 60


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    model = tmp_path_factory.mktemp("reciting") / "model"
    write_reciting_model(model, PIECES, unsaid=["<think>"])
    engine = vllm_engine(model, args=VLLM_FLAGS | {"reasoning_parser": "deepseek_r1"})
    path = tmp_path_factory.mktemp("reciting") / "run"
    with live(path, {"decode-0": engine, "decode-1": engine}, deadlines=PATIENT) as started:
        yield started


def begin(run: Live, after: int) -> Streaming:
    return Streaming(run, "/v1/chat/completions", after=after, **ASKED)


def test_thoughts_and_calls_go_on_where_an_engine_is_lost(run: Live) -> None:
    undisturbed = begin(run, 1).end()
    assert undisturbed.reasoning == THOUGHT and undisturbed.text == "Let me look. "
    assert [(name, json.loads(given)) for name, given in undisturbed.tools] == [
        ("weather", ARGUMENTS | {"city": "Bern"}),
        ("weather", {"city": "Oslo"}),
    ]
    assert undisturbed.finish_reasons == ["tool_calls"]
    streams: list[Streaming] = []
    core = engine_core(run, VICTIM)
    while not (lost := both_kinds_broken(streams)):
        core.resume()
        streams.append(begin(run, 20))
        assert streams[-1].begun.wait(120) and len(streams) < MAX_STREAMS
        if both_kinds_broken(streams):
            core.suspend()
            wait_for(lambda: still(streams), "all that was said to arrive", 120.0)
    core.kill()
    for stream in streams:
        answer = stream.end()
        assert answer.as_in_one_piece == undisturbed.as_in_one_piece
        assert answer.last.get("sluice") == ({"resumed": 1, "resampled": False} if stream in lost else None)
    wait_for(lambda: quiet(run), "requests and tickets to end", 120.0)


def both_kinds_broken(streams: list[Streaming]) -> list[Streaming]:
    """What the victim's end would break, if one is in its thoughts and one in its call; else none."""
    here = [stream for stream in streams if stream.decode == VICTIM and not stream.ended]
    thinks = any(0 < len(stream.answer.reasoning) < len(THOUGHT) for stream in here)
    calls = any(len(stream.answer.tools) == 1 for stream in here)
    return here if thinks and calls else []


def still(streams: list[Streaming]) -> bool:
    """Of an engine that has been stopped, what it said before has arrived."""
    before = [stream.answer.num_events for stream in streams if stream.decode == VICTIM]
    time.sleep(STILL_S)
    return before == [stream.answer.num_events for stream in streams if stream.decode == VICTIM]
