"""Whose turn it is among requests that wait, and who may not wait at all."""

from __future__ import annotations

import itertools
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.errors import ApiError, QueueFull, TooBusy
from proxy.fleet.worker import Worker
from proxy.flights import flight_events as ev
from proxy.flights.admission import MOST_RETRY_AFTER_S, expected_wait_s
from proxy.flights.flight import Flight
from proxy.flights.flights import Flights
from proxy.flights.waiting import MAX_TRIED, OVERTAKEN_S, Ahead, Waiting, cost_of
from proxy.spec import Limits
from tests.unit.proxies import flight
from tests.unit.test_flights import World, sent
from workers.protocol import End, Start, Submit

ids = itertools.count(1)


def request(account: str = "ann", num_tokens: int = 500, *, batch: bool = False) -> Flight:
    made = flight(next(ids), num_tokens)
    made.account = account
    if batch:
        made.submit = Submit(0, made.request_id, "whole", "POST", "/v1/completions", b"", (), b"{}", priority=1)
    return made


def add(queue: Waiting, *flights: Flight) -> None:
    for one in flights:
        queue.of(one).add(one)


def take(queue: Waiting, now: float = 0.0) -> Flight:
    """As if everything had room."""
    head = next(queue.turns(now))
    queue.of(head).take(head)
    return head


# ---------------------------------------------------------------- turns


def test_one_key_with_one_kind_of_prompt_is_served_in_order() -> None:
    queue, flights = Waiting(), [request() for _ in range(5)]
    add(queue, *flights)
    assert [take(queue) for _ in flights] == flights


@given(st.lists(st.integers(1, 20_000), min_size=40, max_size=40), st.lists(st.integers(1, 20_000), min_size=40))
def test_two_keys_that_have_something_waiting_get_the_same_share_of_work(ann: list[int], ben: list[int]) -> None:
    queue, served = Waiting(), Counter[str]()
    add(queue, *(request("ann", size) for size in ann), *(request("ben", size) for size in ben))
    left = {"ann": len(ann), "ben": len(ben)}
    largest = max(map(cost_of, (request("x", size) for size in (*ann, *ben))))
    while all(left.values()):
        taken = take(queue)
        served[taken.account] += cost_of(taken)
        left[taken.account] -= 1
        assert abs(served["ann"] - served["ben"]) <= 2 * largest


def test_who_comes_later_does_not_wait_behind_all_of_another_s_requests_nor_before_them() -> None:
    queue = Waiting()
    add(queue, *(request("ann") for _ in range(50)))
    for _ in range(20):
        take(queue)
    add(queue, *(request("ben") for _ in range(10)))
    assert Counter(take(queue).account for _ in range(10)) == {"ann": 5, "ben": 5}


def test_short_prompts_of_a_key_do_not_wait_behind_all_of_its_long_ones_nor_the_other_way_round() -> None:
    queue = Waiting()
    add(queue, *(request(num_tokens=30_000) for _ in range(20)), *(request(num_tokens=100) for _ in range(400)))
    sizes = Counter(take(queue).demand.num_tokens for _ in range(170))
    assert sizes[100] > 80 and sizes[30_000] >= 1
    assert 0.5 < sizes[30_000] * 30_256 / (sizes[100] * 356) < 2


def test_a_batch_waits_for_all_others_and_what_was_tried_before_goes_first() -> None:
    queue, late, online, again = Waiting(), request(batch=True), request("ben"), request("cid")
    add(queue, late, online)
    queue.of(again).again(again)
    assert [take(queue) for _ in range(3)] == [again, online, late]
    assert len(queue) == 0 and list(queue.turns(0.0)) == []


def test_a_long_prompt_that_fits_nowhere_lets_shorter_ones_pass_for_a_while_and_no_longer() -> None:
    queue, long = Waiting(), request("ann", 30_000)
    short = [request(name, 100) for name in ("ann", "ben", "cid", "dan", "eve")]
    add(queue, long, *short)
    tried = list(queue.turns(10.0))
    assert tried[0] is long and len(tried) == 1 + MAX_TRIED and set(tried[1:]) < set(short)
    assert next(queue.turns(10.0 + OVERTAKEN_S)) is long
    assert list(queue.turns(10.1 + OVERTAKEN_S)) == [long], "from here on room is kept for it"


def test_who_is_no_smaller_does_not_pass() -> None:
    queue, head = Waiting(), request("ann")
    add(queue, head, request("ben"), request("cid", 600))
    assert list(queue.turns(0.0)) == [head]


