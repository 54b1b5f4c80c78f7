"""Rows where what the run stands on is gone for a while: Slurm's controller, or the file system of the run folder."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from benchmarks.chaos import ground
from benchmarks.chaos.row import Row
from benchmarks.chaos.stage import Stage, StageFault
from launcher.rundir import read_optional
from launcher.view.run_status import RunStatus

PID_FILE = re.compile(r"^SlurmctldPidFile=(.+)$", re.MULTILINE)


def slurmctld_silent(stage: Stage) -> None:
    """It takes connections and answers nothing, which is worse than none. A controller that is killed again and again
    does not live for as long as its question waits: then nobody can say that Slurm is silent."""
    pid = int(Path(_setting(Path(os.environ["SLURM_CONF"]).read_text())).read_text())
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(stage.options.outage_s)
        if not stage.options.kill_controller:
            stage.until(lambda: told(stage).queue_fault != "", "the controller to say that Slurm is silent")
    finally:
        os.kill(pid, signal.SIGCONT)
    stage.until(lambda: told(stage).queue_fault == "", "the controller to hear of Slurm again")


def _setting(conf: str) -> str:
    found = PID_FILE.search(conf)
    if found is None:
        raise StageFault("SLURM_CONF names no SlurmctldPidFile: this row is for a Slurm of this machine")
    return found[1]


def told(stage: Stage) -> RunStatus:
    status = read_optional(stage.run.status, RunStatus)
    assert status is not None
    return status


def folder_is(state: Callable[[Path], AbstractContextManager[None]]) -> Callable[[Stage], None]:
    def happen(stage: Stage) -> None:
        before = told(stage).controller
        with state(stage.run.path.parent):
            time.sleep(stage.options.outage_s)
        over_at = time.time()
        stage.until(lambda: told(stage).written_at > over_at, "the controller to write again")
        if told(stage).controller != before and not stage.options.kill_controller:
            raise StageFault("the controller has died of it")

    return happen


ROWS = {
    "slurmctld_silent": Row(slurmctld_silent, 0.2),
    "folder_full": Row(folder_is(ground.full), 0.2, ground=ground.memory_file_system),
    "folder_read_only": Row(folder_is(ground.read_only), 0.2, ground=ground.memory_file_system),
    "folder_hung": Row(folder_is(ground.hung), 0.2, ground=ground.disk_image),
}
