"""`action=profile`: running workers measured through the proxy, one of each kind. Returns the exit status.

Thin: puts the run, the points, their file and what they say together. What is measured stays; the same command goes on.
"""

from __future__ import annotations

import ssl
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from launcher.actions import existing_run
from launcher.batch.display import Display
from launcher.batch.http_pool import tls_context
from launcher.job import Plan
from launcher.keys import operator_key_file
from launcher.planning.pools import DEFAULT_MAX_NUM_BATCHED_TOKENS
from launcher.profiling.findings import Findings, findings_of, profile_of
from launcher.profiling.meter import CannotMeasure, Meter, OutOfTime
from launcher.profiling.points import Limits, Point, next_point, points
from launcher.profiling.store import PointFile
from launcher.profiling.text import draw, findings_text
from launcher.refusal import Refused
from launcher.rundir import Endpoint, RunDir, read_optional
from launcher.schema import Config, Output
from launcher.twin.cards import layout_name
from launcher.twin.profile import write
from launcher.view.live_status import ask_fleet
from workers.spec import EngineSpec, WorkerSpec, write_json

INTERRUPTED = 130


class Subject(msgspec.Struct, frozen=True):
    """One worker, which stands for all with its engine."""

    spec: WorkerSpec
    limits: Limits


def profile(config: Config) -> int:
    """Status 1: too little was measured for a profile. Raises Refused, NoSuchRun, OSError."""
    run, made = existing_run(config)
    subjects = _subjects(config, run, made)
    folder = run.path / "profile"
    folder.mkdir(mode=0o700, exist_ok=True)
    found: list[Findings] = []
    status = 0
    for subject in subjects:
        file = PointFile(folder / f"{subject.spec.pool}.points", subject.spec.engine)
        wanted = points(subject.limits)
        try:
            _measure(run, made, subject, file, wanted, config.profile.time_limit_s / len(subjects))
        except KeyboardInterrupt:
            print(f"\nwhat was measured is in {folder}; the same command goes on", file=sys.stderr)
            return INTERRUPTED
        except CannotMeasure as fault:
            raise Refused([f"worker: {subject.spec.worker} cannot be measured: {fault}"]) from None
        findings = _conclude(folder, made, subject, file)
        if findings is None:
            print(f"{subject.spec.worker}: too few points; raise profile.time_limit_s, and it goes on", file=sys.stderr)
            status = 1
            continue
        found.append(findings)
        if config.output is Output.text:
            print(f"{findings_text(findings)}\n{_next(folder, subject, len(file.measured), len(wanted))}")
    if config.output is Output.json:
        print(msgspec.json.encode(found).decode())
    return status


# ---------------------------------------------------------------- whom


def _subjects(config: Config, run: RunDir, made: Plan) -> list[Subject]:
    fleet = ask_fleet(run)
    faults: list[str] = []
    if config.profile.time_limit_s <= 0:
        faults.append(f"profile.time_limit_s: {config.profile.time_limit_s:g} is no time; use more than 0")
    if fleet is None:
        faults.append(f"run: no proxy of {made.run} answers from here; action=status run={made.run} says why")
    elif not operator_key_file(run.keys).exists():
        faults.append(f"run: {made.run} is older than profiles and has no keys/operator_key; start it anew")
    names = {planned.spec.worker for planned in made.workers}
    if config.worker is not None and config.worker not in names:
        faults.append(f"worker: {config.worker} is none of {', '.join(sorted(names))}")
    if faults or fleet is None:
        raise Refused(faults)
    up = {worker["worker"]: worker for worker in fleet["workers"] if worker["up"]}
    specs = [p.spec for p in made.workers if config.worker in (None, p.spec.worker) and p.spec.worker in up]
    if not specs:
        raise Refused([f"worker: none that is asked for is ready; action=status run={made.run} says why"])
    return [Subject(spec, _limits(spec, up[spec.worker])) for spec in _distinct(specs)]


def _distinct(specs: Iterable[WorkerSpec]) -> Iterator[WorkerSpec]:
    """The first of each engine: workers of equal ones would tell the same."""
    engines: list[EngineSpec] = []
    for spec in specs:
        if spec.engine not in engines:
            engines.append(spec.engine)
            yield spec


def _limits(spec: WorkerSpec, seen: dict[str, Any]) -> Limits:
    return Limits(
        max_model_len=seen["max_model_len"],
        kv_tokens=seen["kv_blocks"] * spec.engine.block_size,
        max_num_seqs=seen["pressure"]["max_running"],
        max_num_batched_tokens=spec.engine.args.get("max_num_batched_tokens", DEFAULT_MAX_NUM_BATCHED_TOKENS),
    )


# ---------------------------------------------------------------- measuring


def _measure(
    run: RunDir, made: Plan, subject: Subject, file: PointFile, wanted: list[Point], time_limit_s: float
) -> None:
    """Until all is measured, or time is up."""
    done = {measured.point for measured in file.measured}
    left = [point for point in wanted if point not in done]
    if not left:
        return
    until = time.monotonic() + time_limit_s
    meter = _meter(run, made, subject, until)
    with Display() as display:
        try:
            meter.warm_up()
            while left:
                point = next_point(left, file.measured, until - time.monotonic())
                left.remove(point)
                told = f"{subject.spec.worker}: {_words(point)}"
                display.draw(len(wanted) - len(left) - 1, len(wanted), told, time.monotonic())
                measured = meter.measure(point)
                if measured is not None:
                    file.add(measured)
        except (OutOfTime, TimeoutError):
            display.say(f"{subject.spec.worker}: time is up")


def _words(point: Point) -> str:
    return " ".join(f"{name}={value}" for name, value in msgspec.structs.asdict(point).items())


def _meter(run: RunDir, made: Plan, subject: Subject, until: float) -> Meter:
    endpoint = read_optional(run.endpoint, Endpoint)
    if endpoint is None:
        raise Refused([f"run: {made.run} has no endpoint yet; action=status run={made.run} says why"])
    tls: ssl.SSLContext | None = tls_context(endpoint.url.partition(":")[0], made.proxy.tls_cert)
    worker = subject.spec.worker

    def busy() -> int:
        seen = (ask_fleet(run) or {"workers": []})["workers"]
        return sum(max(each["decodes"], each["prefill_tokens"] > 0) for each in seen if each["worker"] == worker)

    key = operator_key_file(run.keys).read_text().strip()
    return Meter(endpoint.url, key, endpoint.models[0], worker, subject.limits, busy, until, tls)


# ---------------------------------------------------------------- what comes of it


def _conclude(folder: Path, made: Plan, subject: Subject, file: PointFile) -> Findings | None:
    spec, limits = subject.spec, subject.limits
    num_gpus = spec.engine.tensor_parallel * spec.engine.pipeline_parallel
    found = profile_of(file.measured, limits, num_gpus)
    if found is None:
        return None
    findings = findings_of(spec.worker, file.measured, found, limits, made.proxy.routing.targets)
    write(folder / f"{spec.pool}.npz", found)
    write_json(folder / f"{spec.pool}.json", findings)
    if not draw(file.measured, findings, folder / f"{spec.pool}.png"):
        print("no picture: matplotlib is not installed", file=sys.stderr)
    return findings


def _next(folder: Path, subject: Subject, num_measured: int, num_wanted: int) -> str:
    engine, name = subject.spec.engine, subject.spec.pool
    layout = layout_name(engine.tensor_parallel, engine.pipeline_parallel)
    return (
        f"{num_measured} of {num_wanted} points; written: {folder}/{name}.npz, .json, .png\n"
        f"for predictions: predict.profiles.{layout}={folder}/{name}.npz"
    )
