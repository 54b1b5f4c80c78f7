"""What `python -m launcher` does: up, plan, status, report, logs, stop. Each returns the exit status.

Thin: puts together `start`, `watch`, `stopping` and `present`. Stays resident only where the run lives and
dies with it.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

import msgspec

from launcher.job import Plan
from launcher.jobs import CONTROLLER
from launcher.planner.word import read_word
from launcher.planning import models
from launcher.report.read import read_sources
from launcher.report.report import make_report, report_json
from launcher.report.text import report_text
from launcher.restart import restart_run
from launcher.resume import lost_run
from launcher.rundir import RunDir, read_optional
from launcher.scheduler import slurm
from launcher.scheduler.steps import commands
from launcher.scheduler.submit import scripts
from launcher.schema import Config, Output
from launcher.start import Controlled, plan_run, run_dir, start_controller, write_run
from launcher.stopping import kill_local, stop_run
from launcher.view.live_status import current_status
from launcher.view.logs import follow, logs_of
from launcher.view.planned import draw, planner_lines
from launcher.view.present import failure_text, how_to_return, ready_text, status_text
from launcher.view.progress import Progress
from launcher.view.render import render_plan
from launcher.view.run_status import RunStatus
from launcher.view.watch import LaunchFailed, await_ready
from workers.spec import write_json

INTERRUPTED = 130
# What a plan shows of how its workers are started.
COMMANDS: dict[str, Callable[[RunDir, Plan], dict[str, str]]] = {
    "slurm": scripts,
    "steps": commands,
    "local": lambda run, made: {},
}


class NoSuchRun(Exception):
    """The run or what was asked of it does not exist; the message lists what does."""


class Terminated(BaseException):
    """SIGTERM, where this process is what keeps the run alive."""


def plan(config: Config) -> int:
    """Needs no Slurm and changes nothing."""
    made, texts = planned(config)
    if config.output is Output.json:
        print_json({"plan": made, "scripts": texts})
    else:
        print(render_plan(made, texts), end="")
    return 0


def planned(config: Config) -> tuple[Plan, dict[str, str]]:
    """A plan, and how its workers are started."""
    run, made, _ = plan_run(config)
    return made, COMMANDS[made.executor](run, made)


def print_json(value: Any) -> None:
    print(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


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
    try:
        controlled = start_controller(run, made, alone=lost is not None)
    except KeyboardInterrupt:
        print(f"\ninterrupted while the controller was started\n{how_to_return(run, made.run)}", file=sys.stderr)
        return INTERRUPTED
    progress = Progress()
    with sigterm_as_exception():
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
    print(f"\n{_how_it_ends(run, made)}", flush=True)
    controlled.process.wait()
    status = read_optional(run.status, RunStatus)
    if status is not None and status.ended:
        print(f"the run has stopped; why: {run.log_dir(CONTROLLER) / 'controller.log'}", flush=True)
        return 0
    print(f"the controller ended with status {controlled.process.returncode}: stopping the run", file=sys.stderr)
    _stop(run, made, controlled, progress)
    return 1


def _how_it_ends(run: RunDir, made: Plan) -> str:
    if made.executor == "local":
        return "Ctrl-C stops it"
    where = "it ends with this job" if made.executor == "steps" else "Ctrl-C detaches"
    return f"{where}\n{how_to_return(run, made.run)}"


def _interrupted(run: RunDir, made: Plan, controlled: Controlled, progress: Progress, interrupt: BaseException) -> int:
    """Only a run on this machine or in this job, or one whose job ends, stops with its launcher."""
    served = run.endpoint.exists()
    if made.executor != "slurm" or (controlled.process is not None and isinstance(interrupt, Terminated)):
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
    print("stopped: " + ("this job ends" if made.executor == "steps" else "nothing of the run is left"), flush=True)


@contextmanager
def sigterm_as_exception() -> Iterator[None]:
    def raise_it(number: int, frame: FrameType | None) -> NoReturn:
        raise Terminated

    old = signal.signal(signal.SIGTERM, raise_it)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, old)


# ---------------------------------------------------------------- on an existing run


def status(config: Config) -> int:
    run, made = existing_run(config)
    seen, source = current_status(run, made)
    word = read_word(run)
    if config.output is Output.json:
        print(msgspec.json.encode({"source": source, **msgspec.to_builtins(seen), "planner": word}).decode())
    else:
        print("\n".join([status_text(seen, source), *planner_lines(word)]))
    return 0


def restart(config: Config) -> int:
    """Returns once the controller can find the new plan; the hand-overs are in `action=status`."""
    run, old = existing_run(config)
    made = restart_run(run, old, config)
    renewed = [planned.spec.worker for planned in made.workers if planned.revision == made.revision]
    gone = {planned.spec.worker for planned in old.workers} - {planned.spec.worker for planned in made.workers}
    if renewed:
        print(f"worker by worker, each when its successor serves: {', '.join(renewed)}")
    if gone:
        print(f"to drain and end: {', '.join(sorted(gone))}")
    print(how_to_return(run, made.run))
    return 0


def report(config: Config) -> int:
    """Of a run that lives or has ended; written beside its other files too."""
    run, made = existing_run(config)
    told = make_report(read_sources(run, made.run), time.time())
    write_json(run.path / "report.json", report_json(told))
    word, picture = read_word(run), run.path / "demand.png"
    drawn = word is not None and bool(word.buckets) and draw(word, picture)
    if config.output is Output.json:
        print_json(report_json(told))
    else:
        print(report_text(told) + (f"\ndemand and its forecast: {picture}" if drawn else ""))
    return 0


def stop(config: Config) -> int:
    run, made = existing_run(config)
    progress = Progress()
    try:
        with progress.shown():
            stop_run(run, made, progress, config.timeout_s)
    except KeyboardInterrupt:
        print(f"\nnot waiting any longer; it goes on stopping\n{how_to_return(run, made.run)}", file=sys.stderr)
        return INTERRUPTED
    print(f"stopped: nothing of run {made.run} is left")
    return 0


def logs(config: Config) -> int:
    run, _ = existing_run(config)
    names = ", ".join(sorted(path.name for path in run.logs.iterdir() if path.is_dir())) or "none yet"
    if config.worker is None:
        raise NoSuchRun(f"worker: logs needs to know whose; set worker=NAME; there are {names}")
    folder = run.log_dir(config.worker)
    files = logs_of(folder)
    if not files:
        why = "it has not written anything yet" if folder.exists() else f"no such log; there are {names}"
        raise NoSuchRun(f"worker={config.worker}: {why}")
    others = f"; earlier, or of other ranks: {', '.join(path.name for path in files[-2::-1])}" if files[1:] else ""
    print(f"{files[-1]}{others}", file=sys.stderr, flush=True)
    if config.follow:
        with suppress(KeyboardInterrupt):
            follow(folder, sys.stdout.buffer)
    else:
        sys.stdout.buffer.write(files[-1].read_bytes())
    return 0


def existing_run(config: Config) -> tuple[RunDir, Plan]:
    run = run_dir(config)
    if not run.plan.exists():
        known = sorted(path.parent.name for path in run.path.parent.glob("*/plan.json"))
        there = f"there are {', '.join(known)}" if known else "there is none; go where it was launched or set runs_dir"
        raise NoSuchRun(f"run={config.run}: no such run in {run.path.parent}; {there}")
    return run, run.read_plan()
