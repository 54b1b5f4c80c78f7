"""The shell around the digest in the engine's host: it listens to the engine's KV events and tells the proxies.

Owns the two sockets in the worker's node-local folder. What a turn of the loop brings is told as one; between two
pieces, and as long as a link has no room, everything else has its turn.
"""

from __future__ import annotations

import asyncio
import logging
import time
from types import TracebackType
from typing import Any, Self

import msgspec
import zmq

from workers.digest import kv_feed
from workers.digest.chains import Hasher
from workers.digest.digest import HeldBlocks
from workers.digest.digest_telling import Telling
from workers.digest.kv_events import decode, events_endpoint, replay_endpoint
from workers.digest.kv_feed import Answered, Ask, Feed, Heard, Tick
from workers.links.link import Link
from workers.links.zmq_loop import Beats, LoopSocket, new_socket

log = logging.getLogger("sluice.digest")

TICK_S = 1.0  # what is lost, and nothing after it is heard, is known by then
PIECE_INTERVAL_S = 0.005
END_OF_REPLAY = (-1).to_bytes(8, "big", signed=True)
DP_RANK = 0  # a worker has one


class DigestPublisher:
    """Listens while its context lasts."""

    def __init__(self, context: zmq.Context[Any], local_dir: str, hasher: Hasher, block_size: int) -> None:
        self._held = HeldBlocks(hasher, block_size)
        self._feed = Feed()
        self._loop = asyncio.get_running_loop()
        self._tellings: dict[Link, Telling] = {}
        self._waiting: set[Link] = set()
        self._flush_scheduled = False
        published = new_socket(context, zmq.SUB, linger_ms=0)
        published.subscribe(b"")
        published.connect(events_endpoint(local_dir))
        replayed = new_socket(context, zmq.DEALER, linger_ms=0)
        replayed.connect(replay_endpoint(local_dir))
        self._published = LoopSocket(published, self._on_published)
        self._replayed = LoopSocket(replayed, self._on_replayed)
        self._beats = Beats(TICK_S, lambda lag_s: self._apply(Tick()))
        self._apply(Tick())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._tellings.clear()
        self._stop_listening()

    @property
    def num_losses(self) -> int:
        """How often events were gone for good."""
        return self._feed.num_losses

    def _stop_listening(self) -> None:
        self._beats.stop()
        self._published.close()
        self._replayed.close()

    # ------------------------------------------------------------ proxies

    def begin(self, link: Link) -> None:
        """Its proxy wants the digest: a snapshot, then what changes."""
        self._tellings[link] = Telling(self._held, DP_RANK)
        self._flush()

    def leave(self, link: Link) -> None:
        self._tellings.pop(link, None)

    def _flush(self) -> None:
        """What has changed, to all of them: no snapshot may hold what is told again behind it."""
        self._flush_scheduled = False
        if self._held.fault is not None and not self._published.closed:
            log.warning("this engine's cache has no digest: %s; requests go by load", self._held.fault)
            self._stop_listening()
        changes = self._held.changes()
        for link, telling in self._tellings.items():
            telling.changed(changes)
            self._tell(link, telling)

    def _tell(self, link: Link, telling: Telling) -> None:
        if link in self._waiting or not telling.has_more:
            return
        if link.has_room:
            link.send(telling.next(time.time()))
        if telling.has_more:
            self._waiting.add(link)
            self._loop.call_later(PIECE_INTERVAL_S, self._go_on, link)

    def _go_on(self, link: Link) -> None:
        self._waiting.discard(link)
        self._flush()

    # ------------------------------------------------------------ the engine

    def _on_published(self, frames: list[zmq.Frame]) -> None:
        """Topic, number, batch."""
        if len(frames) == 3:
            self._hear(frames[1].bytes, frames[2])

    def _on_replayed(self, frames: list[zmq.Frame]) -> None:
        """An empty frame, then as published; the end has no batch."""
        if len(frames) != 4:
            return
        if frames[2].bytes == END_OF_REPLAY:
            self._apply(Answered())
        else:
            self._hear(frames[2].bytes, frames[3])

    def _hear(self, number: bytes, payload: zmq.Frame) -> None:
        try:
            batch = decode(payload.buffer)
        except msgspec.DecodeError as fault:
            self._held.give_up(f"its events cannot be read: {fault}")
            self._schedule_flush()
        else:
            self._apply(Heard(int.from_bytes(number, "big"), batch))

    def _apply(self, event: kv_feed.Event) -> None:
        for effect in self._feed.apply(event, self._loop.time()):
            if isinstance(effect, Ask):
                self._replayed.send([b"", effect.first.to_bytes(8, "big")])
                continue
            if isinstance(effect, kv_feed.Lost):
                log.warning("KV events are lost for good: its digest starts anew")
            self._held.apply(effect)
            self._schedule_flush()

    def _schedule_flush(self) -> None:
        if not self._flush_scheduled:
            self._flush_scheduled = True
            self._loop.call_soon(self._flush)
