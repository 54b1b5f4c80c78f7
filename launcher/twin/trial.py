"""A replay that is to tell whether a fleet keeps to its targets, and no more than that.

Owns its beginning and its end: it begins with answers in flight, as in a fleet that has served for long, and ends when
enough of all answers has been seen or the verdict is certain.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from launcher.twin.records import Record, Replayed
from launcher.twin.replay import ENVELOPE, Replay
from launcher.twin.setup import Setup
from launcher.twin.steady import Underway, learnt_rates
from launcher.twin.traces import Request
from proxy.fleet.worker import Key
from proxy.flights import flight_events as fe
from proxy.flights.flight import Flight
from proxy.routing.router import Demand
from workers.engines.sim.work import Arrive, Fetch
from workers.output_ids import ID_BYTES
from workers.protocol import Resume, Submit

NUM_SEEN = 64  # tokens of an answer that is still in flight at the end
LOOK_AGAIN_S = 0.1
GOING_ON = msgspec.structs.replace(ENVELOPE, resume=Resume(b"", 0, 0, 1))


class Late(NamedTuple):
    """Given up when more first tokens are late, of the requests from `since` on."""

    ttft_s: float
    most: float
    since: int = 0


class Slow(NamedTuple):
    """The same of answers that have ended."""

    itl_s: float
    most: float
    since: int


class Trial(Replay):
    def __init__(
        self,
        setup: Setup,
        requests: Sequence[Request],
        underway: Sequence[Underway] = (),
        late: Sequence[Late] = (),
        slow: Sequence[Slow] = (),
    ) -> None:
        super().__init__(setup, requests)
        self._underway = underway
        self._records = [*self._records, *(Record(each.request) for each in underway)]
        self._counted: dict[Late | Slow, int] = dict.fromkeys([*late, *slow], 0)
        self._slow = slow
        self._num_to_begin = len(requests)
        self._num_to_resume = len(underway)
        self.given_up: Late | Slow | None = None
        for limit in late:
            for number in range(limit.since, len(requests)):
                self._at(requests[number].at_s + limit.ttft_s, self._due, number, limit)
        self._at(0.0, self._resume)

    def run(self) -> Replayed:
        """Only of the requests."""
        replayed = super().run()
        return Replayed(
            records=self._records[: len(self._requests)],
            workers=replayed.workers,
            decision_s=replayed.decision_s,
            num_preemptions=replayed.num_preemptions,
            block_size=replayed.block_size,
            complete=self.given_up is None,
            end_s=replayed.end_s,
        )

    def _is_underway(self, flight: Flight) -> bool:
        return flight.id >= len(self._requests)

    # ------------------------------------------------------------ the beginning

    def _resume(self, now: float) -> None:
        """As streams that go on, each where its KV is, dealt out to who decodes."""
        decoders = [worker.key for worker in self._fleet.decoders if worker.caps.max_decodes > 0]
        for number, (request, num_made) in enumerate(self._underway):
            demand = Demand(request.num_prompt + num_made, None, forced=(None, decoders[number % len(decoders)]))
            flight = Flight(len(self._requests) + number, "underway", GOING_ON, demand, streams=True)
            flight.output_ids = bytearray(ID_BYTES * num_made)
            self._tell(fe.Arrived(flight), now)

    def _is_computed(self, flight: Flight, submit: Submit) -> bool:
        return self._is_underway(flight) or super()._is_computed(flight, submit)

    def _fetch(self, key: Key, fetch: Fetch, now: float) -> None:
        if self._is_underway(self._flights.legs[fetch.id].flight):
            self._took(key, self._engines[key].apply(Arrive(fetch.id), now), now)
        else:
            super()._fetch(key, fetch, now)

    def _begun(self, flight: Flight, now: float) -> None:
        super()._begun(flight, now)
        if self._is_underway(flight):
            self._num_to_resume -= 1
            if not self._num_to_resume:
                self._learn_rates()
            return
        self._num_to_begin -= 1
        if not self._num_to_begin:
            self._at(now, self._look_at_answers)

    def _learn_rates(self) -> None:
        """What a proxy knows that has served such requests for long. What is resumed has taught it that prompts take
        nothing."""
        for key, worker in self._fleet.workers.items():
            worker.rates = learnt_rates(self._setup.card(key), self._requests)

    # ------------------------------------------------------------ the end

    def _finished(self, flight: Flight, now: float) -> None:
        if self._is_underway(flight):
            return
        super()._finished(flight, now)
        itl_s = self._records[flight.id].itl_s
        for limit in self._slow:
            if flight.id >= limit.since and itl_s is not None and itl_s > limit.itl_s:
                self._count(limit)

    def _due(self, number: int, limit: Late, now: float) -> None:
        """Its first token is."""
        if not self._records[number].first_s:
            self._count(limit)

    def _count(self, limit: Late | Slow) -> None:
        self._counted[limit] += 1
        if self._counted[limit] > limit.most:
            self.given_up, self._over = limit, True

    def _look_at_answers(self, now: float) -> None:
        """When all have begun, of those in flight."""
        found: list[tuple[Record, int]] = []
        for rid, (key, _, _) in self._legs.items():
            flight = self._flights.legs[rid].flight
            if not self._is_underway(flight):
                found.append((self._records[flight.id], self._engines[key].made(rid, now)))
        if any(num_made < min(NUM_SEEN, record.request.num_output) for record, num_made in found):
            self._at(now + LOOK_AGAIN_S, self._look_at_answers)
            return
        for record, num_made in found:
            record.num_made, record.end_s = num_made, now
        self._over = True
