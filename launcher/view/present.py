"""A run as text for people: its workers, the ready message, a failure with the end of its log.

Pure but for reading log files. Decides nothing.
"""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from launcher.control.effects import Failure
from launcher.jobs import HELD
from launcher.rundir import Endpoint, RunDir
from launcher.view.logs import logs_of, tail
from launcher.view.run_status import LOST, QUEUED, HandOver, ProcessStatus, RunStatus, WorkerStatus
from workers.stages import ORDER

END_TOLD_S = 1800.0  # before the controller's job ends
HEADER = ("worker", "phase", "role", "node", "job", "left", "")


def worker_cells(worker: WorkerStatus, now: float) -> tuple[str, ...]:
    job = f"{worker.job} {worker.state}".strip()
    left = "" if worker.end_time is None else duration(worker.end_time - now)
    return (worker.name, worker.phase, worker.role, worker.node, job, left, remark(worker))


def remark(worker: WorkerStatus) -> str:
    """What a person wants to know: why it waits, what it does, how it ended."""
    if worker.phase == QUEUED and worker.estimated_start:
        return f"{worker.reason}, expected to start {worker.estimated_start}".lstrip(", ")
    if worker.running or worker.waiting:
        return f"{worker.running} running, {worker.waiting} waiting"
    line = first_line(worker.detail or worker.reason)
    return f"{line} ({worker.turn})" if worker.turn else line


def first_line(text: str) -> str:
    return text.splitlines()[0] if text else ""


def duration(seconds: float) -> str:
    minutes = max(0, int(seconds)) // 60
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    return f"{days}d{hours:02d}h" if days else f"{hours}h{minutes:02d}m"


def status_text(status: RunStatus, source: str) -> str:
    now = time.time()
    lines = [f"run {status.run}: {status.phase}{', ready' if status.ready else ''} ({source})"]
    if status.url:
        lines.append(f"url {status.url}")
    shown = [status.controller_job, *status.workers] if status.controller_job else status.workers
    lines += table([HEADER, *(worker_cells(worker, now) for worker in shown)])
    lines += start_table(status.workers)
    lines += process_table(status.processes)
    lines += [hand_over_text(one) for one in worth_telling(status.hand_overs)]
    lines += chain_text(status, now)
    lines += [f"not proven: {pair}" for pair in status.unproven]
    lines += [f"refused: {refusal}" for refusal in status.refusals]
    if status.queue_fault:
        lines.append(f"the queue cannot be asked, what runs goes on: {first_line(status.queue_fault)}")
    if status.controller_silent_s is not None:
        lines.append(
            f"its controller has written nothing for {status.controller_silent_s:.0f} s: it is gone, or the run folder"
            " takes no files; what runs goes on, and action=logs worker=controller has its last words"
        )
    if status.failure is not None:
        lines.append(f"failed: {status.failure.name}: {status.failure.reason}")
    if status.phase == LOST:
        lines.append(
            "no controller keeps it: the command that started it brings one back, action=stop ends what is left"
        )
    return "\n".join(lines)


def chain_text(status: RunStatus, now: float) -> list[str]:
    """What comes after the controller's job, and where no job can be submitted, how many are left."""
    lines = []
    end = status.controller_end
    if end is not None and end.state == "PENDING" and end.reason != HELD:
        lines.append(
            f"controller and proxy: job {end.follower} is to follow and waits ({end.reason or 'no reason yet'});"
            f" without it there is no endpoint from {clock(end.at)} on until it starts"
        )
    elif end is not None and not end.follower and (status.further_jobs is not None or end.at - now < END_TOLD_S):
        lines.append(f"controller and proxy: no job follows; they end at {clock(end.at)}")
    if status.further_jobs is not None:
        more = "" if status.further_jobs else f"; action=restart run={status.run} submits more"
        lines.append(f"chain: further jobs of each worker in the queue: {status.further_jobs}{more}")
    return lines


