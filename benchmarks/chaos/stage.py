"""A run on a real Slurm for one row, with simulated engines, and what rows do to it and ask of it.

Owns the run from its launch to its stop. It is launched, asked and stopped by the launcher's own commands, as users do.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from benchmarks.chaos.options import SIMULATED, Options
from benchmarks.chaos.users import Users, read_endpoint
from launcher.control.reconcile import LAST_BACKOFF_S
from launcher.jobs import JobError, controller_name, job_name
from launcher.jobs import Row as JobRow
from launcher.rundir import SOURCE, RunDir
from launcher.scheduler import slurm
from launcher.scheduler.local import descendants, run_processes
from launcher.view.logs import logs_of

RUN = "chaos"
WAIT_S = LAST_BACKOFF_S + 120.0  # a worker that was lost several times in a row waits for its next try
LOOK_S = 0.1
STOPPED = "sluice.agent: stopped: "  # a worker's last word, in its log


class StageFault(SystemExit):
    """The run did not do what every run must; told as it is."""


class Stage:
    """`users` ask all the time."""

    def __init__(self, folder: Path, options: Options, arguments: tuple[str, ...]) -> None:
        self.options = options
        self.run = RunDir(folder / "runs" / RUN)
        self.users: Users
        self.may_cut = 0  # requests on what the row has ended
        self._folder = folder
        self._arguments = (
            f"+cluster={options.cluster}",
            *engine(options),
            f"run={RUN}",
            "routing=least_loaded",
            "routing.whole_below_tokens=0",
            f"pools.prefill.replicas={options.replicas}",
            f"pools.decode.replicas={options.replicas}",
            "engine.drain_timeout_s=8",
            "controller.poll_interval_s=2",
            *arguments,
        )

    # ------------------------------------------------------------ the launcher

    def launch(self) -> None:
        self.launcher(*self._arguments)

    def launcher(self, *arguments: str) -> str:
        """Its output. Raises StageFault where it fails."""
        done = subprocess.run(
            [sys.executable, "-m", "launcher", *arguments],
            cwd=self._folder,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise StageFault(f"launcher {' '.join(arguments)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
        return done.stdout

    def restart(self, *changes: str) -> None:
        """Without changes: the same again."""
        given = (*self._arguments, *changes) if changes else (f"run={RUN}",)
        self.launcher("action=restart", *given)

    def stop(self) -> None:
        if self.run.desired.exists():
            self.launcher("action=stop", f"run={RUN}")

    # ------------------------------------------------------------ looking

    def url(self) -> str:
        """Where the proxy is now."""
        endpoint = read_endpoint(self.run.endpoint)
        return f"http://{endpoint.host}:{endpoint.port}"

    def fleet(self) -> dict[str, Any]:
        """What the proxy knows; nothing while it does not answer."""
        return self.ask(self.url()) or {"workers": [], "ready": False}

    def ask(self, url: str) -> dict[str, Any] | None:
        headers = {"authorization": f"Bearer {(self.run.keys / 'reader_key').read_text()}"}
        try:
            answer = httpx.get(f"{url}/fleet", headers=headers, timeout=5)
            found: dict[str, Any] = answer.raise_for_status().json()
        except httpx.HTTPError:
            return None
        return found

    def serving(self) -> dict[str, int]:
        """The newest generation of each worker that takes requests."""
        fleet = self.fleet()
        ready = [worker for worker in fleet["workers"] if worker["phase"] == "ready" and not worker["leaving"]]
        found: dict[str, int] = {}
        for worker in ready:
            found[worker["worker"]] = max(found.get(worker["worker"], -1), worker["generation"])
        return found if fleet["ready"] else {}

    def rows(self) -> list[JobRow]:
        """What Slurm holds of the run; nothing while it does not answer."""
        try:
            return [row for row in slurm.run_rows(RUN, self.run.path) if not row.ended]
        except JobError:
            return []

    def job(self, worker: str) -> str:
        """The id of the job of its newest generation."""
        generation = self.serving()[worker]
        return next(row.job for row in self.rows() if row.name == job_name(RUN, worker, generation))

    def controller_job(self) -> str:
        """The elder one, where another one follows it."""
        return min((row.job for row in self.rows() if row.name == controller_name(RUN)), key=int, default="")

    def controllers(self) -> list[int]:
        """Its processes: while one follows another there are two."""
        return self._processes("launcher.control.controller", str(self.run.path))

    def agent(self, worker: str) -> int:
        """The process of its newest generation."""
        spec = self.run.worker_spec(worker, self.serving()[worker])
        if not (found := self._processes("workers", str(spec))):
            raise StageFault(f"no process of {spec.name}")
        return found[0]

    def has_stopped(self, worker: str, job: str) -> bool:
        """By itself; where Slurm had to kill it this never comes."""
        return any(STOPPED in log.read_text(errors="replace") for log in logs_of(self.run.log_dir(worker), job))

    def engine(self, worker: str) -> int:
        """Its engine's process, the agent's only child."""
        (_, child, *_) = descendants(self.agent(worker))
        return child

    def _processes(self, module: str, argument: str) -> list[int]:
        found = []
        for pid in run_processes(self.run):
            with suppress(FileNotFoundError, ProcessLookupError):  # ended meanwhile
                words = Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")
                found += [pid] if module in words and argument in words else []
        return found

    def until(self, condition: Callable[[], object], what: str, timeout_s: float = WAIT_S) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            if time.monotonic() > deadline:
                status = self.launcher("action=status", f"run={RUN}")
                raise StageFault(f"waited {timeout_s:.0f} s for {what}:\n{status}")
            time.sleep(LOOK_S)

    def until_followed(self, before: dict[str, int], what: str, timeout_s: float = WAIT_S) -> None:
        """Every worker of before is served by a later generation, and no earlier one is left."""

        def followed() -> bool:
            now = self.serving()
            lives = {(worker["worker"], worker["generation"]) for worker in self.fleet()["workers"]}
            return all(now.get(name, -1) > life and (name, life) not in lives for name, life in before.items())

        self.until(followed, what, timeout_s)


def engine(options: Options) -> tuple[str, ...]:
    """The cluster's own, or a simulated one."""
    if options.engine == SIMULATED:
        return (f"engine={SIMULATED}", f"+engine.engine_args.timing={{decode_ms:[0,0,{options.step_ms}]}}")
    return (f"engine={options.engine}",)


@contextmanager
def staged(folder: Path, options: Options, arguments: tuple[str, ...]) -> Iterator[Stage]:
    """A run that serves, under load; at its end nothing of it is left."""
    folder.mkdir(exist_ok=True)
    stage = Stage(folder, options, arguments)
    try:
        stage.launch()
        prompts = [f"user {number} asks: " + "word " * options.prompt_words for number in range(options.users)]
        with Users(stage.run.endpoint, options.users, options.tokens, prompts) as stage.users:
            yield stage
    finally:
        stage.stop()
