"""`python -m launcher action=batch`: a file of requests in, a file of results out. Returns the exit status.

Thin: puts input, store, run and outputs together. A batch belongs to its output file; the same command goes on with
it, wherever it was stopped or killed.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager

import msgspec
import uvloop

from launcher.actions import Terminated, existing_run, sigterm_as_exception
from launcher.batch.display import Display
from launcher.batch.drive import Drive
from launcher.batch.folder import BatchDir
from launcher.batch.job import BatchJob, read_job
from launcher.batch.manifest import Manifest, settle
from launcher.batch.output import Outputs
from launcher.batch.owner import Held, claim
from launcher.batch.request import Defaults
from launcher.batch.run_view import RunView
from launcher.batch.runner import Files
from launcher.batch.serving import own_run
from launcher.batch.source import BadInput, expand
from launcher.batch.store import NotResults, Store
from launcher.batch.summary import Outcome, Summary, outcome_of, text
from launcher.batch.survey import Changed, Input, look
from launcher.job import Plan
from launcher.rundir import RunDir
from launcher.scheduler.slurm import surrounding_job
from launcher.schema import Config
from launcher.start import plan_run
from launcher.view.present import failure_text
from launcher.view.progress import Progress
from launcher.view.watch import LaunchFailed
from workers.spec import write_json

REFUSED = 2


def batch(config: Config) -> int:
    job = read_job(config.batch, time.time())
    run, made = existing_run(config) if config.cluster is None else plan_run(config)[:2]
    folder = BatchDir(job.output)
    try:
        folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _opened(job, folder, made) as opened:
            return _run(config, job, folder, opened, run, made)
    except (BadInput, Changed, Held, NotResults) as fault:
        print(fault, file=sys.stderr)
        return REFUSED
    except LaunchFailed as failed:
        print(failure_text(run, failed.failure), file=sys.stderr)
        return Outcome.failed.value
    except OSError as fault:
        print(f"{fault}\nresults that are in {folder.path} stay; the same command goes on", file=sys.stderr)
        return Outcome.partial.value


def _on_its_own(config: Config, job: BatchJob, drive: Drive) -> float | None:
    """How long its run held on after the last result. What ends a batch also ends it while its run comes up: None."""
    left_s = None if job.deadline is None else max(0.0, job.deadline - time.time())
    timeout_s = min((limit for limit in (config.timeout_s, left_s) if limit is not None), default=None)
    with sigterm_as_exception():
        try:
            with own_run(config, Progress(), timeout_s) as view:
                uvloop.run(drive.run(view))
                ended_at = time.time()
            return time.time() - ended_at
        except (KeyboardInterrupt, Terminated):
            drive.why = "interrupted while its run came up"
        except LaunchFailed:
            if job.deadline is None or time.time() < job.deadline:
                raise
            drive.why = "the deadline"
    return None


class _Opened(msgspec.Struct, frozen=True):
    """All of a batch that lies on disk, and what will run it."""

    drive: Drive
    files: Files


@contextmanager
def _opened(job: BatchJob, folder: BatchDir, made: Plan) -> Iterator[_Opened]:
    display = Display()
    ownership = claim(folder.path, surrounding_job(), display.say)
    store = Store(folder.results)
    try:
        if store.num_cut_bytes:
            display.say(f"{folder.results}: cut off {store.num_cut_bytes} bytes of a record that was not finished")
        model, path = made.proxy.models[0], made.workers[0].spec.engine.model_path
        manifest = Manifest(model=model, model_path=path, parameters=job.parameters)
        settle(folder.manifest, manifest, has_results=len(store) > 0)
        given = Input(tuple(expand(job.inputs)), Defaults(model, job.parameters), made.proxy.limits.max_body_bytes)
        survey = look(given, store)
        left = survey.num_lines - len(store)
        display.say(f"{survey.num_lines} requests, {left} left to do, {survey.num_bad} lines are wrong")
        with closing(Outputs(folder.output, job.errors or folder.errors, in_order=job.in_order)) as outputs:
            files = Files(store, outputs, ownership)
            yield _Opened(Drive(given, survey, files, job.deadline, display), files)
    finally:
        store.close()
        ownership.release()


def _run(config: Config, job: BatchJob, folder: BatchDir, opened: _Opened, run: RunDir, made: Plan) -> int:
    drive, files = opened.drive, opened.files
    files.outputs.begin(files.store)
    began_at, released_s = time.time(), None
    if drive.core.left:
        if config.cluster is None:
            uvloop.run(drive.run(RunView(run, made, began_at)))
        else:
            released_s = _on_its_own(config, job, drive)
        drive.look()
    files.outputs.end(files.store)
    figures, reading = drive.core.figures, drive.reading()
    outcome = outcome_of(reading)
    summary = Summary(
        outcome=outcome.name,
        why=drive.why if outcome is Outcome.partial else "",
        total=figures.total,
        done=figures.done,
        failed=figures.failed,
        left=reading.left + reading.in_flight,
        output=os.fspath(folder.output),
        errors=os.fspath(job.errors or folder.errors),
        took_s=time.time() - began_at,
        prompt_tokens=figures.prompt_tokens,
        cached_tokens=figures.cached_tokens,
        output_tokens=figures.output_tokens,
        gpu_hours=reading.gpu_hours,
        released_s=released_s,
        retries=dict(figures.retries),
    )
    write_json(folder.summary, summary)
    print(text(summary))
    return outcome.value
