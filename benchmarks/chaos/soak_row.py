"""A row of many events: one after the other for as long as the options say, as chance has it.

Its end is that of every row: no stream lost, no ticket open, no process left. Beside that the proxy may not have grown.
"""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable

from benchmarks.chaos.hand_over_rows import controller_killed, rolling_restart, scancel
from benchmarks.chaos.loss_rows import agent, engine, lost, prefill_killed, step
from benchmarks.chaos.row import Row
from benchmarks.chaos.stage import Stage, StageFault
from benchmarks.report import say

LOSSES: dict[str, Callable[[str], Callable[[Stage], None]]] = {
    "scancel": scancel,
    "SIGKILL of the engine": lambda worker: lost(worker, signal.SIGKILL, engine),
    "SIGKILL of the agent": lambda worker: lost(worker, signal.SIGKILL, agent),
    "SIGKILL of the job step": lambda worker: lost(worker, signal.SIGKILL, step),
    "the engine hangs": lambda worker: lost(worker, signal.SIGSTOP, engine),
}
EVENTS: dict[str, Callable[[Stage], None]] = {
    "rolling restart": rolling_restart,
    "rolling restart, the controller killed in it": controller_killed,
    "SIGKILL of a prefill worker with open tickets": prefill_killed,
}
QUIET_S = 10.0
SETTLED_PART = 0.25  # of the time: what the proxy holds by then is what it needs
GROWTH, GROWTH_MIB = 1.15, 8.0


def soak(stage: Stage) -> None:
    chance = random.Random(stage.options.seed)
    began_at, soak_s = time.monotonic(), stage.options.soak_s
    settled_mib = 0.0
    while (passed_s := time.monotonic() - began_at) < soak_s:
        events = EVENTS | {
            f"{worker}: {what}": loss(worker) for worker in stage.serving() for what, loss in LOSSES.items()
        }
        what = chance.choice(sorted(events))
        events[what](stage)
        mib = memory_mib(stage)
        say(f"{passed_s:.0f} s: {what}; the proxy has {mib:.0f} MiB, {len(stage.users.streams)} streams have ended")
        if not settled_mib or passed_s < SETTLED_PART * soak_s:
            settled_mib = mib
        time.sleep(chance.uniform(0.0, QUIET_S))
    if memory_mib(stage) > GROWTH * settled_mib + GROWTH_MIB:
        raise StageFault(f"the proxy has grown from {settled_mib:.0f} to {memory_mib(stage):.0f} MiB")


def memory_mib(stage: Stage) -> float:
    """Of all processes of the proxy."""
    stage.until(lambda: stage.fleet().get("processes"), "the proxy's word on itself")
    return sum(float(process["memory_mib"]) for process in stage.fleet()["processes"])


ROWS = {"soak": Row(soak, None)}
