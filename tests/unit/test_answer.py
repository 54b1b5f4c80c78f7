"""The status gate: nothing of an answer leaves before it is known to be one."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from msgspec.structs import replace

from workers.engines import Event
from workers.host.answer import Answer, scope_of
from workers.host.calls import Call, CallRefused
from workers.message import Message
from workers.output_ids import pack
from workers.protocol import Chunk, Leg, Resume, Start, Submit

HEADERS = ((b"content-type", b"text/event-stream"),)
BODY = b'{"model": "tiny"}'


def submit(leg: str = Leg.WHOLE) -> Submit:
    return Submit(7, "req-7", leg, "POST", "/v1/completions", b"a=1", ((b"accept", b"*/*"),), BODY)


class Gate:
    """One call with its answer, what the app sends into it and what leaves."""

    def __init__(
        self,
        leg: str = Leg.WHOLE,
        room: Callable[[], Awaitable[object] | None] = lambda: None,
        *,
        keeps_ids: bool = False,
        resume: Resume | None = None,
    ) -> None:
        self.out: list[Message | bytes] = []
        self.room = room
        self.send = self.out.append
        self.call = Call("req-7", leg, None, 0.0, 30.0, lambda: 0.0, lambda: None)
        self.call.keeps_ids = keeps_ids
        self.call.resume = resume
        self.answer = Answer(replace(submit(leg), resume=resume), self.call, self, self.out.append)

    def send_data(self, rid: int, data: bytes, output_ids: bytes = b"") -> None:
        self.send(Chunk(rid, data, output_ids))

    def output(self, *token_ids: int, finished: bool = False) -> None:
        self.call.outputs(token_ids, finished=finished)
        self.call.output(len(token_ids), 0, 0)

    async def start(self, status: int = 200) -> None:
        await self.answer.send({"type": "http.response.start", "status": status, "headers": [*HEADERS]})

    async def body(self, data: bytes, *, more: bool = True) -> None:
        await self.answer.send({"type": "http.response.body", "body": data, "more_body": more})


def test_the_start_waits_for_a_first_good_output() -> None:
    async def scenario() -> None:
        gate = Gate()
        gate.call.begin(10, 1)
        await gate.start()
        await gate.body(b"role")
        assert gate.out == [] and not gate.answer.opened
        gate.call.output(1, 0, 10)
        await gate.body(b"first")
        assert gate.out == [Start(7, 200, HEADERS, b"rolefirst", num_prompt_tokens=10)]
        await gate.body(b"second")
        await gate.body(b"third", more=False)
        assert gate.out[1:] == [Chunk(7, b"second"), b"third"]

    asyncio.run(scenario())


@pytest.mark.parametrize("leg", [Leg.WHOLE, Leg.DECODE, Leg.PREFILL])
def test_a_failure_before_it_is_never_an_answer(leg: str) -> None:
    async def scenario() -> None:
        gate = Gate(leg)
        gate.call.begin(10, 1)
        await gate.start()
        await gate.body(b"role")
        gate.call.fail(CallRefused("the engine ended the request", retryable=True))
        await gate.body(b"error", more=False)
        assert gate.out == [] and not gate.answer.opened

    asyncio.run(scenario())


def test_a_refusal_before_the_engine_is_never_the_apps_answer() -> None:
    async def scenario() -> None:
        gate = Gate(Leg.DECODE)
        with pytest.raises(CallRefused):
            gate.call.begin(10, 2)
        await gate.start(500)
        await gate.body(b"Internal Server Error", more=False)
        assert gate.out == []

    asyncio.run(scenario())


@pytest.mark.parametrize("leg", [Leg.WHOLE, Leg.DECODE, Leg.PREFILL])
def test_an_answer_without_generating_passes_at_its_end(leg: str) -> None:
    """A real error of the app's, or a route that needs no engine."""

    async def scenario() -> None:
        gate = Gate(leg)
        await gate.start(400)
        await gate.body(b"max_tokens ")
        assert gate.out == []
        await gate.body(b"is too large", more=False)
        assert gate.out == [Start(7, 400, HEADERS, b"max_tokens is too large"), b""]

    asyncio.run(scenario())


def test_what_a_prefill_leg_says_of_its_token_is_nobodys_answer() -> None:
    async def scenario() -> None:
        gate = Gate(Leg.PREFILL)
        gate.call.begin(10, 1)
        gate.call.output(1, 0, 10)
        await gate.start()
        await gate.body(b'{"choices": []}', more=False)
        assert gate.out == [] and not gate.answer.opened

    asyncio.run(scenario())


def test_after_a_failure_nothing_more_is_forwarded() -> None:
    async def scenario() -> None:
        gate = Gate()
        gate.call.begin(10, 1)
        gate.call.output(1, 0, 10)
        await gate.start()
        await gate.body(b"first")
        left = list(gate.out)
        gate.call.fail(CallRefused("the engine died", retryable=False))
        await gate.body(b'{"error": {}}')
        await gate.body(b"[DONE]", more=False)
        assert gate.out == left == [Start(7, 200, HEADERS, b"first", num_prompt_tokens=10)]

    asyncio.run(scenario())


