"""The accepting end of all links: one ROUTER socket, a session per peer.

Owns the socket, the peers' sessions and outboxes, and the beat. A peer is known from its first
message (Register or ControllerHello) until it is lost; whoever speaks without is told to register.
Decides nothing about workers: `on_message` and `on_lost` go to the one who does.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import Any, Protocol

import zmq

from proxy.zap import Zap
from workers.controller_messages import ControllerHello
from workers.links.session import LinkLost, Session
from workers.links.wire import DecodeError, decode_to_proxy, encode_batch
from workers.links.zmq_loop import Beats, CurveKeys, LoopSocket, new_socket
from workers.message import Message
from workers.protocol import (
    BEAT_INTERVAL_S,
    HOST_SILENCE_S,
    WINDOW_BYTES,
    Beat,
    Chunk,
    Goodbye,
    Refused,
    Register,
    TicketClosed,
)

log = logging.getLogger("sluice.link")

LINGER_MS = 500
# What a key proves of its owner, by the allow-list.
WORKER = "worker"
CONTROLLER = "controller"
CONTROLLER_SILENCE_S = 10.0


@dataclass(slots=True)
class PeerState:
    session: Session
    who: str
    incarnation: str = ""  # of the worker, whose agent and host have a link each
    outbox: list[Message] = field(default_factory=list)
    flush_scheduled: bool = False
    stalled: bool = False  # there was no credit for what is in the outbox


class Listener(Protocol):
    """What the link layer reports to. None of these may raise."""

    def on_hello(self, peer: bytes, who: str, hello: Register | ControllerHello) -> None: ...
    def on_chunk(self, chunk: Chunk, now: float) -> None: ...
    def on_message(self, peer: bytes, message: Any) -> None: ...
    def on_lost(self, peer: bytes, reason: str, *, as_asked: bool) -> None: ...


class Links:
    """All links of one proxy."""

    def __init__(
        self,
        context: zmq.Context[Any],
        address: str,
        port: int,
        *,
        keys: CurveKeys,
        zap: Zap,
        node_silence_s: float,
        listener: Listener,
    ) -> None:
        """Binds to `port`, or to any free one where it is taken. Raises zmq.ZMQError."""
        self._node_silence_s = node_silence_s
        self._listener = listener
        self._on_chunk = listener.on_chunk
        self._peers: dict[bytes, PeerState] = {}
        self._loop = asyncio.get_running_loop()
        socket = new_socket(context, zmq.ROUTER, LINGER_MS)
        socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        zap.protect(socket, keys.public.encode(), keys.secret.encode())
        self.port = _bind(socket, address, port)
        self._socket = LoopSocket(socket, self._receive)
        self._beats = Beats(BEAT_INTERVAL_S, self._beat)

    def send(self, peer: bytes, message: Message) -> None:
        """Queue for this loop turn's batch. To a peer that is gone: its loss is reported already.

        A closed ticket may wait until another message leaves, at the latest a beat: by itself it costs both ends.
        """
        state = self._peers.get(peer)
        if state is None:
            return
        state.outbox.append(message)
        if not state.flush_scheduled and type(message) is not TicketClosed:
            state.flush_scheduled = True
            self._loop.call_soon(self._flush, peer, state)

    def refuse(self, peer: bytes, reason: str, *, final: bool) -> None:
        """End a session from our side; `on_lost` is not called."""
        log.warning("refusing %s: %s", peer.decode(errors="replace"), reason)
        state = self._peers.pop(peer, None)
        if state is None:
            self._tell_stranger(peer, reason, final)
            return
        state.outbox.append(Refused(reason, final))
        self._flush(peer, state)

    def close(self, reason: str) -> None:
        self._beats.stop()
        for peer, state in list(self._peers.items()):
            state.outbox.append(Goodbye(reason))
            self._flush(peer, state)
        self._peers.clear()
        self._socket.close()

    # ------------------------------------------------------------ receiving

    def _receive(self, frames: list[zmq.Frame]) -> None:
        if len(frames) != 2:
            return  # a peer that passed CURVE but speaks no protocol of ours has no session to lose
        peer, frame = frames[0].bytes, frames[1]
        state = self._peers.get(peer)
        try:
            batch = decode_to_proxy(frame.buffer)
        except DecodeError as fault:
            self._unreadable(peer, str(fault))
            return
        if state is None:
            state = self._greet(peer, frame, batch.messages)
            if state is None:
                return
        try:
            state.session.accept(batch.seq, batch.ack, len(frame), time.monotonic())
        except LinkLost as lost:
            self._lose(peer, str(lost), tell=True)
            return
        now = self._loop.time()
        for message in batch.messages:
            if type(message) is Chunk:  # nearly all are: nothing is in the way of these
                self._on_chunk(message, now)
                continue
            self._hand_on(peer, state, message)
            if self._peers.get(peer) is not state:
                return  # refused, or gone: the rest of its batch is void
        if state.stalled or state.session.owes_ack():
            self.send(peer, Beat())

    def _hand_on(self, peer: bytes, state: PeerState, message: Any) -> None:
        if type(message) is Beat:
            return
        if type(message) is Goodbye:
            self._lose(peer, message.reason, tell=False, as_asked=message.as_asked)
        elif type(message) is Register or type(message) is ControllerHello:
            self._listener.on_hello(peer, state.who, message)
        else:
            self._listener.on_message(peer, message)

    def _greet(self, peer: bytes, frame: zmq.Frame, messages: list[Any]) -> PeerState | None:
        """The first batch of a session starts with its hello, from someone whose key allows it."""
        hello = messages[0] if messages else None
        who = str(frame.get("User-Id"))
        needed = CONTROLLER if isinstance(hello, ControllerHello) else WORKER
        if not isinstance(hello, Register | ControllerHello):
            self._tell_stranger(peer, "unknown session: register with a new one", final=False)
            return None
        if who != needed:
            self._tell_stranger(peer, f"the {who} key does not open a {needed} session", final=True)
            return None
        incarnation = "" if isinstance(hello, ControllerHello) else hello.incarnation
        silence_s = CONTROLLER_SILENCE_S if isinstance(hello, ControllerHello) else HOST_SILENCE_S
        state = PeerState(Session(WINDOW_BYTES, silence_s, time.monotonic()), who, incarnation)
        self._peers[peer] = state
        return state

    def _unreadable(self, peer: bytes, fault: str) -> None:
        reason = f"unreadable message: {fault}"
        if peer in self._peers:
            self._lose(peer, reason, tell=True)
        else:
            self._tell_stranger(peer, reason, final=True)

    # ------------------------------------------------------------ sending

    def _flush(self, peer: bytes, state: PeerState) -> None:
        state.flush_scheduled = False
        state.stalled = not state.session.may_send()
        if not state.outbox or state.stalled:
            return
        seq, ack = state.session.seal()
        data = encode_batch(seq, ack, state.outbox)
        state.session.count(len(data))
        state.outbox.clear()
        try:
            self._socket.send([peer, data])
        except zmq.ZMQError as fault:
            if fault.errno != zmq.EHOSTUNREACH:
                raise
            if self._peers.get(peer) is state:
                self._lose(peer, "its connection is gone", tell=False)

    def _tell_stranger(self, peer: bytes, reason: str, final: bool) -> None:
        try:
            self._socket.send([peer, encode_batch(0, 0, [Refused(reason, final)])])
        except zmq.ZMQError as fault:
            if fault.errno != zmq.EHOSTUNREACH:
                raise

    def _beat(self, lag_s: float) -> None:
        """Also how a vanished connection is noticed: a ROUTER refuses to send to it."""
        now = time.monotonic()
        for state in self._peers.values():
            state.session.forgive(lag_s)
        gone = self._vanished(now)
        for peer, state in list(self._peers.items()):
            if state.session.silent(now):
                self._lose(peer, f"no word for {state.session.silence_s:g} s", tell=True)
            elif state.incarnation in gone:
                self._lose(peer, f"no word from its node for {self._node_silence_s:g} s", tell=True)
            else:
                self.send(peer, Beat())

    def _vanished(self, now: float) -> set[str]:
        """Workers whose agent and host are both linked and both silent."""
        heard: dict[str, list[float]] = {}
        for state in self._peers.values():
            if state.incarnation:
                heard.setdefault(state.incarnation, []).append(state.session.heard_at)
        return {worker for worker, at in heard.items() if len(at) > 1 and now - max(at) > self._node_silence_s}

    def _lose(self, peer: bytes, reason: str, *, tell: bool, as_asked: bool = False) -> None:
        state = self._peers.get(peer)
        if state is None:
            return
        if tell:
            self.refuse(peer, reason, final=False)
        else:
            del self._peers[peer]
        self._listener.on_lost(peer, reason, as_asked=as_asked)


def _bind(socket: zmq.Socket[Any], address: str, port: int) -> int:
    try:
        socket.bind(f"tcp://{address}:{port}" if port else f"tcp://{address}:*")
    except zmq.ZMQError:
        if not port:
            raise
        socket.bind(f"tcp://{address}:*")
    endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
    assert isinstance(endpoint, bytes)
    return int(endpoint.decode().rstrip("\0").rsplit(":", 1)[1])
