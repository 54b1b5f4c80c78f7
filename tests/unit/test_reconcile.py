"""reconcile: what is done about a run's jobs, told event by event, and under random histories."""

from __future__ import annotations

from collections import Counter

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from launcher.control.effects import (
    Cancel,
    DesiredRead,
    Done,
    Drain,
    Effect,
    FleetSeen,
    GiveUp,
    QueueRead,
    Record,
    Submit,
    SubmitRefused,
    Submitted,
    Tick,
)
from launcher.control.endings import CANCEL_AGAIN_S, DRAIN_GRACE_S
from launcher.control.reconcile import SETTLE_S, Reconciler
from launcher.control.succession import Policy
from launcher.jobs import JobRecord, Row, job_name
from launcher.rundir import SERVE, STOP, Desired
from workers.controller_messages import FleetView, WorkerView

RUN = "run"
DRAIN_S = 20.0


def new(workers: tuple[str, ...] = ("p",), records: tuple[JobRecord, ...] = (), served: bool = False) -> Reconciler:
    return Reconciler.restore(RUN, records, dict.fromkeys(workers, -1), served=served, policy=Policy(drain_s=DRAIN_S))


def serve(*workers: str, since: float = 0.0) -> DesiredRead:
    return DesiredRead(Desired(target=SERVE, workers=workers, since=since))


def stop(*workers: str) -> DesiredRead:
    return DesiredRead(Desired(target=STOP, workers=workers, since=0.0))


def row(job: str, worker: str, generation: int, state: str = "RUNNING", reason: str = "") -> Row:
    return Row(job=job, name=job_name(RUN, worker, generation), state=state, reason=reason)


def view(worker: str, generation: int, phase: str, detail: str = "") -> WorkerView:
    return WorkerView(worker, worker, "any", generation, phase, detail, "n1", "1", None, 0, 0)


def fleet(*workers: WorkerView, ready: bool = False) -> FleetSeen:
    return FleetSeen(FleetView(workers, ready))


def acts(effects: list[Effect]) -> list[Effect]:
    return [effect for effect in effects if not isinstance(effect, Record)]


def running(core: Reconciler, now: float = 10.0) -> None:
    """Bring worker p's first job up."""
    core.apply(serve("p"), now)
    assert core.apply(QueueRead((), now), now) == [Submit("p", 0)]
    assert acts(core.apply(Submitted("p", 0, "100"), now)) == []
    assert acts(core.apply(QueueRead((row("100", "p", 0),), now + 1), now + 1)) == []


def test_nothing_is_submitted_before_the_queue_has_answered() -> None:
    core = new()
    assert core.apply(serve("p"), 1) == []
    assert core.apply(Tick(), 2) == []
    assert core.apply(QueueRead((), 3), 3) == [Submit("p", 0)]
    assert core.apply(Tick(), 4) == [], "the submission is under way"


def test_a_job_that_no_record_knows_is_adopted_instead_of_submitted_again() -> None:
    core = new()
    core.apply(serve("p"), 1)
    effects = core.apply(QueueRead((row("100", "p", 3, "PENDING"),), 2), 2)
    assert [type(effect) for effect in effects] == [Record]
    assert core.book.newest("p") is not None and core.book.live["100"].record.generation == 3


def test_a_job_is_not_missed_by_an_answer_older_than_its_submission() -> None:
    core = new()
    running(core)
    assert core.apply(QueueRead((), 12), 13) == [], "asked within the settle time"
    assert core.book.live


