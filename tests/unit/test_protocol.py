"""The wire contract: what a peer of another version sees, byte for byte, and what it may rely on."""

from __future__ import annotations

import json
from collections.abc import Callable
from types import UnionType
from typing import Any, get_args, get_origin

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import GOLDEN
from workers import controller_messages, kv_messages, protocol
from workers.links import wire
from workers.links.wire import Batch, DecodeError, encode_batch
from workers.message import Message

DECODERS: dict[UnionType, Callable[[Any], Batch[Any]]] = {
    protocol.ToProxy: wire.decode_to_proxy,
    protocol.ToWorker: wire.decode_to_worker,
    protocol.ToController: wire.decode_to_controller,
}
TICKET = protocol.Ticket("a1-7f", "prefill-0", 2, b'{"remote_host":"10.0.0.1"}', 3, 41, 0.25)
CAPABILITIES = protocol.Capabilities(("tiny",), 4096, 16, 2048, 256, 1, True, True, "0a1b/16")
WORKER = controller_messages.WorkerView(
    "decode-0", "decode", "decode", 1, "ready", "", "n1", "77", 1.5e9, 3, 1, (("load", 3.5),), "next"
)
PROXY = protocol.ProxyFile("proxy-0.1", ("tcp://10.0.0.1:5000",), "public", "http://10.0.0.1:8000", 42)
JOB = controller_messages.JobView(
    "decode-0", "decode", "decode", 1, "77", "PENDING", "Priority", "2026-01-02T03:04:05", None, "", (), 2, 4, 4, 2
)
EXAMPLES: dict[str, Message] = {
    "register": protocol.Register(
        1,
        "c0de",
        "0.32.0",
        "decode-0",
        "decode",
        "decode",
        1,
        "a1",
        "a1-host-1",
        "host",
        CAPABILITIES,
        "n1",
        "77",
        1.5e9,
        (),
        (4, 5),
    ),
    "phase": protocol.Phase("loading", "load", (("preflight", 0.5), ("import", 9.0)), "reads", 2.5),
    "load": protocol.Load(3, 1, 12, 4096, 8192, 0, 0.5, 2, 1024, 6),
    "digest": kv_messages.Digest(0, 2, 17, bytes(range(16)), bytes(range(16, 24)), True, 0.25),
    "start": protocol.Start(
        7, 200, ((b"content-type", b"text/event-stream"),), b"", b"\x05\x00\x00\x80", 1_700_000_000, 41, 32
    ),
    "c": protocol.Chunk(7, b'data: {"choices":[]}\n\n', b"\x05\x00\x00\x80"),
    "end": protocol.End(7, 41, 32, 8),
    "failed": protocol.Failed(7, "ticket is 31.0 s old, limit 30 s", True, 500),
    "computed": kv_messages.Computed(7, 41, 32),
    "prefilled": protocol.Prefilled(7, TICKET, 41, 32),
    "prompt_trace": kv_messages.PromptTrace(7, bytes(range(16)), 41),
    "cancelled": protocol.Cancelled(7),
    "goodbye": protocol.Goodbye("drained"),
    "registered": protocol.Registered("proxy-0", 1, (PROXY,), ("proxy-0.0",)),
    "refused": protocol.Refused("speaks protocol 9", True),
    "beat": protocol.Beat(),
    "submit": protocol.Submit(
        rid=7,
        request_id="f00-7",
        leg="decode",
        method="POST",
        path="/v1/completions",
        query=b"",
        headers=((b"content-type", b"application/json"),),
        body=b'{"model":"tiny","prompt":"a"}',
        priority=1,
        deadline_s=120.0,
        ticket=TICKET,
        resume=protocol.Resume(b"\x05\x00\x00\x80\x2c\x01\x00\x00", 310, 1_700_000_000, 1),
        wants_trace=True,
        wants_ids=True,
    ),
    "cancel": protocol.Cancel(7),
    "release": protocol.Release(TICKET),
    "ticket_closed": protocol.TicketClosed("a1-7f"),
    "digest_wanted": kv_messages.DigestWanted(0),
    "drain": protocol.Drain("the run stops", 120.0),
    "your_turn": protocol.YourTurn(),
    "controller_hello": controller_messages.ControllerHello(1, "demo", "b2"),
    "jobs": controller_messages.Jobs((JOB,), 8, ("decode-0",), True, (PROXY,)),
    "set_caps": controller_messages.SetCaps(
        (controller_messages.WorkerCaps("decode-0", 0, 256),),
        (controller_messages.Expected("computed", 15, 90.0, 120.0, 150.0),),
        "prefill-heavy",
        (("decode", 2),),
        1.5,
    ),
    "drain_worker": controller_messages.DrainWorker("decode-0", 1, "the run stops", 120.0),
    "fleet": controller_messages.FleetView(
        (WORKER,),
        False,
        (("prefill-0", "decode-0"),),
        (("", "decode-1"),),
        ("x: refused",),
        ("whole -> decode-1: slow",),
    ),
}


def tag(kind: type[Any]) -> str:
    return str(kind.__struct_config__.tag)


def takers(kind: type[Message]) -> list[Callable[[Any], Batch[Any]]]:
    """The decoders of everyone who is sent such a message."""
    return [decode for union, decode in DECODERS.items() if kind in get_args(union)]


