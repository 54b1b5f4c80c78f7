"""What a controller starts from: all that it has to know of the past lies in the run folder and the plan.

Reads only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress

import msgspec

from launcher.control.reconcile import Reconciler
from launcher.control.succession import Policy
from launcher.job import Plan
from launcher.jobs import JobSystem, Row, parse_job_name
from launcher.rundir import RunDir
from launcher.scheduler.local import LocalJobs
from launcher.scheduler.steps import StepJobs
from launcher.scheduler.submit import SlurmJobs
from workers.spec import WorkerSpec, read_spec


def restore(run: RunDir, plan: Plan) -> Reconciler:
    """All that a controller has to know of the past lies in the run folder."""
    generations = {planned.spec.worker: planned.spec.generation - 1 for planned in plan.workers}
    revisions = {}
    for path in run.specs.glob("*.g*.json"):
        worker, _, generation = path.name.removesuffix(".json").rpartition(".g")
        generations[worker] = max(generations.get(worker, -1), int(generation))
        revisions[worker, int(generation)] = read_spec(path, WorkerSpec).revision
    return Reconciler.restore(
        plan.run,
        run.read_jobs(),
        generations,
        served=run.endpoint.exists(),
        policy=policy_of(plan),
        revisions=revisions,
    )


def policy_of(plan: Plan) -> Policy:
    """Local GPUs and a job's nodes are shared out: there is no room for two lives of a worker, and no walltime each."""
    shared = plan.executor == "steps" or (plan.executor == "local" and plan.gpus_per_node > 0)
    return Policy(
        drain_s=max(planned.spec.drain_timeout_s for planned in plan.workers),
        by_clock=plan.executor != "steps",
        overlap=not shared,
        drain_first=plan.drain_first,
        crowded=plan.crowded,
        chained=plan.chain_length > 0,
    )


def job_system(run: RunDir, plan: Plan) -> JobSystem:
    if plan.allocation is not None:
        return StepJobs(run, plan.allocation)
    return LocalJobs(run, plan) if plan.executor == "local" else SlurmJobs(run, plan)


def revisions_of(
    run: RunDir, plan: Plan, rows: Iterable[Row], known: Mapping[tuple[str, int], int]
) -> dict[tuple[str, int], int]:
    """Of the jobs that the launcher has submitted to a run that lives."""
    found = {}
    for row in rows:
        life = parse_job_name(plan.run, row.name)
        if life is not None and life not in known and not row.ended:
            with suppress(OSError, msgspec.DecodeError):
                found[life] = read_spec(run.worker_spec(*life), WorkerSpec).revision
    return found