def test_a_job_that_fails_before_the_run_has_served_ends_the_launch() -> None:
    core = new(("p", "d"))
    core.apply(serve("p", "d"), 1)
    core.apply(QueueRead((), 1), 1)
    core.apply(Submitted("p", 0, "100"), 1)
    core.apply(Submitted("d", 0, "101"), 1)
    core.apply(fleet(view("p", 0, "failed", "out of memory")), 2)
    effects = core.apply(QueueRead((row("100", "p", 0, "FAILED", "NonZeroExitCode"), row("101", "d", 0)), 9), 9)
    assert isinstance(effects[1], GiveUp)
    failure = effects[1].failure
    assert failure.name == "run.p.g0" and failure.job == "100"
    assert "FAILED" in failure.reason and "NonZeroExitCode" in failure.reason and "out of memory" in failure.reason
    assert effects[2:] == [Cancel("101", force=False)], "no drain: nothing was ever served"
    assert acts(core.apply(QueueRead((row("101", "d", 0, "CANCELLED"),), 20), 20)) == [Done()]


def test_a_refused_submission_ends_the_launch_with_slurms_words() -> None:
    core = new()
    core.apply(serve("p"), 1)
    core.apply(QueueRead((), 1), 1)
    effects = core.apply(SubmitRefused("p", 0, "Invalid partition", transient=False), 2)
    assert [effect.failure.reason for effect in effects if isinstance(effect, GiveUp)] == ["Invalid partition"]


def test_a_node_failure_during_the_launch_is_nobodys_fault() -> None:
    core = new()
    running(core)
    assert acts(core.apply(QueueRead((row("100", "p", 0, "NODE_FAIL"),), 20), 20)) == []
    assert acts(core.apply(Tick(), 31)) == [Submit("p", 1)]


def test_a_served_run_replaces_a_failed_worker_and_backs_off() -> None:
    core = new()
    running(core)
    core.apply(fleet(view("p", 0, "ready"), ready=True), 12)
    now, job = 20.0, 100
    for failures in range(1, 9):
        generation = failures - 1
        assert acts(core.apply(QueueRead((row(str(job), "p", generation, "FAILED"),), now), now)) == []
        delay = min(300.0, 10.0 * 2 ** (failures - 1))
        assert acts(core.apply(Tick(), now + delay - 0.1)) == []
        now += delay
        assert acts(core.apply(Tick(), now)) == [Submit("p", failures)]
        job += 1
        core.apply(Submitted("p", failures, str(job)), now)
        now += SETTLE_S + 1


def test_lives_that_have_served_are_followed_sooner_the_longer_they_did() -> None:
    core = new()
    running(core)
    served_s, pauses, now = 40.0, [], 20.0
    for generation in range(7):
        serves = msgspec.structs.replace(view("p", generation, "ready"), proven=True)
        core.apply(fleet(serves, ready=True), now)
        now += served_s
        job = str(100 + generation)
        follows = acts(core.apply(QueueRead((row(job, "p", generation, "FAILED"),), now), now))
        pause_s = 0.0
        while not follows:
            pause_s += 1.0
            follows = acts(core.apply(Tick(), now + pause_s))
        pauses.append(pause_s)
        now += pause_s
        core.apply(Submitted("p", generation + 1, str(101 + generation)), now)
        now += SETTLE_S + 1
    assert pauses == [0.0] + [served_s / 4] * 6


def test_a_long_life_ends_the_back_off() -> None:
    core = new(served=True)
    running(core)
    core.apply(fleet(view("p", 0, "ready"), ready=True), 12)
    effects = core.apply(QueueRead((row("100", "p", 0, "TIMEOUT"),), 5000), 5000)
    assert acts(effects) == [Submit("p", 1)]


def test_after_a_lost_answer_of_sbatch_the_queue_decides() -> None:
    core = new()
    core.apply(serve("p"), 1)
    core.apply(QueueRead((), 1), 1)
    assert acts(core.apply(SubmitRefused("p", 0, "Socket timed out", transient=True), 2)) == []
    assert acts(core.apply(Tick(), 100)) == [], "no newer answer of the queue"
    assert acts(core.apply(QueueRead((row("100", "p", 0, "PENDING"),), 100), 100)) == []
    assert core.book.live["100"].record.generation == 0


