"""What a host tells of a prompt: the chain of its blocks, once, to whoever asked."""

from __future__ import annotations

import pytest

from workers.digest.chains import Hasher, Media, extra, unpack
from workers.host.calls import Call
from workers.host.prompt import Prompt, trace_of
from workers.protocol import Leg

HASHER = Hasher(b"secret")
IDS = list(range(1000, 1041))


def test_a_trace_is_the_chain_of_the_full_blocks() -> None:
    trace = trace_of(Prompt(IDS), 7, HASHER, 16)
    assert (trace.rid, trace.num_prompt_tokens) == (7, 41)
    assert unpack(trace.chain) == HASHER.chain(IDS, 16)
    assert len(unpack(trace.chain)) == 2


@pytest.mark.parametrize(
    ("prompt", "extras"),
    [
        (Prompt(IDS, lora="sql"), {0: extra("sql", ()), 1: extra("sql", ())}),
        (Prompt(IDS, salt="s"), {0: extra(None, ["s"])}),
        (Prompt(IDS, media=[Media("cat", 20, 4)]), {1: extra(None, [("cat", 4)])}),
    ],
)
def test_what_else_the_kv_depends_on_is_in_the_chain(prompt: Prompt, extras: dict[int, bytes]) -> None:
    assert unpack(trace_of(prompt, 7, HASHER, 16).chain) == HASHER.chain(IDS, 16, extras)
    assert trace_of(prompt, 7, HASHER, 16).chain != trace_of(Prompt(IDS), 7, HASHER, 16).chain


def test_only_the_first_prompt_of_a_call_is_told() -> None:
    told: list[Prompt] = []
    call = Call("r", Leg.WHOLE, None, 0.0, 30.0, lambda: 0.0, lambda: None, on_prompt=told.append)
    call.prompted(Prompt([1]))
    call.prompted(Prompt([2]))
    assert told == [Prompt([1])]


def test_a_call_of_which_nobody_wants_to_know_tells_nothing() -> None:
    Call("r", Leg.WHOLE, None, 0.0, 30.0, lambda: 0.0, lambda: None).prompted(Prompt([1]))
