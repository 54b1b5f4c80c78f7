"""The way to the batches' process: OpenAI's /v1/files and /v1/batches are answered there, not here.

Owns one HTTP/1.1 exchange per request with that process, on this node's loopback. Tells it which API key asks, and
shows the secret that both read in `keys/`. Looks into no body.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

import msgspec

from proxy import errors
from proxy.errors import NoWorker, Response
from proxy.header_names import CLIENT, SECRET
from proxy.http.exchange import Exchange

PASSED_ON = (b"content-type", b"accept")
TIMEOUT_S = 60.0
RETRY_AFTER_S = 5
MAX_HEAD_BYTES = 64 << 10


Respond = Callable[[Response], None]


class ServiceAddress(msgspec.Struct, frozen=True):
    port: int
    secret: str


def address_file(run_dir: Path) -> Path:
    return run_dir / "keys" / "batch_service.json"


class Forward:
    """`pass_on` answers later; a client that leaves is forgotten."""

    def __init__(self, run_dir: Path) -> None:
        self._path = address_file(run_dir)
        self._tasks: set[asyncio.Task[None]] = set()

    def pass_on(self, exchange: Exchange, client: str, respond: Respond) -> None:
        task = asyncio.ensure_future(self._serve(exchange, client, respond))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

        def forget() -> None:
            task.cancel()

        exchange.on_gone = forget

    async def _serve(self, exchange: Exchange, client: str, respond: Respond) -> None:
        try:
            async with asyncio.timeout(TIMEOUT_S):
                address = await asyncio.to_thread(self._read_address)
                answer = await _ask(address.port, _request(exchange, client, address.secret))
        except (OSError, EOFError, ValueError, asyncio.LimitOverrunError):  # a timeout is an OSError
            silent = NoWorker("the process for batches does not answer now", retry_after_s=RETRY_AFTER_S)
            answer = errors.response(silent)
        respond(answer)

    def _read_address(self) -> ServiceAddress:
        return msgspec.json.decode(self._path.read_bytes(), type=ServiceAddress)


def _request(exchange: Exchange, client: str, secret: str) -> bytes:
    target = exchange.path.encode() + (b"?" + exchange.query if exchange.query else b"")
    headers = [(name, exchange.headers[name]) for name in PASSED_ON if name in exchange.headers]
    headers += [(b"host", b"localhost"), (b"connection", b"close"), (b"content-length", b"%d" % len(exchange.body))]
    headers += [(SECRET, secret.encode()), (CLIENT, client.encode())]
    head = b"".join(b"%b: %b\r\n" % header for header in headers)
    return b"%b %b HTTP/1.1\r\n%b\r\n%b" % (exchange.method.encode(), target, head, exchange.body)


async def _ask(port: int, request: bytes) -> Response:
    """Raises OSError, EOFError or ValueError."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=MAX_HEAD_BYTES)
    try:
        writer.write(request)
        status_line, *lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        body = await reader.readexactly(int(headers[b"content-length"]))
    finally:
        writer.close()
    return int(status_line.split()[1]), ((b"content-type", headers[b"content-type"]),), body
