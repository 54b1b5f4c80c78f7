"""The local port of `action=connect`: where connections go, how they end, and what they may hold."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from launcher.connect import relay
from launcher.connect.hop import tunnel_command
from launcher.connect.relay import BUFFER_BYTES, LOCALHOST, Address, Relay

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


@asynccontextmanager
async def server(handler: Serve) -> AsyncIterator[Address]:
    listening = await asyncio.start_server(handler, LOCALHOST, 0)
    try:
        yield listening.sockets[0].getsockname()[:2]
    finally:
        listening.close()


def named(name: bytes) -> Serve:
    """Says who it is, then says everything back."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(name)
        while data := await reader.read(1 << 10):
            writer.write(data)
        writer.close()

    return handle


class Local:
    """A relay at work."""

    def __init__(self, target: Address | None) -> None:
        self.target = target
        self.reached: list[bool] = []
        self.relay = Relay(lambda: self.target, self.reached.append)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Local]:
        listening = await self.relay.serve(0)
        self.port = listening.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            listening.close()

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(LOCALHOST, self.port)


def test_new_connections_follow_the_endpoint_and_open_ones_stay() -> None:
    async def scenario() -> None:
        async with server(named(b"old")) as old, server(named(b"new")) as new, Local(old).listening() as local:
            first, into_first = await local.connect()
            assert await first.readexactly(3) == b"old"
            local.target = new
            second, into_second = await local.connect()
            assert await second.readexactly(3) == b"new"
            into_first.write(b"still here")
            assert await first.readexactly(10) == b"still here"
            assert (local.relay.num_open(old), local.relay.num_open(new)) == (1, 1)
            for reader, writer in ((first, into_first), (second, into_second)):
                writer.write_eof()
                assert await reader.read() == b"", "the end of one side is told to the other, and comes back"
                writer.close()
            await asyncio.sleep(0.05)
            assert (local.relay.num_open(old), local.relay.num_open(new)) == (0, 0)

    asyncio.run(scenario())


def test_a_client_waits_while_the_endpoint_is_started_again() -> None:
    async def scenario() -> None:
        async with server(named(b"gone")) as gone:
            pass
        async with Local(gone).listening() as local, server(named(b"back")) as back:
            reader, writer = await local.connect()
            while False not in local.reached:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            local.target = back
            assert await reader.readexactly(4) == b"back"
            assert local.reached[-1] and not any(local.reached[:-1])
            writer.close()

    asyncio.run(scenario())


def test_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(relay, "PATIENCE_S", 0.3)

    async def scenario() -> None:
        async with Local(None).listening() as local:
            reader, writer = await local.connect()
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()

    asyncio.run(scenario())


def test_an_answer_that_breaks_off_does_not_look_like_one_that_ended() -> None:
    async def breaks_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"half")
        await writer.drain()
        await reader.read(1)
        relay.reset(writer.transport)

    async def scenario() -> None:
        async with server(breaks_off) as target, Local(target).listening() as local:
            reader, writer = await local.connect()
            assert await reader.readexactly(4) == b"half"
            writer.write(b"!")
            with pytest.raises(ConnectionResetError):
                await reader.read()
            writer.close()

    asyncio.run(scenario())


def test_who_reads_slowly_makes_the_other_side_wait() -> None:
    sent = 0

    async def floods(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while True:
            writer.write(bytes(BUFFER_BYTES))
            await writer.drain()
            sent += BUFFER_BYTES

    async def scenario() -> None:
        async with server(floods) as target, Local(target).listening() as local:
            reader, writer = await local.connect()
            await reader.readexactly(1)
            before = -1
            while before != sent:
                before = sent
                await asyncio.sleep(0.2)
            assert sent < 64 << 20, "it stands still, with what the kernel's buffers took"
            writer.close()

    asyncio.run(scenario())


def test_the_command_for_people_is_one_that_ssh_understands() -> None:
    assert tunnel_command("login", 8000, ("10.0.0.5", 39381)) == ["ssh", "-N", "-L", "8000:10.0.0.5:39381", "login"]
    assert tunnel_command("login", 8000, ("fe80::1", 80))[3] == "8000:[fe80::1]:80"
