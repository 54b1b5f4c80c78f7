"""A server on a real loop and clients that speak raw bytes to it."""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl as tls
from collections.abc import AsyncIterator, Awaitable, Callable

import msgspec
import uvloop

from proxy.errors import Response
from proxy.http.exchange import Exchange
from proxy.http.listening import open_listeners
from proxy.http.request_reader import Admit
from proxy.http.serve import Server
from proxy.spec import Limits

PATIENCE_S = 30.0  # generous: only a hang ends here
Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


def run(test: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(PATIENCE_S):
            await test()

    uvloop.run(bounded())


def admit_all(exchange: Exchange) -> Response | None:
    return None


def echo(exchange: Exchange) -> None:
    exchange.respond(200, [(b"content-type", b"text/plain")], exchange.body)


class Served(Server):
    """One with a socket of its own."""

    port: int


@contextlib.asynccontextmanager
async def serving(
    handler: Callable[[Exchange], None] = echo,
    limits: Limits | None = None,
    admit: Admit = admit_all,
    ssl: tls.SSLContext | None = None,
) -> AsyncIterator[Served]:
    server = Served()
    server.start(handler, admit, limits or Limits(), ssl)
    (listener,) = open_listeners("127.0.0.1", 0, 1)
    with listener:
        server.port = listener.getsockname()[1]
        await server.accept_on({0: listener})
    try:
        yield server
    finally:
        await server.close(0.0)
        assert server.connections == 0


@contextlib.asynccontextmanager
async def connected(server: Served) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def say(server: Server, *parts: bytes) -> bytes:
    """Send the parts, one loop turn or more apart; everything that comes until the server closes."""
    async with connected(server) as (reader, writer):
        for part in parts:
            writer.write(part)
            await asyncio.sleep(0.01)
        return await reader.read()


def get(path: str = "/x", headers: str = "") -> bytes:
    return f"GET {path} HTTP/1.1\r\nhost: h\r\n{headers}\r\n".encode()


def post(body: bytes, path: str = "/x", headers: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nhost: h\r\n{headers}content-length: {len(body)}\r\n\r\n".encode() + body


LAST = "connection: close\r\n"


def status(answer: bytes) -> int:
    return int(re.match(rb"HTTP/1\.1 (\d{3}) ", answer)[1])  # type: ignore[index]


def error(answer: bytes) -> dict[str, str | None]:
    """The OpenAI-shaped error of an answer, whose length must be right."""
    head, _, body = answer.partition(b"\r\n\r\n")
    assert f"content-length: {len(body)}".encode() in head
    detail: dict[str, str | None] = msgspec.json.decode(body)["error"]
    assert set(detail) == {"message", "type", "param", "code"}
    return detail


class Kept:
    """A handler that only keeps what comes and notes who left."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self.gone: list[str] = []

    def __call__(self, exchange: Exchange) -> None:
        self.exchanges.append(exchange)
        exchange.on_gone = lambda: self.gone.append(exchange.path)

    async def arrived(self, number: int = 1) -> Exchange:
        await eventually(lambda: len(self.exchanges) >= number)
        return self.exchanges[number - 1]


class Sink:
    """Takes what a reader alone makes of bytes, without a connection."""

    transport = asyncio.Transport()
    draining = False

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []

    def head_began(self) -> None: ...
    def body_began(self, expects_continue: bool) -> None: ...
    def answering(self, exchange: Exchange) -> None: ...
    def ended(self, exchange: Exchange) -> None: ...

    def received(self, exchange: Exchange, refusal: Response | None) -> None:
        self.exchanges.append(exchange)


async def eventually(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  (what is awaited happens in plain callbacks)
        await asyncio.sleep(0.005)
