"""One request and its answer on a connection: the writing side of the HTTP server.

Owns the answer's framing and whether it is complete: an answer that was cut short never looks whole.
`write` is the streaming path of the whole proxy: one test, one bytes object, one `transport.write`
(in uvloop that is one system call, at once). It never waits: a reader that is too slow is cut off.
Does not read, and decides nothing about what is answered.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import Protocol

log = logging.getLogger(__name__)

_STATUS_LINES = {s.value: b"HTTP/1.1 %d %b\r\n" % (s.value, s.phrase.encode()) for s in HTTPStatus}
_LAST_CHUNK = b"0\r\n\r\n"
_RESET = struct.pack("ii", 1, 0)  # SO_LINGER: on, for no time


class Line(Protocol):
    """What an exchange needs of its connection."""

    transport: asyncio.Transport

    @property
    def draining(self) -> bool:
        """No answer keeps its connection any more."""

    def answering(self, exchange: Exchange) -> None:
        """The answer begins: the request's body is not needed any more."""

    def ended(self, exchange: Exchange) -> None:
        """The answer is complete."""


class Exchange:
    """Once `over`, everything is a no-op: the client has gone, or has been given all there is."""

    __slots__ = (
        "_chunked",
        "_clogged",
        "_fast",
        "_left",
        "_line",
        "_mute",
        "_put",
        "body",
        "headers",
        "http10",
        "keep_alive",
        "key_hash",
        "method",
        "on_gone",
        "over",
        "path",
        "query",
        "started",
    )

    def __init__(
        self,
        line: Line,
        method: str,
        path: str,
        query: bytes,
        headers: dict[bytes, bytes],
        *,
        http10: bool,
        keep_alive: bool,
    ) -> None:
        self._line = line
        self._put = line.transport.write
        self.method = method
        self.path = path
        self.query = query
        self.headers = headers  # names are lower-case, repeated ones joined by commas
        self.body = b""  # until its answer begins
        self.key_hash: str | None = None  # whose request it is, by the word of who admits it
        self.http10 = http10
        self.keep_alive = keep_alive
        # Called when the client has left, or was cut off, before the answer was complete.
        self.on_gone: Callable[[], None] | None = None
        self.started = False
        self.over = False
        self._left: int | None = None  # bytes still owed of an announced length
        self._chunked = False
        self._mute = False  # an answer without a body: HEAD, 204, 304
        self._clogged = False
        self._fast = False  # chunked, and nothing else to think of

    def start(
        self, status: int, headers: Sequence[tuple[bytes, bytes]], *, length: int | None = None, data: bytes = b""
    ) -> None:
        """Send the head and the beginning of the body in one write.

        Without a length the body is chunked, or for HTTP/1.0 ends with the connection.
        """
        if not self.over:
            head = self._head(status, headers, length)
            self._put(head + self._framed(data) if data and not self._mute else head)

    def write(self, data: bytes) -> None:
        if self._fast and data:  # an empty chunk would end the body
            self._put(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._write_with_care(data)

    def end(self, data: bytes = b"") -> None:
        """The body is complete with these bytes. One that is shorter than announced cuts the connection."""
        assert self.started or self.over, "end before start"
        if self._clogged and data:
            self.cut_off()
        if self.over:
            return
        if not self._mute:
            self._put_last(data)
        if not self.over:
            self._finish()

    def respond(self, status: int, headers: Sequence[tuple[bytes, bytes]], body: bytes) -> None:
        """The whole answer in one write."""
        if self.over:
            return
        head = self._head(status, headers, len(body))
        self._put(head if self._mute else head + body)
        self._finish()

    def abort(self) -> None:
        """Cut the connection: the client sees that the answer is not whole."""
        if not self.over:
            self.over = True
            self._fast = False
            reset(self._line.transport)

    def lost(self) -> None:
        """The connection is gone."""
        if not self.over:
            self.over = True
            self._fast = False
            if self.on_gone is not None:
                self.on_gone()

    def clog(self, clogged: bool) -> None:
        """More than the limit is unsent, or no more so. What comes on top of it is too much."""
        self._clogged = clogged
        self._fast = self._chunked and not clogged and not self._mute and not self.over

    def _head(self, status: int, headers: Sequence[tuple[bytes, bytes]], length: int | None) -> bytes:
        assert not self.started, "an exchange has one answer"
        self.started = True
        if self.body:
            self._line.answering(self)
        framing = self._frame(status, length)
        lines = [_STATUS_LINES.get(status) or b"HTTP/1.1 %d \r\n" % status]
        lines += [b"%b: %b\r\n" % header for header in headers]
        self.keep_alive = self.keep_alive and not self._line.draining
        lines += [framing, b"\r\n" if self.keep_alive else b"connection: close\r\n\r\n"]
        return b"".join(lines)

    def _frame(self, status: int, length: int | None) -> bytes:
        """Choose how the end of the body is told; returns the header that says so."""
        self._mute = self.method == "HEAD" or status in (204, 304)
        if status in (204, 304):
            return b""
        if length is not None:
            self._left = length
            return b"content-length: %d\r\n" % length
        if self.http10:
            self.keep_alive = False
            return b""
        self._chunked = True
        self.clog(self._clogged)
        return b"transfer-encoding: chunked\r\n"

    def _write_with_care(self, data: bytes) -> None:
        if self.over or self._mute or not data:
            return
        assert self.started, "write before start"
        if self._clogged:
            self.cut_off()
            return
        self._put(self._framed(data))

    def _framed(self, data: bytes) -> bytes:
        if self._chunked:
            return b"%x\r\n%b\r\n" % (len(data), data)
        if self._left is not None:
            assert len(data) <= self._left, "the body is longer than announced"
            self._left -= len(data)
        return data

    def _put_last(self, data: bytes) -> None:
        last = self._framed(data) if data else b""
        if self._chunked:
            last += _LAST_CHUNK
        if last:
            self._put(last)
        if self._left:
            log.error("answer to %s %s ended %d bytes short of its length", self.method, self.path, self._left)
            self.abort()

    def cut_off(self) -> None:
        """The client does not read what there is for it."""
        transport = self._line.transport
        unsent, peer = transport.get_write_buffer_size(), transport.get_extra_info("peername")
        log.warning("client %s reads too slowly: cut off with %d bytes unsent, %s", peer, unsent, self.path)
        self.abort()
        if self.on_gone is not None:  # not at once: its owner is in the middle of a write
            asyncio.get_running_loop().call_soon(self.on_gone)

    def _finish(self) -> None:
        self.over = True
        self._fast = False
        self._line.ended(self)


def reset(transport: asyncio.WriteTransport) -> None:
    """End a connection at once, and so that the client sees an error.

    Closed in the usual way, the kernel would go on sending what it holds, and where only the connection's end
    tells the end of an answer (HTTP/1.0), the answer would look whole.
    """
    sock = transport.get_extra_info("socket")
    if sock is not None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    transport.abort()
