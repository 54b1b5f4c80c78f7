"""Messages as bytes: what one ZeroMQ message on a link holds, and the name of its socket.

Owns the encoding, one decoder per kind of receiver. Holds no socket, no clock and no state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Generic, TypeVar

import msgspec

from workers.message import Message
from workers.protocol import ToController, ToProxy, ToWorker

T = TypeVar("T")


class Batch(msgspec.Struct, Generic[T], frozen=True, array_like=True):
    """All messages that were ready in one loop turn.

    `seq` numbers the batches of one direction of one session; `ack` is the bytes received so far.
    """

    seq: int
    ack: int
    messages: list[T]


_encode = msgspec.msgpack.Encoder().encode
_to_proxy: msgspec.msgpack.Decoder[Batch[ToProxy]] = msgspec.msgpack.Decoder(Batch[ToProxy])
_to_worker: msgspec.msgpack.Decoder[Batch[ToWorker]] = msgspec.msgpack.Decoder(Batch[ToWorker])
_to_controller: msgspec.msgpack.Decoder[Batch[ToController]] = msgspec.msgpack.Decoder(Batch[ToController])

DecodeError = msgspec.DecodeError


def encode_batch(seq: int, ack: int, messages: Sequence[Message]) -> bytes:
    return _encode((seq, ack, messages))


def decode_to_proxy(data: bytes | memoryview) -> Batch[ToProxy]:
    """Raises DecodeError naming the path of what is wrong."""
    return _to_proxy.decode(data)


def decode_to_worker(data: bytes | memoryview) -> Batch[ToWorker]:
    """Raises DecodeError naming the path of what is wrong."""
    return _to_worker.decode(data)


def decode_to_controller(data: bytes | memoryview) -> Batch[ToController]:
    """Raises DecodeError naming the path of what is wrong."""
    return _to_controller.decode(data)


def identity(worker: str, generation: int, session: str) -> bytes:
    """The socket identity of one session; never used twice."""
    return f"{worker}/{generation}/{session}".encode()
