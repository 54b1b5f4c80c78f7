"""What users' requests took, per API key and per worker, and what became of them when workers went: sums for good.

Pure: unix time is an argument. A life of a process has a book per day (UTC), of sums since it was opened, so that
writing one again replaces it and nothing is counted twice; `account_keeper` writes them. A request is counted once,
when it ends. Keys are known by their names.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from proxy.fleet.worker import Key, Worker
from proxy.flights.flight import Flight, State
from proxy.flights.flight_events import Break, Reject
from proxy.flights.flights import Flights
from workers.agent.lifecycle import DRAINING
from workers.output_ids import ID_BYTES
from workers.protocol import End, Phase

MAX_INCIDENTS = 500  # of a day
MAX_TEXT = 200
OK = 200
TURNED_AWAY = frozenset({429, 503})  # it may come again later


class Sums(msgspec.Struct):
    """Of one key. `requests` is all that ended; what is in none of the next five has been answered."""

    requests: int = 0
    refused: int = 0  # by the engine: its client's fault
    turned_away: int = 0  # no room, or no worker
    failed: int = 0  # before anything was sent
    broken: int = 0  # in the middle of the answer
    left: int = 0  # the client went away
    moved: int = 0  # tried again elsewhere before anything was sent, whatever came of it
    resumed: int = 0  # continued elsewhere in the middle of the answer
    prompt_tokens: int = 0  # of complete answers
    cached_tokens: int = 0  # of these, where they were computed
    output_tokens: int = 0  # of answers that were cut short too, where their tokens are told


class Work(msgspec.Struct):
    """Of one life of a worker: complete answers."""

    answers: int = 0
    prompt_tokens: int = 0  # that it was to compute, cached ones included
    output_tokens: int = 0


class Incident(msgspec.Struct, frozen=True):
    """What happened to a worker, and to the requests that it had."""

    at: float
    worker: str
    generation: int
    what: str  # "draining" or "ended"
    why: str
    open: int = 0  # requests that it had
    moved: int = 0  # tried again elsewhere before anything was sent
    resumed: int = 0  # continued elsewhere in the middle of the answer
    failed: int = 0
    broken: int = 0


class Book(msgspec.Struct):
    """A day of a life of one process."""

    process: str
    life: str
    pid: int
    began_at: float  # the life
    day: str
    written_at: float = 0.0
    ended: bool = False  # in good order, with everything in it
    open_requests: int = 0
    keys: dict[str, Sums] = msgspec.field(default_factory=dict)
    workers: dict[str, Work] = msgspec.field(default_factory=dict)  # by worker.gGENERATION
    incidents: list[Incident] = msgspec.field(default_factory=list)


def life_name(worker: str, generation: int) -> str:
    return f"{worker}.g{generation}"


def day_of(unix: float) -> str:
    return time.strftime("%Y-%m-%d", time.gmtime(unix))


class Accounts:
    """Of one process. Proofs and scrapes are nobody's requests."""

    def __init__(self, process: str, life: str, pid: int, unix: float) -> None:
        self.book = Book(process, life, pid, unix, day_of(unix))

    def turn_page(self, unix: float) -> Book | None:
        """The book of a day that is over; it will not change any more. A clock that was set back changes no day."""
        if day_of(unix) <= self.book.day:
            return None
        over, old = self.book, self.book
        self.book = Book(old.process, old.life, old.pid, old.began_at, day_of(unix))
        return over

    # ------------------------------------------------------------ requests that end

    def answered(self, flight: Flight, status: int, end: End) -> None:
        sums = self._count(flight)
        if sums is None:
            return
        if status != OK:
            sums.refused += 1
            return
        sums.prompt_tokens += end.num_prompt_tokens
        sums.cached_tokens += min(flight.cached_tokens, end.num_prompt_tokens)
        sums.output_tokens += end.num_output_tokens
        assert flight.route is not None
        decode = self._work(flight.route.decode.key)
        decode.answers += 1
        decode.output_tokens += end.num_output_tokens
        computes = flight.route.prefill or flight.route.decode
        self._work(computes.key).prompt_tokens += end.num_prompt_tokens
        if flight.route.prefill is not None:
            self._work(computes.key).answers += 1

    def failed(self, effect: Reject | Break) -> None:
        sums = self._count(effect.flight)
        if sums is None:
            return
        if isinstance(effect, Break):
            sums.broken += 1
            sums.output_tokens += _num_told(effect.flight)
        elif effect.error.status in TURNED_AWAY:
            sums.turned_away += 1
        else:
            sums.failed += 1

    def left(self, flight: Flight) -> None:
        sums = self._count(flight)
        if sums is not None:
            sums.left += 1
            sums.output_tokens += _num_told(flight)

    def _count(self, flight: Flight) -> Sums | None:
        if flight.demand.forced is not None:
            return None
        sums = self.book.keys.get(flight.account)
        if sums is None:
            sums = self.book.keys[flight.account] = Sums()
        sums.requests += 1
        sums.moved += flight.attempts > 1 + flight.num_resumed
        sums.resumed += flight.num_resumed > 0
        return sums

    def _work(self, key: Key) -> Work:
        name = life_name(*key)
        work = self.book.workers.get(name)
        if work is None:
            work = self.book.workers[name] = Work()
        return work

    # ------------------------------------------------------------ workers that go

    def told(self, worker: Worker, phase: Phase, flights: Flights, unix: float) -> None:
        """By its agent, before the fleet hears of it. A detail that changes is no other drain."""
        if phase.phase == DRAINING and worker.phase != DRAINING:
            num_open = sum(leg.worker is worker for leg in flights.legs.values())
            self._note(Incident(unix, *worker.key, DRAINING, _short(phase.detail), num_open))

    @contextmanager
    def loss(self, key: Key, why: str, flights: Flights, unix: float) -> Iterator[None]:
        """Around what is done about it: what becomes of the requests that it had."""
        before = [(flight, flight.leg, flight.begun) for flight in flights.open.values()]
        yield
        had = [
            (flight.state is State.ENDED, begun)
            for flight, leg, begun in before
            if leg is not None and (flight.leg != leg or flight.state is State.ENDED) and flight.demand.forced is None
        ]
        incident = Incident(
            unix,
            *key,
            "ended",
            _short(why),
            open=len(had),
            moved=had.count((False, False)),
            resumed=had.count((False, True)),
            failed=had.count((True, False)),
            broken=had.count((True, True)),
        )
        self._note(incident)

    def _note(self, incident: Incident) -> None:
        """Of a day with more, the first ones are kept: what is repeated so often says nothing new."""
        if len(self.book.incidents) < MAX_INCIDENTS:
            self.book.incidents.append(incident)


def _num_told(flight: Flight) -> int:
    return len(flight.output_ids) // ID_BYTES


def _short(text: str) -> str:
    return text.split("\n")[0][:MAX_TEXT]
