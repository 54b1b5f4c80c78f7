"""The freshest view of a run that this machine can get: the proxy's /fleet, else `status.json` with its age.

Owns the one HTTP request of the launcher. The proxy's view is laid over the controller's.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from typing import Any

import msgspec

from launcher.job import Plan
from launcher.keys import api_key_file
from launcher.rundir import RunDir, read_optional
from launcher.status import QUEUED, WAITING, RunStatus, WorkerStatus
from workers import lifecycle
from workers.rendezvous import read_proxies

TIMEOUT_S = 3.0


def current_status(run: RunDir, plan: Plan) -> tuple[RunStatus, str]:
    """Returns the status and where it is from."""
    told = read_optional(run.status, RunStatus)
    if told is None:
        told = RunStatus(run=plan.run, phase=WAITING, written_at=time.time(), controller="", workers=_planned(plan))
        source = "no controller has written anything yet"
    else:
        source = f"status.json, {max(0.0, time.time() - told.written_at):.0f} s old"
    if told.ended:
        return told, source
    fleet = ask_fleet(run)
    return (told, source) if fleet is None else (overlay(told, fleet, time.time()), "live")


def ask_fleet(run: RunDir) -> dict[str, Any] | None:
    """None where no proxy of the run answers from here."""
    key = api_key_file(run.keys).read_text().strip()
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for proxy in read_proxies(run.proxies):
        request = urllib.request.Request(f"{proxy.http}/fleet", headers={"Authorization": f"Bearer {key}"})
        try:
            with opener.open(request, timeout=TIMEOUT_S) as answer:
                fleet: dict[str, Any] = msgspec.json.decode(answer.read())
                return fleet
        except (urllib.error.URLError, OSError, msgspec.DecodeError):
            continue
    return None


def overlay(told: RunStatus, fleet: dict[str, Any], now: float) -> RunStatus:
    """Pure. Jobs first, then what their workers say of themselves."""
    jobs = {job["worker"]: job for job in fleet["jobs"] if job["job"]}
    alive = {(seen["worker"], seen["generation"]): seen for seen in fleet["workers"]}
    workers = []
    for worker in told.workers:
        if worker.worker in jobs:
            worker = _with_job(worker, jobs[worker.worker])
        seen = alive.get((worker.worker, worker.generation))
        workers.append(worker if seen is None else _with_worker(worker, seen, now))
    return msgspec.structs.replace(
        told, workers=tuple(workers), ready=fleet["ready"], refusals=tuple(fleet["refusals"]), written_at=now
    )


def _with_job(worker: WorkerStatus, job: dict[str, Any]) -> WorkerStatus:
    names = ("generation", "job", "state", "reason", "estimated_start", "end_time", "node")
    if job["generation"] != worker.generation:
        phase = QUEUED if job["state"] in ("", "PENDING") else lifecycle.STARTING
        worker = msgspec.structs.replace(worker, phase=phase, detail="", running=0, waiting=0)
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
    )


def _planned(plan: Plan) -> tuple[WorkerStatus, ...]:
    return tuple(
        WorkerStatus(worker=planned.spec.worker, pool=planned.spec.pool, role=str(planned.spec.role))
        for planned in plan.workers
    )
