"""The jobs of a run as far as the controller knows: those that live, with what was seen of them, and those that ended.

Owns the job records. Pure, and judges nothing: whether an end is a failure and what follows is `reconcile`'s.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import msgspec

from launcher.jobs import GONE, JobRecord, Row, job_name, parse_job_name
from workers.agent import lifecycle
from workers.controller_messages import FleetView, WorkerView

# A job submitted this recently may be missing from the queue's answer without being gone.
SETTLE_S = 5.0


@dataclass(slots=True)
class Job:
    """A job that has not ended as far as we know."""

    record: JobRecord
    row: Row | None = None
    drained_at: float | None = None
    cancelled_at: float | None = None
    ready_at: float | None = None
    drain_s: float = 0.0
    drain_reason: str = ""
    told_at: float | None = None  # to drain, last
    end_time: float | None = None  # when Slurm ends it
    held_at: float | None = None  # it waited for another job's end then, not for room
    detail: str = ""  # the worker's own last word


class JobBook:
    """By job id. Jobs are adopted by name, so that a new controller continues where a dead one stopped."""

    def __init__(
        self, run: str, records: Iterable[JobRecord], revisions: Mapping[tuple[str, int], int] = MappingProxyType({})
    ) -> None:
        """`revisions`: of every generation that was ever about to be submitted."""
        known = {record.job: record for record in records}
        self._run = run
        self.revisions = dict(revisions)
        self.live = {job: Job(record) for job, record in known.items() if record.ended_at is None}
        self.history = {job: record for job, record in known.items() if record.ended_at is not None}

    def records(self) -> tuple[JobRecord, ...]:
        return (*self.history.values(), *(job.record for job in self.live.values()))

    def last_generation(self, worker: str) -> int:
        return max((record.generation for record in self.records() if record.worker == worker), default=-1)

    def jobs_of(self, worker: str) -> list[Job]:
        return [job for job in self.live.values() if job.record.worker == worker]

    def newest(self, worker: str) -> Job | None:
        """The live job of a worker that people want to hear about."""
        return max(self.jobs_of(worker), key=lambda job: job.record.generation, default=None)

    def add(self, job: str, worker: str, generation: int, now: float) -> None:
        if job not in self.live and job not in self.history:
            name = job_name(self._run, worker, generation)
            revision = self.revisions.get((worker, generation), 0)
            self.live[job] = Job(
                JobRecord(job=job, name=name, worker=worker, generation=generation, submitted_at=now, revision=revision)
            )

    def read_queue(self, rows: tuple[Row, ...], asked_at: float, now: float) -> list[Job]:
        """Returns the jobs that lived and have ended."""
        for row in rows:
            self._adopt(row, now)
        by_id = {row.job: row for row in rows}
        ended = []
        for job in list(self.live.values()):
            if job.record.job in by_id:
                job.row = by_id[job.record.job]
                _date(job, job.row, now)
            elif asked_at > job.record.submitted_at + SETTLE_S:
                job.row = Row(job=job.record.job, name=job.record.name, state=GONE)
            if job.row is not None and job.row.ended:
                self._end(job, job.row, now)
                ended.append(job)
        return ended

    def see_fleet(self, view: FleetView, now: float) -> None:
        for job in self.live.values():
            seen = view_of(job, view)
            if seen is not None:
                job.detail = seen.detail
                job.end_time = seen.end_time or job.end_time
                if job.record.started_at is None:
                    job.record = _begun(job, now)
                if seen.phase == lifecycle.READY and job.ready_at is None:
                    job.ready_at = now
                if seen.proven and job.record.proven_at is None:
                    job.record = msgspec.structs.replace(job.record, proven_at=now)
                if seen.phase == lifecycle.DRAINING and job.record.draining_at is None:
                    job.record = msgspec.structs.replace(job.record, draining_at=now)

    def _adopt(self, row: Row, now: float) -> None:
        """A job of ours that is in no record: its submission was cut short. One that has ended is nobody's failure."""
        named = parse_job_name(self._run, row.name)
        if named is None or row.job in self.live or row.job in self.history:
            return
        self.add(row.job, *named, now)
        if row.ended:
            self._end(self.live[row.job], row, now)

    def _end(self, job: Job, row: Row, now: float) -> None:
        if job.record.started_at is None and job.held_at is not None:
            job.record = msgspec.structs.replace(job.record, submitted_at=job.held_at)
        reason = "; ".join(part for part in (row.reason, job.detail) if part and part != "None")
        ended_at = _ended_at(job, row, now)
        job.record = msgspec.structs.replace(job.record, ended_at=ended_at, state=row.state, reason=reason)
        self.history[job.record.job] = self.live.pop(job.record.job).record


def _date(job: Job, row: Row, now: float) -> None:
    """When it started, by the queue. One that was queued again starts anew."""
    if row.held:
        job.held_at = now
    if row.state == "PENDING" and job.record.started_at is not None:
        ran_s = job.record.earlier_s + now - job.record.started_at
        job.record = msgspec.structs.replace(
            job.record, started_at=None, proven_at=None, draining_at=None, earlier_s=ran_s
        )
        job.ready_at = job.end_time = None
    elif row.state != "PENDING" and not row.ended:
        job.end_time = row.end_time or job.end_time
        if job.record.started_at is None:
            job.record = _begun(job, row.start_time or now)


def _begun(job: Job, at: float) -> JobRecord:
    """While it was held it did not queue."""
    submitted_at = max(job.record.submitted_at, job.held_at or 0.0)
    return msgspec.structs.replace(job.record, submitted_at=submitted_at, started_at=at)


def _ended_at(job: Job, row: Row, now: float) -> float:
    """By the queue, where it knows: nobody may have looked for a while. A job is never longer than its walltime."""
    told = job.end_time if row.end_time is None else row.end_time
    begun = job.record.submitted_at if job.record.started_at is None else job.record.started_at
    return now if told is None else max(begun, min(now, told))


def view_of(job: Job, fleet: FleetView) -> WorkerView | None:
    wanted = (job.record.worker, job.record.generation)
    return next((seen for seen in fleet.workers if (seen.worker, seen.generation) == wanted), None)
