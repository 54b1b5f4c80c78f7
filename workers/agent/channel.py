"""The channel between a process and its child: one socket pair, on the child's standard input.

Messages in msgpack, each after its length, both ways. Its end is the news that the other process is gone,
which needs no heartbeat and cannot be missed. Owns that, and the few words between an agent and its engine
process.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from typing import Generic, TypeAlias, TypeVar

import msgspec


class Stage(msgspec.Struct, frozen=True, tag="stage"):
    """Engine -> agent: the next stage of its start begins."""

    name: str


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Engine -> agent: the model is loaded, links are being opened."""


class Broken(msgspec.Struct, frozen=True, tag="broken"):
    """Engine -> agent: the process is about to end, and why."""

    reason: str


class Alive(msgspec.Struct, frozen=True, tag="alive"):
    """Engine -> agent: the process runs. Said all the time once it is ready."""


class Finish(msgspec.Struct, frozen=True, tag="finish"):
    """Agent -> engine: nothing new will come; say Idle when nothing is left."""

    timeout_s: float


class Idle(msgspec.Struct, frozen=True, tag="idle"):
    """Engine -> agent: nothing runs, and no ticket waits to be read."""


ChannelMessage = Stage | Ready | Broken | Alive | Finish | Idle
EngineChannel: TypeAlias = "Channel[ChannelMessage, ChannelMessage]"
ENGINE_WORDS: msgspec.msgpack.Decoder[ChannelMessage] = msgspec.msgpack.Decoder(ChannelMessage)

LENGTH_BYTES = 4
Said = TypeVar("Said")
Heard = TypeVar("Heard")


class Channel(Generic[Said, Heard]):
    """One end."""

    def __init__(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, decoder: msgspec.msgpack.Decoder[Heard]
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._decoder = decoder

    @classmethod
    async def over(cls, end: socket.socket, decoder: msgspec.msgpack.Decoder[Heard]) -> Channel[Said, Heard]:
        return cls(*await asyncio.open_connection(sock=end), decoder)

    def say(self, message: Said) -> None:
        """To a peer that has gone this is no error: its end is news of its own."""
        if not self._writer.is_closing():
            data = msgspec.msgpack.encode(message)
            self._writer.write(len(data).to_bytes(LENGTH_BYTES) + data)

    async def messages(self) -> AsyncIterator[Heard]:
        """Ends when the other process does."""
        while True:
            try:
                length = int.from_bytes(await self._reader.readexactly(LENGTH_BYTES))
                data = await self._reader.readexactly(length)
            except (ConnectionError, asyncio.IncompleteReadError):
                return
            yield self._decoder.decode(data)

    def close(self) -> None:
        self._writer.close()
