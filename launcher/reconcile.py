"""What to do about the jobs of a run: desired state and observations in, effects out.

Owns the judgement of how jobs end, back-off and the order drain -> cancel; the jobs themselves stand in its
`JobBook`. Pure: no clock, file, process or queue of its own. Everything it must not forget can be read back from the
run folder and the queue, so a new controller continues where a dead one stopped; generations are never reused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from launcher.effects import (
    Cancel,
    DesiredRead,
    Done,
    Drain,
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
from launcher.job_book import SETTLE_S, Job, JobBook, view_of
from launcher.jobs import INNOCENT_ENDS, JobRecord, Row, job_name
from launcher.rundir import STOP, Desired
from workers import lifecycle
from workers.controller_messages import FleetView

FIRST_BACKOFF_S = 2.0
LAST_BACKOFF_S = 300.0
STEADY_S = 300.0  # ready for this long: its next end starts a new count of failures
CANCEL_AGAIN_S = 30.0
DRAIN_GRACE_S = 10.0
MAX_PROXY_DEATHS = 3


@dataclass(slots=True)
class Worker:
    """What is remembered of a worker between its jobs."""

    last_generation: int
    submitting: int | None = None
    refused_at: float = float("-inf")
    failures: int = 0
    not_before: float = float("-inf")


@dataclass(slots=True)
class Reconciler:
    """`apply` is the only mutator. Times are unix seconds: they outlive the process."""

    run: str
    drain_timeout_s: float
    served: bool  # once true, a failed worker is replaced instead of ending the run
    workers: dict[str, Worker]
    book: JobBook
    desired: Desired | None = None
    fleet: FleetView | None = None
    asked_at: float = float("-inf")  # of the newest queue answer
    failure: Failure | None = None
    done: bool = False
    _told: tuple[JobRecord, ...] = field(default=())

    @classmethod
    def restore(
        cls,
        run: str,
        records: Iterable[JobRecord],
        last_generations: Mapping[str, int],
        *,
        served: bool,
        drain_timeout_s: float,
    ) -> Reconciler:
        """`last_generations`: the highest that was ever about to be submitted, per worker."""
        book = JobBook(run, records)
        workers = {worker: Worker(generation) for worker, generation in last_generations.items()}
        core = cls(run=run, drain_timeout_s=drain_timeout_s, served=served, workers=workers, book=book)
        core._told = book.records()
        return core

    @property
    def stopping(self) -> bool:
        return self.failure is not None or (self.desired is not None and self.desired.target == STOP)

    def apply(self, event: Event, now: float) -> list[Effect]:
        """Take in one event; idempotent but for what changes. Returns what must be done about it."""
        had_failed = self.failure is not None
        match event:
            case DesiredRead(desired):
                self.desired = desired
            case QueueRead(rows, asked_at):
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
        self.book.add(job, worker, generation, now)

    def _refused(self, worker: str, generation: int, reason: str, transient: bool, now: float) -> None:
        self.workers[worker].submitting = None
        self.workers[worker].refused_at = now
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
        if not self.served and record.state not in INNOCENT_ENDS:
            told = f"the job ended as {record.state}" + (f" ({record.reason})" if record.reason else "")
            self.failure = Failure(worker=record.worker, job=record.job, name=record.name, reason=told)
        elif job.ready_at is not None and now - job.ready_at >= STEADY_S:
            worker.failures = 0
        else:
            self._back_off(worker, now)

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
        kept = {id(self.book.best(worker)) for worker in wanted}
        effects: list[Effect] = []
        for job in self.book.live.values():
            if id(job) not in kept:
                effects += self._finish(job, now)
        for name in wanted:
            effects += self._start(name, now)
        if self.stopping and self._empty():
            self.done = True
            effects.append(Done())
        return effects

    def _start(self, name: str, now: float) -> list[Effect]:
        worker = self._worker(name)
        if worker.submitting is not None or self.book.jobs_of(name):
            return []
        # After a refusal the job may exist all the same: the queue has to say that it does not.
        if self.asked_at <= worker.refused_at + SETTLE_S or now < worker.not_before:
            return []
        worker.last_generation = max(worker.last_generation, self.book.last_generation(name)) + 1
        worker.submitting = worker.last_generation
        return [Submit(name, worker.submitting)]

    def _finish(self, job: Job, now: float) -> list[Effect]:
        """Drain what serves, then cancel; cancel what does not serve at once."""
        seen = None if self.fleet is None else view_of(job, self.fleet)
        serves = seen is not None and seen.phase in (lifecycle.READY, lifecycle.DRAINING)
        if serves and self.failure is None:
            if job.drained_at is None:
                job.drained_at = now
                reason = "the run stops" if self.stopping else "the run no longer wants this worker"
                return [Drain(job.record.worker, job.record.generation, reason, self.drain_timeout_s)]
            if now < job.drained_at + self.drain_timeout_s + DRAIN_GRACE_S:
                return []
        if job.cancelled_at is not None and now < job.cancelled_at + CANCEL_AGAIN_S:
            return []
        again = job.cancelled_at is not None
        job.cancelled_at = now
        return [Cancel(job.record.job, force=again)]

    def _empty(self) -> bool:
        idle = all(
            worker.submitting is None and self.asked_at > worker.refused_at + SETTLE_S
            for worker in self.workers.values()
        )
        return idle and not self.book.live