def raw(message: Message) -> list[Any]:
    fields: list[Any] = msgspec.msgpack.decode(msgspec.msgpack.encode(message))
    return fields


def packed(*messages: list[Any]) -> bytes:
    return msgspec.msgpack.encode((0, 0, messages))


every_message = pytest.mark.parametrize("message", EXAMPLES.values(), ids=list(EXAMPLES))


def test_there_is_an_example_of_every_message() -> None:
    kinds = {kind for union in DECODERS for kind in get_args(union)}
    assert {tag(kind): kind for kind in kinds} == {name: type(message) for name, message in EXAMPLES.items()}


def test_the_bytes_on_the_wire_are_the_ones_reviewed(golden: Callable[[str, str], None]) -> None:
    """A change here is a new protocol: peers that speak the one before must still be understood."""
    batches = {name: encode_batch(5, 1000, [message]).hex() for name, message in EXAMPLES.items()}
    golden("wire.json", json.dumps({"protocol": protocol.PROTOCOL, "batches": batches}, indent=1) + "\n")


@every_message
def test_the_reviewed_bytes_are_read_by_everyone_who_is_sent_them(message: Message) -> None:
    data = bytes.fromhex(json.loads((GOLDEN / "wire.json").read_text())["batches"][tag(type(message))])
    for decode in takers(type(message)):
        assert decode(data) == Batch(5, 1000, [message])


@every_message
def test_fields_that_a_newer_peer_adds_at_the_end_are_ignored(message: Message) -> None:
    for decode in takers(type(message)):
        assert decode(packed([*raw(message), "new", {"and": 1}])).messages == [message]


@every_message
def test_fields_with_a_default_may_be_left_out_by_an_older_peer(message: Message) -> None:
    fields = msgspec.structs.fields(message)
    num_required = sum(field.required for field in fields)
    for decode in takers(type(message)):
        [read] = decode(packed(raw(message)[: 1 + num_required])).messages
        assert all(getattr(read, field.name) == field.default for field in fields[num_required:])


@every_message
def test_a_message_that_lacks_a_field_is_refused_and_the_error_says_where(message: Message) -> None:
    num_required = sum(field.required for field in msgspec.structs.fields(message))
    lacking = raw(message)[:num_required]  # the tag takes one place; a Beat is only that
    for decode in takers(type(message)):
        with pytest.raises(DecodeError, match=r"^Expected `array` of at least length .* - at `\$\[2\]\[1\]`$"):
            decode(packed(raw(protocol.Beat()), lacking))


def test_a_field_of_the_wrong_type_is_refused_and_the_error_says_where() -> None:
    with pytest.raises(DecodeError, match=r"Expected `bytes`, got `int` - at `\$\[2\]\[0\]\[2\]`"):
        wire.decode_to_proxy(packed(["c", 7, 8]))


@pytest.mark.parametrize("decode", DECODERS.values())
def test_an_unknown_message_is_an_error_that_names_it(decode: Callable[[Any], Batch[Any]]) -> None:
    with pytest.raises(DecodeError, match=r"Invalid value 'teleport'"):
        decode(packed(["teleport", 1]))


@pytest.mark.parametrize(("union", "message"), [(u, m) for u in DECODERS for m in EXAMPLES.values()])
def test_nobody_takes_a_message_that_is_for_somebody_else(union: UnionType, message: Message) -> None:
    data = encode_batch(0, 0, [message])
    if type(message) in get_args(union):
        assert DECODERS[union](data).messages == [message]
    else:
        with pytest.raises(DecodeError):
            DECODERS[union](data)


@pytest.mark.parametrize("data", [b"", b"\x00", b"\xff" * 40, msgspec.msgpack.encode({"seq": 0})])
def test_rubbish_is_an_error_of_ours(data: bytes) -> None:
    with pytest.raises(DecodeError):
        wire.decode_to_proxy(data)


SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    bool: st.booleans(),
    int: st.integers(-(2**63), 2**64 - 1),
    float: st.floats(allow_nan=False),
    str: st.text(),
    bytes: st.binary(),
    type(None): st.none(),
}


def values(hint: Any) -> st.SearchStrategy[Any]:
    """Every value that a field may have."""
    if hint in SCALARS:
        return SCALARS[hint]
    if isinstance(hint, UnionType):
        return st.one_of([values(part) for part in get_args(hint)])
    if get_origin(hint) is tuple:
        first, *others = get_args(hint)
        if others == [...]:
            return st.lists(values(first), max_size=4).map(tuple)
        return st.tuples(values(first), *map(values, others))
    return st.builds(hint, **{field.name: values(field.type) for field in msgspec.structs.fields(hint)})


@pytest.mark.parametrize("union", DECODERS)
@given(data=st.data())
def test_whatever_is_encoded_is_decoded(union: UnionType, data: st.DataObject) -> None:
    messages = data.draw(st.lists(st.one_of([values(kind) for kind in get_args(union)]), max_size=5))
    seq, ack = data.draw(st.integers(0, 2**63)), data.draw(st.integers(0, 2**63))
    assert DECODERS[union](encode_batch(seq, ack, messages)) == Batch(seq, ack, messages)
