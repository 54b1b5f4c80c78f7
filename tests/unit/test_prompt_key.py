"""Prompts that begin with the same bytes share keys, and those that may be different prompts never do."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.flights.legs import BadBody, read_body
from proxy.prefixes.prompt_key import HARMLESS, MAX_PARTS, MAX_REGION_BYTES, REGIONS, PromptKey, fields_of, prompt_key
from proxy.routes import ROUTES
from tests.conftest import GOLDEN

SECRET = b"0123456789abcdef"
CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"
TURNS = [{"role": "user", "content": f"{number} {'word ' * number}"} for number in range(40)]

# By route: what a request has besides the field in question, and by field: what it may be, as vLLM's schemas have it.
FIELDS: dict[str, dict[str, list[Any]]] = json.loads((GOLDEN / "vllm_request_fields.json").read_text())
EVERY_FIELD = [(path, name) for path, fields in FIELDS.items() for name in fields if name != REGIONS[path]]


def key_of(path: str, query: bytes = b"", secret: bytes = SECRET, **fields: Any) -> PromptKey:
    key = prompt_key(secret, path, query, fields_of(json.dumps(fields).encode()))
    assert key is not None
    return key


def shared(one: PromptKey, other: PromptKey) -> int:
    """Bytes of `other` that are known by `one`; -1: not even what comes before them."""
    known = set(one.hashes)
    return max((end for node, end in zip(other.hashes, other.ends, strict=True) if node in known), default=-1)


# ---------------------------------------------------------------- what is shared


def test_a_conversation_that_grows_by_one_message_has_the_one_before_whole() -> None:
    for number in range(1, len(TURNS)):
        before, after = (key_of(CHAT, model="tiny", messages=TURNS[:n]) for n in (number, number + 1))
        assert shared(before, after) == before.num_bytes
        assert after.hashes[: len(before.hashes)] == before.hashes


def test_how_messages_are_separated_does_not_matter() -> None:
    turns = [json.dumps(turn).encode() for turn in TURNS]
    near, far = (
        prompt_key(SECRET, CHAT, b"", fields_of(b'{"messages":[%b]}' % comma.join(turns))) for comma in (b",", b" , \n")
    )
    assert near is not None and near == far


@pytest.mark.parametrize(("path", "region"), [(COMPLETIONS, "prompt"), ("/v1/responses", "input")])
@pytest.mark.parametrize("size", [1, 1024, 16_000, 400_000])
def test_a_text_that_goes_on_shares_most_of_it(path: str, region: str, size: int) -> None:
    text = "".join(chr(97 + number * number % 26) for number in range(size))
    before, after = key_of(path, **{region: text}), key_of(path, **{region: text + " and more"})
    assert shared(before, after) >= before.num_bytes - max(1024, before.num_bytes / 16)


def test_a_difference_ends_what_is_shared() -> None:
    other = [*TURNS[:20], {"role": "user", "content": "another"}, *TURNS[21:]]
    one, two = key_of(CHAT, messages=TURNS), key_of(CHAT, messages=other)
    assert shared(one, two) == len(text_of(TURNS[:20]))


def test_the_fields_before_the_prompt_are_shared_where_nothing_else_is() -> None:
    one, two = (key_of(CHAT, tools=[{"x": "y" * 5000}], messages=[{"content": text}]) for text in "ab")
    assert shared(one, two) == 0
    assert one.context_bytes > 5000


def test_the_order_of_fields_does_not_matter() -> None:
    assert key_of(CHAT, a=1, b=2, messages=TURNS) == key_of(CHAT, messages=TURNS, b=2, a=1)


def text_of(messages: list[Any]) -> bytes:
    return b"\0".join(json.dumps(message).encode() for message in messages)


@given(*[st.lists(st.text(max_size=3000), min_size=1, max_size=5)] * 3)
def test_what_is_shared_is_the_same(beginning: list[str], ours: list[str], theirs: list[str]) -> None:
    one, two = [*beginning, *ours], [*beginning, *theirs]
    depth = shared(key_of(CHAT, messages=one), key_of(CHAT, messages=two))
    assert text_of(one)[:depth] == text_of(two)[:depth]
    assert depth >= len(text_of(beginning))


def test_one_message_of_two_parts_is_not_two_messages() -> None:
    assert shared(key_of(CHAT, messages=["ab", "c"]), key_of(CHAT, messages=["a", "bc"])) == 0
    assert shared(key_of(COMPLETIONS, prompt=[1, 23]), key_of(COMPLETIONS, prompt=[12, 3])) == 0


# ---------------------------------------------------------------- what keeps prompts apart


@pytest.mark.parametrize(("path", "name"), EVERY_FIELD)
def test_bodies_that_differ_in_a_field_that_may_change_the_prompt_share_nothing(path: str, name: str) -> None:
    region = REGIONS[path]
    bodies: list[dict[str, Any]] = [{region: "text" if path != CHAT else TURNS}]
    bodies += [{**bodies[0], name: value} for value in FIELDS[path][name]]
    keys = [prompt_key(SECRET, path, b"", fields_of(json.dumps(body).encode())) for body in bodies]
    nodes = [frozenset(key.hashes) if key is not None else frozenset() for key in keys]
    if name in HARMLESS:
        assert len(set(nodes)) == 1 and nodes[0]
    else:
        assert all(not nodes[i] & nodes[j] for i in range(len(nodes)) for j in range(i))


def test_an_unknown_field_a_route_a_query_and_a_secret_keep_prompts_apart() -> None:
    known = key_of(CHAT, messages=["x"])
    for other in (
        key_of(CHAT, messages=["x"], new_in_the_next_version=None),
        key_of("/v1/messages", messages=["x"]),
        key_of(CHAT, query=b"a=b", messages=["x"]),
        key_of(CHAT, secret=b"another", messages=["x"]),
    ):
        assert shared(known, other) == -1


def test_names_and_values_are_not_mixed_up() -> None:
    bodies: list[dict[str, Any]] = [
        {"a": "b"},
        {"a": ["b"]},
        {"ab": ""},
        {"a": "", "b": ""},
        {"a": "b\0"},
        {"a\0": "b"},
    ]
    nodes = [key_of(CHAT, messages=["x"], **body).hashes[0] for body in bodies]
    assert len(set(nodes)) == len(nodes)


@pytest.mark.parametrize(
    "fields", [{"truncate_prompt_tokens": 5}, {"truncate_prompt_tokens": -1}, {"truncation_side": "left"}]
)
def test_a_prompt_of_which_a_part_is_left_out_has_no_key(fields: dict[str, Any]) -> None:
    assert prompt_key(SECRET, CHAT, b"", fields_of(json.dumps({"messages": TURNS, **fields}).encode())) is None
    assert prompt_key(SECRET, "/v1/responses", b"", fields_of(b'{"input": "x", "truncation": "auto"}')) is None
    assert prompt_key(SECRET, "/v1/responses", b"", fields_of(b'{"input": "x", "truncation": "disabled"}')) is not None


# ---------------------------------------------------------------- hostile bodies


def test_of_a_field_that_is_there_twice_the_last_counts_as_for_the_engine() -> None:
    twice = b'{"messages": ["x"], "tools": [1], "m\\u0065ssages": ["y"], "tools": [2]}'
    assert prompt_key(SECRET, CHAT, b"", fields_of(twice)) == key_of(CHAT, messages=["y"], tools=[2])
    assert json.loads(twice) == {"messages": ["y"], "tools": [2]}
    assert read_body(b'{"model": "x", "model": "y"}').model == "y"


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages":[%b%b]}' % (b"[" * 100_000, b"]" * 100_000),
        b'{"messages":%b1%b}' % (b'{"a":' * 100_000, b"}" * 100_000),
        b'{"messages":7}',
        b'{"messages":null}',
        b'{"\xff":1,"messages":[]}',
        b"{}",
        b"[]",
    ],
)
def test_what_the_engine_refuses_has_no_key(body: bytes) -> None:
    assert prompt_key(SECRET, CHAT, b"", fields_of(body)) is None


@pytest.mark.parametrize(
    "region",
    [
        b"[%b1]" % (b"1," * (16 << 20)),
        b"[%b{}]" % (b"{}," * 60_000),
        b'["%b"]' % (b"x" * (32 << 20)),
        b'"%b"' % (b"x" * (32 << 20)),
    ],
)
def test_the_work_on_one_body_is_bounded(region: bytes) -> None:
    key = prompt_key(SECRET, CHAT, b"", fields_of(b'{"messages":%b}' % region))
    assert key is not None
    assert len(key.hashes) == len(key.ends) <= MAX_PARTS + 512
    assert key.ends[-1] <= MAX_REGION_BYTES
    assert key.num_bytes >= len(region) / 2


@given(st.binary(max_size=200) | st.builds(lambda tail: b'{"messages":' + tail, st.binary(max_size=50)))
def test_no_body_raises(body: bytes) -> None:
    key = prompt_key(SECRET, CHAT, b"", fields_of(body))
    try:
        read_body(body)
    except BadBody:
        assert key is None


def test_hashes_are_keyed() -> None:
    """By the interpreter, too: the secret is the beginning of what is hashed."""
    assert sys.hash_info.algorithm.startswith("siphash")


def test_only_routes_that_generate_have_keys() -> None:
    paths = {route.path for route in ROUTES if route.inference}
    assert set(REGIONS) <= paths
    assert set(REGIONS) == set(FIELDS)
