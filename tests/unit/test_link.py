"""The connecting end of a link, over a real socket: what one loop turn brings travels together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import zmq

from workers.beat import until_next_mark
from workers.kv_messages import Computed, PromptTrace
from workers.links.link import OUTBOX_BYTES, Link
from workers.links.wire import decode_to_proxy, decode_to_worker
from workers.links.zmq_loop import CurveKeys
from workers.message import Message
from workers.protocol import BEAT_INTERVAL_S, Beat, Chunk, End, Start


@asynccontextmanager
async def linked() -> AsyncIterator[tuple[Link, zmq.Socket[bytes]]]:
    """A link and the router it is connected to."""
    context: zmq.Context[Any] = zmq.Context()
    public, secret = (key.decode() for key in zmq.curve_keypair())
    router = context.socket(zmq.ROUTER)
    router.curve_server, router.curve_publickey, router.curve_secretkey = True, public.encode(), secret.encode()
    link = Link(
        context,
        f"tcp://127.0.0.1:{router.bind_to_random_port('tcp://127.0.0.1')}",
        identity=b"w/0/s",
        server_public=public,
        keys=CurveKeys(*(key.decode() for key in zmq.curve_keypair())),
        hello=Beat(),
        decode=decode_to_worker,
        on_message=lambda message: None,
        on_lost=lambda reason, final: None,
        silence_s=60.0,
    )
    try:
        await until_next_mark(BEAT_INTERVAL_S)  # no beat falls into what a test does, and the hello has left
        await asyncio.sleep(0.01)
        yield link, router
    finally:
        link.close("done")
        context.destroy(linger=0)


def batches_of(*turns: list[tuple[str, Any]]) -> list[list[Message]]:
    """Calls of a link's methods, turn by turn; returns what arrives, batch by batch, but for beats."""

    async def talk() -> list[list[Message]]:
        found: list[list[Message]] = []
        num_sent = sum(any(method != "send_along" for method, _ in turn) for turn in turns)
        async with linked() as (link, router):
            for turn in turns:
                for method, arguments in turn:
                    getattr(link, method)(*arguments)
                await asyncio.sleep(0.001)
            while len(found) < num_sent:
                _, data = await asyncio.to_thread(router.recv_multipart)
                batch = [m for m in decode_to_proxy(data).messages if not isinstance(m, Beat)]
                found += [batch] if batch else []
        return found

    return asyncio.run(talk())


def test_the_pieces_of_one_turn_travel_as_one_chunk_per_request() -> None:
    first = [("send_data", (1, b"a")), ("send_data", (2, b"x")), ("send_data", (1, b"b"))]
    second = [("send_data", (1, b"c"))]
    assert batches_of(first, second) == [[Chunk(1, b"ab"), Chunk(2, b"x")], [Chunk(1, b"c")]]


def test_the_order_of_a_requests_messages_is_kept() -> None:
    turn = [("send", (Start(1, 200, ()),)), ("send_data", (1, b"a")), ("send", (End(2),)), ("send_data", (1, b"b"))]
    assert batches_of(turn) == [[Start(1, 200, ()), Chunk(1, b"ab"), End(2)]]


def test_what_opens_an_answer_does_not_wait_behind_other_answers() -> None:
    turn = [("send_data", (1, b"a")), ("send", (Computed(3, 9, 0),)), ("send", (Start(2, 200, ()),))]
    turn += [("send_data", (2, b"b")), ("send", (End(1),))]
    assert batches_of(turn) == [[Computed(3, 9, 0), Start(2, 200, ()), Chunk(1, b"a"), Chunk(2, b"b"), End(1)]]


def test_a_start_says_alone_what_was_computed_in_its_turn() -> None:
    computed, start = Computed(2, 9, 4), Start(2, 200, (), num_prompt_tokens=9, num_cached_tokens=4)
    together = [("send", (computed,)), ("send", (start,))]
    assert batches_of(together, [("send", (computed,))]) == [[start], [computed]]
    assert batches_of([("send", (start,)), ("send", (computed,))]) == [[start]]


def test_what_may_wait_leaves_with_the_next_message() -> None:
    trace = PromptTrace(1, b"12345678", 40)
    turns = [[("send_along", (trace,))], [("send_data", (1, b"a"))], [("send_data", (1, b"b"))]]
    assert batches_of(*turns) == [[trace, Chunk(1, b"a")], [Chunk(1, b"b")]]


def test_what_has_not_left_can_be_taken_back_once() -> None:
    async def take() -> None:
        async with linked() as (link, _):
            link.send_data(1, b"a")
            link.send_data(1, b"b")
            assert (link.take_data(1), link.take_data(1), link.take_data(2)) == (b"ab", b"", b"")
            link.send_data(1, b"c")
            assert link.take_data(1) == b"c"

    asyncio.run(take())


def test_senders_wait_while_too_much_has_not_left() -> None:
    async def fill() -> None:
        async with linked() as (link, _):
            link.send_data(1, b"a" * OUTBOX_BYTES)
            assert link.room() is None
            link.send_data(1, b"b")
            room = link.room()
            assert room is not None
            await room  # until this turn's batch has left
            assert link.room() is None

    asyncio.run(fill())


def test_an_abandoned_link_touches_its_socket_no_more() -> None:
    """Its context may go at once, with a turn's batch still to leave and beats to come."""
    complaints: list[dict[str, Any]] = []

    async def abandon() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        async with linked() as (link, _):
            link.send_data(1, b"a")
            link.abandon()
            link.abandon()
            await asyncio.sleep(2 * BEAT_INTERVAL_S)
            link.send_data(1, b"b")
            assert link.closed and link.room() is None

    asyncio.run(abandon())
    assert complaints == []
