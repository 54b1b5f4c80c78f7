"""`python -m launcher.control.supervisor RUN_DIR`: the controller's job. Starts the controller, and again when it dies.

Owns that one process. What the controller had started lives on without it, below this process, so that Slurm counts it
to the job; the next controller takes it over. Reads no file and decides nothing about the run.
"""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from types import FrameType

from launcher.control.ownership import MODULE
from workers.logs import start_logging

log = logging.getLogger("sluice.supervisor")

PR_SET_CHILD_SUBREAPER = 36
FIRST_DELAY_S = 0.5
LAST_DELAY_S = 8.0  # with its start shorter than an heir's patience: nobody else takes the run meanwhile
STEADY_S = 5.0  # who has lived for so long has read and asked everything once


def supervise(run_dir: str) -> int:
    """Returns the exit status of the last controller. One that ends by itself, with or without success, is the last:
    it has said why. One that is killed is not."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    delay_s = FIRST_DELAY_S
    asked_to_end = _Asked()
    while True:
        started_at = time.monotonic()
        process = subprocess.Popen([sys.executable, "-m", MODULE, run_dir])
        asked_to_end.pid = process.pid
        status = process.returncode = _wait(process.pid)
        if status >= 0 or asked_to_end:
            return max(0, status)
        delay_s = FIRST_DELAY_S if time.monotonic() - started_at > STEADY_S else min(LAST_DELAY_S, 2 * delay_s)
        log.error("the controller died of signal %d; starting another one in %.1f s", -status, delay_s)
        time.sleep(delay_s)


class _Asked:
    """Whether this job is to end; the controller is told, or this process ends where there is none."""

    def __init__(self) -> None:
        self.pid = 0
        self._asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._pass_on)

    def __bool__(self) -> bool:
        return self._asked

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        self._asked = True
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            sys.exit(0)


def _wait(pid: int) -> int:
    """For that one; children of a dead controller are ours now, and are waited for as they end."""
    while True:
        ended, status = os.wait()
        if ended == pid:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    listener = start_logging("supervisor")
    try:
        code = supervise(sys.argv[1])
    finally:
        listener.stop()
    raise SystemExit(code)