def test_stop_drains_what_serves_and_cancels_the_rest() -> None:
    core = new(("p", "d"), served=True)
    core.apply(serve("p", "d"), 1)
    core.apply(QueueRead((row("1", "p", 0), row("2", "d", 0, "PENDING")), 1), 1)
    core.apply(fleet(view("p", 0, "ready"), ready=True), 2)
    effects = core.apply(stop("p", "d"), 10)
    assert effects == [Drain("p", 0, "the run stops", DRAIN_S), Cancel("2", force=False)]
    assert acts(core.apply(QueueRead((row("1", "p", 0), row("2", "d", 0, "CANCELLED")), 11), 11)) == []
    late = 10 + DRAIN_S + DRAIN_GRACE_S
    assert core.apply(Tick(), late) == [Cancel("1", force=False)], "it did not end by itself"
    assert core.apply(Tick(), late + CANCEL_AGAIN_S) == [Cancel("1", force=True)]
    assert acts(core.apply(QueueRead((), late + 40), late + 40)) == [Done()]
    assert core.apply(Tick(), late + 50) == [], "done is said once"


def test_a_worker_that_left_after_its_drain_is_cancelled_at_once() -> None:
    core = new(served=True)
    running(core)
    core.apply(fleet(view("p", 0, "ready"), ready=True), 12)
    core.apply(stop("p"), 13)
    assert core.apply(fleet(), 14) == [Cancel("100", force=False)]


def test_a_worker_that_is_no_longer_wanted_goes() -> None:
    core = new(served=True)
    running(core)
    core.apply(fleet(view("p", 0, "ready"), ready=True), 12)
    assert core.apply(serve(), 13) == [Drain("p", 0, "the run no longer wants this worker", DRAIN_S)]


def test_a_new_start_of_a_stopped_run_counts_generations_on_and_forgets_old_failures() -> None:
    old = JobRecord(job="9", name="run.p.g4", worker="p", generation=4, submitted_at=1, ended_at=2, state="FAILED")
    core = new(records=(old,))
    core.apply(serve("p", since=100.0), 100)
    assert core.apply(QueueRead((row("9", "p", 4, "FAILED"),), 101), 101) == [Submit("p", 5)]


