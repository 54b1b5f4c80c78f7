"""What to do about the jobs of a run: desired state and observations in, effects out.

Owns the judgement of how jobs end, and back-off. The jobs themselves stand in its `JobBook`; who follows whom and when
is `outlook`'s, how a job is brought to its end `endings`'s. Pure: no clock, file, process or queue of its own.
Everything it must not forget can be read back from the run folder and the queue, so a new controller continues where a
dead one stopped; generations are never reused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from launcher.control.effects import (
    DesiredRead,
    Done,
    Effect,
    Event,
    Failure,
    FleetSeen,
    GiveUp,
    ProxyDied,
    QueueRead,
    Record,
    Submit,
    SubmitRefused,
    Submitted,
    Tick,
)
from launcher.control.endings import finish, long_drain_s
from launcher.control.job_book import SETTLE_S, Job, JobBook, view_of
from launcher.control.outlook import Outlook, outlook
from launcher.control.succession import Policy, Standing, is_limited, last_safe
from launcher.jobs import INNOCENT_ENDS, JobRecord, Row, job_name
from launcher.rundir import STOP, Desired
from workers.agent import lifecycle
from workers.agent.walltime import WALLTIME
from workers.controller_messages import FleetView

FIRST_BACKOFF_S = 10.0
LAST_BACKOFF_S = 300.0
STEADY_S = 300.0  # ready for this long: its next end starts a new count of failures
SERVED_PART = 0.25  # of the time that a life has served: the next one waits no longer
MAX_PROXY_DEATHS = 3


@dataclass(slots=True)
class Worker:
    """What is remembered of a worker between its jobs."""

    last_generation: int
    submitting: int | None = None
    refused_at: float = float("-inf")
    failures: int = 0
    not_before: float = float("-inf")
    limit: str = ""  # sbatch's words: no further job beside those that live


@dataclass(slots=True)
class Reconciler:
    """`apply` is the only mutator. Times are unix seconds: they outlive the process."""

    run: str
    policy: Policy
    served: bool  # once true, a failed worker is replaced instead of ending the run
    workers: dict[str, Worker]
    book: JobBook
    desired: Desired | None = None
    fleet: FleetView | None = None
    asked_at: float = float("-inf")  # of the newest queue answer
    outlook: Outlook | None = None  # of the newest decision
    failure: Failure | None = None
    done: bool = False
    _told: tuple[JobRecord, ...] = field(default=())
    _revisions: dict[str, int] = field(default_factory=dict)

    @classmethod
    def restore(
        cls,
        run: str,
        records: Iterable[JobRecord],
        last_generations: Mapping[str, int],
        *,
        served: bool,
        policy: Policy,
        revisions: Mapping[tuple[str, int], int] = MappingProxyType({}),
    ) -> Reconciler:
        """`last_generations`: the highest that was ever about to be submitted, per worker; `revisions`: of the plan
        of each generation."""
        book = JobBook(run, records, revisions)
        workers = {worker: Worker(generation) for worker, generation in last_generations.items()}
        core = cls(run=run, policy=policy, served=served, workers=workers, book=book)
        core._told = book.records()
        return core

    @property
    def stopping(self) -> bool:
        return self.failure is not None or (self.desired is not None and self.desired.target == STOP)

    def apply(self, event: Event, now: float) -> list[Effect]:
        """Take in one event; idempotent but for what changes. Returns what must be done about it."""
        had_failed = self.failure is not None
        match event:
            case DesiredRead(desired, revisions):
                self.desired = desired
                self._revisions = {worker: revisions.get(worker, desired.revision) for worker in desired.workers}
            case QueueRead(rows, asked_at, revisions):
                self.book.revisions |= revisions
                self._read_queue(rows, asked_at, now)
            case Submitted(worker, generation, job):
                self._submitted(worker, generation, job, now)
            case SubmitRefused(worker, generation, reason, transient):
                self._refused(worker, generation, reason, transient, now)
            case FleetSeen(view):
                self._see_fleet(view, now)
            case ProxyDied(proxy, reason, deaths):
                if deaths >= MAX_PROXY_DEATHS and not self.served and not self.stopping:
                    self.failure = Failure(worker=proxy, job="", name=proxy, reason=reason)
            case Tick():
                pass
        effects = self._decide(now)
        if self.failure is not None and not had_failed:
            effects.insert(0, GiveUp(self.failure))
        if self.book.records() != self._told:
            self._told = self.book.records()
            effects.insert(0, Record(self._told))
        return effects

    # ------------------------------------------------------------ taking in

    def _submitted(self, worker: str, generation: int, job: str, now: float) -> None:
        self.workers[worker].submitting = None
        self.workers[worker].limit = ""
        self.book.add(job, worker, generation, now)

    def _refused(self, worker: str, generation: int, reason: str, transient: bool, now: float) -> None:
        self.workers[worker].submitting = None
        self.workers[worker].refused_at = now
        self.workers[worker].limit = reason if is_limited(reason) else ""
        if self.served or transient:
            self._back_off(self.workers[worker], now)
        elif not self.stopping:
            name = job_name(self.run, worker, generation)
            self.failure = Failure(worker=worker, job="", name=name, reason=reason)

    def _read_queue(self, rows: tuple[Row, ...], asked_at: float, now: float) -> None:
        self.asked_at = max(self.asked_at, asked_at)
        for job in self.book.read_queue(rows, asked_at, now):
            self._judge(job, now)

    def _judge(self, job: Job, now: float) -> None:
        """How a job that has just ended counts for its worker and for the run."""
        record = job.record
        wanted = self.desired is not None and record.worker in self.desired.workers
        if self.stopping or not wanted or self._is_history(record):
            return
        worker = self._worker(record.worker)
        if self._as_asked(job, now):
            worker.failures, worker.not_before = 0, now
        elif not self.served and record.state not in INNOCENT_ENDS:
            told = f"the job ended as {record.state}" + (f" ({record.reason})" if record.reason else "")
            self.failure = Failure(worker=record.worker, job=record.job, name=record.name, reason=told)
        elif job.ready_at is not None and now - job.ready_at >= STEADY_S:
            worker.failures = 0
        else:
            self._back_off(worker, now)
            if record.proven_at is not None:  # it has served: nobody waits for long, the first time not at all
                patience_s = 0.0 if worker.failures == 1 else SERVED_PART * (now - record.proven_at)
                worker.not_before = min(worker.not_before, now + patience_s)

    def _as_asked(self, job: Job, now: float) -> bool:
        """Its own clock, ours or a successor ended it."""
        end = last_safe(job, self.policy)
        over = end is not None and now >= end and job.record.proven_at is not None
        followed = any(
            other.record.generation > job.record.generation and other.record.proven_at is not None
            for other in self.book.jobs_of(job.record.worker)
        )
        return over or followed or job.drained_at is not None or job.cancelled_at is not None

    def _worker(self, name: str) -> Worker:
        return self.workers.setdefault(name, Worker(-1))

    def _is_history(self, record: JobRecord) -> bool:
        return self.desired is not None and record.submitted_at < self.desired.since

    def _back_off(self, worker: Worker, now: float) -> None:
        worker.failures += 1
        worker.not_before = now + min(LAST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** (worker.failures - 1))

    def _see_fleet(self, view: FleetView | None, now: float) -> None:
        self.fleet = view
        if view is None:
            return
        self.served = self.served or (view.ready and not self.stopping)
        self.book.see_fleet(view, now)

    # ------------------------------------------------------------ deciding

    def _decide(self, now: float) -> list[Effect]:
        """Nothing is decided blindly: the first answer of the queue shows what runs already."""
        if self.desired is None or self.asked_at == float("-inf") or self.done:
            return []
        wanted = () if self.stopping else self.desired.workers
        self.outlook = self._look_out(wanted, now)
        effects: list[Effect] = []
        for job in list(self.book.live.values()):
            effects += self._end(job, self.outlook.places.get(job.record.worker), now)
        for name in wanted:
            effects += self._keep_up(name, self.outlook, now)
        if self.stopping and self._empty():
            self.done = True
            effects.append(Done())
        return effects

    def _look_out(self, wanted: tuple[str, ...], now: float) -> Outlook:
        refusals = {name: worker.limit for name, worker in self.workers.items() if worker.limit}
        workers = self.workers.items()
        occupied = frozenset(name for name, one in workers if one.submitting is not None or now < one.not_before)
        revisions = {name: self._revisions[name] for name in wanted}
        return outlook(self.book, self.fleet, revisions, refusals, occupied, self.policy, now)

    # ------------------------------------------------------------ beginnings

    def _keep_up(self, name: str, seen: Outlook, now: float) -> list[Effect]:
        place = seen.place(name)
        if place.keep is None:
            return self._submit(name, now) if self._place_is_free(place) else []
        if not self.served:
            return []
        reason = seen.drains_first(name)
        if reason is not None:
            seen.begin(name, drains=True)
            return self._finish(place.keep, reason, self.policy.drain_s, now)
        if self.policy.chained or place.successor is not None or not seen.needs_successor(name):
            return []
        seen.begin(name, drains=False)
        return self._submit(name, now)

    def _place_is_free(self, place: Standing) -> bool:
        """One that drains as it should leaves room for its successor; any other end may still turn out otherwise."""
        if not self.policy.overlap:
            return not place.leaving
        return all(job.drained_at is not None or self._drains_by_clock(job) for job in place.leaving)

    def _drains_by_clock(self, job: Job) -> bool:
        seen = None if self.fleet is None else view_of(job, self.fleet)
        return seen is not None and seen.phase == lifecycle.DRAINING and seen.detail == WALLTIME

    def _submit(self, name: str, now: float) -> list[Effect]:
        worker = self._worker(name)
        # After a refusal the job may exist all the same: the queue has to say that it does not.
        refused = self.asked_at <= worker.refused_at + SETTLE_S
        if self.policy.chained or worker.submitting is not None or refused or now < worker.not_before:
            return []
        worker.last_generation = max(worker.last_generation, self.book.last_generation(name)) + 1
        worker.submitting = worker.last_generation
        self.book.revisions[name, worker.submitting] = self._revisions[name]
        return [Submit(name, worker.submitting, self._revisions[name])]

    # ------------------------------------------------------------ ends

    def _end(self, job: Job, place: Standing | None, now: float) -> list[Effect]:
        """What becomes of a job that is not its worker's own, or on its way out."""
        if place is None:
            reason = "the run stops" if self.stopping else "the run no longer wants this worker"
            return self._finish(job, reason, self.policy.drain_s, now)
        if job in place.superseded:
            assert place.keep is not None
            reason = f"generation {place.keep.record.generation} has taken over"
            return self._finish(job, reason, long_drain_s(job, self.policy.drain_s, now), now)
        told = job.drained_at is not None or job.cancelled_at is not None
        surplus = job in place.surplus and not self.policy.chained
        return self._finish(job, "one successor is enough", job.drain_s, now) if told or surplus else []

    def _finish(self, job: Job, reason: str, drain_s: float, now: float) -> list[Effect]:
        seen = None if self.fleet is None else view_of(job, self.fleet)
        return finish(job, seen, reason, drain_s, stopping=self.stopping, failed=self.failure is not None, now=now)

    def _empty(self) -> bool:
        idle = all(
            worker.submitting is None and self.asked_at > worker.refused_at + SETTLE_S
            for worker in self.workers.values()
        )
        return idle and not self.book.live
