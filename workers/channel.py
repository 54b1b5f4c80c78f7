"""The channel between an agent and its engine process: one socket pair, on the child's standard input.

Lines of JSON, both ways. Its end is the news that the other process is gone, which needs no heartbeat
and cannot be missed. Owns the wording of these few messages, nothing else.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator

import msgspec


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Engine -> agent: the model is loaded, links are being opened."""

    detail: str


class Broken(msgspec.Struct, frozen=True, tag="broken"):
    """Engine -> agent: the process is about to end, and why."""

    reason: str


class Finish(msgspec.Struct, frozen=True, tag="finish"):
    """Agent -> engine: nothing new will come; say Idle when nothing is left."""

    timeout_s: float


class Idle(msgspec.Struct, frozen=True, tag="idle"):
    """Engine -> agent: nothing runs, and no ticket waits to be read."""


ChannelMessage = Ready | Broken | Finish | Idle

_decoder: msgspec.json.Decoder[ChannelMessage] = msgspec.json.Decoder(ChannelMessage)


class Channel:
    """One end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, end: socket.socket) -> Channel:
        return cls(*await asyncio.open_connection(sock=end))

    def say(self, message: ChannelMessage) -> None:
        """To a peer that has gone this is no error: its end is news of its own."""
        if not self._writer.is_closing():
            self._writer.write(msgspec.json.encode(message) + b"\n")

    async def messages(self) -> AsyncIterator[ChannelMessage]:
        """Ends when the other process does."""
        while True:
            try:
                line = await self._reader.readline()
            except ConnectionResetError:
                return
            if not line.endswith(b"\n"):
                return
            yield _decoder.decode(line)

    def close(self) -> None:
        self._writer.close()
