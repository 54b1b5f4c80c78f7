"""A plugin of vLLM's that loses KV events between the engine and its listener, as a socket that is full does.

Of what is `lost` the engine answers whoever asks for it again. What is `gone` has left its memory too, but for the last
batch: as if its memory were that small.
"""

from __future__ import annotations

import os
import time
from collections import deque
from pathlib import Path
from typing import Any

from vllm.distributed.kv_events import EventPublisherFactory, ZmqEventPublisher


class LossySocket:
    """Batches are lost while the file is there that a variable names. Their times (unix) are written to it."""

    def __init__(self, socket: Any, memory: deque[tuple[int, bytes]]) -> None:
        self._socket = socket
        self._memory = memory

    def send_multipart(self, frames: tuple[bytes, bytes, bytes]) -> None:
        if _noted("GONE_KV_EVENTS"):
            self._memory.clear()  # this batch is put into it once it is sent
        elif not _noted("LOST_KV_EVENTS"):
            self._socket.send_multipart(frames)

    def close(self, linger: int) -> None:
        self._socket.close(linger)


def _noted(variable: str) -> bool:
    try:
        with Path(os.environ[variable]).open("r+") as file:
            file.seek(0, os.SEEK_END)
            print(time.time(), file=file)
    except FileNotFoundError:
        return False
    return True


class LossyPublisher(ZmqEventPublisher):
    def _socket_setup(self) -> None:
        super()._socket_setup()
        self._pub = LossySocket(self._pub, self._buffer)


def register() -> None:
    EventPublisherFactory._registry["zmq"] = LossyPublisher
