"""Turns to read a model: never too many at once, none lost, in the order of asking, and everyone gets one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.fleet.turns import SETTLE_S, Event, First, Gone, Looked, Told, Turns
from proxy.fleet.worker import Key
from workers.agent.turn import OwnTurn
from workers.protocol import Turn

A, B, C = (("decode-0", 0), ("decode-1", 0), ("decode-2", 1))
WORKERS = [(f"w-{number}", 0) for number in range(6)]


def first(max_loading: int) -> Turns:
    turns = Turns(max_loading)
    turns.apply(First(True), -SETTLE_S)
    return turns


def test_the_next_one_reads_when_the_first_has_read() -> None:
    turns = first(1)
    assert turns.apply(Told(A, Turn.WAITS), 1.0) == [A]
    assert turns.apply(Told(B, Turn.WAITS), 2.0) == []
    assert turns.apply(Told(C, Turn.WAITS), 3.0) == []
    assert (turns.reads(A), turns.before(B), turns.before(C), turns.before(A)) == (True, 0, 1, None)
    assert turns.apply(Told(A, Turn.READS), 4.0) == []
    assert turns.apply(Told(A, Turn.NONE), 5.0) == [B]
    assert turns.apply(Gone(B), 6.0) == [C], "who is lost reads no more"


def test_who_has_waited_longest_comes_first_whomever_it_asked() -> None:
    """The proxy was started again, and its workers came back in another order."""
    turns = Turns(1)
    turns.apply(First(True), 100.0)
    turns.apply(Told(A, Turn.WAITS, 5.0), 101.0)
    turns.apply(Told(B, Turn.WAITS, 60.0), 102.0)
    assert turns.apply(Looked(), 100.0 + SETTLE_S - 0.1) == [], "one that reads may be on its way back"
    assert turns.apply(Looked(), 100.0 + SETTLE_S) == [B]


def test_one_that_reads_already_is_counted_when_it_comes_back() -> None:
    turns = Turns(1)
    turns.apply(First(True), 0.0)
    turns.apply(Told(A, Turn.WAITS), 1.0)
    turns.apply(Told(B, Turn.READS), 2.0)
    assert turns.apply(Looked(), 60.0) == []
    assert turns.apply(Told(B, Turn.NONE), 61.0) == [A]


def test_of_several_processes_one_hands_out_and_the_others_know() -> None:
    other = Turns(1)
    assert other.apply(Told(A, Turn.WAITS), 0.0) == []
    other.apply(Told(A, Turn.READS), 1.0)
    other.apply(Told(B, Turn.WAITS), 2.0)
    assert other.apply(First(True), 3.0) == []
    assert other.apply(Looked(), 99.0) == [], "the first before it had let A read"
    assert other.apply(Gone(A), 99.0) == [B]


def test_of_sixty_four_workers_eight_read_at_a_time_in_the_order_of_asking() -> None:
    turns = first(8)
    asking = [(f"decode-{number}", 0) for number in range(64)]
    reading: list[Key] = []
    for at, key in enumerate(asking):
        reading += turns.apply(Told(key, Turn.WAITS), float(at))
    for number in range(64):
        assert reading == asking[number : number + 8]
        reading += turns.apply(Told(reading.pop(0), Turn.NONE), 100.0 + number)
    assert reading == []


class Fleet(RuleBasedStateMachine):
    """Agents that ask, read, finish and vanish; the proxy's process is first, then not, then first again."""

    @initialize(max_loading=st.integers(1, 3))
    def start(self, max_loading: int) -> None:
        self.max_loading = max_loading
        self.turns = Turns(max_loading)
        self.now = 0.0
        self.is_first = False
        self.waiting: list[Key] = []  # in the order of asking
        self.told: set[Key] = set()  # have a turn
        self.strangers: set[Key] = set()  # of these, read without having been let

    def apply(self, event: Event) -> None:
        given = self.turns.apply(event, self.now)
        assert given == self.waiting[: len(given)], "the order of asking"
        assert not given or self.is_first
        del self.waiting[: len(given)]
        self.told.update(given)

    @rule(seconds=st.floats(0.1, 10.0))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.apply(Looked())

    @rule(is_first=st.booleans())
    def another_family(self, is_first: bool) -> None:
        self.is_first = is_first
        self.apply(First(is_first))

    @rule(key=st.sampled_from(WORKERS))
    def asks(self, key: Key) -> None:
        self.now += 0.01
        if key not in self.waiting and key not in self.told:
            self.waiting.append(key)
        self.apply(Told(key, Turn.WAITS))

    @rule(key=st.sampled_from(WORKERS))
    def reads_unasked(self, key: Key) -> None:
        if key in self.waiting:
            self.waiting.remove(key)
        if key not in self.told:
            self.strangers.add(key)
        self.told.add(key)
        self.apply(Told(key, Turn.READS))

    @precondition(lambda self: self.told)
    @rule(data=st.data(), lost=st.booleans())
    def ends(self, data: st.DataObject, lost: bool) -> None:
        key = data.draw(st.sampled_from(sorted(self.told)))
        self.told.discard(key)
        self.strangers.discard(key)
        self.apply(Gone(key) if lost else Told(key, Turn.NONE))

    @invariant()
    def never_too_many(self) -> None:
        assert len(self.told - self.strangers) <= self.max_loading
        assert {key for key in WORKERS if self.turns.reads(key)} == self.told, "none is lost"
        assert [self.turns.before(key) for key in self.waiting] == list(range(len(self.waiting)))

    def teardown(self) -> None:
        """Whoever still waits gets a turn once those before it have read."""
        if not hasattr(self, "turns"):
            return
        self.is_first = True
        self.apply(First(True))
        self.now += SETTLE_S
        self.apply(Looked())
        while self.told:
            for key in sorted(self.told):
                self.told.discard(key)
                self.strangers.discard(key)
                self.apply(Told(key, Turn.NONE))
        assert not self.waiting


TestFleet = Fleet.TestCase
TestFleet.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)


# ---------------------------------------------------------------- the agent's side


def waits(own: OwnTurn, linked: Callable[[], bool], *, give: bool) -> None:
    async def both() -> None:
        own.ask()
        assert (own.state, own.waited_s >= 0) == (Turn.WAITS, True)
        waiting = asyncio.ensure_future(own.come(linked))
        await asyncio.sleep(0)
        if give:
            own.give()
        await waiting

    asyncio.run(both())
    assert (own.state, own.waited_s) == (Turn.READS, 0.0)


def test_an_agent_waits_for_the_word_and_says_once_that_it_has_read() -> None:
    own = OwnTurn(alone_s=1e9, look_every_s=1e9)
    waits(own, lambda: True, give=True)
    assert own.end() and own.state == Turn.NONE
    assert not own.end()


def test_a_word_that_comes_too_late_changes_nothing() -> None:
    own = OwnTurn(alone_s=1e9, look_every_s=1e9)
    own.give()
    assert own.state == Turn.NONE
    waits(own, lambda: True, give=True)


def test_without_a_proxy_nobody_waits_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    waits(OwnTurn(alone_s=0.02, look_every_s=0.005), lambda: False, give=False)
    assert "not waiting for a turn any longer" in caplog.text
