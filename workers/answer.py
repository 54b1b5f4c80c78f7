"""The ASGI side of one call: what the app receives, and the gate that what it sends must pass.

vLLM answers 200 before it knows whether the engine will. So the start and all of the body are held
until a first good output exists, or the app has answered without generating; a failure before that
never becomes a 200. Owns the held bytes of one call; knows no engine and no socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from workers.calls import Call
from workers.engines import Event, Scope
from workers.protocol import Chunk, Leg, Message, Start, Submit


class Answer:
    """`send` messages leave through `emit`; `room` gives something to wait for while the link is congested."""

    def __init__(
        self,
        submit: Submit,
        call: Call,
        emit: Callable[[Message], None],
        room: Callable[[], Awaitable[object] | None] | None,
    ) -> None:
        self._rid = submit.rid
        self._body: bytes | None = submit.body
        self._call = call
        self._emit = emit
        self._room = room
        self._start: Event | None = None
        self._held: list[bytes] = []
        self._complete = False
        self._left = asyncio.Event()
        self.opened = False

    def leave(self) -> None:
        """Nobody waits for the answer any more: the app is told as it would be of a client."""
        self._left.set()

    async def receive(self) -> Event:
        """The whole request at once; after that, that nobody waits for it."""
        if self._body is None:
            await self._left.wait()
            return {"type": "http.disconnect"}
        body, self._body = self._body, None
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(self, event: Event) -> None:
        if self.opened:
            self._forward(event.get("body", b""))
        elif event["type"] == "http.response.start":
            self._start = event
            return
        else:
            self._hold(event)
        if self._room is not None and (room := self._room()) is not None:
            await room

    def _hold(self, event: Event) -> None:
        self._complete = not event.get("more_body", False)
        if data := event.get("body", b""):
            self._held.append(data)
        if self._may_open():
            self._open()

    def _may_open(self) -> bool:
        if self._start is None or self._call.failure is not None:
            return False
        if self._call.num_generates == 0:
            return self._complete
        # What a prefill leg's app says of its one token is nobody's answer.
        return self._call.good_output and self._call.leg != Leg.PREFILL

    def _open(self) -> None:
        assert self._start is not None
        self.opened = True
        self._emit(Start(self._rid, self._start["status"], tuple((k, v) for k, v in self._start["headers"])))
        for data in self._held:
            self._forward(data)
        self._held.clear()

    def _forward(self, data: bytes) -> None:
        # After a failure the app only adds an error in its own words; the proxy words the one that counts.
        if data and self._call.failure is None:
            self._emit(Chunk(self._rid, data))


def scope_of(submit: Submit) -> Scope:
    """The ASGI scope of an envelope. The engine's own request id becomes the proxy's."""
    headers = [
        *submit.headers,
        (b"host", b"sluice"),
        (b"content-length", b"%d" % len(submit.body)),
        (b"x-request-id", submit.request_id.encode()),
    ]
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": submit.method,
        "scheme": "http",
        "path": submit.path,
        "raw_path": submit.path.encode(),
        "query_string": submit.query,
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 0),
        "server": ("127.0.0.1", 0),
        "state": {},
    }
