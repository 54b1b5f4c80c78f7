"""What is known of a request when it arrives: by its bytes, or from its token ids alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from proxy.prefixes.prompt_key import fields_of
from proxy.prefixes.prompts import Prompts, Seen
from tests.unit.proxies import proxy_spec
from workers.digest.chains import Hasher
from workers.host.prompt import Prompt, trace_of
from workers.protocol import Capabilities

HASHER = Hasher(b"secret")
LOADED = Capabilities(("tiny", "adapter"), 1000, 16, 2048, 256, 1, True, True)
IDS = list(range(100))
COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"


def look(prompts: Prompts, path: str, **fields: Any) -> Seen:
    apart = fields_of(json.dumps(fields).encode())
    return prompts.look(path, b"", apart, fields.get("model"), fields.get("prompt"), LOADED)


@pytest.fixture
def prompts() -> Prompts:
    return Prompts(proxy_spec(), b"secret", HASHER)


def test_what_an_engine_told_of_a_prompt_is_known_of_the_next(prompts: Prompts) -> None:
    messages = [{"role": "user", "content": "x" * 400}]
    first = look(prompts, CHAT, messages=messages)
    assert first.key is not None and first.known is not None and not first.known.chain
    trace = trace_of(Prompt(IDS), 7, HASHER, 16)
    prompts.book.learn(first.key, trace.chain, trace.num_prompt_tokens, 16)
    second = look(prompts, CHAT, messages=[*messages, {"role": "assistant", "content": "y"}])
    assert second.known is not None and second.known.chain == HASHER.chain(IDS, 16)


@pytest.mark.parametrize("harmless", [{}, {"model": "tiny"}, {"max_tokens": 5, "stream": True, "temperature": 0}])
def test_token_ids_are_known_at_once(prompts: Prompts, harmless: dict[str, Any]) -> None:
    seen = look(prompts, COMPLETIONS, prompt=IDS, **harmless)
    assert seen.key is None and seen.known is not None
    assert (seen.known.chain, seen.known.num_tokens) == (HASHER.chain(IDS, 16), 100)


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": IDS, "model": "adapter"},
        {"prompt": IDS, "cache_salt": "s"},
        {"prompt": IDS, "prompt_embeds": "x"},
        {"prompt": IDS, "truncate_prompt_tokens": 5},
        {"prompt": IDS, "new_in_the_next_version": 1},
        {"prompt": [*IDS] * 11},  # longer than the model takes
        {"prompt": [0.5]},
        {"prompt": ["one", "two"]},
        {"prompt": [IDS, IDS]},
    ],
)
def test_nothing_is_said_of_ids_that_the_engine_may_not_take_as_they_are(
    prompts: Prompts, fields: dict[str, Any]
) -> None:
    assert look(prompts, COMPLETIONS, **fields) == Seen(None, None)


@pytest.mark.parametrize("path", ["/v1/embeddings", "/tokenize", "/v1/messages/count_tokens", "/score", "/detokenize"])
def test_routes_that_do_not_generate_are_not_looked_at(prompts: Prompts, path: str) -> None:
    assert look(prompts, path, input="x", prompt="x", messages=[{"role": "user", "content": "x"}]) == Seen(None, None)
