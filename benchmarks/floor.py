"""The floor under any server of token streams: `python -m benchmarks.floor`, one `write` per token and stream.

It speaks just enough HTTP for the load: no routes, no keys, no proxying, and each stream's chunk is framed
once, so that what is left per token is the event loop's `write` and the system call behind it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import cast

import msgspec
import uvloop

from benchmarks.arguments import Duration, read_arguments
from workers.engines.sim_api import DONE, Chunks, Generation
from workers.engines.sim_instant import TEXT

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


class Options(msgspec.Struct, frozen=True, kw_only=True):
    step_ms: Duration = 20.0


class Body(msgspec.Struct):
    model: str
    max_tokens: int


class Stream:
    __slots__ = ("body", "head", "last", "left", "transport")

    def __init__(self, transport: asyncio.Transport, body: Body, number: int) -> None:
        chunks = Chunks(
            Generation(
                id=f"cmpl-{number:06x}",
                chat=False,
                model=body.model,
                created=int(time.time()),
                prompts=[""],
                max_tokens=body.max_tokens,
                n=1,
                seed=None,
                stop=(),
                stream=True,
                include_usage=False,
            )
        )
        self.transport = transport
        self.left = body.max_tokens
        self.head = HEAD
        self.body = _framed(chunks.text(0, TEXT))
        self.last = _framed(chunks.text(0, TEXT, "length") + DONE) + b"0\r\n\r\n"


def _framed(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


class Floor:
    """All streams, and the one timer that moves them."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self.streams: dict[int, Stream] = {}
        self._num_requests = 0

    def open(self, transport: asyncio.Transport, body: Body) -> None:
        self._num_requests += 1
        self.streams[self._num_requests] = Stream(transport, body, self._num_requests)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due = max(due + self._step_s, loop.time())
            await asyncio.sleep(due - loop.time())
            for number, stream in list(self.streams.items()):
                self._step(number, stream)

    def _step(self, number: int, stream: Stream) -> None:
        stream.left -= 1
        data = stream.body if stream.left else stream.last
        if stream.head:
            data, stream.head = stream.head + data, b""
        stream.transport.write(data)
        if not stream.left or stream.transport.is_closing():
            del self.streams[number]


class Connection(asyncio.Protocol):
    def __init__(self, floor: Floor) -> None:
        self._floor = floor
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]) if found else 0
        if found and len(body) >= length:
            self._data = body[length:]
            self._floor.open(self._transport, msgspec.json.decode(body[:length], type=Body))


async def main(options: Options) -> None:
    """Says its port on standard output."""
    floor = Floor(options.step_ms / 1000)
    server = await asyncio.get_running_loop().create_server(lambda: Connection(floor), "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await floor.run()


if __name__ == "__main__":
    uvloop.run(main(read_arguments(Options, sys.argv[1:])))
