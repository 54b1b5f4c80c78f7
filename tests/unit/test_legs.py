"""What may be split over two workers: everything that a hand-over carries exactly, and nothing unknown."""

import json
from typing import Any

import pytest
from msgspec.structs import astuple

from proxy import routes
from proxy.flights.legs import BadBody, read_body, stateful_because, whole_because
from proxy.prefixes.prompt_key import fields_of

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"


def why(path: str, **fields: Any) -> str | None:
    body = json.dumps({"model": "tiny", **fields}).encode()
    return whole_because(routes.find("POST", path), read_body(body), body)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"messages": [{"role": "user", "content": "hello"}]}),
        (CHAT, {"messages": [], "n": 1, "stream": True, "tools": [], "logprobs": True}),
        (COMPLETIONS, {"prompt": "hello"}),
        (COMPLETIONS, {"prompt": [1, 2, 3], "echo": False}),
    ],
)
def test_one_sequence_is_split(path: str, fields: dict[str, Any]) -> None:
    assert why(path, **fields) is None


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"n": 2}),
        (CHAT, {"n": "2"}),
        (COMPLETIONS, {"prompt": "x", "best_of": 2}),
        (COMPLETIONS, {"prompt": "x", "use_beam_search": True}),
        (COMPLETIONS, {"prompt": "x", "prompt_logprobs": 0}),
        (COMPLETIONS, {"prompt": "x", "echo": True}),
        (COMPLETIONS, {"prompt": ["one", "two"]}),
        (COMPLETIONS, {"prompt": ["one"]}),
        (COMPLETIONS, {"prompt": [[1, 2], [3]]}),
        (COMPLETIONS, {"prompt": []}),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}),
        ("/v1/embeddings", {"input": "x"}),
        ("/v1/responses", {"input": "x"}),
    ],
)
def test_everything_else_runs_whole(path: str, fields: dict[str, Any]) -> None:
    assert why(path, **fields)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"x"', b"\xff", b'{"model": "\xff"}', b"{} {}"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadBody, match="request body"):
        read_body(body)


@pytest.mark.parametrize("field", [b"messages", b"prompt"])
def test_a_body_that_is_nested_too_deeply_is_refused(field: bytes) -> None:
    with pytest.raises(BadBody, match="nested too deeply"):
        read_body(b'{"%b":%b%b}' % (field, b"[" * 100_000, b"]" * 100_000))


def test_wrong_types_are_left_for_the_engine_to_judge() -> None:
    assert read_body(b'{"model": 3, "stream": "yes", "n": []}').model == 3


def test_what_needs_a_memory_is_named() -> None:
    assert stateful_because(read_body(b'{"background": true}')) == "background"
    assert stateful_because(read_body(b'{"previous_response_id": "r"}')) == "previous_response_id"
    assert stateful_because(read_body(b"{}")) is None


@pytest.mark.parametrize(
    "body",
    [
        b'{"model": "x", "stream": true, "messages": [{"role": "user"}], "n": 2, "n": 1}',
        b'{"prompt": [1, 2]}',
        b'{"prompt": "text"}',
        b'{"prompt": "left to the engine: \xff"}',
        b"{}",
    ],
)
def test_a_body_that_was_taken_apart_reads_the_same(body: bytes) -> None:
    assert astuple(read_body(body, fields_of(body))) == astuple(read_body(body))


@pytest.mark.parametrize("body", [b"[]", b'{"model": }', b'{"model": "\xff"}', b'{"prompt": "\\ud800"}'])
def test_and_is_refused_alike(body: bytes) -> None:
    faults = []
    for apart in ({}, fields_of(body)):
        with pytest.raises(BadBody) as fault:
            read_body(body, apart)
        faults.append(str(fault.value).split(" (byte")[0])
    assert faults[0] == faults[1]
