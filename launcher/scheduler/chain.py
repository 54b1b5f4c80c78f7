"""The jobs of a run whose own jobs may submit none: handed in together, each held by Slurm until its turn comes.

Owns what a job waits for. One that is to overlap starts a while before its predecessor's walltime ends, any one as soon
as its predecessor has ended. Job names tell generations as ever, so that a controller finds all of them in the queue.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from types import MappingProxyType

import msgspec

from launcher.job import JobRequest, Plan, PlannedWorker
from launcher.jobs import CONTROLLER, Row, controller_name, parse_job_name, starts_after_min
from launcher.rundir import RunDir
from launcher.scheduler import slurm
from launcher.scheduler.submit import SlurmJobs, submit_controller
from workers.spec import write_json

PENDING = "PENDING"


def after(job: JobRequest, before: str, *, overlap: bool) -> JobRequest:
    """Held until its turn after job `before`."""
    ended = f"afterany:{before}"
    dependency = f"after:{before}+{starts_after_min(job.time_min)}?{ended}" if overlap else ended
    return msgspec.structs.replace(job, additional=job.additional | {"dependency": dependency})


def submit_chain(
    run: RunDir, plan: Plan, workers: Sequence[PlannedWorker], last: Mapping[str, str] = MappingProxyType({})
) -> str:
    """`plan.chain_length` jobs for the controller and for each of `workers`. `last`: by name, the job that the first of
    them comes after. Returns the id of the controller's first. Raises JobError; then none of them is left."""
    latest, jobs = dict(last), SlurmJobs(run, plan)
    first = ""
    with ExitStack() as undo:
        for _ in range(plan.chain_length):
            controller = submit_controller(run, _controller_after(plan, latest.get(CONTROLLER)))
            undo.callback(slurm.cancel, [controller])
            latest[CONTROLLER], first = controller, first or controller
            for planned in workers:
                name = planned.spec.worker
                job = jobs.submit(_next_life(run, plan, planned, latest.get(name)))
                undo.callback(slurm.cancel, [job])
                latest[name] = job
        undo.pop_all()
    return first


def _controller_after(plan: Plan, before: str | None) -> Plan:
    """Where nobody sees to its end, there would be no endpoint: it always overlaps."""
    assert plan.controller is not None
    job = plan.controller if before is None else after(plan.controller, before, overlap=True)
    return msgspec.structs.replace(plan, controller=job)


def _next_life(run: RunDir, plan: Plan, planned: PlannedWorker, before: str | None) -> PlannedWorker:
    worker = planned.spec.worker
    generation = max(run.generations(worker), default=-1) + 1
    spec = msgspec.structs.replace(planned.spec, generation=generation, revision=planned.revision)
    write_json(run.worker_spec(worker, generation), spec)
    job = planned.job if before is None else after(planned.job, before, overlap=not plan.drain_first)
    return msgspec.structs.replace(planned, spec=spec, job=job)


def renew_chain(run: RunDir, plan: Plan, renewed: Sequence[PlannedWorker], *, newer_code: bool) -> None:
    """Of a live run: further jobs, from its newest plan, in the place of those that wait. Raises JobError."""
    rows = [row for row in slurm.run_rows(plan.run, run.path) if not row.ended]
    names = {CONTROLLER, *(planned.spec.worker for planned in renewed)}
    waiting = [row.job for row in rows if row.state == PENDING and slot(plan.run, row) in names]
    runs = {slot(plan.run, row): row.job for row in sorted(rows, key=lambda row: int(row.job)) if row.state != PENDING}
    # Where there is room the new ones start at once beside those that run, and so does a controller of newer code.
    last = {name: job for name, job in runs.items() if plan.drain_first or (name == CONTROLLER and not newer_code)}
    submit_chain(run, plan, renewed, last)
    slurm.cancel(waiting)


def slot(run: str, row: Row) -> str:
    """Whose job it is."""
    named = parse_job_name(run, row.name)
    return CONTROLLER if row.name == controller_name(run) else named[0] if named else ""
