"""The run that serves a batch: one that is there, or one that is brought up for it and released after it.

Owns the run's beginning and end where it is the batch's own. A run whose client was killed is taken up again by the
same command.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from launcher.batch.http_pool import Target
from launcher.control.ownership import living_owner
from launcher.job import Plan
from launcher.keys import api_key_file, batch_key_file
from launcher.planning import models
from launcher.resume import AlreadyLive, lost_run, same_plan
from launcher.rundir import SERVE, RunDir, read_optional
from launcher.schema import Config
from launcher.start import Controlled, plan_run, start_controller, write_run
from launcher.stopping import stop_run
from launcher.view.progress import Progress
from launcher.view.status import RunStatus
from launcher.view.watch import await_url

GOING_S = 60.0  # for what is left of a run on this machine whose launcher was killed
LOOK_EVERY_S = 0.5


class Seen(msgspec.Struct, frozen=True):
    """`ended`: why nobody will answer any more, "" as long as somebody may."""

    num_gpus: int = 0
    ended: str = ""


class RunView:
    """A run as its client sees it, through its folder. Its calls may block."""

    def __init__(self, run: RunDir, plan: Plan) -> None:
        self._run = run
        self._plan = plan
        self._gpus = {p.spec.worker: p.spec.gpus_per_node * p.spec.num_nodes for p in plan.workers}

    def locate(self) -> Target:
        status = read_optional(self._run.status, RunStatus)
        url = status.url if status is not None else ""
        key = batch_key_file(self._run.keys)
        path = key if key.exists() else api_key_file(self._run.keys)  # of a run that is older than such keys
        return Target(url.removesuffix("/v1"), path.read_text().strip(), self._plan.proxy.tls_cert)

    def look(self) -> Seen:
        status = read_optional(self._run.status, RunStatus)
        if status is None:
            return Seen()
        num_gpus = sum(self._gpus.get(worker.worker, 0) for worker in status.workers if worker.node)
        why = f"{status.failure.name}: {status.failure.reason}" if status.failure is not None else ""
        return Seen(num_gpus, f"the run has ended{why and f': {why}'}" if status.ended or why else "")


@contextmanager
def own_run(config: Config, progress: Progress) -> Iterator[RunView]:
    """Brought up, or found; stopped at the end. Raises LaunchFailed, AlreadyLive, JobError and what `up` does."""
    run, made, controlled = _bring_up(config)
    try:
        with progress.shown():
            await_url(run, made, controlled, progress, config.timeout_s)
        yield RunView(run, made)
    finally:
        stop_run(run, made, progress, None)
        if controlled.process is not None:
            controlled.process.wait()


def _bring_up(config: Config) -> tuple[RunDir, Plan, Controlled]:
    run, made, model = plan_run(config)
    deadline = time.monotonic() + GOING_S
    while True:
        try:
            lost = lost_run(run, made, config)
            break
        except AlreadyLive as live:
            if made.executor != "local" and living_owner(run) is not None and run.read_desired().target == SERVE:
                return run, same_plan(run, made, config, str(live)), Controlled()
            if made.executor != "local" or time.monotonic() > deadline:
                raise
        time.sleep(LOOK_EVERY_S)
    if lost is None:
        if not config.engine.simulated:
            models.prepare(model, sys.executable)
        write_run(run, made, config)
    else:
        made = lost
        run.status.unlink(missing_ok=True)  # the lost controller's
    return run, made, start_controller(run, made)