class Queues(RuleBasedStateMachine):
    """Whatever comes and goes: each request is in the queue once or has left it once."""

    def __init__(self) -> None:
        super().__init__()
        self.queue, self.inside, self.now = Waiting(), list[Flight](), 0.0

    @rule(account=st.sampled_from("abc"), size=st.integers(1, 40_000), batch=st.booleans())
    def come(self, account: str, size: int, batch: bool) -> None:
        made = request(account, size, batch=batch)
        add(self.queue, made)
        self.inside.append(made)

    @precondition(lambda self: self.inside)
    @rule()
    def serve(self) -> None:
        taken = take(self.queue, self.now)
        assert not taken.of_batch or all(one.of_batch for one in self.inside)
        self.inside.remove(taken)

    @precondition(lambda self: self.inside)
    @rule(which=st.integers(0, 1000), again=st.booleans())
    def leave_or_come_again(self, which: int, again: bool) -> None:
        one = self.inside.pop(which % len(self.inside))
        self.queue.of(one).remove(one)
        if again:
            self.queue.of(one).again(one)
            self.inside.append(one)

    @precondition(lambda self: self.inside)
    @rule()
    def turn_the_last_away(self) -> None:
        lane = self.queue.of(self.inside[-1])
        if any(account.num for account in lane.accounts.values()):
            one = lane.greediest()
            lane.remove(one)
            self.inside.remove(one)

    @rule(seconds=st.floats(0.0, 5.0))
    def wait(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def nobody_is_lost_and_somebody_has_a_turn(self) -> None:
        assert len(self.queue) == len(self.inside) and Counter(map(id, self.queue)) == Counter(map(id, self.inside))
        turns = list(self.queue.turns(self.now))
        assert bool(turns) == bool(self.inside)
        assert len(set(map(id, turns))) == len(turns) and all(one in self.inside for one in turns)


TestQueues = Queues.TestCase


# ---------------------------------------------------------------- admission


def taught(world: World, answer_s: float = 1.0) -> Worker:
    """A worker whose answers are known to take so long."""
    worker = world.fleet.workers["decode-0", 0]
    for _ in range(200):
        worker.rates.answer_tokens.learn(100)
        worker.rates.step.learn(0, answer_s / 100)
    return worker


def errors(effects: list[ev.Effect]) -> list[ApiError]:
    return [effect.error for effect in effects if isinstance(effect, ev.Reject)]


def arrive(world: World, *flights: Flight) -> list[ApiError]:
    return [error for one in flights for error in errors(world.apply(ev.Arrived(one)))]


PATIENT = Limits(max_queued=10_000)


def test_while_too_little_is_known_everybody_may_wait() -> None:
    world = World(limits=PATIENT)
    assert arrive(world, *(request() for _ in range(500))) == []


def test_where_nobody_serves_but_somebody_will_everybody_may_wait() -> None:
    world = World(limits=PATIENT)
    taught(world)
    world.fleet.awaited = True
    world.lose(("decode-0", 0))
    assert arrive(world, *(request() for _ in range(500))) == []


def test_who_cannot_be_served_before_the_deadline_is_told_at_once_and_when_to_come_again() -> None:
    """Four places, a second each, thirty seconds of patience."""
    world = World(limits=PATIENT)
    taught(world)
    refused = arrive(world, *(request(num_tokens=100) for _ in range(200)))
    assert {type(error) for error in refused} == {TooBusy}
    assert 100 < len(world.flights.queue) <= 4 * 30
    [(name, value)] = refused[-1].headers
    assert name == b"retry-after" and 1 <= int(value) <= MOST_RETRY_AFTER_S


def test_who_has_asked_for_little_is_let_in_where_another_has_filled_the_time() -> None:
    world = World(limits=PATIENT)
    taught(world)
    arrive(world, *(request("ann", 100) for _ in range(200)))
    assert arrive(world, *(request("ben", 100) for _ in range(10))) == []
    assert arrive(world, request("ann", 100)), "but not the one who did"


def test_a_batch_is_patient() -> None:
    world = World(limits=PATIENT)
    taught(world)
    assert arrive(world, *(request(batch=True, num_tokens=100) for _ in range(300))) == []


def test_a_full_queue_turns_away_the_last_of_the_key_that_has_most_in_it() -> None:
    world = World(limits=Limits(max_queued=8))
    flood = [request("ann") for _ in range(4 + 8)]
    assert arrive(world, *flood) == []
    other = request("ben")
    effects = world.apply(ev.Arrived(other))
    [rejected] = [effect for effect in effects if isinstance(effect, ev.Reject)]
    assert rejected.flight is flood[-1] and isinstance(rejected.error, QueueFull)
    assert other.id in world.flights.open and flood[-1].id not in world.flights.open


@given(st.integers(1, 400), st.integers(1, 400), st.floats(0.05, 20.0))
def test_more_work_ahead_is_a_longer_wait(one: int, more: int, answer_s: float) -> None:
    world = World()
    taught(world, answer_s)
    few = expected_wait_s(world.fleet, Ahead(one, one * 500), 0.0)
    many = expected_wait_s(world.fleet, Ahead(one + more, (one + more) * 500), 0.0)
    assert few is not None and many is not None and 0 < few < many


def serve_all(flights: Flights, world: World, answer_s: float) -> dict[int, float]:
    """Every answer takes as long as was learned. When each of those that were let in got its place."""
    places: dict[int, float] = {}
    due: list[tuple[float, int]] = []
    started: list[Submit] = []

    def note(effects: list[ev.Effect]) -> None:
        started.extend(sent(effects, Submit))

    def begin() -> None:
        while started:
            submit = started.pop()
            leg = flights.legs.get(submit.rid)
            assert leg is not None
            places.setdefault(leg.flight.id, world.now)
            note(world.apply(Start(submit.rid, 200, ())))
            due.append((world.now + answer_s, submit.rid))

    for one in [request(num_tokens=40, account=f"key {number % 7}") for number in range(300)]:
        note(world.apply(ev.Arrived(one)))
    begin()
    while due:
        due.sort(reverse=True)
        world.now, rid = due.pop()
        note(world.apply(ev.Tick()))
        note(world.apply(End(rid, 40, 0, 100)))
        begin()
    return places


def test_whoever_is_let_in_is_served_before_the_deadline() -> None:
    world = World(num_prefill=0, limits=PATIENT)
    taught(world)
    served = serve_all(world.flights, world, answer_s=1.0)
    assert not world.flights.open and max(served.values()) <= 30.0
    assert len(served) > 100, "and nearly as many are let in as can be"
