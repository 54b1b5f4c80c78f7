"""What to do about the jobs of a run: desired state and observations in, effects out.

Owns the job records, back-off and the order drain -> cancel. Pure: no clock, file, process or queue of
its own. Everything it must not forget can be read back from the run folder and the queue, so a new
controller continues where a dead one stopped: jobs are adopted by name, generations are never reused.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

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
from launcher.jobs import GONE, INNOCENT_ENDS, JobRecord, Row, job_name, parse_job_name
from launcher.rundir import STOP, Desired
from workers import lifecycle
from workers.protocol import FleetView, WorkerView

# A job submitted this recently may be missing from the queue's answer without being gone.
SETTLE_S = 5.0
FIRST_BACKOFF_S = 2.0
LAST_BACKOFF_S = 300.0
STEADY_S = 300.0  # ready for this long: its next end starts a new count of failures
CANCEL_AGAIN_S = 30.0
DRAIN_GRACE_S = 10.0
MAX_PROXY_DEATHS = 3


@dataclass(slots=True)
class Job:
    """A job that has not ended as far as we know."""

    record: JobRecord
    row: Row | None = None
    drained_at: float | None = None
    cancelled_at: float | None = None
    ready_at: float | None = None
    detail: str = ""  # the worker's own last word


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
    live: dict[str, Job]
    history: dict[str, JobRecord]
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
        known = {record.job: record for record in records}
        core = cls(
            run=run,
            drain_timeout_s=drain_timeout_s,
            served=served,
            workers={worker: Worker(generation) for worker, generation in last_generations.items()},
            live={job: Job(record) for job, record in known.items() if record.ended_at is None},
            history={job: record for job, record in known.items() if record.ended_at is not None},
        )
        for record in known.values():
            core._remember(record)
        core._told = core.records()
        return core

    @property
    def stopping(self) -> bool:
        return self.failure is not None or (self.desired is not None and self.desired.target == STOP)

    def records(self) -> tuple[JobRecord, ...]:
        return (*self.history.values(), *(job.record for job in self.live.values()))

    def newest(self, worker: str) -> Job | None:
        """The live job of a worker that people want to hear about."""
        jobs = [job for job in self.live.values() if job.record.worker == worker]
        return max(jobs, key=lambda job: job.record.generation, default=None)

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
        if self.records() != self._told:
            self._told = self.records()
            effects.insert(0, Record(self._told))
        return effects

    # ------------------------------------------------------------ taking in

    def _remember(self, record: JobRecord) -> Worker:
        worker = self.workers.setdefault(record.worker, Worker(-1))
        worker.last_generation = max(worker.last_generation, record.generation)
        return worker

    def _add(self, job: str, worker: str, generation: int, now: float) -> None:
        if job in self.live or job in self.history:
            return
        name = job_name(self.run, worker, generation)
        record = JobRecord(job=job, name=name, worker=worker, generation=generation, submitted_at=now)
        self._remember(record)
        self.live[job] = Job(record)

    def _submitted(self, worker: str, generation: int, job: str, now: float) -> None:
        self.workers[worker].submitting = None
        self._add(job, worker, generation, now)

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
        for row in rows:
            self._adopt(row, now)
        by_id = {row.job: row for row in rows}
        for job in list(self.live.values()):
            if job.record.job in by_id:
                job.row = by_id[job.record.job]
            elif asked_at > job.record.submitted_at + SETTLE_S:
                job.row = Row(job=job.record.job, name=job.record.name, state=GONE)
            if job.row is not None and job.row.ended:
                self._end(job, job.row, now)

    def _adopt(self, row: Row, now: float) -> None:
        """A job of ours that is in no record: its submission was cut short. One that has ended is nobody's failure."""
        named = parse_job_name(self.run, row.name)
        if named is None or row.job in self.live or row.job in self.history:
            return
        self._add(row.job, *named, now)
        if row.ended:
            record = self.live.pop(row.job).record
            self.history[row.job] = msgspec.structs.replace(record, ended_at=now, state=row.state, reason=row.reason)

    def _end(self, job: Job, row: Row, now: float) -> None:
        reason = "; ".join(part for part in (row.reason, job.detail) if part and part != "None")
        record = msgspec.structs.replace(job.record, ended_at=now, state=row.state, reason=reason)
        del self.live[record.job]
        self.history[record.job] = record
        wanted = self.desired is not None and record.worker in self.desired.workers
        if self.stopping or not wanted or self._is_history(record):
            return
        worker = self.workers[record.worker]
        if not self.served and row.state not in INNOCENT_ENDS:
            told = f"the job ended as {row.state}" + (f" ({reason})" if reason else "")
            self.failure = Failure(worker=record.worker, job=record.job, name=record.name, reason=told)
        elif job.ready_at is not None and now - job.ready_at >= STEADY_S:
            worker.failures = 0
        else:
            self._back_off(worker, now)

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
        for job in self.live.values():
            seen = self._view(job)
            if seen is None:
                continue
            job.detail = seen.detail
            if seen.phase == lifecycle.READY and job.ready_at is None:
                job.ready_at = now

    def _view(self, job: Job) -> WorkerView | None:
        if self.fleet is None:
            return None
        wanted = (job.record.worker, job.record.generation)
        return next((seen for seen in self.fleet.workers if (seen.worker, seen.generation) == wanted), None)

    # ------------------------------------------------------------ deciding

    def _decide(self, now: float) -> list[Effect]:
        """Nothing is decided blindly: the first answer of the queue shows what runs already."""
        if self.desired is None or self.asked_at == float("-inf") or self.done:
            return []
        wanted = () if self.stopping else self.desired.workers
        kept = {id(self._keep(worker)) for worker in wanted}
        effects: list[Effect] = []
        for job in self.live.values():
            if id(job) not in kept:
                effects += self._finish(job, now)
        for name in wanted:
            effects += self._start(name, now)
        if self.stopping and self._empty():
            self.done = True
            effects.append(Done())
        return effects

    def _keep(self, worker: str) -> Job | None:
        """One job per worker: the one that is furthest, and of those the first."""
        jobs = [job for job in self.live.values() if job.record.worker == worker]
        return min(jobs, key=lambda job: (job.ready_at is None, job.record.generation), default=None)

    def _start(self, name: str, now: float) -> list[Effect]:
        worker = self.workers.setdefault(name, Worker(-1))
        if worker.submitting is not None or self._keep(name) is not None:
            return []
        # After a refusal the job may exist all the same: the queue has to say that it does not.
        if self.asked_at <= worker.refused_at + SETTLE_S or now < worker.not_before:
            return []
        worker.last_generation += 1
        worker.submitting = worker.last_generation
        return [Submit(name, worker.submitting)]

    def _finish(self, job: Job, now: float) -> list[Effect]:
        """Drain what serves, then cancel; cancel what does not serve at once."""
        seen = self._view(job)
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
        return idle and not self.live
