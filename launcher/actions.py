"""What `python -m launcher` does: up, plan, status, logs, stop. Each returns the exit status.

Thin: puts together `start`, `watch`, `stopping` and `present`. Stays resident only where the run lives and
dies with it.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

import msgspec

from launcher import models, slurm
from launcher.job import Plan
from launcher.live_status import current_status
from launcher.present import failure_text, how_to_return, newest_log, ready_text, status_text, tail
from launcher.progress import Progress
from launcher.render import render_plan
from launcher.resume import lost_run
from launcher.rundir import RunDir, read_optional
from launcher.schema import Config, Output
from launcher.start import Controlled, plan_run, run_dir, start_controller, write_run
from launcher.status import RunStatus
from launcher.stopping import kill_local, stop_run
from launcher.submit import scripts
from launcher.watch import LaunchFailed, await_ready

INTERRUPTED = 130
FOLLOW_EVERY_S = 0.5


class NoSuchRun(Exception):
    """The run or what was asked of it does not exist; the message lists what does."""


class Terminated(BaseException):
    """SIGTERM, where this process is what keeps the run alive."""


def plan(config: Config) -> int:
    """Needs no Slurm and changes nothing."""
    run, made, _ = plan_run(config)
    texts = scripts(run, made) if made.executor == "slurm" else {}
    if config.output is Output.json:
        print(msgspec.json.format(msgspec.json.encode({"plan": made, "scripts": texts}), indent=2).decode())
    else:
        print(render_plan(made, texts), end="")
    return 0


def up(config: Config) -> int:
    run, made, model = plan_run(config)
    lost = lost_run(run, made, config)
    if lost is None:
        if not config.engine.simulated:
            models.prepare(model, sys.executable)
        write_run(run, made, config)
    else:
        print(f"run {made.run} has lost its controller and its workers live: only a controller is started", flush=True)
        made = lost
        run.status.unlink(missing_ok=True)  # the lost controller's: it may say ready
    controlled = start_controller(run, made)
    progress = Progress()
    with _sigterm_as_exception():
        try:
            return _accompany(run, made, controlled, progress, config.timeout_s)
        except LaunchFailed as failed:
            print(failure_text(run, failed.failure), file=sys.stderr, flush=True)
            if lost is None:
                _stop(run, made, controlled, progress)
            else:
                _leave_workers(run, made, controlled)
            return 1
        except (KeyboardInterrupt, Terminated) as interrupt:
            return _interrupted(run, made, controlled, progress, interrupt)


def _accompany(run: RunDir, made: Plan, controlled: Controlled, progress: Progress, timeout_s: float | None) -> int:
    with progress.shown():
        endpoint = await_ready(run, made, controlled, progress, timeout_s)
    print(ready_text(endpoint), flush=True)
    if controlled.process is None:
        print(f"\n{how_to_return(run, made.run)}", flush=True)
        return 0
    print("\nCtrl-C stops it" if made.executor == "local" else "\nCtrl-C detaches", flush=True)
    controlled.process.wait()
    status = read_optional(run.status, RunStatus)
    if status is not None and status.ended:
        return 0
    print(f"the controller ended with status {controlled.process.returncode}: stopping the run", file=sys.stderr)
    _stop(run, made, controlled, progress)
    return 1


def _interrupted(run: RunDir, made: Plan, controlled: Controlled, progress: Progress, interrupt: BaseException) -> int:
    """Only a run on this machine, or one whose job ends, stops with its launcher."""
    served = run.endpoint.exists()
    if made.executor == "local" or (controlled.process is not None and isinstance(interrupt, Terminated)):
        print("\nstopping; once more kills", flush=True)
        _stop(run, made, controlled, progress)
    else:
        print(f"\ndetached: the run goes on\n{how_to_return(run, made.run)}", flush=True)
    return 0 if served else INTERRUPTED


def _leave_workers(run: RunDir, made: Plan, controlled: Controlled) -> None:
    """What this call did not start, it does not end."""
    slurm.cancel([controlled.job] if controlled.job else [])
    print(f"the workers were left alone\n{how_to_return(run, made.run)}", file=sys.stderr)


def _stop(run: RunDir, made: Plan, controlled: Controlled, progress: Progress) -> None:
    try:
        with progress.shown():
            stop_run(run, made, progress, None)
    except (KeyboardInterrupt, Terminated):
        if made.executor != "local":
            print(f"\nnot waiting any longer\n{how_to_return(run, made.run)}", file=sys.stderr)
            return
        kill_local(run)
    if controlled.process is not None:
        controlled.process.wait()
    print("stopped: nothing of the run is left", flush=True)


@contextmanager
def _sigterm_as_exception() -> Iterator[None]:
    def raise_it(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    old = signal.signal(signal.SIGTERM, raise_it)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


# ---------------------------------------------------------------- on an existing run


def status(config: Config) -> int:
    run, made = _existing(config)
    seen, source = current_status(run, made)
    if config.output is Output.json:
        print(msgspec.json.encode({"source": source, **msgspec.to_builtins(seen)}).decode())
    else:
        print(status_text(seen, source))
    return 0


def stop(config: Config) -> int:
    run, made = _existing(config)
    progress = Progress()
    with progress.shown():
        stop_run(run, made, progress, config.timeout_s)
    print(f"stopped: nothing of run {made.run} is left")
    return 0


def logs(config: Config) -> int:
    run, _ = _existing(config)
    names = sorted(path.name for path in run.logs.iterdir() if path.is_dir())
    if config.worker not in names:
        raise NoSuchRun(f"worker={config.worker}: no such log; there are {', '.join(names) or 'none yet'}")
    folder = run.log_dir(config.worker)
    path = newest_log(folder)
    if path is None:
        raise NoSuchRun(f"worker={config.worker}: it has not written anything yet")
    if not config.follow:
        sys.stdout.write(path.read_text(errors="replace"))
        return 0
    with suppress(KeyboardInterrupt):
        _follow(folder, path)
    return 0


def _follow(folder: Path, path: Path) -> NoReturn:
    """To the end of time; a new life of the worker writes a new file, which takes over."""
    print("\n".join(tail(path)), flush=True)
    position = path.stat().st_size
    while True:
        time.sleep(FOLLOW_EVERY_S)
        newest = newest_log(folder)
        if newest is not None and newest != path:
            path, position = newest, 0
        with path.open("rb") as file:
            file.seek(position)
            sys.stdout.write(file.read().decode(errors="replace"))
            sys.stdout.flush()
            position = file.tell()


def _existing(config: Config) -> tuple[RunDir, Plan]:
    run = run_dir(config)
    if not run.plan.exists():
        known = sorted(path.parent.name for path in run.path.parent.glob("*/plan.json"))
        raise NoSuchRun(
            f"run={config.run}: there is no such run in {run.path.parent}; there are {', '.join(known) or 'none'}"
        )
    return run, run.read_plan()
