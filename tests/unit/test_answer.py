"""The status gate: nothing of an answer leaves before it is known to be one."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from workers.engines import Event
from workers.host.answer import Answer, scope_of
from workers.host.calls import Call, CallRefused
from workers.message import Message
from workers.protocol import Chunk, Leg, Start, Submit

HEADERS = ((b"content-type", b"text/event-stream"),)
BODY = b'{"model": "tiny"}'


def submit(leg: str = Leg.WHOLE) -> Submit:
    return Submit(7, "req-7", leg, "POST", "/v1/completions", b"a=1", ((b"accept", b"*/*"),), BODY)


class Gate:
    """One call with its answer, what the app sends into it and what leaves."""

    def __init__(self, leg: str = Leg.WHOLE, room: Callable[[], Awaitable[object] | None] = lambda: None) -> None:
        self.out: list[Message | bytes] = []
        self.room = room
        self.send = self.out.append
        self.call = Call("req-7", leg, None, 0.0, 30.0, lambda: 0.0, lambda: None)
        self.answer = Answer(submit(leg), self.call, self, self.out.append)

    def send_data(self, rid: int, data: bytes) -> None:
        self.send(Chunk(rid, data))

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
        assert gate.out == [Start(7, 200, HEADERS, b"rolefirst")]
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
        assert gate.out == left == [Start(7, 200, HEADERS, b"first")]

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
