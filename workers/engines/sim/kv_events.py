"""The simulated engine's KV events on ZeroMQ, as vLLM's `ZmqEventPublisher` sends them.

Owns the two sockets in the worker's node-local folder, the sequence number and what can be replayed. Each
batch is `[topic, sequence, payload]` on the PUB socket. `["", sequence]` to the ROUTER is answered with every
batch kept from there on, then one numbered -1. Events tell users' tokens: the sockets are files that nobody
else reaches.

The simulator never clears its whole cache, so there is no `AllBlocksCleared`. Instant mode holds no KV and
publishes nothing. No thread and no task: a PUB socket never makes its sender wait.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from typing import Any

import msgspec
import zmq

from workers.digest.kv_events import events_endpoint, replay_endpoint
from workers.engines.sim import events as ev
from workers.links.zmq_loop import LoopSocket, new_socket

log = logging.getLogger(__name__)

TOPIC = b""
END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)
# vLLM keeps 10,000 batches; simulated engines stand on one machine by the dozen, so theirs are bounded in bytes.
REPLAY_BYTES = 16 << 20
MAX_UNREAD_BATCHES = 10_000  # then a listener loses some and sees a gap: it asks for a replay


class BlockStored(msgspec.Struct, frozen=True, gc=False, tag=True):
    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None = None
    medium: str = "GPU"
    lora_name: str | None = None


class BlockRemoved(msgspec.Struct, frozen=True, gc=False, tag=True):
    block_hashes: list[int]
    medium: str = "GPU"


class Batch(msgspec.Struct, frozen=True, gc=False, array_like=True):
    ts: float
    events: list[BlockStored | BlockRemoved]
    data_parallel_rank: int = 0


class KvEventPublisher:
    def __init__(self, context: zmq.Context[Any], local_dir: str, block_size: int) -> None:
        """Raises zmq.ZMQError where the folder's path is too long for a socket."""
        self._block_size = block_size
        self._next = 0
        self._kept: deque[tuple[int, bytes]] = deque()
        self._kept_bytes = 0
        self._encoder = msgspec.msgpack.Encoder()
        self._pub = new_socket(context, zmq.PUB, linger_ms=0)
        self._pub.setsockopt(zmq.SNDHWM, MAX_UNREAD_BATCHES)
        self._pub.bind(events_endpoint(local_dir))
        router = new_socket(context, zmq.ROUTER, linger_ms=0)
        router.bind(replay_endpoint(local_dir))
        self._replay = LoopSocket(router, self._on_replay)

    def close(self) -> None:
        self._pub.close()
        self._replay.close()

    def publish(self, events: Sequence[ev.KvEvent]) -> None:
        """What one step of the scheduler has changed, in this order."""
        payload = self._encoder.encode(Batch(time.time(), [self._event(event) for event in events]))
        self._pub.send_multipart((TOPIC, _sequence(self._next), payload), zmq.NOBLOCK)
        self._keep(payload)

    def _event(self, event: ev.KvEvent) -> BlockStored | BlockRemoved:
        if isinstance(event, ev.Removed):
            return BlockRemoved(event.keys)
        return BlockStored(event.keys, event.parent or None, event.token_ids, self._block_size)

    def _keep(self, payload: bytes) -> None:
        self._kept.append((self._next, payload))
        self._next += 1
        self._kept_bytes += len(payload)
        while self._kept_bytes > REPLAY_BYTES:
            self._kept_bytes -= len(self._kept.popleft()[1])

    def _on_replay(self, frames: list[zmq.Frame]) -> None:
        if len(frames) != 3:
            log.warning("not a request for KV events: %d frames instead of 3", len(frames))
            return
        peer, first = frames[0].bytes, int.from_bytes(frames[2].bytes, "big")
        missing = list(takewhile(lambda kept: kept[0] >= first, reversed(self._kept)))
        for number, payload in reversed(missing):
            self._replay.send([peer, b"", TOPIC, _sequence(number), payload])
        self._replay.send([peer, b"", b"", END_OF_REPLAY, b""])


def _sequence(number: int) -> bytes:
    return number.to_bytes(8, "big")


@contextmanager
def publisher(local_dir: str, block_size: int) -> Iterator[KvEventPublisher]:
    """On the running event loop, until the context ends."""
    context: zmq.Context[Any] = zmq.Context()
    with ExitStack() as stack:
        stack.callback(context.destroy, linger=0)
        events = KvEventPublisher(context, local_dir, block_size)
        stack.callback(events.close)
        yield events
