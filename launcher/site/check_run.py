"""Hands the doctor's jobs in, waits for what they report, and leaves none behind.

Owns the jobs of one call. Judges nothing. Slurm is asked no more often than `controller.poll_interval_s` says; the
jobs' own files, in the doctor's folder, tell the rest.
"""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

from launcher.jobs import JobError, Row, job_name
from launcher.rundir import RunDir, read_optional
from launcher.scheduler import slurm
from launcher.scheduler.submit import run_check, submit
from launcher.site.check_files import Folder, Listeners, NodeReport, Word
from launcher.site.checks import CheckJob, Outcome
from launcher.site.peers import knock
from launcher.view.logs import logs_of, tail
from launcher.view.progress import Progress
from workers.spec import write_json

LOOK_EVERY_S = 0.5
REPORT_LAG_S = 60.0  # of the files of a job that has done its work
FAILED_LAG_S = 5.0  # one that has failed has mostly left none
LAST_LINES = 5
DONE, PROCESS_DONE = "COMPLETED", "status 0"
END_POLL_S = 3.0  # of jobs that have said all and are about to end


class CheckRun:
    """One call's jobs. `wait` may be interrupted; `leave` ends what is left."""

    def __init__(self, run: RunDir, code: str, poll_interval_s: float, progress: Progress) -> None:
        self._run = run
        self._code = code
        self._poll_interval_s = poll_interval_s
        self._progress = progress
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self.outcomes: list[Outcome] = []

    def cancel_earlier(self) -> None:
        """Of a call that was killed."""
        left = [row.job for row in self._rows() if not row.ended]
        if left:
            self._progress.note("earlier", f"jobs of an earlier call are cancelled: {', '.join(left)}")
            slurm.cancel(left)

    def start(self, checked: CheckJob) -> None:
        outcome = Outcome(checked=checked)
        self.outcomes.append(outcome)
        folder = self._folder(outcome)
        shutil.rmtree(folder.path, ignore_errors=True)
        folder.path.mkdir(mode=0o700, parents=True)
        write_json(folder.check, checked.check)
        if checked.check.worker is not None:
            write_json(folder.spec, checked.check.worker)
        if checked.request.executor == "local":
            self._processes[outcome.name] = self._process(folder)
            return
        name = job_name(self._run.path.name, outcome.name, 0)
        try:
            outcome.job = submit(
                self._run, checked.request, name, outcome.name, self._code, run_check, str(folder.path)
            )
        except JobError as refusal:
            outcome.refused = "; ".join(str(refusal).splitlines())

    def wait(self, timeout_s: float | None) -> None:
        """Until every job has reported or cannot any more, and Slurm holds none."""
        deadline = float("inf") if timeout_s is None else time.monotonic() + timeout_s
        next_question = 0.0
        while any(not self._settled(outcome) for outcome in self.outcomes):
            for outcome in self.outcomes:
                self._read(outcome)
            if time.monotonic() >= next_question:
                self._ask()
                reported = all(each.complete for each in self.outcomes)
                next_question = time.monotonic() + (
                    min(END_POLL_S, self._poll_interval_s) if reported else self._poll_interval_s
                )
            if time.monotonic() > deadline:
                return
            time.sleep(LOOK_EVERY_S)

    def leave(self) -> None:
        """Cancels what has not ended. Raises JobError."""
        for process in self._processes.values():
            process.terminate()
            process.wait()
        for outcome in self.outcomes:
            if not self._settled(outcome):
                outcome.gave_up = True
            if not outcome.complete and outcome.job:
                outcome.log_tail = self._log_tail(outcome)
        slurm.cancel([each.job for each in self.outcomes if each.job and each.ended_at is None])

    # ------------------------------------------------------------ one check

    def _folder(self, outcome: Outcome) -> Folder:
        return Folder(self._run.path / "checks" / outcome.name)

    def _process(self, folder: Folder) -> subprocess.Popen[bytes]:
        code_dir = self._run.code_dir(self._code)
        return subprocess.Popen(
            [sys.executable, "-m", "launcher.site.node_check", str(folder.path)],
            cwd=code_dir,
            env={**os.environ, "PYTHONPATH": str(code_dir)},
            stdin=subprocess.DEVNULL,
            stdout=sys.stderr,
            stderr=sys.stderr,
        )

    def _settled(self, outcome: Outcome) -> bool:
        if outcome.refused:
            return True
        if outcome.ended_at is None:
            return False
        failed = outcome.state not in (DONE, PROCESS_DONE)
        return outcome.complete or time.monotonic() > outcome.ended_at + (FAILED_LAG_S if failed else REPORT_LAG_S)

    def _read(self, outcome: Outcome) -> None:
        """Answers the first sign, knocks while somebody listens, takes in what is reported."""
        folder = self._folder(outcome)
        process = self._processes.get(outcome.name)
        if process is not None and process.poll() is not None and outcome.ended_at is None:
            outcome.ended_at, outcome.state = time.monotonic(), f"status {process.returncode}"
        started = read_optional(folder.started(0), Word)
        if started is not None and not folder.answer.exists():
            write_json(folder.answer, Word(platform.node()))
            self._progress.note(outcome.name, f"runs on {started.host}")
        listeners = read_optional(folder.listeners, Listeners)
        if listeners is not None and outcome.reached is None:
            token = outcome.checked.check.token
            outcome.reached = {name: knock(*endpoint, token) for name, endpoint in listeners.endpoints.items()}
        for rank in range(len(outcome.reports), outcome.checked.check.num_nodes):
            report = read_optional(folder.report(rank), NodeReport)
            if report is None:
                break
            outcome.reports.append(report)
            self._progress.note(f"{outcome.name} {rank}", f"{report.node} has reported")

    # ------------------------------------------------------------ Slurm

    def _ask(self) -> None:
        open_jobs = {each.job: each for each in self.outcomes if each.job and each.ended_at is None}
        if not open_jobs:
            return
        try:
            rows = self._rows()
        except JobError as fault:
            self._progress.note("slurm", str(fault))
            return
        known = {row.job: row for row in rows}
        for job, outcome in open_jobs.items():
            self._take(outcome, known.get(job))

    def _take(self, outcome: Outcome, row: Row | None) -> None:
        if row is None or row.ended:
            outcome.ended_at = time.monotonic()
            outcome.state = row.state if row else "gone"
            outcome.reason = row.reason if row else "Slurm no longer knows the job"
            return
        outcome.state, outcome.reason = row.state, row.reason
        if row.state == "PENDING":
            expected = f", expected to start {time.ctime(row.start_time)}" if row.start_time else ""
            why = f" ({row.reason})" if row.reason else ""
            words = f"job {outcome.job} is queued{why}{expected}; Ctrl-C leaves and cancels it"
            self._progress.note(outcome.name, words)

    def _rows(self) -> Sequence[Row]:
        return slurm.run_rows(self._run.path.name, self._run.path)

    def _log_tail(self, outcome: Outcome) -> list[str]:
        logs = logs_of(self._run.log_dir(outcome.name), outcome.job)
        return tail(logs[-1], LAST_LINES) if logs else []