def test_the_app_waits_for_room_on_the_link() -> None:
    async def scenario() -> None:
        room: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        gate = Gate(room=lambda: None if room.done() else room)
        await gate.start()
        sending = asyncio.create_task(gate.body(b"all", more=False))
        await asyncio.sleep(0)
        assert len(gate.out) == 2 and not sending.done()
        room.set_result(None)
        await sending

    asyncio.run(scenario())


def test_the_app_gets_the_body_once_and_then_that_nobody_waits() -> None:
    async def scenario() -> list[Event]:
        answer = Gate().answer
        events = [await answer.receive()]
        waiting = asyncio.create_task(answer.receive())
        await asyncio.sleep(0)
        assert not waiting.done()
        answer.leave()
        return [*events, await waiting, await answer.receive()]

    gone = {"type": "http.disconnect"}
    assert asyncio.run(scenario()) == [{"type": "http.request", "body": BODY, "more_body": False}, gone, gone]


def test_the_scope_carries_the_envelope() -> None:
    scope: Any = scope_of(submit())
    assert (scope["method"], scope["path"], scope["query_string"]) == ("POST", "/v1/completions", b"a=1")
    headers = dict(scope["headers"])
    assert headers[b"accept"] == b"*/*"
    assert headers[b"content-length"] == str(len(BODY)).encode()
    assert headers[b"x-request-id"] == b"req-7"


# ---------------------------------------------------------------- streams that can go on elsewhere

FIRST = b'data: {"created":1700000000,"text":"a"}\n\n'
SECOND = b'data: {"created":1700000000,"text":"b"}\n\n'
LATER = b'data: {"created":1700000009,"text":"b"}\n\n'
END = b"data: [DONE]\n\n"


def test_tokens_travel_with_the_bytes_that_were_made_of_them_or_before() -> None:
    async def scenario() -> None:
        gate = Gate(keeps_ids=True)
        gate.call.begin(10, 1)
        await gate.start()
        gate.output(5)
        await gate.body(FIRST)
        gate.output(6)  # no text of it yet
        gate.output(7, 8)
        await gate.body(SECOND)
        assert gate.out == [
            Start(7, 200, HEADERS, FIRST, pack([5]), 1700000000, 10),
            Chunk(7, SECOND, pack([6]) + pack([7, 8])),
        ]

    asyncio.run(scenario())


def test_what_the_last_token_brings_leaves_only_with_the_end() -> None:
    async def scenario() -> None:
        gate = Gate(keeps_ids=True)
        gate.call.begin(10, 1)
        await gate.start()
        gate.output(5)
        await gate.body(FIRST)
        gate.output(6, finished=True)
        await gate.body(SECOND)
        assert len(gate.out) == 1
        await gate.body(END, more=False)
        assert gate.out[1:] == [SECOND + END]

    asyncio.run(scenario())


def test_an_answer_of_one_token_leaves_whole() -> None:
    async def scenario() -> None:
        gate = Gate(keeps_ids=True)
        gate.call.begin(10, 1)
        await gate.start()
        gate.output(5, finished=True)
        await gate.body(FIRST)
        assert gate.out == []
        await gate.body(END, more=False)
        assert gate.out == [Start(7, 200, HEADERS, FIRST + END, pack([5]), 1700000000, 10), b""]

    asyncio.run(scenario())


def resumed(num_bytes: int) -> Gate:
    gate = Gate(keeps_ids=True, resume=Resume(pack([5]), num_bytes, 1700000000, 1))
    gate.call.begin(10, 1)
    return gate


def test_a_replay_shows_nothing_before_the_engine_has_something_new() -> None:
    async def scenario() -> None:
        gate = resumed(len(FIRST))
        await gate.start()
        await gate.body(FIRST.replace(b"00,", b"09,"))
        assert gate.out == []
        gate.output(6)
        await gate.body(LATER)
        assert gate.out == [Start(7, 200, HEADERS, SECOND, pack([6]), 1700000000, 11)]

    asyncio.run(scenario())


def test_a_replay_that_ends_at_once_is_marked() -> None:
    async def scenario() -> None:
        gate = resumed(len(FIRST))
        await gate.start()
        await gate.body(FIRST)
        gate.output(6, finished=True)
        await gate.body(SECOND)
        await gate.body(END, more=False)
        (start, end) = gate.out
        assert isinstance(start, Start) and end == b""
        assert start.data == SECOND.replace(b"}", b',"sluice":{"resumed":1,"resampled":false}}') + END

    asyncio.run(scenario())


@pytest.mark.parametrize(("status", "num_bytes"), [(400, 0), (200, 1000), (200, 7)])
def test_an_answer_that_does_not_continue_the_stream_is_a_failure(status: int, num_bytes: int) -> None:
    async def scenario() -> None:
        gate = resumed(num_bytes)
        gate.call.output(1, 0, 10)
        await gate.start(status)
        with pytest.raises(CallRefused, match="could not be continued"):
            await gate.body(FIRST, more=False)
        assert gate.call.failure is not None and not gate.call.failure.retryable
        assert gate.out == []

    asyncio.run(scenario())
