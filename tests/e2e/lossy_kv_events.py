"""A plugin of vLLM's that loses KV events between the engine and its listener, as a socket that is full does.

The engine itself keeps them, and answers whoever asks for them again.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from vllm.distributed.kv_events import EventPublisherFactory, ZmqEventPublisher


class LossySocket:
    """While the file that a variable names is there, batches are lost, and their numbers written to it."""

    def __init__(self, socket: Any) -> None:
        self._socket = socket
        self._lost = Path(os.environ["LOST_KV_EVENTS"])

    def send_multipart(self, frames: tuple[bytes, bytes, bytes]) -> None:
        try:
            with self._lost.open("r+") as file:
                file.seek(0, os.SEEK_END)
                print(int.from_bytes(frames[1]), file=file)
        except FileNotFoundError:
            self._socket.send_multipart(frames)

    def close(self, linger: int) -> None:
        self._socket.close(linger)


class LossyPublisher(ZmqEventPublisher):
    def _socket_setup(self) -> None:
        super()._socket_setup()
        self._pub = LossySocket(self._pub)


def register() -> None:
    EventPublisherFactory._registry["zmq"] = LossyPublisher
