"""A digest's whole way in one process: an engine's sockets, a way that loses batches, the host's shell, an index."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from tempfile import TemporaryDirectory
from typing import Any, cast

import zmq

from proxy.prefixes.digests import Digests, Met, Told
from proxy.prefixes.prefix_index import PrefixIndex, Target
from workers.digest.chains import Hasher
from workers.digest.digest import HeldBlocks
from workers.digest.digest_publisher import END_OF_REPLAY, DigestPublisher
from workers.digest.kv_events import decode, events_endpoint, replay_endpoint
from workers.digest.kv_feed import Take
from workers.kv_messages import Digest
from workers.links.link import Link
from workers.links.zmq_loop import LoopSocket, new_socket

HASHER = Hasher(b"secret")
TARGET: Target = (("decode-0", 0), 0)
PATIENCE_S = 30.0


class LossyWay:
    """Between an engine's folder and another: what is published arrives unless `drop` says so of its number."""

    def __init__(self, context: zmq.Context[Any], engine_dir: str, local_dir: str) -> None:
        self.drop: Callable[[int], bool] = lambda number: False
        self.num_passed = self.num_dropped = 0
        self._asker = b""
        self._pub = new_socket(context, zmq.PUB, 0)
        self._pub.bind(events_endpoint(local_dir))
        sub, router, dealer = (new_socket(context, kind, 0) for kind in (zmq.SUB, zmq.ROUTER, zmq.DEALER))
        sub.subscribe(b"")
        sub.connect(events_endpoint(engine_dir))
        router.bind(replay_endpoint(local_dir))
        dealer.connect(replay_endpoint(engine_dir))
        self._published = LoopSocket(sub, self._publish)
        self._questions = LoopSocket(router, self._ask)
        self._answers = LoopSocket(dealer, self._answer)

    def close(self) -> None:
        self._pub.close()
        for socket in (self._published, self._questions, self._answers):
            socket.close()

    def _publish(self, frames: list[zmq.Frame]) -> None:
        if self.drop(int.from_bytes(frames[1].bytes)):
            self.num_dropped += 1
        else:
            self.num_passed += 1
            self._pub.send_multipart([frame.bytes for frame in frames])

    def _ask(self, frames: list[zmq.Frame]) -> None:
        self._asker, *question = [frame.bytes for frame in frames]
        self._answers.send(question)

    def _answer(self, frames: list[zmq.Frame]) -> None:
        self._questions.send([self._asker, *[frame.bytes for frame in frames]])


class ProxyEnd:
    """What a proxy makes of it. Stands where the host has its link."""

    def __init__(self, publisher: DigestPublisher) -> None:
        self.has_room = True
        self.index = PrefixIndex()
        self.digests = Digests(self.index)
        self.num_bytes = 0
        self._publisher = publisher
        for _ in self.digests.apply(Met(TARGET[0], 1)):
            publisher.begin(self.link)

    @property
    def link(self) -> Link:
        return cast(Link, self)

    def send(self, digest: Digest) -> None:
        self.num_bytes += len(digest.added) + len(digest.removed)
        for _ in self.digests.apply(Told(TARGET[0], digest)):
            self._publisher.begin(self.link)

    def has_exactly(self, held: HeldBlocks) -> bool:
        blocks = held.snapshot()
        return self.index.blocks_of(TARGET) == len(blocks) and all(
            TARGET in self.index.leading((block,)) for block in blocks
        )


@asynccontextmanager
async def followed(engine_dir: str, block_size: int) -> AsyncIterator[tuple[LossyWay, DigestPublisher]]:
    context: zmq.Context[Any] = zmq.Context()
    with TemporaryDirectory(prefix="sluice-") as local_dir:
        way = LossyWay(context, engine_dir, local_dir)
        try:
            with DigestPublisher(context, local_dir, HASHER, block_size) as publisher:
                yield way, publisher
        finally:
            way.close()
            context.destroy(linger=0)


async def held_by(engine_dir: str, block_size: int) -> HeldBlocks:
    """By all that the engine has ever told, of which it still keeps every batch."""
    context: zmq.Context[Any] = zmq.Context()
    held, ended = HeldBlocks(HASHER, block_size), asyncio.Event()

    def take(frames: list[zmq.Frame]) -> None:
        if frames[2].bytes == END_OF_REPLAY:
            ended.set()
        else:
            held.apply(Take(decode(frames[3].buffer)))

    socket = new_socket(context, zmq.DEALER, 0)
    socket.connect(replay_endpoint(engine_dir))
    replay = LoopSocket(socket, take)
    replay.send([b"", (0).to_bytes(8, "big")])
    try:
        await asyncio.wait_for(ended.wait(), PATIENCE_S)
    finally:
        replay.close()
        context.destroy(linger=0)
    return held


async def until(condition: Callable[[], bool], what: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not condition():  # noqa: ASYNC110 (several sockets, no event of their own)
                await asyncio.sleep(0.01)
    except TimeoutError:
        raise AssertionError(f"waited in vain for {what}") from None
