"""The freshest view of a run that this machine can get: the proxy's /fleet, else `status.json` with its age; where
nobody writes that any more, Slurm's own word on the jobs.

Owns the one HTTP request of the launcher. What is fresher is laid over the controller's view.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import msgspec

from launcher.control.ownership import living_owner
from launcher.job import Plan
from launcher.jobs import CONTROLLER, JobError, Row, controller_name, parse_job_name
from launcher.keys import api_key_file
from launcher.rundir import RunDir, read_optional
from launcher.scheduler import slurm
from launcher.view.run_status import LAUNCHING, LOST, QUEUED, STALE_S, WAITING, ProcessStatus, RunStatus, WorkerStatus
from launcher.view.status import with_row
from workers.agent import lifecycle
from workers.links.proxy_file import read_proxies
from workers.stages import QUEUE, StageTimes

TIMEOUT_S = 3.0


def current_status(run: RunDir, plan: Plan) -> tuple[RunStatus, str]:
    """Returns the status and where it is from."""
    written = read_optional(run.status, RunStatus)
    told = written or RunStatus(
        run=plan.run, phase=LAUNCHING, written_at=time.time(), controller="", workers=_planned(plan)
    )
    age_s = max(0.0, time.time() - told.written_at)
    source = f"status.json, {age_s:.0f} s old" if written else "no controller has written anything yet"
    if told.ended:
        return told, source
    fleet = ask_fleet(run)
    if fleet is not None:
        silent_s = age_s if age_s > STALE_S else None
        return msgspec.structs.replace(overlay(told, fleet, time.time()), controller_silent_s=silent_s), "live"
    kept = living_owner(run) is not None or (written is None and plan.controller is None)
    if kept and written is not None and age_s < STALE_S:
        return told, source
    if plan.executor == "local":
        return told if kept else msgspec.structs.replace(told, phase=LOST, ready=False), source
    try:
        rows = slurm.plan_rows(plan, run.path)
    except JobError as fault:
        return told, f"{source}; Slurm cannot be asked: {fault}"
    if plan.allocation is not None and any(row.state == "RUNNING" for row in rows):
        return told, f"{source}; its job {plan.allocation.job} runs"  # its steps are known to its controller alone
    return overlay_queue(told, rows, kept=kept), f"Slurm, asked just now; {source}"


def ask_fleet(run: RunDir, path: str = "/fleet") -> dict[str, Any] | None:
    """None where no proxy of the run answers from here."""
    key = api_key_file(run.keys).read_text().strip()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for proxy in read_proxies(run.proxies):
        request = urllib.request.Request(f"{proxy.http}{path}", headers={"Authorization": f"Bearer {key}"})
        try:
            with opener.open(request, timeout=TIMEOUT_S) as answer:
                fleet: dict[str, Any] = msgspec.json.decode(answer.read())
                return fleet
        except (urllib.error.URLError, OSError, msgspec.DecodeError):
            continue
    return None


# ---------------------------------------------------------------- the proxy's word


def overlay(told: RunStatus, fleet: dict[str, Any], now: float) -> RunStatus:
    """Pure. Jobs first, then what their workers say of themselves."""
    jobs = {(job["worker"], job["generation"]): job for job in fleet["jobs"] if job["job"]}
    told_of = {(worker.worker, worker.generation) for worker in told.workers}
    news = {job["worker"]: job for life, job in jobs.items() if life not in told_of}
    alive = {(seen["worker"], seen["generation"]): seen for seen in fleet["workers"]}
    workers = []
    for worker in told.workers:
        job = jobs.get((worker.worker, worker.generation), None if worker.beside else news.get(worker.worker))
        if job is not None:
            worker = _with_job(worker, job)
        seen = alive.get((worker.worker, worker.generation))
        workers.append(worker if seen is None else _with_worker(worker, seen, now))
    missing = [pair for pair in fleet["pairs"] if not pair["proven"]]
    return msgspec.structs.replace(
        told,
        workers=tuple(workers),
        ready=fleet["ready"],
        missing_pairs=tuple((pair["prefill"] or "", pair["decode"]) for pair in missing),
        faults=tuple(
            f"{pair['prefill'] or 'whole'} -> {pair['decode']}: {pair['fault']}" for pair in missing if pair["fault"]
        ),
        refusals=tuple(fleet["refusals"]),
        processes=msgspec.convert(fleet["processes"], tuple[ProcessStatus, ...]),
        written_at=now,
    )


def _with_job(worker: WorkerStatus, job: dict[str, Any]) -> WorkerStatus:
    names = ("generation", "job", "state", "reason", "estimated_start", "end_time", "node")
    if job["generation"] != worker.generation:
        phase = QUEUED if job["state"] in ("", "PENDING") else lifecycle.STARTING
        worker = msgspec.structs.replace(worker, phase=phase, detail="", running=0, waiting=0, stages=(), turn="")
    return msgspec.structs.replace(worker, **{name: job[name] for name in names})


def _with_worker(worker: WorkerStatus, seen: dict[str, Any], now: float) -> WorkerStatus:
    left = seen["time_left_s"]
    return msgspec.structs.replace(
        worker,
        phase=seen["phase"],
        detail=seen["detail"],
        node=seen["node"] or worker.node,
        end_time=worker.end_time if left is None else now + left,
        running=seen["running"],
        waiting=seen["waiting"],
        stages=_queued(worker) + tuple(seen["stages"].items()),
        turn=seen.get("turn", ""),  # an older proxy says nothing of it
    )


def _queued(worker: WorkerStatus) -> StageTimes:
    """What only the controller knows of a start."""
    return tuple(stage for stage in worker.stages if stage[0] == QUEUE)


# ---------------------------------------------------------------- Slurm's word


def overlay_queue(told: RunStatus, rows: Sequence[Row], *, kept: bool) -> RunStatus:
    """Pure. What the jobs do; what goes on inside of them Slurm cannot know. `kept`: a controller lives."""
    jobs: dict[str, dict[int, Row]] = {}
    controller = None
    for row in rows:
        named = parse_job_name(told.run, row.name)
        if named is not None and not row.ended:
            jobs.setdefault(named[0], {})[named[1]] = row
        elif row.name == controller_name(told.run) and (controller is None or controller.ended):
            controller = row
    alive = kept or (controller is not None and not controller.ended)
    return msgspec.structs.replace(
        told,
        phase=told.phase if alive else LOST,
        ready=False,
        missing_pairs=(),
        faults=(),
        workers=tuple(
            _with_queued(worker, jobs.get(worker.worker, {}))
            for worker in told.workers
            if not worker.beside or worker.generation in jobs.get(worker.worker, {})
        ),
        controller_job=None if controller is None else _controller(controller),
    )


def _with_queued(worker: WorkerStatus, jobs: dict[int, Row]) -> WorkerStatus:
    if not jobs:
        return msgspec.structs.replace(worker, phase=WAITING, state="", running=0, waiting=0)
    generation = worker.generation if worker.generation in jobs else max(jobs)
    fresh = WorkerStatus(
        worker=worker.worker, pool=worker.pool, role=worker.role, generation=generation, beside=worker.beside
    )
    return with_row(fresh, jobs[generation], lifecycle.STARTING)


def _controller(row: Row) -> WorkerStatus:
    blank = WorkerStatus(worker=CONTROLLER, pool="", role="")
    return msgspec.structs.replace(with_row(blank, row, "ended" if row.ended else "started"), generation=0)


def _planned(plan: Plan) -> tuple[WorkerStatus, ...]:
    return tuple(
        WorkerStatus(worker=planned.spec.worker, pool=planned.spec.pool, role=str(planned.spec.role))
        for planned in plan.workers
    )
