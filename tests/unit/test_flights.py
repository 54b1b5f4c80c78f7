"""The life of a request: a scenario per way it can go, and random histories with invariants."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from random import Random

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.fleet.fleet import Fleet
from proxy.fleet.fleet_events import PeerLost
from proxy.fleet.rates import Rates
from proxy.fleet.worker import Key
from proxy.flights import flight_events as fl
from proxy.flights.flight import Flight, State
from proxy.flights.flights import Flights
from proxy.flights.open_tickets import holder_of
from proxy.flights.placing import YIELD_S
from proxy.flights.resuming import MAX_RESUMED
from proxy.flights.streams import Stream, Streams
from proxy.monitoring.totals import Totals
from proxy.prefixes.prefix_index import PrefixIndex
from proxy.routing.router import Router
from proxy.spec import Deadlines, Limits, PoolCaps, RoutingSpec
from tests.unit.proxies import bring_up, flight, peer, proxy_spec, ticket
from workers.kv_messages import Computed
from workers.output_ids import groups, pack
from workers.protocol import (
    Cancel,
    Cancelled,
    Chunk,
    End,
    Failed,
    Leg,
    Part,
    Prefilled,
    Release,
    Resume,
    Start,
    Submit,
    TicketClosed,
)


class World:
    """Cores and what they sent."""

    def __init__(self, num_prefill: int = 1, num_decode: int = 1, limits: Limits | None = None) -> None:
        self.fleet = Fleet(proxy_spec())
        for i in range(num_prefill):
            bring_up(self.fleet, f"prefill-{i}")
        for i in range(num_decode):
            bring_up(self.fleet, f"decode-{i}")
        self.index = PrefixIndex()
        router = Router(RoutingSpec(), Random(1))
        self.flights = Flights(self.fleet, self.index, router, limits or Limits(max_queued=8), Deadlines())
        self.now = 0.0

    def apply(self, event: fl.Event) -> list[fl.Effect]:
        return self.flights.apply(event, self.now)

    def lose(self, key: Key) -> list[fl.Effect]:
        self.fleet.apply(PeerLost(peer(key[0], Part.AGENT, key[1]), "killed"), self.now)
        return self.apply(fl.WorkerGone(key, "killed"))


def sent(effects: list[fl.Effect], kind: type) -> list:  # type: ignore[type-arg]
    return [e.message for e in effects if isinstance(e, fl.Send) and isinstance(e.message, kind)]


def only(effects: list[fl.Effect], kind: type) -> fl.Effect:
    (found,) = [e for e in effects if isinstance(e, kind)]
    return found


def split(world: World, request: Flight) -> tuple[int, int]:
    """Send a request through prefill up to its decode leg. Returns (rid of decode, prefill tokens)."""
    (prefill,) = sent(world.apply(fl.Arrived(request)), Submit)
    assert prefill.leg == Leg.PREFILL
    (decode,) = sent(world.apply(Prefilled(prefill.rid, ticket("t", ("prefill-0", 0)), 0)), Submit)
    assert decode.leg == Leg.DECODE
    assert decode.ticket.id == "t"
    return decode.rid, prefill.rid


def test_prefill_then_decode_then_end() -> None:
    world = World()
    request = flight(1)
    rid, _ = split(world, request)
    assert len(world.flights.tickets) == 1
    effects = world.apply(Start(rid, 200, ()))
    assert isinstance(only(effects, fl.Begin), fl.Begin)
    assert [m.ticket_id for m in sent(effects, TicketClosed)] == ["t"]
    assert isinstance(only(world.apply(End(rid)), fl.Finish), fl.Finish)
    assert not world.flights.legs
    assert not world.flights.tickets
    assert world.fleet.workers["decode-0", 0].num_decodes == 0
    assert world.fleet.workers["prefill-0", 0].prefill_tokens == 0
    assert world.fleet.workers["prefill-0", 0].pinned_blocks == 0


def test_who_was_to_be_decoded_by_a_worker_that_is_lost_meanwhile_goes_elsewhere() -> None:
    world = World(num_decode=2)
    (prefill,) = sent(world.apply(fl.Arrived(flight(1))), Submit)
    lost = world.flights.open[1].route.decode.key
    world.lose(lost)
    effects = world.apply(Prefilled(prefill.rid, ticket("t", ("prefill-0", 0)), 0))
    assert len(sent(effects, Release)) == 1
    (again,) = [effect for effect in effects if isinstance(effect, fl.Send) and isinstance(effect.message, Submit)]
    assert again.worker == ("prefill-0", 0) and world.flights.open[1].route.decode.key != lost


def test_a_scrape_takes_nobodys_place_and_nobodys_turn() -> None:
    world = World()
    worker = world.fleet.workers["decode-0", 0]
    scrape = flight(1, 0, scrape=True, forced=(None, worker.key))
    (submit,) = sent(world.apply(fl.Arrived(scrape)), Submit)
    assert (worker.num_decodes, worker.prefill_tokens, worker.last_chosen) == (0, 0, 0)
    world.apply(Start(submit.rid, 200, ()))
    world.apply(End(submit.rid))
    assert worker.num_decodes == 0 and not world.flights.open


def test_what_was_computed_teaches_the_same_whether_said_alone_or_with_the_answers_beginning() -> None:
    def taught(*said: object) -> tuple[int, Rates, list[fl.Effect]]:
        world, request = World(num_prefill=0), flight(1)
        request.demand = msgspec.structs.replace(request.demand, whole_because="it must")
        (submit,) = sent(world.apply(fl.Arrived(request)), Submit)
        world.now = 0.7
        effects = [effect for make in said for effect in world.apply(make(submit.rid))]  # type: ignore[operator]
        return request.cached_tokens, world.fleet.workers["decode-0", 0].rates, effects

    computed = partial(Computed, num_prompt_tokens=500, num_cached_tokens=320)
    start = partial(Start, status=200, headers=())
    *alone, _ = taught(computed, start)
    *within, effects = taught(partial(start, num_prompt_tokens=500, num_cached_tokens=320))
    assert alone == within and within[0] == 320
    assert isinstance(only(effects, fl.Begin), fl.Begin)
    assert taught(start)[:2] != tuple(within)  # what is not told is not known


def test_an_error_answered_by_the_prefill_workers_app_passes_through() -> None:
    world = World()
    (prefill,) = sent(world.apply(fl.Arrived(flight(1))), Submit)
    assert only(world.apply(Start(prefill.rid, 400, ())), fl.Begin).start.status == 400  # type: ignore[union-attr]
    world.apply(End(prefill.rid))
    assert world.fleet.workers["decode-0", 0].num_decodes == 0


def test_a_failed_decode_is_tried_again_elsewhere_and_its_ticket_released() -> None:
    world = World(num_decode=2)
    request = flight(1)
    rid, _ = split(world, request)
    first = world.flights.legs[rid].worker.key
    effects = world.apply(Failed(rid, "ticket is old", True))
    assert sent(effects, Release)
    (again,) = sent(effects, Submit)
    assert again.leg == Leg.PREFILL
    assert request.demand.avoid == {first}


def test_where_it_failed_it_goes_again_only_once_nobody_else_is_left() -> None:
    world = World(num_prefill=0, num_decode=2)
    request = flight(1)
    (submit,) = sent(world.apply(fl.Arrived(request)), Submit)
    first = world.flights.legs[submit.rid].worker.key
    (other,) = {("decode-0", 0), ("decode-1", 0)} - {first}
    world.fleet.workers[other].num_decodes = world.fleet.workers[other].caps.max_decodes
    assert not sent(world.apply(Failed(submit.rid, "no", True)), Submit), "it waits for the other one"
    assert sent(world.lose(other), Submit)


def test_after_hand_overs_failed_it_runs_whole_and_then_fails_for_real() -> None:
    world = World()
    request = flight(1)
    effects = world.apply(fl.Arrived(request))
    legs = []
    while submits := sent(effects, Submit):
        legs.append(submits[0].leg)
        effects = world.apply(Failed(submits[0].rid, "no", True))
    assert legs == [Leg.PREFILL, Leg.WHOLE, Leg.WHOLE]
    assert only(effects, fl.Reject).error.status == 502  # type: ignore[union-attr]


def test_a_stream_whose_tokens_are_not_told_is_broken_off() -> None:
    world = World(num_decode=2)
    rid, _ = split(world, flight(1))
    world.apply(Start(rid, 200, ()))
    lost = world.flights.legs[rid].worker.key
    broken = only(world.lose(lost), fl.Break)
    assert isinstance(broken, fl.Break) and "cannot be continued" in broken.error.message


def begin(world: World, request: Flight, num_tokens: int = 3) -> tuple[int, Key]:
    """Up to a stream of which some tokens are told. Returns (rid, who decodes)."""
    rid, _ = split(world, request)
    world.apply(Start(rid, 200, (), b"ab", pack([7]), 1234))
    request.output_ids += b"".join(pack([7]) for _ in range(num_tokens - 1))
    request.num_sent_bytes += 10
    return rid, world.flights.legs[rid].worker.key


def test_a_stream_is_taken_up_elsewhere_behind_what_its_client_has() -> None:
    world = World(num_decode=2)
    request = flight(1)
    rid, lost = begin(world, request)
    effects = world.lose(lost)
    assert only(effects, fl.Suspend) == fl.Suspend(request, rid)
    (prefill,) = sent(effects, Submit)
    assert prefill.resume == Resume(pack([7]) * 3, 12, 1234, 1)
    assert prefill.body == request.submit.body and not prefill.wants_trace
    assert request.demand.num_tokens == 503
    (decode,) = sent(world.apply(Prefilled(prefill.rid, ticket("u", ("prefill-0", 0)), 0)), Submit)
    assert decode.resume == prefill.resume
    assert world.flights.legs[decode.rid].worker.key != lost
    start = Start(decode.rid, 200, (), b"c", pack([8]))
    assert only(world.apply(start), fl.Continue) == fl.Continue(request, start)
    world.apply(End(decode.rid, 500, 0, 5))
    assert not world.flights.open and not world.flights.legs


def test_one_that_waits_for_a_worker_is_broken_off_at_its_deadline() -> None:
    world = World()
    request = flight(1)
    begin(world, request)
    world.lose(("prefill-0", 0))
    effects = world.lose(("decode-0", 0))
    assert not sent(effects, Submit) and request.state is State.QUEUED
    world.now = 31.0
    assert only(world.apply(fl.Tick()), fl.Break).error.status == 503  # type: ignore[union-attr]


def test_a_worker_that_returns_under_a_new_generation_may_go_on() -> None:
    world = World()
    request = flight(1)
    begin(world, request)
    world.lose(("prefill-0", 0))
    world.lose(("decode-0", 0))
    bring_up(world.fleet, "decode-0", 1)
    (submit,) = sent(world.apply(fl.RoomMade()), Submit)
    assert submit.resume is not None


def test_a_failure_that_no_retry_mends_breaks_a_stream_off() -> None:
    world = World(num_decode=2)
    rid, _ = begin(world, flight(1))
    assert isinstance(only(world.apply(Failed(rid, "it is broken", False)), fl.Break), fl.Break)


def test_a_request_that_kills_its_engines_does_not_meet_all_of_them() -> None:
    world = World(num_decode=2)
    request = flight(1)
    rid, _ = begin(world, request)
    for _ in range(MAX_RESUMED):
        (prefill,) = sent(world.apply(Failed(rid, "engine died", True)), Submit)
        (decode,) = sent(world.apply(Prefilled(prefill.rid, None, 0)), Submit)
        rid = decode.rid
        world.apply(Start(rid, 200, (), b"c", pack([8])))
    assert isinstance(only(world.apply(Failed(rid, "engine died", True)), fl.Break), fl.Break)


def test_bodies_over_the_limit_are_not_kept() -> None:
    world = World(num_decode=2, limits=Limits(max_total_resumable_bytes=3))
    first, second = flight(1), flight(2)
    begin(world, first)
    _, lost = begin(world, second)
    assert (first.kept_bytes, second.kept_bytes) == (2, 0)
    assert isinstance(only(world.lose(lost), fl.Break), fl.Break)


def test_a_dead_holder_means_prefilling_again_at_once() -> None:
    world = World(num_prefill=2)
    rid, _ = split(world, flight(1))
    effects = world.lose(("prefill-0", 0))
    assert [m.rid for m in sent(effects, Cancel)] == [rid]
    (again,) = sent(effects, Submit)
    assert again.leg == Leg.PREFILL
    world.apply(Cancelled(rid))
    assert world.fleet.workers["decode-0", 0].num_decodes == 1


def test_a_client_that_leaves_is_cancelled_and_a_crossing_ticket_released() -> None:
    world = World()
    request = flight(1)
    (prefill,) = sent(world.apply(fl.Arrived(request)), Submit)
    effects = world.apply(fl.ClientGone(request))
    assert [m.rid for m in sent(effects, Cancel)] == [prefill.rid]
    assert sent(world.apply(Prefilled(prefill.rid, ticket("t", ("prefill-0", 0)), 0)), Release)
    assert not world.flights.legs
    assert world.fleet.workers["decode-0", 0].num_decodes == 0


def test_nobody_there_is_503_and_a_full_queue_429() -> None:
    world = World(num_decode=0)
    assert only(world.apply(fl.Arrived(flight(1))), fl.Reject).error.status == 503  # type: ignore[union-attr]
    world = World()
    world.fleet.workers["decode-0", 0].num_decodes = 4
    for number in range(8):
        assert not world.apply(fl.Arrived(flight(number)))
    assert only(world.apply(fl.Arrived(flight(9))), fl.Reject).error.status == 429  # type: ignore[union-attr]


def test_every_wait_has_a_deadline() -> None:
    world = World()
    (prefill,) = sent(world.apply(fl.Arrived(flight(1))), Submit)
    world.now = 200.0
    effects = world.apply(fl.Tick())
    assert sent(effects, Cancel)[0].rid == prefill.rid
    assert only(effects, fl.Reject).error.status == 504  # type: ignore[union-attr]


TEXT_BYTES = 5


def text(first: int, last: int) -> bytes:
    """Of these tokens: what an engine makes of them is the same everywhere."""
    return b"".join(b"%04d " % token for token in range(first, last))


@dataclass
class Answering:
    """A leg on its worker: how many tokens it has made, and how much text it has sent of them."""

    num_tokens: int
    num_bytes: int

    def more(self, num_tokens: int, num_held: int) -> tuple[bytes, bytes]:
        """Text of the last tokens may be held back. Returns (bytes, token ids)."""
        ids = pack(range(self.num_tokens, self.num_tokens + num_tokens))
        self.num_tokens += num_tokens
        shown = text(0, self.num_tokens - num_held)[self.num_bytes :]
        self.num_bytes += len(shown)
        return shown, ids


class Histories(RuleBasedStateMachine):
    """Arrivals, answers, failures, losses and returns in any order. Answers reach their clients as they do live."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(2, 2)
        self.requests: list[Flight] = []
        self.ends: dict[int, int] = {}
        self.num_tickets = 0
        self.streams = Streams(Totals())
        self.answering: dict[int, Answering] = {}  # by rid, those that are over included
        self.read: dict[int, bytearray] = {}  # by flight, what its client has

    def run(self, event: fl.Event) -> None:
        self.take(self.world.apply(event))

    def take(self, effects: list[fl.Effect]) -> None:
        for effect in effects:
            if isinstance(effect, fl.Finish | fl.Reject | fl.Break | fl.Drop):
                self.ends[effect.flight.id] = self.ends.get(effect.flight.id, 0) + 1
                self.streams.end(effect.flight)
            elif isinstance(effect, fl.Send) and isinstance(effect.message, Submit):
                assert effect.worker in self.world.fleet.workers, "nobody else would ever answer"
                resume = effect.message.resume or Resume(b"", 0, 0, 0)
                had = [token for group in groups(resume.output_ids) for token in group]
                assert had == list(range(len(had))), "the tokens of an answer so far, each once"
                self.answering[effect.message.rid] = Answering(len(had), resume.num_bytes)
            elif isinstance(effect, fl.Begin):
                read = self.read[effect.flight.id] = bytearray(effect.start.data)
                stream = Stream(effect.flight, read.extend, 200, self.world.now)
                self.streams.begin(effect.start.rid, stream)
            elif isinstance(effect, fl.Suspend):
                self.streams.suspend(effect.rid)
            elif isinstance(effect, fl.Continue):
                self.streams.go_on(effect.start, effect.flight)

    def legs(self, *kinds: str) -> list[int]:
        return [rid for rid, leg in self.world.flights.legs.items() if leg.kind in kinds]

    @rule(num_tokens=st.integers(1, 3000))
    def arrive(self, num_tokens: int) -> None:
        self.requests.append(flight(len(self.requests), num_tokens))
        self.run(fl.Arrived(self.requests[-1]))

    @precondition(lambda self: self.legs(Leg.PREFILL))
    @rule(data=st.data(), with_ticket=st.booleans())
    def prefilled(self, data: st.DataObject, with_ticket: bool) -> None:
        rid = data.draw(st.sampled_from(self.legs(Leg.PREFILL)))
        leg = self.world.flights.legs[rid]
        self.num_tickets += 1
        granted = ticket(f"t{self.num_tickets}", leg.worker.key) if with_ticket else None
        self.run(Prefilled(rid, granted, 0))

    @precondition(lambda self: self.legs(Leg.DECODE, Leg.WHOLE))
    @rule(data=st.data(), then=st.sampled_from(["start", "start", "end", "fail", "refuse", "cancelled"]))
    def answered(self, data: st.DataObject, then: str) -> None:
        rid = data.draw(st.sampled_from(self.legs(Leg.DECODE, Leg.WHOLE)))
        leg = self.world.flights.legs[rid]
        started = leg.flight.state is State.STREAMING
        if leg.cancelled:
            self.run(Cancelled(rid))
        elif then == "start" and not started:
            told, ids = self.answering[rid].more(data.draw(st.integers(1, 3)), 0)
            tells_ids = leg.flight.begun or data.draw(st.booleans())
            self.run(Start(rid, 200, (), told, ids if tells_ids else b""))
        elif then == "end" and started:
            self.run(End(rid))
        elif then in ("fail", "refuse"):
            self.run(Failed(rid, "no", then == "fail"))

    @initialize()
    def some_streams(self) -> None:
        """The way there is long for chance alone."""
        for _ in range(2):
            self.arrive(500)
        for _ in range(3):
            self.all_goes_on()

    @rule()
    def all_goes_on(self) -> None:
        """Every leg takes its next step as it should."""
        for rid, leg in list(self.world.flights.legs.items()):
            if leg.cancelled:
                self.run(Cancelled(rid))
            elif leg.kind == Leg.PREFILL:
                self.num_tickets += 1
                self.run(Prefilled(rid, ticket(f"t{self.num_tickets}", leg.worker.key), 0))
            elif leg.flight.state is State.DECODE:
                self.run(Start(rid, 200, (), *self.answering[rid].more(2, 1)))
            else:
                self.streams.on_chunk(Chunk(rid, *self.answering[rid].more(2, 1)), self.world.now)

    @precondition(lambda self: self.answering)
    @rule(data=st.data(), num_tokens=st.integers(0, 3), num_held=st.integers(0, 2))
    def chunk(self, data: st.DataObject, num_tokens: int, num_held: int) -> None:
        """Of a leg that answers, or late of one that does not any more."""
        rid = data.draw(st.sampled_from(sorted(self.answering)))
        leg = self.world.flights.legs.get(rid)
        if leg is None or (leg.kind != Leg.PREFILL and leg.flight.leg == rid and leg.flight.state is State.STREAMING):
            self.streams.on_chunk(Chunk(rid, *self.answering[rid].more(num_tokens, num_held)), self.world.now)

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        self.run(fl.ClientGone(data.draw(st.sampled_from(self.requests))))

    @rule(name=st.sampled_from(["prefill-0", "prefill-1", "decode-0", "decode-1"]))
    def lose_or_return(self, name: str) -> None:
        if (name, 0) in self.world.fleet.workers:
            self.take(self.world.lose((name, 0)))
        else:
            bring_up(self.world.fleet, name)
            self.run(fl.RoomMade())

    @rule(seconds=st.sampled_from([0.1, 0.1, 0.1, 20.0, 130.0]))
    def wait(self, seconds: float) -> None:
        self.world.now += seconds
        self.run(fl.Tick())

    @invariant()
    def loads_are_those_of_the_legs(self) -> None:
        legs = self.world.flights.legs.values()
        for worker in self.world.fleet.workers.values():
            due = [leg for leg in legs if leg.worker is worker and leg.kind != Leg.DECODE and leg.computed_at is None]
            assert worker.num_prompts == len(due)
            assert worker.prefill_tokens == sum(leg.compute_tokens for leg in due)
            places = [leg.flight for leg in legs if leg.place is worker]
            assert worker.num_decodes == len(places)
            assert worker.held_tokens == sum(flight.held_tokens for flight in places)
            begun = [leg.flight for leg in legs if leg.place is worker and leg.begun]
            assert worker.begun_tokens == sum(flight.held_tokens for flight in begun)
            held = [t for t in self.world.flights.tickets if holder_of(t) == worker.key]
            pinned = sum(t.num_blocks for t in held)
            assert worker.pinned_blocks == pinned

    @invariant()
    def no_ticket_outlives_its_holder_or_its_leg(self) -> None:
        waiting = {leg.ticket for leg in self.world.flights.legs.values()}
        for opened in self.world.flights.tickets:
            assert holder_of(opened) in self.world.fleet.workers
            assert opened.id in waiting

    @invariant()
    def every_client_reads_one_text(self) -> None:
        for read in self.read.values():
            assert read == text(0, len(read) // TEXT_BYTES)

    @invariant()
    def bodies_are_kept_for_streams_alone(self) -> None:
        kept = sum(flight.kept_bytes for flight in self.world.flights.open.values())
        assert self.world.flights.resumables.num_bytes == kept

    @invariant()
    def every_request_ends_exactly_once(self) -> None:
        for request in self.requests:
            ended = self.ends.get(request.id, 0)
            assert ended == (0 if request.id in self.world.flights.open else 1)


Histories.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestHistories = Histories.TestCase


def test_an_illegal_step_tells_the_story() -> None:
    request = flight(1)
    request.move(State.PREFILL, 1.0)
    with pytest.raises(
        RuntimeError, match=r"req-1: no step to prefill after queued until 1\.000 -> prefill until 2\.000"
    ):
        request.move(State.PREFILL, 2.0)


# ---------------------------------------------------------------- batches


def of_batch(number: int, **changes: object) -> Flight:
    made = flight(number, **changes)
    made.submit = msgspec.structs.replace(made.submit, priority=1)
    return made


def placed(world: World) -> list[str]:
    return [record.flight.request_id for record in world.flights.legs.values()]


def test_a_batch_takes_every_place_while_nobody_else_asks() -> None:
    world = World(num_prefill=0)
    for number in range(6):
        world.apply(fl.Arrived(of_batch(number, num_tokens=10)))
    assert len(placed(world)) == 4 and len(world.flights.queue) == 2


def test_online_requests_overtake_those_of_a_batch_and_find_a_queue_of_their_own() -> None:
    world = World(num_prefill=0)
    batch = [of_batch(number, num_tokens=10) for number in range(14)]
    effects = [world.apply(fl.Arrived(one)) for one in batch]
    assert [only(found, fl.Reject).error.code for found in effects[12:]] == ["queue_full"] * 2
    online = flight(100, num_tokens=10)
    assert not world.apply(fl.Arrived(online))
    first = next(iter(world.flights.legs))
    world.apply(Start(first, 200, (), b""))
    world.apply(End(first))
    assert placed(world)[-1] == "req-100" and batch[4].state is State.QUEUED
    world.now = 7.0
    for rid in list(world.flights.legs):
        world.apply(Start(rid, 200, (), b""))
        world.apply(End(rid))
    assert batch[4].waited_s == 7.0 and online.waited_s == 0.0


def test_after_an_online_request_a_batch_leaves_room_for_the_next() -> None:
    world = World(num_prefill=0, num_decode=2)
    for worker in world.fleet.workers.values():
        worker.caps = PoolCaps(max_prefill_tokens=4096, max_decodes=8)
    world.apply(fl.Arrived(flight(100, num_tokens=10)))
    for number in range(20):
        world.apply(fl.Arrived(of_batch(number, num_tokens=10)))
    assert len(placed(world)) == 14
    world.now = YIELD_S + 1.0
    world.apply(fl.RoomMade())
    assert len(placed(world)) == 16


def test_a_batch_hears_of_a_worker_that_was_lost_under_its_request() -> None:
    world = World(num_prefill=0, num_decode=2)
    world.apply(fl.Arrived(of_batch(1, num_tokens=10)))
    (leg,) = world.flights.legs.values()
    assert only(world.lose(leg.worker.key), fl.Reject).error.code == "worker_failed"
