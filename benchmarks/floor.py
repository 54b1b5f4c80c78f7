"""The floor under any server of token streams: `python -m benchmarks.floor`, one `write` per token and stream.

Also the engine behind relays that speak HTTP: it says that it is healthy, takes prompts in one call as a prefill
worker, and hands KV over in name only. It speaks just enough HTTP for that: no keys, no proxying, and each
stream's chunk is framed once, so that what is left per token is the event loop's `write` and the system call
behind it.
"""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any, Literal, Protocol, cast

import msgspec
import uvloop

from benchmarks.arguments import Duration, read_arguments
from workers.engines.sim.api import DONE, Chunks, Generation, full_answer, usage
from workers.engines.sim.instant import TEXT

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


MODEL = "sim"
HANDED_OVER = (
    b'"kv_transfer_params":{"do_remote_prefill":true,"do_remote_decode":false,"remote_engine_id":"floor",'
    b'"remote_block_ids":[[1,2,3]],"remote_host":"127.0.0.1","remote_port":1,"tp_size":1}'
)


class Options(msgspec.Struct, frozen=True, kw_only=True):
    step_ms: Duration = 20.0
    role: Literal["any", "prefill"] = "any"  # a prefill worker generates one token, whatever is asked for


class Body(msgspec.Struct):
    model: str
    prompt: str
    max_tokens: int
    stream: bool = False
    kv_transfer_params: dict[str, Any] | None = None


class Sink(Protocol):
    """Where a stream goes: a transport, or nobody."""

    def write(self, data: bytes) -> None: ...

    def is_closing(self) -> bool: ...


def generation(body: Body, number: int) -> Generation:
    return Generation(
        id=f"cmpl-{number:06x}",
        chat=False,
        model=body.model,
        created=int(time.time()),
        prompts=[body.prompt],
        max_tokens=body.max_tokens,
        n=1,
        seed=None,
        stop=(),
        stream=body.stream,
        include_usage=False,
    )


class Stream:
    __slots__ = ("body", "head", "last", "left", "transport")

    def __init__(self, transport: Sink, body: Body, number: int) -> None:
        chunks = Chunks(generation(body, number))
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
        self._begun = asyncio.Event()
        self._num_requests = 0

    def open(self, transport: Sink, body: Body) -> None:
        self._num_requests += 1
        self.streams[self._num_requests] = Stream(transport, body, self._num_requests)
        self._begun.set()

    async def run(self) -> None:
        """It stands still while there is nothing to do, and keeps the beat: so does the engine behind Sluice."""
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            if not self.streams:
                self._begun.clear()
                await self._begun.wait()
                due += (loop.time() - due) // self._step_s * self._step_s
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


def answer(body: Body, number: int) -> bytes:
    """All of it at once, as a prefill leg is answered."""
    whole = full_answer(generation(body, number), [(TEXT, "length", None)], usage(1, 1))
    if (body.kv_transfer_params or {}).get("do_remote_decode"):
        whole = whole.replace(b'"kv_transfer_params":null', HANDED_OVER)
    return _whole(whole)


def _whole(data: bytes) -> bytes:
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(data) + data


MODELS = _whole(
    b'{"object":"list","data":[{"id":"%s","object":"model","created":0,"owned_by":"floor"}]}' % MODEL.encode()
)
HEALTHY = _whole(b'{"status":"ok"}')


class Connection(asyncio.Protocol):
    def __init__(self, floor: Floor, *, prefill: bool) -> None:
        self._floor = floor
        self._prefill = prefill
        self._data = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        self._data += data
        head, found, body = self._data.partition(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0] or 0) if found else 0
        if found and len(body) >= length:
            self._data = body[length:]
            self._answer(head.partition(b" HTTP/1.1\r\n")[0], body[:length])

    def _answer(self, asked: bytes, data: bytes) -> None:
        if asked != b"POST /v1/completions":
            if asked.startswith(b"GET "):
                self._transport.write(MODELS if asked == b"GET /v1/models" else HEALTHY)
            else:
                self._transport.close()  # another protocol: relays try which ones an engine speaks
            return
        body = msgspec.json.decode(data, type=Body)
        if self._prefill:
            body.max_tokens = 1
        if body.stream:
            self._floor.open(self._transport, body)
        else:
            self._transport.write(answer(body, 0))


async def main(options: Options) -> None:
    """Says its port on standard output."""
    floor = Floor(options.step_ms / 1000)
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(floor, prefill=options.role == "prefill"), "127.0.0.1", 0
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await floor.run()


if __name__ == "__main__":
    uvloop.run(main(read_arguments(Options, sys.argv[1:])))
