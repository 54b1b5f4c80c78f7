"""Rows where workers are lost: processes that die, one that hangs, and tickets that nobody has read."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx

from benchmarks.chaos.row import Row
from benchmarks.chaos.stage import Stage, StageFault
from benchmarks.chaos.users import read_endpoint
from launcher.scheduler import slurm
from launcher.scheduler.local import descendants
from workers.protocol import HOST_SILENCE_S

Victims = Callable[[Stage, str], Sequence[int]]  # of a worker
DECODE, PREFILL = "decode-0", "prefill-0"
NUM_PROCESSES = 2
NUM_ASKED = 6  # while nobody reads tickets: fewer than fill the engines, more than one for each prefill worker
ASK_TIMEOUT_S = 60.0
OK = 200


def lost(worker: str, number: signal.Signals, victims: Victims) -> Callable[[Stage], None]:
    def happen(stage: Stage) -> None:
        before = {worker: stage.serving()[worker]}
        send(number, victims(stage, worker))
        stage.until_followed(before, f"a successor of {worker}")

    return happen


def engine(stage: Stage, worker: str) -> Sequence[int]:
    return descendants(stage.engine(worker))


def agent(stage: Stage, worker: str) -> Sequence[int]:
    return (stage.agent(worker),)


def step(stage: Stage, worker: str) -> Sequence[int]:
    """All processes of the worker's job step at once."""
    return descendants(stage.agent(worker))


def prefill_killed(stage: Stage) -> None:
    prefill = descendants(stage.agent(PREFILL))
    lost_with_tickets(stage, lambda: send(signal.SIGKILL, prefill))


def prefill_cancelled(stage: Stage) -> None:
    job = stage.job(PREFILL)
    lost_with_tickets(stage, lambda: slurm.cancel([job]))


def lost_with_tickets(stage: Stage, lose: Callable[[], None]) -> None:
    """Decode engines stand still for a moment: the prefill worker goes with tickets that nobody has read."""
    before = {PREFILL: stage.serving()[PREFILL]}
    decodes = [pid for name in stage.serving() if name.startswith("decode") for pid in descendants(stage.engine(name))]
    with ThreadPoolExecutor() as askers:
        with standing_still(decodes):
            answers = [askers.submit(ask, stage) for _ in range(NUM_ASKED)]
            stage.until(lambda: stage.fleet().get("open_tickets", 0) >= NUM_ASKED, "tickets that are not read")
            lose()
        if any(answer.result() != OK for answer in answers):
            raise StageFault(f"answers of {[answer.result() for answer in answers]}, where tickets were lost")
    stage.until_followed(before, f"a successor of {PREFILL}")


def ask(stage: Stage) -> int:
    endpoint = read_endpoint(stage.run.endpoint)
    body = {"model": endpoint.model, "prompt": "lost " * stage.options.prompt_words, "max_tokens": 2}
    headers = {"authorization": f"Bearer {endpoint.key}"}
    url = f"http://{endpoint.host}:{endpoint.port}/v1/completions"
    return httpx.post(url, json=body, headers=headers, timeout=ASK_TIMEOUT_S).status_code


def proxy_killed(stage: Stage) -> None:
    """One process of two: what is connected to it ends, all others and every new request go on by the other."""
    victim = max(stage.fleet()["processes"], key=lambda process: process["open_requests"])
    os.kill(victim["pid"], signal.SIGKILL)
    stage.may_cut = victim["open_requests"]
    stage.until(lambda: serving_processes(stage) - {victim["pid"]} == serving_processes(stage), "its end to be seen")
    stage.until(lambda: len(serving_processes(stage)) == NUM_PROCESSES, "another one in its place")


def serving_processes(stage: Stage) -> set[int]:
    return {process["pid"] for process in stage.fleet().get("processes", ()) if process["takes_connections"]}


@contextmanager
def standing_still(pids: Sequence[int]) -> Iterator[None]:
    send(signal.SIGSTOP, pids)
    try:
        yield
    finally:
        send(signal.SIGCONT, pids)


def send(number: signal.Signals, pids: Sequence[int]) -> None:
    for pid in pids:
        os.kill(pid, number)


ROWS = {
    "engine_killed": Row(lost(DECODE, signal.SIGKILL, engine), 1.0),
    "agent_killed": Row(lost(DECODE, signal.SIGKILL, agent), 1.0),
    "step_killed": Row(lost(DECODE, signal.SIGKILL, step), 1.0),
    "prefill_killed": Row(prefill_killed, 1.0),
    "scancel_prefill_tickets": Row(prefill_cancelled, 1.0),
    "proxy_killed": Row(proxy_killed, 1.0, (f"proxy.processes={NUM_PROCESSES}", "controller.cpus=2")),
    "engine_hangs": Row(lost(DECODE, signal.SIGSTOP, engine), HOST_SILENCE_S + 1.0),
}
