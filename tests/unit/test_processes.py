"""Which processes live and who takes connections from where: scenarios, and random histories with invariants."""

from __future__ import annotations

from collections.abc import Iterable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from proxy.fleet.worker import Life
from proxy.processes import process_events as ev
from proxy.processes.family import AcceptOn, Family, Leave
from proxy.processes.processes import (
    ACCEPT_S,
    FIRST_DELAY_S,
    HANDOVER_TIMEOUT_S,
    KILL_AFTER_S,
    LAG_S,
    OPEN_TIMEOUT_S,
    STOP_GRACE_S,
    Processes,
)
from workers.links.proxy_file import ProxyFile
from workers.protocol import PROXY_SILENCE_S

A: Life = ("decode-0", 0, "i")
B: Life = ("decode-1", 0, "i")
GRACE_S = 1800.0


def file(number: int) -> ProxyFile:
    return ProxyFile(f"p0.{number}", (f"tcp://10.0.0.1:{5000 + number}",), "key", "http://10.0.0.1:80", 1000 + number)


class World:
    """The core, and what its processes have been told."""

    def __init__(self, num_slots: int = 2, **changes: object) -> None:
        self.core = Processes(num_slots, GRACE_S, **changes)  # type: ignore[arg-type]
        self.now = 0.0
        self.started: list[ev.Start] = []
        self.accepts: dict[int, tuple[int, ...]] = {}
        self.families: dict[int, Family] = {}
        self.leaving: dict[int, Leave] = {}
        self.killed: list[int] = []
        self.end: ev.End | None = None
        self.apply(ev.Tick())

    def apply(self, event: ev.Event, after_s: float = 0.0) -> None:
        self.now += after_s
        for effect in self.core.apply(event, self.now):
            match effect:
                case ev.Start():
                    self.started.append(effect)
                case ev.Kill(number):
                    self.killed.append(number)
                case ev.End():
                    assert self.end is None
                    self.end = effect
                case ev.Say(number, message):
                    assert self.core.live[number].file is not None, "it does not listen yet"
                    self._say(number, message)

    def _say(self, number: int, message: object) -> None:
        match message:
            case AcceptOn(slots):
                self.accepts[number] = slots
            case Family():
                self.families[number] = message
            case Leave():
                self.leaving[number] = message
                self.accepts.pop(number, None)  # as it does by itself

    def open(self, number: int, serving: Iterable[Life] = ()) -> None:
        self.apply(ev.Opened(number, file(number)))
        self.see(number, serving)

    def see(self, number: int, serving: Iterable[Life]) -> None:
        lives = frozenset(serving)
        self.apply(ev.Seen(number, lives, frozenset((None, life) for life in lives)))

    def die(self, number: int, after_s: float = 0.0) -> None:
        self.now += after_s
        for told in (self.accepts, self.families, self.leaving):
            told.pop(number, None)  # type: ignore[attr-defined]
        self.apply(ev.Died(number))


def up(**changes: object) -> World:
    """Two processes, which both see one worker."""
    world = World(**changes)  # type: ignore[arg-type]
    world.open(0, [A])
    world.open(1, [A])
    return world


def test_each_takes_connections_from_its_own_socket_as_soon_as_it_is_there() -> None:
    world = World(link_ports=[7001])
    assert world.started == [ev.Start(0, 0, 7001), ev.Start(1, 1, 0)]
    world.open(0)
    assert world.accepts == {0: (0, 1)}  # nobody waits for the other
    world.open(1)
    assert world.accepts == {0: (0,), 1: (1,)}
    assert world.families[0].processes == world.families[1].processes == (file(0), file(1))
    assert [family.proves for family in world.families.values()] == [True, False]


def test_what_one_has_proven_all_are_told() -> None:
    world = World()
    world.open(0, [A])
    world.open(1, [B])
    assert world.families[0].proven == world.families[1].proven == {(None, A), (None, B)}


def test_while_one_is_replaced_another_takes_its_connections() -> None:
    world = up()
    world.die(0)
    assert world.accepts == {1: (1, 0)} or world.accepts == {1: (0, 1)}
    assert world.started[-1] == ev.Start(2, 0, 5000)  # at once, where its links were
    assert world.families[1].proves and world.families[1].ended == ("p0.0",)
    world.open(2)
    assert 2 not in world.accepts, "it sees nobody yet"
    world.see(2, [A])
    assert world.accepts == {1: (1,), 2: (0,)}


