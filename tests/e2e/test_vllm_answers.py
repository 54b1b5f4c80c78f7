"""Through prefill and decode, real vLLM answers exactly as one plain vLLM does."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import openai
import pytest

from tests.e2e.conftest import Real
from tests.live import API_KEY

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

WORDS = ["def", "class", "return", "for", "while", "import", "lambda", "yield", "try", "self", "value", "list", "none"]


def prompt(seed: int, num_words: int) -> str:
    return " ".join(random.Random(seed).choices(WORDS, k=num_words))


@pytest.fixture(scope="module")
def ours(real: Real) -> Any:
    with openai.OpenAI(base_url=f"{real.run.url}/v1", api_key=API_KEY, timeout=120) as client:
        yield client


@pytest.fixture(scope="module")
def theirs(real: Real) -> Any:
    with openai.OpenAI(base_url=f"{real.plain}/v1", api_key="none", timeout=120) as client:
        yield client


def tokens(client: openai.OpenAI, text: str) -> list[int]:
    answer: Any = client.completions.create(
        model="tiny", prompt=text, max_tokens=12, temperature=0, extra_body={"return_token_ids": True}
    )
    ids: list[int] = answer.choices[0].token_ids
    return ids


def test_the_models_output_depends_on_the_whole_prompt(theirs: openai.OpenAI) -> None:
    """Else every test below would pass with garbage in the KV."""
    text = prompt(0, 200)
    assert tokens(theirs, text) != tokens(theirs, text.replace(text.split()[0], "zebra", 1))


def test_fifty_prompts_token_for_token(real: Real, ours: openai.OpenAI, theirs: openai.OpenAI) -> None:
    texts = [prompt(seed, 3 + seed * 17) for seed in range(50)]
    received = real.run.metric("vllm:external_prefix_cache_hits_total", "decode-0")
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda text: tokens(ours, text), texts))
        expected = list(pool.map(lambda text: tokens(theirs, text), texts))
    assert got == expected
    # and it was really another engine's KV: most of these prompts' tokens travelled
    assert real.run.metric("vllm:external_prefix_cache_hits_total", "decode-0") - received > 10_000


TOOL: Any = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {"type": "object", "properties": {"city": {"enum": ["Bern", "Oslo"]}}, "required": ["city"]},
    },
}
SCHEMA: Any = {
    "type": "json_schema",
    "json_schema": {
        "name": "answer",
        "schema": {
            "type": "object",
            "properties": {"colour": {"enum": ["red", "green"]}, "count": {"enum": [1, 2, 3]}},
            "required": ["colour", "count"],
            "additionalProperties": False,
        },
    },
}
CHAT: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "several": {"temperature": 0.8, "seed": 3, "n": 3},
    "logprobs": {"temperature": 0, "logprobs": True, "top_logprobs": 2},
    "stop": {"temperature": 0, "stop": ["e", "("]},
    "seeded": {"temperature": 1.0, "seed": 11},
    "schema": {"temperature": 0, "response_format": SCHEMA, "max_tokens": 60},
    "tool": {
        "temperature": 0,
        "tools": [TOOL],
        "tool_choice": {"type": "function", "function": {"name": "weather"}},
        "max_tokens": 60,
    },
    "required tool": {"temperature": 0, "tools": [TOOL], "tool_choice": "required", "max_tokens": 80},
}


def essence(choice: Any) -> Any:
    """What a user sees of a choice, without random ids."""
    message = choice.message
    calls = [(c.function.name, c.function.arguments) for c in message.tool_calls or []]
    logprobs = choice.logprobs and [(t.token, round(t.logprob, 3)) for t in choice.logprobs.content]
    return (choice.index, choice.finish_reason, message.content, calls, logprobs)


@pytest.mark.parametrize("name", CHAT)
def test_chat(ours: openai.OpenAI, theirs: openai.OpenAI, name: str) -> None:
    messages: Any = [{"role": "user", "content": prompt(5, 150)}]
    options = {"max_tokens": 16, **CHAT[name]}
    answers = [c.chat.completions.create(model="tiny", messages=messages, **options) for c in (ours, theirs)]
    assert [essence(c) for c in answers[0].choices] == [essence(c) for c in answers[1].choices]
    assert answers[0].usage.completion_tokens == answers[1].usage.completion_tokens
    if "tool" in name:
        assert answers[0].choices[0].message.tool_calls


def streamed(client: openai.OpenAI, options: dict[str, Any]) -> Any:
    """Per choice: text, tool calls, logprobs, end; and the usage."""
    messages: Any = [{"role": "user", "content": prompt(6, 150)}]
    parts: dict[int, list[Any]] = {}
    usage = None
    for chunk in client.chat.completions.create(
        model="tiny", messages=messages, stream=True, stream_options={"include_usage": True}, **options
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            text, calls, logprobs, end = parts.get(choice.index, ["", "", [], None])
            text += choice.delta.content or ""
            for call in choice.delta.tool_calls or []:
                calls += (call.function.name or "") + (call.function.arguments or "")
            if choice.logprobs:
                logprobs = logprobs + [(t.token, round(t.logprob, 3)) for t in choice.logprobs.content]
            parts[choice.index] = [text, calls, logprobs, choice.finish_reason or end]
    assert usage is not None
    return parts, usage.prompt_tokens, usage.completion_tokens


@pytest.mark.parametrize("name", CHAT)
def test_chat_streamed(ours: openai.OpenAI, theirs: openai.OpenAI, name: str) -> None:
    options = {"max_tokens": 16, **CHAT[name]}
    assert streamed(ours, options) == streamed(theirs, options)


@pytest.mark.parametrize("stream", [False, True])
def test_several_prompts_in_one_body(ours: openai.OpenAI, theirs: openai.OpenAI, stream: bool) -> None:
    texts = [prompt(7, 120), prompt(8, 160), prompt(9, 40)]

    def texts_of(client: openai.OpenAI) -> list[str]:
        answer = client.completions.create(model="tiny", prompt=texts, max_tokens=8, temperature=0, stream=stream)
        parts = ["", "", ""]
        for piece in answer if stream else [answer]:
            for choice in piece.choices:
                parts[choice.index] += choice.text
        return parts

    assert texts_of(ours) == texts_of(theirs)


def test_tokenize_and_models(ours: openai.OpenAI, theirs: openai.OpenAI) -> None:
    assert [m.id for m in ours.models.list()] == [m.id for m in theirs.models.list()] == ["tiny"]
    body = {"model": "tiny", "prompt": "def f(x): return x"}
    answers = [c.post("/../tokenize", body=body, cast_to=dict[str, Any]) for c in (ours, theirs)]
    assert answers[0]["tokens"] == answers[1]["tokens"]


def test_a_prompt_over_the_models_limit_gets_vllms_own_words(ours: openai.OpenAI, theirs: openai.OpenAI) -> None:
    faults = []
    for client in (ours, theirs):
        with pytest.raises(openai.BadRequestError) as caught:
            client.completions.create(model="tiny", prompt=prompt(1, 6000), max_tokens=4)
        faults.append(caught.value.message)
    assert faults[0] == faults[1]
    assert "4096" in faults[0]
