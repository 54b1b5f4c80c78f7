"""How blocks move between simulated engines: over a TCP connection, as small as their contents are.

Owns the holder's listening port and the exchange: one line of JSON each way, which reads blocks and frees
their ticket; a release reads none, a heartbeat keeps the ticket. The holder answers with what the blocks
contain, or something else where the ticket is over, as a remote read of device memory would. Bound to the
worker's interface and, like NIXL, open to whoever reaches it. Decides nothing about leases.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import cast

import msgspec

LINE_LIMIT = 16 << 20
CONNECT_RETRY_S = 0.1


class HandOver(msgspec.Struct, frozen=True):
    """A ticket's params: where the KV of a prompt lies."""

    engine_id: str
    address: str
    port: int
    ticket: int
    blocks: list[int]
    num_tokens: int


class Ask(msgspec.Struct, frozen=True):
    """`keep`: the reader still waits for its turn."""

    engine_id: str
    ticket: int
    blocks: list[int]
    keep: bool = False


class Answer(msgspec.Struct, frozen=True):
    contents: list[int] = []
    error: str | None = None


class HolderGone(Exception):
    """The blocks cannot be read: their holder is dead or somebody else by now."""


class _Holder(asyncio.Protocol):
    """One connection of a reader."""

    def __init__(self, answer: Callable[[Ask], Answer], transports: set[asyncio.Transport]) -> None:
        self._answer = answer
        self._transports = transports
        self._received = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not subclasses of it
        self._transports.add(self._transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._transports.discard(self._transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if len(self._received) > LINE_LIMIT:
            self._transport.abort()
        elif self._received.endswith(b"\n"):
            try:
                answer = self._answer(msgspec.json.decode(self._received, type=Ask))
            except msgspec.DecodeError as error:
                answer = Answer(error=f"not a request for blocks: {error}")
            self._transport.write(msgspec.json.encode(answer) + b"\n")
            self._transport.close()


@asynccontextmanager
async def listen(address: str, answer: Callable[[Ask], Answer]) -> AsyncIterator[int]:
    """Serve readers until the context ends. Yields the port."""
    transports: set[asyncio.Transport] = set()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: _Holder(answer, transports), address, 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for transport in list(transports):
            transport.abort()
        await server.wait_closed()


async def read(source: HandOver, blocks: list[int], timeout_s: float) -> list[int]:
    """The contents of `blocks`, whose ticket is free after it. Raises HolderGone.

    A holder that cannot be reached may be slow to answer: it is given up at the timeout, as with NIXL.
    """
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                try:
                    reader, writer = await asyncio.open_connection(source.address, source.port, limit=LINE_LIMIT)
                    break
                except OSError:
                    await asyncio.sleep(CONNECT_RETRY_S)
            answer = await _exchange(reader, writer, Ask(source.engine_id, source.ticket, blocks))
    except TimeoutError:
        where = f"{source.address}:{source.port}"
        raise HolderGone(f"the holder of the KV at {where} did not answer in {timeout_s:g} s") from None
    if answer.error is not None:
        raise HolderGone(answer.error)
    return answer.contents


async def release(source: HandOver, timeout_s: float) -> None:
    """Free the ticket at its holder. One that cannot be reached is dead and holds nothing, or its lease ends."""
    await _tell(source, Ask(source.engine_id, source.ticket, []), timeout_s)


async def keep(source: HandOver, timeout_s: float) -> None:
    """One heartbeat."""
    await _tell(source, Ask(source.engine_id, source.ticket, [], keep=True), timeout_s)


async def keep_alive(unread: Mapping[int, HandOver], lease_s: float, timeout_s: float) -> None:
    """As vLLM's decode engine does for all that its scheduler holds: a heartbeat every sixth of a lease, for ever."""
    while lease_s:  # without one there is nothing to prolong
        await asyncio.sleep(lease_s / 6)
        await asyncio.gather(*(keep(source, timeout_s) for source in unread.values()))


async def _tell(source: HandOver, ask: Ask, timeout_s: float) -> None:
    with contextlib.suppress(OSError, HolderGone):  # TimeoutError is an OSError
        async with asyncio.timeout(timeout_s):
            reader, writer = await asyncio.open_connection(source.address, source.port, limit=LINE_LIMIT)
            await _exchange(reader, writer, ask)


async def _exchange(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, ask: Ask) -> Answer:
    try:
        writer.write(msgspec.json.encode(ask) + b"\n")
        line = await reader.readline()
        return msgspec.json.decode(line, type=Answer)
    except (OSError, ValueError) as error:  # a broken connection, or an answer cut short
        raise HolderGone(f"the holder of the KV left during the read: {error}") from error
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