def test_one_that_dies_again_and_again_is_started_ever_later() -> None:
    world = World(1)
    world.open(0)
    waited = []
    for number in range(1, 9):
        world.die(world.started[-1].number)
        died_at = world.now
        while world.started[-1].number < number:
            world.apply(ev.Tick(), 0.25)
        waited.append(world.now - died_at)
    assert waited == [0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0]
    world.open(8)
    world.die(8, after_s=3600.0)
    assert world.started[-1].number == 9


def test_without_any_that_came_up_there_is_no_second_try() -> None:
    world = World()
    world.die(0)
    assert world.killed == [1] and world.end is None
    world.die(1)
    assert world.end == ev.End(failed=True)
    assert len(world.started) == 2


def test_a_hand_over_exchanges_one_after_the_other_and_the_successor_sees_as_much_before() -> None:
    world = up()
    world.apply(ev.HandOver())
    assert [start.slot for start in world.started[2:]] == [0]
    world.open(2)
    assert not world.leaving
    world.see(2, [A])
    assert world.leaving == {0: Leave(GRACE_S, at_once=False)}
    assert world.accepts == {1: (1,), 2: (0,)}
    assert file(0) not in world.families[1].processes
    assert world.started[-1] == ev.Start(3, 1, 0)  # the next does not wait for the streams of the one before
    world.open(3, [A])
    assert set(world.leaving) == {0, 1}
    world.die(0)
    world.die(1)
    assert world.accepts == {2: (0,), 3: (1,)}
    assert len(world.started) == 4


def test_a_hand_over_to_one_that_sees_less_is_given_up() -> None:
    world = up()
    world.apply(ev.HandOver())
    world.open(2)
    world.apply(ev.Tick(), HANDOVER_TIMEOUT_S)
    assert world.killed == [2] and not world.leaving
    world.die(2)
    assert world.accepts == {0: (0,), 1: (1,)}
    assert len(world.started) == 3
    world.apply(ev.HandOver())  # may be tried again
    assert len(world.started) == 4


def test_a_successor_that_dies_leaves_everything_as_it_was() -> None:
    world = up()
    world.apply(ev.HandOver())
    world.die(2)
    assert world.accepts == {0: (0,), 1: (1,)} and not world.leaving
    assert len(world.started) == 3


def test_a_hand_over_passes_by_what_is_being_replaced() -> None:
    world = up()
    for number in (0, 2):
        world.die(number)  # the second time it is not started at once
    world.apply(ev.HandOver())
    world.die(3)
    world.apply(ev.Tick(), FIRST_DELAY_S)
    assert [start.slot for start in world.started] == [0, 1, 0, 1, 0]
    assert not world.leaving


def test_where_another_proxy_serves_all_leave_in_their_own_time_and_none_is_started_again() -> None:
    world = up()
    world.apply(ev.Retire())
    assert world.leaving == dict.fromkeys((0, 1), Leave(GRACE_S, at_once=False, accept_s=ACCEPT_S))
    assert world.families[0].processes == (), "nobody is to link to them any more"
    world.apply(ev.Tick(), ACCEPT_S)
    world.die(0)
    assert len(world.started) == 2 and world.end is None and not world.killed
    world.apply(ev.Stop())
    assert world.leaving == {1: Leave(STOP_GRACE_S, at_once=True)}, "there is less time by now"
    world.die(1)
    assert world.end == ev.End(failed=False)


def test_stopping_hurries_those_that_are_leaving_and_ends_when_all_are_gone() -> None:
    world = up()
    world.apply(ev.HandOver())
    world.open(2, [A])
    world.apply(ev.Stop())
    assert set(world.leaving.values()) == {Leave(STOP_GRACE_S, at_once=True)}
    assert set(world.leaving) == {0, 1, 2} and world.killed == [3]  # which had not come up
    for number in (0, 1, 3):
        world.die(number)
    assert world.end is None
    world.apply(ev.Tick(), STOP_GRACE_S + KILL_AFTER_S)
    assert world.killed == [3, 2]
    world.die(2)
    assert world.end == ev.End(failed=False)


def tick_until_silent(world: World, *alive: int) -> None:
    for _ in range(int(PROXY_SILENCE_S / LAG_S) + 1):
        for number in alive:
            world.apply(ev.Heard(number))
        world.apply(ev.Tick(), LAG_S)


def test_one_that_hangs_is_killed_and_the_other_takes_its_connections_meanwhile() -> None:
    world = up()
    tick_until_silent(world, 1)
    assert world.killed == [0]
    assert world.accepts[1] == (0, 1)
    assert world.started[-1] == ev.Start(2, 0, 0)
    world.die(0)
    world.open(2, [A])
    assert world.accepts == {1: (1,), 2: (0,)}


