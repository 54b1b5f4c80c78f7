"""A ZeroMQ socket on the running event loop, without a task or a future per message.

Owns the edge-triggered file descriptor dance and the CURVE options. Knows no message format.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import zmq

from workers.beat import next_mark

# Messages taken in before other work of the loop gets its turn.
READ_BUDGET = 64
# As plain integers: the flags of pyzmq's enumerations are combined in Python code, once per message.
_EVENTS, _POLLIN, _RECEIVE, _SEND_LAST = int(zmq.EVENTS), int(zmq.POLLIN), int(zmq.NOBLOCK), int(zmq.NOBLOCK)
_SEND_MORE = int(zmq.NOBLOCK | zmq.SNDMORE)


@dataclass(frozen=True, slots=True)
class CurveKeys:
    """A CURVE key pair in ZeroMQ's printable form."""

    public: str
    secret: str


def read_keys(run_dir: str, name: str) -> CurveKeys:
    """Raises FileNotFoundError where the run folder is not what the launcher made."""
    return msgspec.json.decode(Path(run_dir, "keys", f"{name}.json").read_bytes(), type=CurveKeys)


class Beats:
    """Calls `beat(lag_s)` at an interval; the lag is how much later than planned this process got to run."""

    def __init__(self, interval_s: float, beat: Callable[[float], None]) -> None:
        self._interval_s = interval_s
        self._beat = beat
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time()
        self._plan()

    def stop(self) -> None:
        self._timer.cancel()

    def _plan(self) -> None:
        self._due = next_mark(max(self._due, self._loop.time()), self._interval_s)
        self._timer = self._loop.call_at(self._due, self._run)

    def _run(self) -> None:
        lag_s = max(0.0, self._loop.time() - self._due)
        self._plan()
        self._beat(lag_s)


class LoopSocket:
    """Calls `on_message(frames)` for every message. High-water marks are off: sessions bound what is in flight."""

    def __init__(self, socket: zmq.Socket[Any], on_message: Callable[[list[zmq.Frame]], None]) -> None:
        self.socket = socket
        self._on_message = on_message
        self._loop = asyncio.get_running_loop()
        self._fd = int(socket.get(zmq.FD))
        self.closed = False
        self._loop.add_reader(self._fd, self._read)
        self._loop.call_soon(self._read)

    def send(self, frames: list[bytes]) -> None:
        """Raises zmq.ZMQError (EHOSTUNREACH) where a ROUTER has no such peer."""
        for frame in frames[:-1]:
            self.socket.send(frame, _SEND_MORE)
        self.socket.send(frames[-1], _SEND_LAST)
        # The descriptor is edge-triggered and sending may swallow the edge of an arrival.
        if self._readable():
            self._loop.call_soon(self._read)

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self._loop.remove_reader(self._fd)
        self.socket.close()

    def _read(self) -> None:
        for _ in range(READ_BUDGET):
            if self.closed or not self._readable():
                return
            frames = [self.socket.recv(_RECEIVE, copy=False)]
            while frames[-1].more:
                frames.append(self.socket.recv(_RECEIVE, copy=False))
            self._on_message(frames)
        self._loop.call_soon(self._read)

    def _readable(self) -> bool:
        """Asked before each read: an exception for nothing to read would cost ten times as much."""
        return bool(int(self.socket.get(_EVENTS)) & _POLLIN)


def new_socket(context: zmq.Context[Any], kind: int, linger_ms: int) -> zmq.Socket[Any]:
    """A socket that drops nothing by itself and gives up half-open handshakes."""
    socket: zmq.Socket[Any] = context.socket(kind)
    socket.setsockopt(zmq.SNDHWM, 0)
    socket.setsockopt(zmq.RCVHWM, 0)
    socket.setsockopt(zmq.LINGER, linger_ms)
    socket.setsockopt(zmq.HANDSHAKE_IVL, 5_000)
    return socket
