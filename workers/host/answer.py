"""The ASGI side of one call: what the app receives, and the gate that what it sends must pass.

vLLM answers 200 before it knows whether the engine will. So the start and all of the body are held
until a first good output exists, or the app has answered without generating; a failure before that
never becomes a 200. What belongs to the last output is held until the answer is complete, so that a
stream which breaks off always has tokens left to compute. Owns the held bytes of one call; knows no
engine and no socket.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Protocol

from workers.engines import Event, Scope
from workers.host.calls import Call, CallRefused
from workers.host.continuation import Continuation, NotTheSame, created_of
from workers.message import Message
from workers.protocol import Leg, Start, Submit

OK = 200


class Outlet(Protocol):
    """What an answer needs of its link."""

    def send(self, message: Message) -> None: ...
    def send_data(self, rid: int, data: bytes, output_ids: bytes = b"") -> None: ...
    def room(self) -> Awaitable[object] | None: ...


class Answer:
    """What passes the gate leaves through `outlet`, but for the body's end: that is handed to `finish`."""

    def __init__(self, submit: Submit, call: Call, outlet: Outlet, finish: Callable[[bytes], None]) -> None:
        self._rid = submit.rid
        self._body: bytes | None = submit.body
        self._call = call
        self._outlet = outlet
        self._finish = finish
        self._start: Event | None = None
        self._held = b""
        self._left = asyncio.Event()
        resumes = submit.resume if submit.leg != Leg.PREFILL else None
        self._continuation = None if resumes is None else Continuation(resumes)
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
        # After a failure the app only adds an error in its own words; the proxy words the one that counts.
        if self._call.failure is not None:
            return
        if event["type"] == "http.response.start":
            self._start = event
            return
        data, complete = event.get("body", b""), not event.get("more_body", False)
        if self._continuation is not None:
            data = self._rest(data)
        if not self.opened:
            self._hold(data, complete)
        elif complete:
            self._finish(self._last(self._held + data))
        elif self._call.finished:
            self._held += data
        elif data:
            self._outlet.send_data(self._rid, data, self._call.take_ids())
        if (room := self._outlet.room()) is not None:
            await room

    def _hold(self, data: bytes, complete: bool) -> None:
        self._held += data
        if self._may_open(complete):
            self._open(complete)

    def _may_open(self, complete: bool) -> bool:
        if self._start is None:
            return False
        behind = self._continuation is not None and not self._continuation.caught_up
        if self._call.num_generates == 0 or self._call.finished or behind:
            return complete
        # What a prefill leg's app says of its one token is nobody's answer.
        return self._call.good_output and self._call.leg != Leg.PREFILL

    def _open(self, complete: bool) -> None:
        assert self._start is not None
        self.opened = True
        status, headers = self._start["status"], tuple((name, value) for name, value in self._start["headers"])
        if self._continuation is not None and (status != OK or not self._continuation.caught_up):
            raise self._not_the_same(f"status {status}")
        ids = self._call.take_ids()
        data, self._held = self._last(self._held) if complete else self._held, b""
        created = created_of(data) if ids else 0
        told = (self._call.num_prompt_tokens, self._call.num_cached_tokens)
        self._outlet.send(Start(self._rid, status, headers, data, ids, created, *told))
        if complete:
            self._finish(b"")

    # ------------------------------------------------------------ a stream that goes on

    def _rest(self, data: bytes) -> bytes:
        assert self._continuation is not None
        try:
            return self._continuation.rest(data)
        except NotTheSame:
            raise self._not_the_same("other bytes") from None

    def _last(self, data: bytes) -> bytes:
        if self._continuation is None:
            return data
        return self._continuation.last(data, resampled=self._call.resampled)

    def _not_the_same(self, what: str) -> CallRefused:
        refused = CallRefused(f"the stream could not be continued: its replay gave {what}", retryable=False)
        self._call.fail(refused)
        return refused


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
