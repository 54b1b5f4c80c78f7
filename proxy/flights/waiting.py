"""Requests that wait for a place: whose turn it is.

Pure. Those of batches come after all others. Within each class the API keys take turns, weighed by the work that they
ask for, and for each key its short prompts and its long ones do: start-time fair queueing, twice. So who asks for much
waits behind himself, and a long prompt neither holds up short ones for long nor is overtaken for ever. What is served
while nobody waits comes by no turn and is owed to nobody.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, islice
from operator import attrgetter

from proxy.flights.flight import Flight

ANSWER_COST = 256  # of any request, in prompt tokens: what its answer takes
SIZE_BITS = 2  # prompts that differ by more than a factor of four are of different sizes
OVERTAKEN_S = 2.0  # who is next and fits nowhere lets smaller ones pass for so long
MAX_LOOKED_AT, MAX_TRIED = 8, 3  # of those behind him, at a time: it is done with every event
_TAG = attrgetter("tag")


class Ahead:
    """Work that comes before somebody."""

    def __init__(self, num: float = 0.0, cost: float = 0.0) -> None:
        self.num, self.cost = num, cost

    def add(self, other: Ahead, share: float = 1.0) -> None:
        self.num += share * other.num
        self.cost += share * other.cost


@dataclass(slots=True)
class Size:
    """Prompts of one key that are about as long, in order of arrival."""

    tag: float = 0.0  # work that was served when its next one comes, by its own clock
    flights: deque[Flight] = field(default_factory=deque)


@dataclass(slots=True)
class Account:
    tag: float = 0.0
    clock: float = 0.0
    num: int = 0  # that wait
    sizes: defaultdict[int, Size] = field(default_factory=lambda: defaultdict(Size))


@dataclass(slots=True)
class Lane:
    """One class. Accounts are as few as keys, sizes a handful."""

    accounts: defaultdict[str, Account] = field(default_factory=lambda: defaultdict(Account))
    clock: float = 0.0
    num: int = 0  # that wait: asked for with every event
    _first: deque[Flight] = field(default_factory=deque)

    def __len__(self) -> int:
        return self.num

    def __iter__(self) -> Iterator[Flight]:
        yield from self._first
        for account in self.accounts.values():
            for size in account.sizes.values():
                yield from size.flights

    def again(self, flight: Flight) -> None:
        """It has had its turn: it is tried anew, or to be continued, before all others."""
        self.num += 1
        self._first.appendleft(flight)

    def add(self, flight: Flight) -> None:
        self.num += 1
        account = self.accounts[flight.account]
        if not account.num:
            account.tag = max(account.tag, self.clock)
        account.num += 1
        size = account.sizes[_size(flight)]
        if not size.flights:
            size.tag = max(size.tag, account.clock)
        size.flights.append(flight)

    def turns(self) -> Iterator[Flight]:
        """Of each size of each account the next, the one first whose turn it is."""
        if self._first:
            yield self._first[0]
            return
        waiting = [account for account in self.accounts.values() if account.num]
        for account in sorted(waiting, key=_TAG):
            for size in sorted([size for size in account.sizes.values() if size.flights], key=_TAG):
                yield size.flights[0]

    def take(self, flight: Flight) -> None:
        """Its turn is used."""
        if not self._was_first(flight):
            account = self.accounts[flight.account]
            size = account.sizes[_size(flight)]
            size.flights.remove(flight)
            account.num -= 1
            self.clock, account.clock = max(self.clock, account.tag), max(account.clock, size.tag)
            account.tag += cost_of(flight)
            size.tag += cost_of(flight)

    def remove(self, flight: Flight) -> None:
        """It leaves before its turn."""
        if not self._was_first(flight):
            account = self.accounts[flight.account]
            account.sizes[_size(flight)].flights.remove(flight)
            account.num -= 1

    def _was_first(self, flight: Flight) -> bool:
        self.num -= 1
        was = flight in self._first
        if was:
            self._first.remove(flight)
        return was

    def ahead_of(self, flight: Flight) -> Ahead:
        """What is served before one that is added now: others of his kind, and as much of each other kind."""
        total = _all(self._first)
        account = self.accounts.get(flight.account, Account())
        own = Ahead()
        sizes = {number: _all(size.flights) for number, size in account.sizes.items()}
        _take_turns(own, sizes.pop(_size(flight), Ahead()), sizes.values(), flight)
        others = [
            _all(one for size in other.sizes.values() for one in size.flights)
            for name, other in self.accounts.items()
            if name != flight.account
        ]
        _take_turns(total, own, others, flight)
        return total

    def greediest(self) -> Flight:
        """Of the key that has most waiting, the one that came last. There has to be one."""
        account = max(self.accounts.values(), key=attrgetter("num"))
        lasts = (size.flights[-1] for size in account.sizes.values() if size.flights)
        return max(lasts, key=lambda flight: flight.id)


class Waiting:
    """All that wait."""

    def __init__(self) -> None:
        self._online, self._batch = Lane(), Lane()
        self._blocked: tuple[Flight, float] | None = None  # who is next and fits nowhere, and since when

    def of(self, flight: Flight) -> Lane:
        return self._batch if flight.of_batch else self._online

    def __len__(self) -> int:
        return self._online.num + self._batch.num

    def __iter__(self) -> Iterator[Flight]:
        return chain(self._online, self._batch)

    def turns(self, now: float) -> Iterator[Flight]:
        """Who is next; then, while that one has not been held up for long, smaller ones of its class."""
        lane = self._online if self._online.num else self._batch
        turns = lane.turns()
        head = next(turns, None)
        if head is None:
            return
        if self._blocked is None or self._blocked[0] is not head:
            self._blocked = (head, now)
        yield head
        if now - self._blocked[1] <= OVERTAKEN_S:
            smaller = (one for one in islice(turns, MAX_LOOKED_AT) if _size(one) < _size(head))
            yield from islice(smaller, MAX_TRIED)


def cost_of(flight: Flight) -> int:
    return ANSWER_COST + flight.demand.num_tokens


def _size(flight: Flight) -> int:
    return flight.demand.num_tokens.bit_length() // SIZE_BITS


def _all(flights: Iterable[Flight]) -> Ahead:
    every = list(flights)
    return Ahead(len(every), sum(map(cost_of, every)))


def _take_turns(total: Ahead, own: Ahead, others: Iterable[Ahead], flight: Flight) -> None:
    total.add(own)
    for other in others:
        if other.cost:
            total.add(other, min(1.0, (own.cost + cost_of(flight)) / other.cost))