def test_one_that_hangs_while_it_leaves_is_not_waited_for() -> None:
    world = up()
    world.apply(ev.Retire())
    tick_until_silent(world, 0)
    assert world.killed == [1]


def test_silence_is_nobodys_fault_where_the_parent_did_not_run() -> None:
    world = up()
    world.apply(ev.Tick())
    world.apply(ev.Tick(), after_s=10 * PROXY_SILENCE_S)
    assert world.killed == []
    tick_until_silent(world, 0, 1)
    assert world.killed == []


def test_one_that_never_comes_up_is_killed() -> None:
    world = World()
    world.open(0)
    world.apply(ev.Tick(), OPEN_TIMEOUT_S)
    assert world.killed == [1]


class Histories(RuleBasedStateMachine):
    @rule(num_slots=st.integers(1, 3))
    @precondition(lambda self: not hasattr(self, "world"))
    def begin(self, num_slots: int) -> None:
        self.world = World(num_slots)

    def any_of(self, data: st.DataObject) -> int:
        return data.draw(st.sampled_from(sorted(self.world.core.live)))

    def alive(self) -> bool:
        return hasattr(self, "world") and bool(self.world.core.live)

    @precondition(alive)
    @rule(data=st.data(), lives=st.sets(st.sampled_from([A, B])))
    def come_up_or_see(self, data: st.DataObject, lives: set[Life]) -> None:
        number = self.any_of(data)
        if self.world.core.live[number].file is None:
            self.world.open(number, lives)
        else:
            self.world.see(number, lives)

    @precondition(alive)
    @rule(data=st.data())
    def die(self, data: st.DataObject) -> None:
        self.world.die(self.any_of(data))

    @precondition(lambda self: hasattr(self, "world"))
    @rule(seconds=st.sampled_from([0.25, 5.0, 61.0]))
    def wait(self, seconds: float) -> None:
        self.world.apply(ev.Tick(), seconds)

    @precondition(alive)
    @rule()
    def hand_over(self) -> None:
        self.world.apply(ev.HandOver())

    @precondition(lambda self: self.alive() and len(self.world.started) > 6)
    @rule()
    def stop(self) -> None:
        self.world.apply(ev.Stop())

    @precondition(lambda self: self.alive() and len(self.world.started) > 5)
    @rule()
    def retire(self) -> None:
        self.world.apply(ev.Retire())

    @invariant()
    def none_starts_once_another_proxy_serves(self) -> None:
        if hasattr(self, "world") and self.world.core.retiring:
            assert all(process.leaving for process in self.world.core.live.values())

    @invariant()
    def numbers_are_never_used_twice(self) -> None:
        if hasattr(self, "world"):
            numbers = [start.number for start in self.world.started]
            assert numbers == list(range(len(numbers)))

    @invariant()
    def every_socket_is_one_living_processs_business(self) -> None:
        if not hasattr(self, "world") or self.world.core.stopping or self.world.core.retiring:
            return
        staying = [process.number for process in self.world.core.live.values() if process.stays]
        dealt = sorted(slot for number in staying for slot in self.world.accepts.get(number, ()))
        assert dealt == (list(range(self.world.core.num_slots)) if staying else [])
        assert not any(number in self.world.accepts for number in self.world.leaving)

    @invariant()
    def one_at_most_is_exchanged_and_one_proves(self) -> None:
        if not hasattr(self, "world"):
            return
        live = [process for process in self.world.core.live.values() if not process.leaving]
        assert len(live) <= self.world.core.num_slots + 1
        staying = [process.number for process in live if process.file is not None]
        if staying and not self.world.core.stopping:
            assert [number for number in staying if self.world.families[number].proves] == staying[:1]

    @invariant()
    def all_that_stay_know_each_other(self) -> None:
        if not hasattr(self, "world") or self.world.core.stopping or self.world.core.retiring:
            return
        staying = tuple(process.file for process in self.world.core.live.values() if process.stays)
        for process in self.world.core.live.values():
            if process.file is not None:
                assert self.world.families[process.number].processes == staying

    def teardown(self) -> None:
        """It can always be stopped."""
        if hasattr(self, "world") and self.world.end is None:
            self.world.apply(ev.Stop())
            for number in list(self.world.core.live):
                self.world.die(number)
            assert self.world.end is not None


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
