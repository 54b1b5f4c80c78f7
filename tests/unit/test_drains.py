"""A worker that is about to leave: nothing new goes to it, and what was promised to it still gets there."""

from __future__ import annotations

from proxy.fleet.drains import Drains
from proxy.fleet.fleet_events import Leaving, RunTold
from proxy.flights import flight_events as fl
from proxy.flights.flight import State
from tests.unit.proxies import bring_up, flight, peer, ticket
from tests.unit.test_flights import World, only, sent
from workers.controller_messages import DrainWorker
from workers.protocol import Drain, End, Leg, Part, Prefilled, Start, Submit

OLD, NEW = ("decode-0", 0), ("decode-0", 1)


def ask(world: World, drains: Drains, worker: str = "decode-0", generation: int = 0) -> None:
    for event in drains.ask(DrainWorker(worker, generation, "followed", 60.0), world.now):
        world.fleet.apply(event, world.now)


def test_a_request_whose_prompt_is_being_computed_still_gets_its_place() -> None:
    world = World()
    drains = Drains(world.fleet, world.flights)
    (prefill,) = sent(world.apply(fl.Arrived(flight(1))), Submit)
    bring_up(world.fleet, *NEW)
    ask(world, drains)
    assert not world.fleet.workers[OLD].up and drains.due(world.now) == [], "a decode leg is still to come"
    (other,) = sent(world.apply(fl.Arrived(flight(2))), Submit)
    assert world.flights.legs[other.rid].place is world.fleet.workers[NEW], "new requests go to the successor"

    (decode,) = [
        e for e in world.apply(Prefilled(prefill.rid, ticket("t", ("prefill-0", 0)), 0)) if isinstance(e, fl.Send)
    ]
    assert decode.worker == OLD and decode.message.leg == Leg.DECODE
    assert drains.due(world.now) == [(peer("decode-0", Part.AGENT), Drain("followed", 60.0))]
    assert drains.due(world.now) == [], "told once"
    assert isinstance(only(world.apply(Start(decode.message.rid, 200, ())), fl.Begin), fl.Begin)
    assert isinstance(only(world.apply(End(decode.message.rid)), fl.Finish), fl.Finish)


def test_the_word_does_not_wait_longer_than_the_drain() -> None:
    world = World()
    drains = Drains(world.fleet, world.flights)
    world.apply(fl.Arrived(flight(1)))
    ask(world, drains)
    world.now = 59.0
    assert drains.due(world.now) == []
    world.now = 60.0
    assert drains.due(world.now) == [(peer("decode-0", Part.AGENT), Drain("followed", 0.0))]


def test_while_no_decode_worker_is_there_prefill_workers_answer_whole() -> None:
    world = World()
    world.fleet.apply(Leaving(OLD), 1.0)
    (whole,) = sent(world.apply(fl.Arrived(flight(1))), Submit)
    assert whole.leg == Leg.WHOLE and world.flights.legs[whole.rid].worker.key == ("prefill-0", 0)
    bring_up(world.fleet, *NEW)
    assert world.fleet.workers["prefill-0", 0].caps.max_decodes == 0, "its own work again"
    (prefill,) = sent(world.apply(fl.Arrived(flight(2))), Submit)
    assert prefill.leg == Leg.PREFILL


def test_where_nobody_is_left_requests_wait_in_a_run_that_goes_on() -> None:
    world = World()
    for key in (OLD, ("prefill-0", 0)):
        world.fleet.apply(Leaving(key), 1.0)
    assert isinstance(only(world.apply(fl.Arrived(flight(1))), fl.Reject), fl.Reject), "nobody says that one comes"
    world.fleet.apply(RunTold((), serves=True), 1.0)
    waiting = flight(2)
    assert world.apply(fl.Arrived(waiting)) == [] and waiting.state is State.QUEUED
    bring_up(world.fleet, "prefill-0", 1)
    bring_up(world.fleet, *NEW)
    (prefill,) = sent(world.apply(fl.RoomMade()), Submit)
    assert prefill.leg == Leg.PREFILL
    world.now = 1000.0
    late = flight(3)
    world.fleet.apply(Leaving(NEW), 1.0)
    world.fleet.apply(Leaving(("prefill-0", 1)), 1.0)
    world.apply(fl.Arrived(late))
    world.now = 1031.0
    rejected = [e for e in world.apply(fl.Tick()) if isinstance(e, fl.Reject) and e.flight is late]
    assert rejected[0].error.status == 503 and b"retry-after" in dict(rejected[0].error.headers)