class Histories(RuleBasedStateMachine):
    """A queue, a controller that may die at any moment, and the files that it leaves."""

    workers = ("p", "d")

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0
        self.queue: dict[str, Row] = {}
        self.answer: tuple[tuple[Row, ...], float] | None = None  # asked, not yet read
        self.records: tuple[JobRecord, ...] = ()  # jobs.json
        self.intents = dict.fromkeys(self.workers, -1)  # spec files
        self.desired = serve(*self.workers)
        self.todo: list[Submit] = []
        self.submitted: Counter[tuple[str, int]] = Counter()
        self.drained: set[str] = set()  # names of jobs that were told to end by themselves
        self.done = False
        self.core = self.fresh()

    def fresh(self) -> Reconciler:
        core = Reconciler.restore(RUN, self.records, self.intents, served=True, policy=Policy(drain_s=DRAIN_S))
        core.apply(self.desired, self.now)
        return core

    def perform(self, effects: list[Effect]) -> None:
        for effect in effects:
            if isinstance(effect, Record):
                self.records = effect.records
            elif isinstance(effect, Submit):
                self.todo.append(effect)
            elif isinstance(effect, Cancel):
                self.move(effect.job, "CANCELLED")
            elif isinstance(effect, Drain):
                self.drained.add(job_name(RUN, effect.worker, effect.generation))
            elif isinstance(effect, Done):
                assert not self.alive()
                self.done = True

    def alive(self) -> list[Row]:
        return [row for row in self.queue.values() if not row.ended]

    def move(self, job: str, state: str) -> None:
        old = self.queue.get(job)
        if old is not None and not old.ended:
            self.queue[job] = Row(job=job, name=old.name, state=state)

    @rule(seconds=st.sampled_from([0.5, 3.0, 10.0, 40.0, 400.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds
        self.perform(self.core.apply(Tick(), self.now))

    @precondition(lambda self: self.todo)
    @rule(outcome=st.sampled_from(["ok", "ok", "refused", "lost", "crash"]))
    def sbatch(self, outcome: str) -> None:
        submit = self.todo.pop(0)
        self.submitted[submit.worker, submit.generation] += 1
        self.intents[submit.worker] = submit.generation
        job = str(len(self.submitted))
        if outcome != "refused":
            self.queue[job] = row(job, submit.worker, submit.generation, "PENDING")
        if outcome == "crash":
            self.restart()
        elif outcome == "ok":
            self.perform(self.core.apply(Submitted(submit.worker, submit.generation, job), self.now))
        else:
            told = SubmitRefused(submit.worker, submit.generation, outcome, transient=outcome == "lost")
            self.perform(self.core.apply(told, self.now))

    @rule(stale=st.sampled_from([False, False, True]))
    def queue_answers(self, stale: bool) -> None:
        """A stale answer was asked for at the answer before."""
        asked = (tuple(self.queue.values()), self.now)
        rows, asked_at = self.answer if stale and self.answer is not None else asked
        self.answer = asked
        self.perform(self.core.apply(QueueRead(rows, asked_at), self.now))

    @precondition(lambda self: self.alive())
    @rule(data=st.data(), state=st.sampled_from(["RUNNING", "COMPLETING", "FAILED", "NODE_FAIL", "COMPLETED"]))
    def job_moves(self, data: st.DataObject, state: str) -> None:
        self.move(data.draw(st.sampled_from(self.alive())).job, state)
        if data.draw(st.booleans()):  # Slurm forgets what has ended
            self.queue = {job: row for job, row in self.queue.items() if not row.ended}

    @rule(phase=st.sampled_from(["loading", "ready", "failed"]), ready=st.booleans())
    def fleet_speaks(self, phase: str, ready: bool) -> None:
        views = [view(job.record.worker, job.record.generation, phase) for job in self.core.book.live.values()]
        self.perform(self.core.apply(fleet(*views, ready=ready), self.now))

    @precondition(lambda self: not self.done)
    @rule(wanted=st.sampled_from([("p", "d"), ("p",)]), goal=st.sampled_from([SERVE, SERVE, STOP]))
    def user_edits(self, wanted: tuple[str, ...], goal: str) -> None:
        self.desired = DesiredRead(Desired(target=goal, workers=wanted, since=0.0))
        self.perform(self.core.apply(self.desired, self.now))

    @precondition(lambda self: not self.done)
    @rule()
    def restart(self) -> None:
        self.todo, self.answer = [], None
        self.core = self.fresh()

    @invariant()
    def a_worker_has_one_live_job(self) -> None:
        """Beside one that is on its way out: a worker may be wanted again by then."""
        workers = Counter(row.name.split(".")[1] for row in self.alive() if row.name not in self.drained)
        assert all(count == 1 for count in workers.values()), self.alive()

    @invariant()
    def nothing_is_submitted_twice(self) -> None:
        assert all(count == 1 for count in self.submitted.values()), self.submitted

    def teardown(self) -> None:
        """Left alone, every history ends with one live job per wanted worker, or with none."""
        for row in self.alive():
            if row.name in self.drained:
                self.move(row.job, "COMPLETED")
        for _ in range(12):
            self.now += 400
            self.perform(self.core.apply(Tick(), self.now))
            while self.todo:
                self.sbatch("ok")
            self.queue_answers(stale=False)
        stopping = self.desired.desired.target == STOP
        expected = [] if stopping else sorted(self.desired.desired.workers)
        assert sorted(row.name.split(".")[1] for row in self.alive()) == expected
        assert self.done == stopping


TestHistories = Histories.TestCase
TestHistories.settings = settings(max_examples=500, stateful_step_count=30, deadline=None)
