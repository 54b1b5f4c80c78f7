"""A batch's connections to the proxy: one request on each at a time, kept open between them.

Owns sockets and HTTP/1.1's client side, as cheap as it can be: callbacks, no task per request. What an answer means
is `answers`' business. A service that cannot be reached is busy; a connection that ends before its answer is broken.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

import httptools
import msgspec

from launcher.batch.answers import Answer, Kind, kind_of
from launcher.batch.request import Request
from proxy.header_names import CACHED_TOKENS, REQUEST_ID, WAITED_S

KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 4))
CONNECT_TIMEOUT_S = 10.0
RETRY_AFTER = b"retry-after"

Done = Callable[[Request, Answer], None]


class Target(msgspec.Struct, frozen=True):
    """Where to ask, and as whom. `url` ends before `/v1`; `ca_file` is trusted besides the machine's own."""

    url: str
    key: str
    ca_file: str | None = None


class Connection(asyncio.Protocol):
    """One question at a time."""

    def __init__(self, ended: Callable[[Connection], None]) -> None:
        self._ended = ended
        self._request: Request | None = None
        self._done: Done | None = None
        self._body: list[bytes] = []
        self._headers: dict[bytes, bytes] = {}
        self._parser = httptools.HttpResponseParser(self)
        self._transport: Any = None
        self.reusable = True

    def ask(self, request: Request, data: bytes, done: Done) -> None:
        self._request, self._done = request, done
        self._transport.write(data)

    def close(self) -> None:
        self.reusable = False
        self._transport.abort()

    # ------------------------------------------------------------ asyncio's

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        sock = transport.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in KEEPALIVE:
            sock.setsockopt(socket.IPPROTO_TCP, option, value)

    def data_received(self, data: bytes) -> None:
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.reusable = False
        self._finish(Answer(Kind.BROKEN, body=b"" if exc is None else str(exc).encode()))
        self._ended(self)

    # ------------------------------------------------------------ the parser's

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        status, headers = self._parser.get_status_code(), self._headers
        if status < 200:
            return
        self.reusable = self._parser.should_keep_alive()
        answer = Answer(
            kind_of(status),
            status,
            b"".join(self._body),
            headers.get(REQUEST_ID, b"").decode("latin-1"),
            _seconds(headers.get(WAITED_S)),
            _seconds(headers.get(RETRY_AFTER)),
            int(headers.get(CACHED_TOKENS) or 0),
        )
        self._headers, self._body = {}, []
        self._finish(answer)
        if not self.reusable:
            self._transport.close()
        else:
            self._ended(self)

    def _finish(self, answer: Answer) -> None:
        request, done = self._request, self._done
        if request is not None and done is not None:
            self._request = self._done = None
            done(request, answer)


def _seconds(text: bytes | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0


class Pool:
    """`locate` says where the service is now; it is asked again when nobody answers there."""

    def __init__(self, locate: Callable[[], Target]) -> None:
        self._locate = locate
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()
        self._opening: set[asyncio.Task[None]] = set()
        self._aim(locate())

    def _aim(self, target: Target) -> None:
        address = urlsplit(target.url)
        self._target = target
        self._host, self._tls = address.hostname or "", tls_context(address.scheme, target.ca_file)
        self._port = address.port or (443 if self._tls else 80)
        self._head = (
            f" HTTP/1.1\r\nhost: {address.netloc}\r\nauthorization: Bearer {target.key}\r\n"
            "content-type: application/json\r\ncontent-length: "
        ).encode()

    def send(self, request: Request, done: Done) -> None:
        data = b"POST %b%b%d\r\n\r\n%b" % (request.url.encode(), self._head, len(request.body), request.body)
        while self._idle:
            connection = self._idle.pop()
            if connection.reusable:
                connection.ask(request, data, done)
                return
        task = asyncio.ensure_future(self._open(request, data, done))
        self._opening.add(task)
        task.add_done_callback(self._opening.discard)

    async def _open(self, request: Request, data: bytes, done: Done) -> None:
        target = self._target
        try:
            if not self._host:
                raise ConnectionError("there is no proxy yet")
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                loop = asyncio.get_running_loop()
                _, connection = await loop.create_connection(
                    lambda: Connection(self._ended), self._host, self._port, ssl=self._tls
                )
        except OSError as fault:  # a timeout is one too
            if self._target is target and (now := await asyncio.to_thread(self._locate)) != target:
                self._aim(now)
            done(request, Answer(Kind.BUSY, body=f"{target.url}: {fault}".encode()))
            return
        self._all.add(connection)
        connection.ask(request, data, done)

    def _ended(self, connection: Connection) -> None:
        if connection.reusable:
            self._idle.append(connection)
        else:
            self._all.discard(connection)

    def close(self) -> None:
        """What is in flight is given up; the proxy cancels it."""
        for task in self._opening:
            task.cancel()
        for connection in tuple(self._all):
            connection.close()


def tls_context(scheme: str, ca_file: str | None) -> ssl.SSLContext | None:
    if scheme != "https":
        return None
    context = ssl.create_default_context()
    if ca_file is not None:
        context.load_verify_locations(ca_file)
    return context
