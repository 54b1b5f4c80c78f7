"""The connecting end of a link: one DEALER socket, one session, to one proxy.

Owns the socket, the outbox and the beat. Everything sent in one loop turn travels in one ZeroMQ
message. Decides nothing about the messages themselves, and never reconnects: a lost link is reported
once and whoever holds it opens a new one with a new session.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import zmq

from workers.kv_messages import Computed, Digest
from workers.links.session import LinkLost, Session
from workers.links.wire import Batch, DecodeError, encode_batch
from workers.links.zmq_loop import Beats, CurveKeys, LoopSocket, new_socket
from workers.message import Message
from workers.protocol import BEAT_INTERVAL_S, WINDOW_BYTES, Beat, Chunk, End, Goodbye, Refused, Start

# Bytes of answers and digests that wait for credit; above this the senders wait, so memory stays bounded.
OUTBOX_BYTES = 4 << 20
_WITH_DATA = frozenset({Chunk, Start, End})
# What a first token consists of goes ahead of what continues other answers: it would wait until all these are written.
_Ahead = Computed | Start
LINGER_MS = 500  # a goodbye should still leave


class Link:
    """`on_message` gets what the peer says; `on_lost(reason, final)` is called once, after which all is over."""

    def __init__(
        self,
        context: zmq.Context[Any],
        endpoint: str,
        *,
        identity: bytes,
        server_public: str,
        keys: CurveKeys,
        hello: Message,
        decode: Callable[[memoryview], Batch[Any]],
        on_message: Callable[[Any], None],
        on_lost: Callable[[str, bool], None],
        silence_s: float,
    ) -> None:
        self._decode = decode
        self._on_message = on_message
        self._on_lost = on_lost
        self._loop = asyncio.get_running_loop()
        self._session = Session(WINDOW_BYTES, silence_s, time.monotonic())
        self._ahead: dict[int, _Ahead] = {}  # by request: of one turn, its start says all that is to be said
        self._outbox: list[Message] = []  # behind these
        self._chunks: dict[int, int] = {}  # by request: where its chunk is in the outbox
        self._outbox_bytes = 0  # of answers' bodies and digests
        self._flush_scheduled = False
        self._stalled = False  # there was no credit for what is in the outbox
        self._room = asyncio.Event()
        self._room.set()
        self.closed = False
        socket = new_socket(context, zmq.DEALER, LINGER_MS)
        socket.setsockopt(zmq.IDENTITY, identity)
        socket.curve_serverkey = server_public.encode()
        socket.curve_publickey = keys.public.encode()
        socket.curve_secretkey = keys.secret.encode()
        socket.connect(endpoint)
        self._socket = LoopSocket(socket, self._receive)
        self._beats = Beats(BEAT_INTERVAL_S, self._beat)
        self.send(hello)

    def send(self, message: Message) -> None:
        """Queue a message for this loop turn's batch; on a closed link it has nowhere to go."""
        if self.closed:
            return
        if type(message) is Start:
            self._ahead[message.rid] = message
        elif type(message) is Computed:
            self._ahead.setdefault(message.rid, message)
        else:
            self._outbox.append(message)
        if type(message) in _WITH_DATA:
            self._outbox_bytes += len(message.data)  # type: ignore[attr-defined]
        elif type(message) is Digest:
            self._outbox_bytes += len(message.added) + len(message.removed)
        if not self._flush_scheduled:
            self._schedule_flush()

    def send_along(self, message: Message) -> None:
        """Queue a message that may wait until another leaves, at the latest a beat: by itself it costs both ends."""
        if not self.closed:
            self._outbox.append(message)

    def send_data(self, rid: int, data: bytes, output_ids: bytes = b"") -> None:
        """Queue a part of an answer's body and its tokens; all that one loop turn brings travels as one chunk."""
        if self.closed:
            return
        self._outbox_bytes += len(data)
        place = self._chunks.get(rid)
        if place is None:
            self._chunks[rid] = len(self._outbox)
            self._outbox.append(Chunk(rid, data, output_ids))
        else:
            queued: Any = self._outbox[place]
            self._outbox[place] = Chunk(rid, queued.data + data, queued.output_ids + output_ids)
        if not self._flush_scheduled:
            self._schedule_flush()

    def take_data(self, rid: int) -> bytes:
        """What is queued of an answer's body and has not left: it is to travel in another message."""
        place = self._chunks.pop(rid, None)
        if place is None:
            return b""
        data: bytes = self._outbox[place].data  # type: ignore[attr-defined]
        self._outbox[place] = Chunk(rid, b"")
        return data

    @property
    def has_room(self) -> bool:
        return self._outbox_bytes <= OUTBOX_BYTES or self.closed

    def room(self) -> Awaitable[object] | None:
        """To be awaited until the peer has taken in enough, or the link is gone. None: there is room."""
        if self.has_room:
            return None
        self._room.clear()
        return self._room.wait()

    def close(self, reason: str, *, as_asked: bool = False) -> None:
        """Say goodbye and end; `on_lost` is not called."""
        if not self.closed:
            self._on_lost = lambda reason, final: None
            self.send(Goodbye(reason, as_asked))
            self._flush()
            self._end()

    def abandon(self) -> None:
        """End without a word: nothing is left that could say why."""
        if not self.closed:
            self._end()

    def lose(self, reason: str) -> None:
        """The peer is gone, as somebody else has noticed."""
        self._lose(reason, final=False)

    def _schedule_flush(self) -> None:
        self._flush_scheduled = True
        self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._flush_scheduled = False
        self._stalled = not self._session.may_send()
        if self.closed or not (self._outbox or self._ahead) or self._stalled:
            return
        seq, ack = self._session.seal()
        data = encode_batch(seq, ack, [*self._ahead.values(), *self._outbox] if self._ahead else self._outbox)
        self._session.count(len(data))
        self._ahead.clear()
        self._outbox.clear()
        self._chunks.clear()
        self._outbox_bytes = 0
        self._room.set()
        try:
            self._socket.send([data])
        except zmq.Again:  # there is nowhere to queue: the proxy does not take this connection
            self._lose("the proxy does not take this connection: is the key this run's?", final=False)

    def _receive(self, frames: list[zmq.Frame]) -> None:
        data = frames[-1].buffer
        try:
            batch = self._decode(data)
            self._session.accept(batch.seq, batch.ack, len(data), time.monotonic())
        except (DecodeError, LinkLost) as fault:
            self._lose(str(fault), final=False)
            return
        for message in batch.messages:
            if type(message) is Refused:
                self._lose(message.reason, message.final)
            elif type(message) is Goodbye:
                self._lose(f"the proxy left: {message.reason}", final=False)
            elif type(message) is not Beat:
                self._on_message(message)
            if self.closed:
                return
        if self._stalled or self._session.owes_ack():
            self.send(Beat())

    def _beat(self, lag_s: float) -> None:
        self._session.forgive(lag_s)
        if self._session.silent(time.monotonic()):
            self._lose(f"no word for {self._session.silence_s:.0f} s", final=False)
        self.send(Beat())

    def _lose(self, reason: str, final: bool) -> None:
        if not self.closed:
            self._end()
            self._on_lost(reason, final)

    def _end(self) -> None:
        self.closed = True
        self._room.set()
        self._beats.stop()
        self._socket.close()
