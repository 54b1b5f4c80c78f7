"""When the router is asked for those that wait: not for whom it has just refused, unless room or time has come."""

from __future__ import annotations

from collections.abc import Mapping
from random import Random

import pytest

from proxy.fleet.fleet import Fleet
from proxy.flights import flight_events as fl
from proxy.flights.flights import Flights
from proxy.flights.placing import AGAIN_S
from proxy.prefixes.prefix_index import PrefixIndex
from proxy.routing.router import Demand, Route, Router
from proxy.spec import Deadlines, Limits, PoolCaps, RoutingSpec
from tests.unit.proxies import bring_up, flight, proxy_spec, ticket
from workers.kv_messages import Computed
from workers.protocol import End, Prefilled, Start

WHOLE = {"decode": PoolCaps(max_prefill_tokens=4096, max_decodes=2)}


class Asked(Router):
    """Notes for how long those had waited whom it was asked for."""

    def __init__(self, patience_s: float) -> None:
        super().__init__(RoutingSpec(), Random(1))
        self.patience_s = patience_s
        self.waited_s: list[float] = []

    def route(
        self, fleet: Fleet, index: PrefixIndex, demand: Demand, now: float, waited_s: float = 0.0
    ) -> Route | None:
        self.waited_s.append(waited_s)
        return super().route(fleet, index, demand, now, waited_s) if waited_s >= self.patience_s else None


class World:
    """One worker that does all with two places, or one of each role."""

    def __init__(self, workers: Mapping[str, PoolCaps], patience_s: float = 0.0) -> None:
        self.fleet = Fleet(proxy_spec())
        for pool, caps in workers.items():
            bring_up(self.fleet, f"{pool}-0")
            self.fleet.workers[f"{pool}-0", 0].caps = caps
        self.router = Asked(patience_s)
        self.flights = Flights(self.fleet, PrefixIndex(), self.router, Limits(max_queued=100), Deadlines())

    def asked_by(self, event: fl.Event, now: float = 0.0) -> int:
        before = len(self.router.waited_s)
        self.flights.apply(event, now)
        return len(self.router.waited_s) - before

    def fill(self, num_waiting: int) -> None:
        for number in range(2 + num_waiting):
            self.asked_by(fl.Arrived(flight(number, num_tokens=10)))
        assert len(self.flights.legs) == 2
        assert len(self.flights.queue) == num_waiting


def test_behind_one_that_was_refused_arrivals_ask_for_nobody() -> None:
    world = World(WHOLE)
    world.fill(num_waiting=1)
    assert [world.asked_by(fl.Arrived(flight(number, num_tokens=10))) for number in range(10, 15)] == [0] * 5


def test_the_end_of_an_answer_asks_for_who_is_next_and_for_who_then_is() -> None:
    world = World(WHOLE)
    world.fill(num_waiting=3)
    assert world.asked_by(End(next(iter(world.flights.legs)))) == 2
    assert len(world.flights.queue) == 2


def test_that_a_prompt_is_computed_asks_once_whether_it_is_told_alone_or_with_the_first_token() -> None:
    world = World(WHOLE)
    world.fill(num_waiting=1)
    first, second = world.flights.legs
    assert world.asked_by(Computed(first, 10, 0)) == 1
    assert world.asked_by(Start(first, 200, ())) == 0
    assert world.asked_by(Start(second, 200, ())) == 1


def test_a_decode_leg_makes_room_when_its_ticket_is_read() -> None:
    prefill = PoolCaps(max_prefill_tokens=4096, max_decodes=0)
    world = World({"prefill": prefill, "decode": PoolCaps(max_prefill_tokens=0, max_decodes=1)})
    world.asked_by(fl.Arrived(flight(1)))
    world.asked_by(fl.Arrived(flight(2)))
    (rid,) = world.flights.legs
    assert world.asked_by(Prefilled(rid, ticket("t", ("prefill-0", 0)), 0)) == 1
    (rid,) = world.flights.legs
    assert world.asked_by(Computed(rid, 10, 9)) == 0
    assert world.asked_by(Start(rid, 200, ())) == 1


@pytest.mark.parametrize("event", [fl.Tick(), fl.RoomMade()])
def test_where_nothing_happens_the_clock_asks_and_patience_comes_to_its_end(event: fl.Event) -> None:
    world = World(WHOLE, patience_s=0.5)
    assert world.asked_by(fl.Arrived(flight(1, num_tokens=10))) == 1
    assert world.asked_by(event, now=0.49) == 1
    assert not world.flights.legs
    assert world.asked_by(event, now=0.5) == 1
    assert len(world.flights.legs) == 1


def test_arrivals_ask_again_after_a_while() -> None:
    world = World(WHOLE)
    world.fill(num_waiting=1)
    assert world.asked_by(fl.Arrived(flight(10, num_tokens=10)), now=AGAIN_S / 2) == 0
    assert world.asked_by(fl.Arrived(flight(11, num_tokens=10)), now=AGAIN_S) == 1
    assert world.asked_by(fl.Arrived(flight(12, num_tokens=10)), now=1.5 * AGAIN_S) == 0
