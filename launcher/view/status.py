"""A run's status: the merge of job records, queue and fleet into what people read, and into what the proxy is told.

Pure. The shapes are launcher.view.run_status's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import datetime

import msgspec

from launcher.control.job_book import Job
from launcher.control.outlook import Outlook
from launcher.control.reconcile import Reconciler
from launcher.job import Plan, PlannedWorker
from launcher.jobs import EXITED, JobRecord, Row, pool_of, starts_after_min
from launcher.scheduler.hostlist import expand_hostlist
from launcher.view.run_status import (
    ENDING,
    FAILED,
    LAUNCHING,
    QUEUED,
    SERVING,
    STOPPED,
    STOPPING,
    WAITING,
    HandOver,
    RunStatus,
    WorkerStatus,
)
from workers.agent import lifecycle
from workers.controller_messages import FleetView, Jobs, JobView, WorkerView
from workers.spec import WorkerSpec
from workers.stages import QUEUE, StageTimes


def run_status(plan: Plan, core: Reconciler, controller: str, url: str, now: float) -> RunStatus:
    fleet = core.fleet or FleetView((), False)
    return RunStatus(
        run=plan.run,
        phase=_phase(core),
        written_at=now,
        controller=controller,
        url=url,
        ready=fleet.ready,
        served=core.served,
        workers=tuple(
            _worker(planned.spec.worker, planned.spec.pool, str(planned.spec.role), core, fleet)
            for planned in _there(plan, core)
        )
        + tuple(_beside(plan, core, fleet)),
        hand_overs=tuple(_hand_overs(plan, core)),
        further_jobs=_further_jobs(plan, core) if core.policy.chained and not core.stopping else None,
        failure=core.failure,
        missing_pairs=fleet.missing_pairs,
        faults=fleet.faults,
        refusals=fleet.refusals,
    )


def _there(plan: Plan, core: Reconciler) -> Iterator[PlannedWorker]:
    """Those that are wanted, and those that have not gone yet."""
    for planned in plan.workers:
        worker = planned.spec.worker
        if core.desired is None or worker in core.desired.workers or core.book.jobs_of(worker):
            yield planned


def _beside(plan: Plan, core: Reconciler, fleet: FleetView) -> Iterator[WorkerStatus]:
    """Jobs other than the one that stands for their worker, and those whose turn is far."""
    roles = {planned.spec.worker: str(planned.spec.role) for planned in plan.workers}
    for job in core.book.live.values():
        worker = job.record.worker
        if job.row is not None and job.row.held:
            continue
        if worker not in roles or job is not _own_job(core, worker):
            blank = WorkerStatus(worker=worker, pool=pool_of(worker), role=roles.get(worker, ""), beside=True)
            yield _live(blank, job, fleet)


def _own_job(core: Reconciler, worker: str) -> Job | None:
    """Of several, the one that serves."""
    place = None if core.outlook is None else core.outlook.places.get(worker)
    keep = None if place is None else place.keep
    return keep if keep is not None and keep.record.job in core.book.live else core.book.newest(worker)


def _further_jobs(plan: Plan, core: Reconciler) -> int:
    """Of a chain: jobs that have not begun, where one has."""
    held = Counter(job.record.worker for job in core.book.live.values() if job.row is not None and job.row.held)
    return min(held[planned.spec.worker] for planned in plan.workers)


def _hand_overs(plan: Plan, core: Reconciler) -> Iterator[HandOver]:
    seen = core.outlook
    for worker, place in () if seen is None else seen.places.items():
        assert seen is not None
        keep, submit_at, successor = place.keep, seen.submit_at(worker), place.successor
        if core.policy.chained:
            submit_at = None
        if successor is not None and successor.row is not None and successor.row.held and keep is not None:
            successor, submit_at = None, _turn(plan, seen, keep)
        if keep is None or not (successor or submit_at or seen.is_outdated(keep)):
            continue
        lead = seen.leads[pool_of(worker)]
        yield HandOver(
            worker=worker,
            generation=keep.record.generation,
            why=seen.why(keep),
            successor=None if successor is None else successor.record.generation,
            submit_at=None if submit_at is None else round(submit_at),
            queue_s=round(lead.queue_s),
            start_s=round(lead.start_s),
            drains_at=None if worker not in seen.turns else round(seen.turns[worker]),
            drains_first=seen.limits.get(worker, ""),
        )


def _turn(plan: Plan, seen: Outlook, keep: Job) -> float | None:
    """When the next job of a chain may start."""
    job = next((planned.job for planned in plan.workers if planned.spec.worker == keep.record.worker), None)
    if plan.drain_first or job is None or keep.record.started_at is None:
        return seen.turns.get(keep.record.worker)
    return keep.record.started_at + 60.0 * starts_after_min(job.time_min)


def jobs_message(plan: Plan, core: Reconciler) -> Jobs:
    """The same for the proxies, which know no Slurm."""
    stopping = core.stopping or core.desired is None
    return Jobs(
        jobs=job_views(plan, core),
        gpus_per_node=plan.gpus_per_node,
        wanted=tuple(planned.spec.worker for planned in plan.workers) if core.desired is None else core.desired.workers,
        serves=core.served and not stopping,
    )


def job_views(plan: Plan, core: Reconciler) -> tuple[JobView, ...]:
    specs = {planned.spec.worker: planned.spec for planned in plan.workers}
    nobody = FleetView((), False)
    there = [planned.spec for planned in _there(plan, core)]
    shown = [_worker(spec.worker, spec.pool, str(spec.role), core, nobody) for spec in there]
    shown += [status for status in _beside(plan, core, nobody) if status.worker in specs]
    return tuple(_job_view(status, specs[status.worker]) for status in shown)


def _job_view(seen: WorkerStatus, spec: WorkerSpec) -> JobView:
    return JobView(
        worker=seen.worker,
        pool=seen.pool,
        role=seen.role,
        generation=seen.generation,
        job=seen.job,
        state=seen.state,
        reason=seen.reason,
        estimated_start=seen.estimated_start,
        end_time=seen.end_time,
        node=seen.node,
        nodes=expand_hostlist(seen.node),
        num_nodes=spec.num_nodes,
        gpus=spec.gpus_per_node,
        tensor_parallel=spec.engine.tensor_parallel,
        pipeline_parallel=spec.engine.pipeline_parallel,
    )


def _phase(core: Reconciler) -> str:
    if core.failure is not None:
        return FAILED if core.done else STOPPING
    if core.stopping:
        return STOPPED if core.done else STOPPING
    return SERVING if core.served else LAUNCHING


def _worker(worker: str, pool: str, role: str, core: Reconciler, fleet: FleetView) -> WorkerStatus:
    status = WorkerStatus(worker=worker, pool=pool, role=role)
    job = _own_job(core, worker)
    if job is not None:
        return _live(status, job, fleet)
    ended = [record for record in core.book.history.values() if record.worker == worker]
    if not ended:
        return status
    last = max(ended, key=lambda record: record.generation)
    as_asked = lifecycle.STOPPED if last.state in ("COMPLETED", "CANCELLED", EXITED) else lifecycle.FAILED
    return msgspec.structs.replace(
        status,
        generation=last.generation,
        phase=as_asked if core.stopping else WAITING,
        job=last.job,
        state=last.state,
        reason=last.reason,
        detail="" if core.stopping else _next_try(core, last),
    )


def _next_try(core: Reconciler, last: JobRecord) -> str:
    worker = core.workers[last.worker]
    if not worker.failures:
        return ""
    at = datetime.fromtimestamp(worker.not_before).strftime("%H:%M:%S")
    reason = f" ({last.reason.splitlines()[0]})" if last.reason else ""
    return f"{worker.failures} ended young, the last as {last.state}{reason}; tried again at {at}"


def _live(status: WorkerStatus, job: Job, fleet: FleetView) -> WorkerStatus:
    record, row = job.record, job.row
    told_to_go = job.drained_at is not None or job.cancelled_at is not None
    status = msgspec.structs.replace(
        status, generation=record.generation, job=record.job, phase=ENDING if told_to_go else QUEUED
    )
    if row is not None:
        status = with_row(status, row, ENDING if told_to_go else lifecycle.STARTING)
    seen = _find(fleet, status)
    if seen is None:
        return status
    started = None if row is None or row.state == "PENDING" else row.start_time
    queued: StageTimes = () if started is None else ((QUEUE, max(0.0, started - record.submitted_at)),)
    return msgspec.structs.replace(
        status,
        phase=seen.phase,
        detail=seen.detail,
        node=seen.node or status.node,
        end_time=seen.end_time or status.end_time,
        running=seen.running,
        waiting=seen.waiting,
        stages=queued + seen.stages if seen.stages else (),
        turn=seen.turn,
    )


def with_row(status: WorkerStatus, row: Row, started: str) -> WorkerStatus:
    """What the queue says of a worker's job; `started` is the phase of one that waits no longer."""
    pending = row.state == "PENDING"
    expected = datetime.fromtimestamp(row.start_time).isoformat() if pending and row.start_time else ""
    return msgspec.structs.replace(
        status,
        job=row.job,
        state=row.state,
        reason=row.reason,
        estimated_start=expected,
        end_time=None if pending else row.end_time,
        node=row.nodes,
        phase=QUEUED if pending else started,
    )


def _find(fleet: FleetView, status: WorkerStatus) -> WorkerView | None:
    wanted = (status.worker, status.generation)
    return next((seen for seen in fleet.workers if (seen.worker, seen.generation) == wanted), None)
