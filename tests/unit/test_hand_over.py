"""Hand-overs: who follows whom and when, event by event, and under random histories of a whole run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import msgspec
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from launcher.control.effects import (
    Cancel,
    DesiredRead,
    Drain,
    Effect,
    FleetSeen,
    QueueRead,
    Record,
    Submit,
    SubmitRefused,
    Submitted,
    Tick,
)
from launcher.control.lead import QUEUE_PRIOR_S, SPREAD, START_PRIOR_S, lead_of
from launcher.control.outlook import CROWDED_S
from launcher.control.reconcile import Reconciler
from launcher.control.succession import CROWD, Policy, is_limited, turns
from launcher.jobs import JobRecord, Row, job_name
from launcher.rundir import SERVE, STOP, Desired
from workers.agent import lifecycle
from workers.agent.walltime import WALLTIME, walltime_drain
from workers.controller_messages import FleetView, WorkerView

RUN = "run"
DRAIN_S = 20.0
LIFE_S = 1000.0
LIMIT = "QOSMaxJobsPerUserLimit"


@dataclass(slots=True)
class Agent:
    """One job as it really is."""

    worker: str
    generation: int
    state: str = "PENDING"
    reason: str = "Priority"
    started_at: float = 0.0
    phase: str = ""
    detail: str = ""
    proven: bool = False
    left_at: float = float("inf")  # when its drain is done
    was_told: bool = False

    @property
    def alive(self) -> bool:
        return self.state in ("PENDING", "RUNNING")

    @property
    def stays(self) -> bool:
        return self.alive and not self.was_told and self.phase != lifecycle.DRAINING

    @property
    def last_safe(self) -> float:
        return walltime_drain(self.started_at, self.started_at + LIFE_S, DRAIN_S).at


class World:
    """Slurm, the workers and the run folder. What a controller asks for happens at once; the test moves the rest."""

    def __init__(self, workers: Iterable[str], policy: Policy) -> None:
        self.now = 1000.0
        self.policy = policy
        self.jobs: dict[str, Agent] = {}
        self.records: tuple[JobRecord, ...] = ()
        self.intents: dict[tuple[str, int], int] = {}
        self.desired = Desired(target=SERVE, workers=tuple(workers), since=0.0)
        self.todo: list[Submit] = []
        self.submitted: Counter[tuple[str, int]] = Counter()
        self.proxy_tells = True
        self.drains: list[Drain] = []
        self.told: tuple[Row, ...] = ()  # what the queue last said
        self.core = self.restored()

    def restored(self) -> Reconciler:
        """A new controller, from the run folder alone."""
        last: dict[str, int] = {}
        for worker, generation in self.intents:
            last[worker] = max(last.get(worker, -1), generation)
        self.todo = []
        core = Reconciler.restore(RUN, self.records, last, served=True, policy=self.policy, revisions=self.intents)
        core.apply(DesiredRead(self.desired), self.now)
        return core

    def restart_controller(self) -> None:
        self.core = self.restored()
        self.tell_fleet()

    # ------------------------------------------------------------ what the controller does

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            match effect:
                case Record(records):
                    self.records = records
                case Submit():
                    self.todo.append(effect)
                case Drain():
                    self.drain(effect)
                case Cancel(job):
                    self.cancel(job)

    def drain(self, drain: Drain) -> None:
        self.drains.append(drain)
        agent = self.find(drain.worker, drain.generation)
        assert self.may_go(agent), f"{agent} drained at {self.now}: {self.jobs}"
        agent.was_told = True
        if agent.phase == lifecycle.READY:
            agent.phase, agent.detail, agent.left_at = lifecycle.DRAINING, drain.reason, self.now + 10.0

    def cancel(self, job: str) -> None:
        agent = self.jobs[job]
        if agent.alive:
            assert not agent.proven or agent.was_told or self.may_go(agent), f"{agent} cancelled: {self.jobs}"
            agent.state = "CANCELLED"

    def may_go(self, agent: Agent) -> bool:
        """A successor is proven, the last safe moment has come, or there is no room for both."""
        others = [one for one in self.jobs.values() if one.worker == agent.worker and one is not agent and one.alive]
        followed = any(one.proven and one.generation > agent.generation for one in others)
        words = [one.reason for one in self.jobs.values() if one.worker == agent.worker and self.waits(one)]
        limited = any(is_limited(reason) or (self.policy.crowded and reason in CROWD) for reason in words)
        unwanted = agent.worker not in self.desired.workers or self.desired.target == STOP
        no_room = self.policy.drain_first or not self.policy.overlap
        return followed or limited or unwanted or no_room or self.now >= agent.last_safe

    def waits(self, agent: Agent) -> bool:
        """By what the controller can know: one that has failed waits until the queue has been asked."""
        told = {row.name: row.state for row in self.told}.get(job_name(RUN, agent.worker, agent.generation))
        return agent.state == "PENDING" or (agent.state == "FAILED" and told == "PENDING")

    def sbatch(self, outcome: str = "ok") -> None:
        submit = self.todo.pop(0)
        life = (submit.worker, submit.generation)
        self.submitted[life] += 1
        self.intents[life] = submit.revision
        job = str(100 + self.submitted.total())
        if outcome != "refused":
            self.jobs[job] = Agent(*life)
        if outcome == "crash":
            self.restart_controller()
        elif outcome == "ok":
            self.perform(self.core.apply(Submitted(*life, job), self.now))
        else:
            self.perform(self.core.apply(SubmitRefused(*life, outcome, transient=outcome == "lost"), self.now))

    # ------------------------------------------------------------ what happens

    def find(self, worker: str, generation: int) -> Agent:
        return next(one for one in self.jobs.values() if (one.worker, one.generation) == (worker, generation))

    def of(self, worker: str) -> list[Agent]:
        return [agent for agent in self.jobs.values() if agent.worker == worker and agent.alive]

    def tell_fleet(self) -> None:
        view = FleetView(tuple(self.views()), True) if self.proxy_tells else None
        self.perform(self.core.apply(FleetSeen(view), self.now))

    def views(self) -> Iterable[WorkerView]:
        for job, one in self.jobs.items():
            if one.state == "RUNNING" and one.phase:
                end = one.started_at + LIFE_S
                seen = WorkerView(one.worker, "p", "any", one.generation, one.phase, one.detail, "n1", job, end, 0, 0)
                yield msgspec.structs.replace(seen, proven=one.proven)

    def tell_queue(self) -> None:
        rows = tuple(
            Row(job=job, name=job_name(RUN, one.worker, one.generation), state=one.state, reason=one.reason)
            for job, one in self.jobs.items()
        )
        self.told = rows
        self.perform(self.core.apply(QueueRead(rows, self.now), self.now))

    def start(self, agent: Agent) -> None:
        agent.state, agent.reason, agent.started_at, agent.phase = "RUNNING", "", self.now, lifecycle.LOADING
        self.tell_fleet()

    def prove(self, agent: Agent) -> None:
        agent.phase, agent.proven = lifecycle.READY, True
        self.tell_fleet()

    def passes(self, seconds: float) -> None:
        until = self.now + seconds
        while self.now < until:
            self.now = min(until, self.now + 5.0)
            before = msgspec.msgpack.encode(tuple(self.views()))
            for agent in self.jobs.values():
                self.live_on(agent)
            if msgspec.msgpack.encode(tuple(self.views())) != before:
                self.tell_fleet()
            self.perform(self.core.apply(Tick(), self.now))

    def live_on(self, agent: Agent) -> None:
        """Agents end by their own clock, and Slurm by its."""
        if agent.state != "RUNNING":
            return
        if self.now >= agent.started_at + LIFE_S:
            agent.state, agent.proven = "TIMEOUT", False
        elif self.now >= agent.left_at:
            agent.state, agent.proven = "COMPLETED", False
        elif self.now >= agent.last_safe and agent.phase == lifecycle.READY:
            agent.phase, agent.detail, agent.proven = lifecycle.DRAINING, WALLTIME, False
            agent.left_at = self.now + 10.0
        if agent.phase == lifecycle.DRAINING:
            agent.proven = False

    def serve(self, start_s: float = 40.0) -> None:
        """Bring up whatever is asked for, each `start_s` after its submission."""
        self.tell_queue()
        while self.todo:
            self.sbatch()
        fresh = [agent for agent in self.jobs.values() if agent.state == "PENDING"]
        for agent in fresh:
            self.start(agent)
        self.tell_queue()
        if fresh:
            self.passes(start_s)
        for agent in self.jobs.values():
            if agent.state == "RUNNING" and agent.phase == lifecycle.LOADING:
                self.prove(agent)


def world(*workers: str, **policy: bool) -> World:
    made = World(workers, Policy(drain_s=DRAIN_S, **policy))
    made.serve()
    assert all(len(made.of(worker)) == 1 for worker in workers)
    return made


# ---------------------------------------------------------------- one after the other


def test_a_lead_is_the_median_of_what_was_seen_and_a_guess_before() -> None:
    assert lead_of("p", ()).seconds == SPREAD * (QUEUE_PRIOR_S + START_PRIOR_S)
    records = [
        JobRecord(
            job=str(n), name="", worker="p-0", generation=n, submitted_at=0.0, started_at=wait, proven_at=wait + 60.0
        )
        for n, wait in enumerate([10.0, 30.0, 5000.0])
    ]
    other = JobRecord(job="9", name="", worker="q-0", generation=0, submitted_at=0.0, started_at=1.0, proven_at=2.0)
    seen = lead_of("p", [*records, other])
    assert (seen.queue_s, seen.start_s, seen.num_seen) == (30.0, 60.0, 3)
    assert lead_of("p", records, waiting_s=400.0).queue_s == 400.0, "a queue that has grown longer"


def test_a_successor_comes_in_time_takes_over_when_proven_and_the_predecessor_drains() -> None:
    run = world("p")
    (first,) = run.of("p")
    due = first.last_safe - SPREAD * 40.0
    run.passes(due - run.now - 6.0)
    assert not run.todo, "not yet"
    run.passes(11.0)
    assert [(one.worker, one.generation) for one in run.todo] == [("p", 1)]
    run.sbatch()
    second = run.find("p", 1)
    run.start(second)
    assert not run.drains and not run.todo, "it is not proven yet"
    run.prove(second)
    (drain,) = run.drains
    assert (drain.generation, drain.reason) == (0, "generation 1 has taken over")
    left = first.started_at + LIFE_S - run.now
    assert DRAIN_S < drain.timeout_s < left, "it may take its time, but not longer than Slurm gives"
    run.passes(20.0)
    run.tell_queue()
    assert run.of("p") == [second] and first.state == "COMPLETED", "it ended its own job"
    assert not run.todo and run.core.workers["p"].failures == 0


def test_while_a_successor_is_late_the_predecessor_serves_until_its_last_safe_moment() -> None:
    run = world("p")
    (first,) = run.of("p")
    run.passes(first.last_safe - run.now - 1.0)
    run.sbatch()
    run.passes(1.0)
    assert first.detail == WALLTIME and not run.drains, "by its own clock"
    run.passes(30.0)
    run.tell_queue()
    (late,) = run.of("p")
    assert late.generation == 1 and not run.todo, "nothing more than the one that waits"


def test_one_that_drains_by_the_clock_without_a_successor_gets_one_at_once() -> None:
    run = world("p")
    (first,) = run.of("p")
    run.proxy_tells = False
    run.restart_controller()
    run.now = first.last_safe
    first.phase, first.detail, first.proven = lifecycle.DRAINING, WALLTIME, False
    run.proxy_tells = True
    run.tell_fleet()
    run.tell_queue()
    assert [(one.worker, one.generation) for one in run.todo] == [("p", 1)]


def test_a_controller_that_died_in_a_hand_over_is_replaced_by_one_that_goes_on() -> None:
    run = world("p")
    (first,) = run.of("p")
    run.passes(first.last_safe - SPREAD * 40.0 - run.now + 5.0)
    run.sbatch("crash")
    run.tell_queue()
    assert not run.todo, "the queue shows the successor"
    second = run.find("p", 1)
    run.start(second)
    run.restart_controller()
    run.tell_queue()
    run.prove(second)
    assert [drain.generation for drain in run.drains] == [0]
    run.restart_controller()
    run.tell_queue()
    run.passes(20.0)
    run.tell_queue()
    assert run.of("p") == [second] and not run.todo


def test_a_successor_that_dies_young_leaves_the_predecessor_alone_and_is_tried_again_later() -> None:
    run = world("p")
    (first,) = run.of("p")
    run.passes(first.last_safe - SPREAD * 40.0 - run.now + 5.0)
    for failures in range(1, 3):
        run.sbatch()
        run.find("p", failures).state = "FAILED"
        run.tell_queue()
        run.passes(10.0 * 2 ** (failures - 1) - 5.0)
        assert not run.todo
        run.passes(5.0)
        assert len(run.todo) == 1
    assert not run.drains and first.proven


def restarted(run: World) -> None:
    run.desired = msgspec.structs.replace(run.desired, revision=run.desired.revision + 1)
    run.perform(run.core.apply(DesiredRead(run.desired), run.now))


def resized(run: World, workers: Iterable[str]) -> None:
    run.desired = msgspec.structs.replace(run.desired, workers=tuple(workers))
    run.perform(run.core.apply(DesiredRead(run.desired), run.now))


def test_a_worker_that_is_no_longer_wanted_drains_and_one_that_is_wanted_again_comes_back() -> None:
    run = world("p-0", "d-0", "d-1")
    resized(run, ["p-0", "d-0"])
    (drain,) = run.drains
    assert (drain.worker, drain.reason) == ("d-1", "the run no longer wants this worker")
    run.passes(15.0)
    run.tell_queue()
    assert run.of("d-1") == [] and not run.todo
    resized(run, ["p-0", "d-0", "d-1"])
    assert [(one.worker, one.generation) for one in run.todo] == [("d-1", 1)]


def test_a_restart_goes_through_a_pool_worker_by_worker() -> None:
    names = [f"p-{n}" for n in range(3)]
    run = world(*names)
    restarted(run)
    for step in range(3):
        assert len(run.todo) == 1, "one at a time"
        assert all(any(agent.proven for agent in run.of(name)) for name in names), "every worker serves"
        run.serve()
        assert len(run.drains) == step + 1
        run.passes(15.0)
        run.tell_queue()
    assert not run.todo
    assert {agent.generation for name in names for agent in run.of(name)} == {1}
    run.restart_controller()
    run.tell_queue()
    assert not run.todo, "a new controller knows what has been restarted"


def test_where_there_is_no_room_for_both_one_worker_at_a_time_drains_first() -> None:
    run = world("p-0", "d-0", overlap=False)
    restarted(run)
    assert [drain.worker for drain in run.drains] == ["p-0"] and not run.todo
    assert "it drains first: there is no room for both" in run.drains[0].reason
    run.passes(15.0)
    run.tell_queue()
    assert [one.worker for one in run.todo] == ["p-0"], "the place is free"
    assert len(run.drains) == 1, "the other one serves meanwhile"
    run.serve()
    assert [drain.worker for drain in run.drains] == ["p-0", "d-0"]


@pytest.mark.parametrize(("reason", "crowded"), [(LIMIT, False), ("Resources", True)])
def test_a_limit_that_the_run_fills_makes_workers_drain_first_one_after_the_other(reason: str, crowded: bool) -> None:
    run = world("p-0", "d-0", crowded=crowded)
    first = {worker: run.of(worker)[0] for worker in ("p-0", "d-0")}
    end = min(agent.last_safe for agent in first.values())
    run.passes(end - SPREAD * 40.0 - run.now + 5.0)
    while run.todo:
        run.sbatch()
    for agent in run.jobs.values():
        if agent.state == "PENDING":
            agent.reason = reason
    run.tell_queue()
    if crowded:
        assert not run.drains, "there may be more nodes than the plan knows of"
        run.passes(CROWDED_S)
    assert len(run.drains) == 1 and run.now < end, "before its last moment, so that the other one's turn comes in time"
    assert reason in run.drains[0].reason
    gone = run.drains[0].worker
    (other,) = {"p-0", "d-0"} - {gone}
    assert first[other].proven
    run.passes(15.0)
    run.tell_queue()
    successor = run.find(gone, 1)
    run.start(successor)
    run.passes(40.0)
    assert len(run.drains) == 1, "the first one's successor is not proven"
    run.prove(successor)
    run.passes(max(0.0, end - run.now))
    assert first[other].phase == lifecycle.DRAINING


def chain(length: int, **policy: bool) -> World:
    """All jobs that there will ever be are in the queue; the first ones serve."""
    made = World(("p", "d"), Policy(drain_s=DRAIN_S, chained=True, **policy))
    for worker in made.desired.workers:
        for generation in range(length):
            made.jobs[f"{worker}{generation}"] = Agent(worker, generation, reason="Dependency")
            made.intents[worker, generation] = 0
    made.restart_controller()
    made.tell_queue()
    for worker in made.desired.workers:
        take_turn(made, worker, 0, start_s=30.0)
    return made


def take_turn(run: World, worker: str, generation: int, start_s: float = 0.0) -> None:
    run.start(run.find(worker, generation))
    run.tell_queue()
    run.passes(start_s)
    run.prove(run.find(worker, generation))


def test_in_a_chain_jobs_take_their_turns_and_nothing_is_submitted_or_cancelled() -> None:
    run = chain(4)
    run.passes(LIFE_S / 2)
    assert not run.drains
    take_turn(run, "p", 1)
    assert [(drain.worker, drain.generation) for drain in run.drains] == [("p", 0)], "it is followed"
    run.find("p", 1).state = "NODE_FAIL"
    run.tell_fleet()
    run.tell_queue()
    take_turn(run, "p", 2)
    assert run.core.outlook is not None and run.core.outlook.places["p"].proven
    run.restart_controller()
    run.passes(LIFE_S / 2 + 1)
    run.tell_queue()
    assert not run.todo and run.find("d", 1).state == "PENDING"
    run.desired = msgspec.structs.replace(run.desired, target=STOP)
    run.perform(run.core.apply(DesiredRead(run.desired), run.now))
    assert {agent.state for agent in run.jobs.values() if agent.phase == ""} == {"CANCELLED"}, "all that wait"


def test_where_a_chain_has_no_room_for_both_one_at_a_time_drains_for_the_next_and_the_last_for_none() -> None:
    run = chain(2, drain_first=True)
    run.passes(LIFE_S - 110.0)
    drained = [drain.worker for drain in run.drains]
    assert len(drained) == 1, "one after the other, and in time for both"
    run.passes(20.0)
    run.tell_queue()
    take_turn(run, drained[0], 1)
    run.passes(LIFE_S)
    last = run.find(drained[0], 1)
    assert last.detail == WALLTIME and {drain.generation for drain in run.drains} == {0}, "by its own clock alone"


def test_turns_are_as_late_as_is_safe_and_do_not_meet() -> None:
    found = turns({"a": 100.0, "b": 100.0, "c": 500.0}, {"a": 30.0, "b": 30.0, "c": 30.0})
    assert found["c"] == 500.0
    assert sorted((found["a"], found["b"])) == [70.0, 100.0]


@pytest.mark.parametrize(
    ("reason", "limited"),
    [
        ("QOSMaxJobsPerUserLimit", True),
        ("QOSGrpGRES", True),
        ("AssocGrpNodeLimit", True),
        ("AssocMaxJobsLimit", True),
        ("sbatch: error: Job violates accounting/QOS policy (job submit limit, user's size and/or time limits)", True),
        ("Priority", False),
        ("Resources", False),
        ("QOSNotAllowed", False),
        ("", False),
    ],
)
def test_reasons_that_only_the_end_of_another_job_removes(reason: str, limited: bool) -> None:
    assert is_limited(reason) == limited


# ---------------------------------------------------------------- random histories


class Histories(RuleBasedStateMachine):
    workers = ("p-0", "p-1", "d-0")
    policy = Policy(drain_s=DRAIN_S)

    def __init__(self) -> None:
        super().__init__()
        self.run = World(self.workers, self.policy)

    def draw(self, data: st.DataObject, *states: str) -> Agent:
        return data.draw(st.sampled_from([agent for agent in self.run.jobs.values() if agent.state in states]))

    @rule(seconds=st.sampled_from([5.0, 20.0, 60.0, 300.0, 900.0]))
    def time_passes(self, seconds: float) -> None:
        self.run.passes(seconds)

    @rule()
    def queue_answers(self) -> None:
        self.run.tell_queue()

    @precondition(lambda self: self.run.todo)
    @rule(outcome=st.sampled_from(["ok", "ok", "ok", "refused", "lost", "crash"]))
    def sbatch(self, outcome: str) -> None:
        self.run.sbatch(outcome)

    @precondition(lambda self: any(one.state == "PENDING" for one in self.run.jobs.values()))
    @rule(data=st.data(), comes=st.sampled_from(["starts", "starts", "starts", "limited", "fails"]))
    def waiting_job(self, data: st.DataObject, comes: str) -> None:
        agent = self.draw(data, "PENDING")
        if comes == "starts":
            self.run.start(agent)
        elif comes == "limited":
            agent.reason = LIMIT
        else:
            agent.state = "FAILED"

    @precondition(lambda self: any(one.state == "RUNNING" for one in self.run.jobs.values()))
    @rule(data=st.data(), comes=st.sampled_from(["proven", "proven", "proven", "fails"]))
    def running_job(self, data: st.DataObject, comes: str) -> None:
        agent = self.draw(data, "RUNNING")
        if comes == "fails":
            agent.state, agent.proven = "FAILED", False
            self.run.tell_fleet()
        elif agent.phase == lifecycle.LOADING:
            self.run.prove(agent)

    @rule()
    def controller_is_killed(self) -> None:
        self.run.restart_controller()

    @rule(tells=st.booleans())
    def proxy_speaks(self, tells: bool) -> None:
        self.run.proxy_tells = tells
        self.run.tell_fleet()

    @rule()
    def all_serve(self) -> None:
        """Or histories would hardly ever come to a hand-over."""
        self.run.proxy_tells = True
        self.run.serve()

    @precondition(lambda self: self.run.desired.revision < 3)
    @rule()
    def user_restarts(self) -> None:
        restarted(self.run)

    @rule(data=st.data())
    def user_resizes(self, data: st.DataObject) -> None:
        wanted = data.draw(st.lists(st.sampled_from(self.workers), min_size=1, unique=True))
        resized(self.run, wanted)

    @invariant()
    def a_worker_has_at_most_one_successor(self) -> None:
        """So never more jobs than replicas and hand-overs."""
        for worker in self.workers:
            staying = [agent for agent in self.run.of(worker) if agent.stays]
            assert len(staying) <= 2, staying

    @invariant()
    def nothing_is_submitted_twice(self) -> None:
        assert all(count == 1 for count in self.run.submitted.values()), self.run.submitted

    def teardown(self) -> None:
        """Left alone, each worker ends up with one job of the newest plan that serves; all others have ended."""
        run = self.run
        run.proxy_tells = True
        run.tell_fleet()
        for _ in range(40):
            run.serve()
            run.passes(10.0)
        run.serve()
        for worker in set(self.workers) - set(run.desired.workers):
            assert run.of(worker) == [], "nobody wants it"
        for worker in run.desired.workers:
            serving = [agent for agent in run.of(worker) if agent.proven and agent.stays]
            assert serving, f"{worker}: {run.jobs}"
            newest = max(serving, key=lambda agent: agent.generation)
            assert run.intents[worker, newest.generation] == run.desired.revision, (worker, run.jobs)
            wanted = [newest, *(agent for agent in run.of(worker) if agent.generation > newest.generation)]
            ending = [agent for agent in run.of(worker) if not agent.stays]
            assert {id(agent) for agent in run.of(worker)} == {id(agent) for agent in wanted + ending}


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


class HistoriesWithoutRoom(Histories):
    """Each worker has to end before its successor can start."""

    policy = Policy(drain_s=DRAIN_S, drain_first=True)


TestHistoriesWithoutRoom = HistoriesWithoutRoom.TestCase
TestHistoriesWithoutRoom.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)


class HistoriesInACrowd(Histories):
    """Slurm may have no other nodes than those that the run takes."""

    policy = Policy(drain_s=DRAIN_S, crowded=True)


TestHistoriesInACrowd = HistoriesInACrowd.TestCase
TestHistoriesInACrowd.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
