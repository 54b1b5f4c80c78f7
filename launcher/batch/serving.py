"""The run that serves a batch: one that is there, or one that is brought up for it and released after it.

Owns the run's beginning and end where it is the batch's own. A run whose client was killed is taken up again by the
same command.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from launcher.batch.run_view import RunView
from launcher.control.ownership import living_owner
from launcher.job import Plan
from launcher.planning import models
from launcher.resume import AlreadyLive, lost_run, same_plan
from launcher.rundir import SERVE, RunDir
from launcher.schema import Config
from launcher.start import Controlled, plan_run, start_controller, write_run
from launcher.stopping import stop_run
from launcher.view.progress import Progress
from launcher.view.watch import await_url

GOING_S = 60.0  # for what is left of a run on this machine whose launcher was killed
LOOK_EVERY_S = 0.5


@contextmanager
def own_run(config: Config, progress: Progress, timeout_s: float | None) -> Iterator[RunView]:
    """Brought up, or found; stopped at the end. Raises LaunchFailed, AlreadyLive, JobError and what `up` does."""
    since = time.time()
    run, made, controlled = _bring_up(config)
    try:
        with progress.shown():
            await_url(run, made, controlled, progress, timeout_s)
        yield RunView(run, made, since)
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
    return run, made, start_controller(run, made, alone=lost is not None)