def worth_telling(hand_overs: Sequence[HandOver]) -> list[HandOver]:
    """Those under way; of those that are only planned, the next."""
    planned = [one for one in hand_overs if one.successor is None and one.submit_at is not None]
    under_way = [one for one in hand_overs if one not in planned]
    return under_way + sorted(planned, key=lambda one: one.submit_at or 0.0)[:1]


def hand_over_text(one: HandOver) -> str:
    lead = f"queue {duration(one.queue_s)}, start {duration(one.start_s)}"
    if one.successor is not None:
        text = f"hand-over: {one.worker}.g{one.successor} follows g{one.generation} ({one.why})"
    elif one.submit_at is not None:
        text = f"next hand-over: {one.worker} at {clock(one.submit_at)} ({one.why}; {lead})"
    else:
        text = f"hand-over: a successor of {one.worker}.g{one.generation} is to come ({one.why})"
    if one.drains_first:
        text += f"; g{one.generation} drains first: {one.drains_first}"
    return text if one.drains_at is None else f"{text}; g{one.generation} serves until {clock(one.drains_at)} at most"


def clock(at: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(at))


def start_table(workers: Sequence[WorkerStatus]) -> list[str]:
    """How long each worker took for each stage of its start."""
    shown = [worker for worker in workers if worker.stages]
    if not shown:
        return []
    told = {stage for worker in shown for stage, _ in worker.stages}
    stages = [stage for stage in ORDER if stage in told]
    rows = [["start, seconds", *stages, "sum"]]
    for worker in shown:
        took = dict(worker.stages)
        cells = [f"{took[stage]:.1f}" if stage in took else "" for stage in stages]
        rows.append([worker.name, *cells, f"{sum(took.values()):.1f}"])
    return table(rows)


def process_table(processes: Sequence[ProcessStatus]) -> list[str]:
    """Where there are several: what each of the proxy's does for whom."""
    if len(processes) < 2:
        return []
    rows: list[tuple[str, ...]] = [("proxy", "pid", "connections", "requests", "streams", "workers", "memory", "")]
    for one in processes:
        counts = (one.connections, one.open_requests, one.open_streams, one.workers)
        serves = "serves" if one.takes_connections else "takes no new connections"
        rows.append((one.process, str(one.pid), *map(str, counts), f"{one.memory_mib:.0f} MiB", serves))
    return table(rows)


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def ready_text(endpoint: Endpoint) -> str:
    model = endpoint.models[0]
    key = shlex.quote(endpoint.api_key_file)
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}], "max_tokens": 16}}'
    program = (
        f'from openai import OpenAI; client = OpenAI(base_url="{endpoint.url}", '
        f'api_key=open("{endpoint.api_key_file}").read()); '
        f'print(client.chat.completions.create(model="{model}", '
        'messages=[{"role": "user", "content": "Hello"}], max_tokens=16).choices[0].message.content)'
    )
    return "\n".join(
        [
            "ready",
            f"  url      {endpoint.url}",
            f"  API key  {endpoint.api_key_file}",
            f"  page     {endpoint.url.removesuffix('v1')} shows the run; it asks for a key",
            f"  models   {', '.join(endpoint.models)}",
            "",
            f'curl -sS {endpoint.url}/chat/completions -H "Authorization: Bearer $(cat {key})" '
            f"-H 'Content-Type: application/json' -d '{body}'",
            "",
            f"{shlex.quote(sys.executable)} -c {shlex.quote(program)}",
        ]
    )


def how_to_return(run: RunDir, name: str) -> str:
    where = f"run={name}" + ("" if run.path.parent == Path("runs").absolute() else f" runs_dir={run.path.parent}")
    return f"look:  python -m launcher action=status {where}\nstop:  python -m launcher action=stop {where}"


def failure_text(run: RunDir, failure: Failure) -> str:
    """The job, the queue's reason and the last lines of its log."""
    job = f" (job {failure.job})" if failure.job else ""
    lines = [f"{failure.name}{job} failed: {failure.reason}"]
    logs = logs_of(run.log_dir(failure.worker), failure.job)
    if logs:
        lines += [f"the last lines of {logs[-1]}:", *(f"  | {line}" for line in tail(logs[-1]))]
    return "\n".join(lines)
