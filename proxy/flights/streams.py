"""Answers on their way to clients. `on_chunk` is the streaming path of the whole proxy: one look-up, one write.

Owns which leg writes to which client; whatever comes under another leg's number is void.
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import msgspec

from proxy.flights.flight import Flight
from proxy.monitoring.totals import Totals
from workers.output_ids import ID_BYTES
from workers.protocol import Chunk, Start

log = logging.getLogger("sluice.proxy")


class Stream(msgspec.Struct, eq=False):
    flight: Flight
    write: Callable[[bytes], None]
    status: int
    began_at: float


class Streams:
    def __init__(self, totals: Totals) -> None:
        self._totals = totals
        self._by_leg: dict[int, Stream] = {}
        self._suspended: dict[int, Stream] = {}  # by flight

    def __len__(self) -> int:
        return len(self._by_leg) + len(self._suspended)

    def on_chunk(self, chunk: Chunk, now: float) -> None:
        stream = self._by_leg.get(chunk.rid)
        if stream is not None:
            flight, data = stream.flight, chunk.data
            flight.progress_at = now
            flight.num_sent_bytes += len(data)
            flight.output_ids += chunk.output_ids
            self._totals.num_chunks += 1
            stream.write(data)

    def get(self, rid: int) -> Stream | None:
        return self._by_leg.get(rid)

    def begin(self, rid: int, stream: Stream) -> None:
        self._by_leg[rid] = stream

    def suspend(self, rid: int) -> None:
        stream = self._by_leg.pop(rid)
        self._suspended[stream.flight.id] = stream

    def go_on(self, start: Start, flight: Flight) -> None:
        stream = self._by_leg[start.rid] = self._suspended.pop(flight.id)
        self._totals.num_resumed += 1
        assert flight.route is not None and flight.submit.resume is not None
        num_tokens = len(flight.submit.resume.output_ids) // ID_BYTES
        log.info("request %s goes on at %s after %d tokens", flight.request_id, flight.route.decode.key[0], num_tokens)
        stream.write(start.data)

    def end(self, flight: Flight) -> None:
        if flight.leg is not None:
            self._by_leg.pop(flight.leg, None)
        self._suspended.pop(flight.id, None)
