"""The replay of the simulated engine's KV events: bounded, and not upset by a wrong request."""

from __future__ import annotations

import asyncio
import logging
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import uvloop
import zmq

from workers.engines.sim import events as ev
from workers.engines.sim.kv_events import END_OF_REPLAY, REPLAY_BYTES, publisher

NUM_BATCHES = 500
PROMPT = list(range(1 << 24, (1 << 24) + 8192))  # 40 KB each


def ask(socket: zmq.Socket[bytes], *request: bytes) -> list[list[bytes]]:
    socket.send_multipart(request)
    answers = []
    while (frames := socket.recv_multipart())[2] != END_OF_REPLAY:
        answers.append(frames)
    return answers


def test_the_latest_batches_are_kept_up_to_a_limit(caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        context: zmq.Context[Any] = zmq.Context()
        with TemporaryDirectory(prefix="sluice-") as local_dir, publisher(local_dir, 16) as events:
            for number in range(NUM_BATCHES):
                events.publish([ev.Stored(list(range(512 * number, 512 * (number + 1))), 0, PROMPT)])
            socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
            socket.setsockopt(zmq.RCVTIMEO, 30_000)
            socket.connect(f"ipc://{local_dir}/kv-replay")
            socket.send_multipart([b"no delimiter"])
            kept = await asyncio.to_thread(ask, socket, b"", (0).to_bytes(8, "big"))
            later = await asyncio.to_thread(ask, socket, b"", (NUM_BATCHES - 2).to_bytes(8, "big"))
            context.destroy(linger=0)
        numbers = [int.from_bytes(frames[2], "big") for frames in kept]
        assert numbers == list(range(numbers[0], NUM_BATCHES))
        size = sum(len(frames[3]) for frames in kept)
        assert numbers[0] > 0 and REPLAY_BYTES * 0.99 < size <= REPLAY_BYTES
        assert later == kept[-2:]

    with caplog.at_level(logging.WARNING):
        uvloop.run(test())
    assert "2 frames instead of 3" in caplog.text
