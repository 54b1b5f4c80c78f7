"""Moves of roles on live simulated engines beside those in the twin: `rows=live` of `benchmarks.planner`.

The same requests, evenly spread within phases, to a run with `planner=on` and to the same plan in virtual time: who is
moved when, one decision after the other. Owns the phases and the comparison.
"""

from __future__ import annotations

import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.arguments import Count, Duration
from benchmarks.planner_slurm import SlurmRamp
from benchmarks.report import say
from benchmarks.twin_run import asked_of, run_of, slower, timing_argument
from launcher.config import load
from launcher.planner.roles import MEMORY_S, Role
from launcher.planner.word import read_word
from launcher.start import plan_run
from launcher.twin.planner import VirtualPlanner
from launcher.twin.replay import Replay
from launcher.twin.simulate import twin_of
from launcher.twin.traces import Request, own_chain

BLOCK_SIZE = 16
Move = tuple[float, str, Role]
Step = tuple[float, str]  # seconds since the first request, and how many workers then have which role


class Live(SlurmRamp, frozen=True, kw_only=True):
    live_workers: Count = 4
    live_slower: Duration = 4.0  # engines than by default
    live_phase_s: Duration = 25.0
    live_phases: str = "1/500/20,8/3000/4,8/500/150,8/3000/4"  # requests per second, tokens of prompts and answers
    live_itl_s: Duration = 0.1


def arguments(asked: Live) -> list[str]:
    return [
        "+cluster=local",
        "engine=sim",
        "routing=kv",
        "~pools.prefill",
        "~pools.decode",
        f"+pools.any={{role: any, replicas: {asked.live_workers}}}",
        "model.max_model_len=16384",
        timing_argument(slower(asked.live_slower)),
        "routing.targets.ttft_s=2",
        f"routing.targets.itl_s={asked.live_itl_s}",
        "planner=on",
    ]


def requests_of(asked: Live) -> list[Request]:
    requests = list[Request]()
    for phase, text in enumerate(asked.live_phases.split(",")):
        rate, prompt, answer = (float(part) for part in text.split("/"))
        for number in range(int(rate * asked.live_phase_s)):
            chain = own_chain(len(requests), int(prompt), BLOCK_SIZE)
            at_s = phase * asked.live_phase_s + number / rate
            requests.append(Request(at_s, int(prompt), int(answer), chain))
    return requests


def steps(moves: Iterable[Move], workers: Iterable[str]) -> list[Step]:
    """Moves to the same role while one turn of traffic is remembered are one: a look sees all of a turn or a part."""
    roles, found = dict.fromkeys(workers, Role.BOTH), list[Step]()
    before_s, before = float("-inf"), Role.BOTH
    for at_s, worker, role in moves:
        roles[worker] = role
        counts = Counter(roles.values())
        text = " ".join(f"{counts[each]} {each}" for each in Role if counts[each])
        if role is before and at_s - before_s <= MEMORY_S:
            found[-1] = (found[-1][0], text)
        else:
            found.append((at_s, text))
        before_s, before = at_s, role
    return found


def _while_asked(moves: Iterable[Move], requests: Sequence[Request]) -> list[Move]:
    """What the end of all traffic brings about hangs on fractions of a second."""
    return [move for move in moves if move[0] <= requests[-1].at_s]


def in_twin(asked: Live, requests: Sequence[Request], folder: Path) -> tuple[list[Step], list[str]]:
    """And the workers' names."""
    config = load([*arguments(asked), f"runs_dir={folder}/predicted", "run=twin"])
    _, plan, model = plan_run(config)
    planner = VirtualPlanner(plan)
    Replay(twin_of(config, plan, model, BLOCK_SIZE), requests, look=planner.look).run()
    workers = list(plan.proxy.workers)
    return steps(_while_asked(planner.moved, requests), workers), workers


def measure_live(asked: Live) -> dict[str, float]:
    requests = requests_of(asked)
    with tempfile.TemporaryDirectory(prefix="sluice-bench-") as name:
        folder = Path(name)
        twin, workers = in_twin(asked, requests, folder)
        say(f"live: in the twin {twin}")
        with run_of(folder, arguments(asked)) as run:
            began_at = asked_of(run, requests, BLOCK_SIZE).began_at
            word = read_word(run)
    assert word is not None
    moves = ((one.at - began_at, one.worker, one.role) for one in word.decisions)
    live = steps(_while_asked(moves, requests), workers)
    say(f"live: on live engines {live}")
    return compared(live, twin)


def compared(live: list[Step], twin: list[Step]) -> dict[str, float]:
    same = [roles for _, roles in live] == [roles for _, roles in twin]
    apart = [abs(one - other) for (one, _), (other, _) in zip(live, twin, strict=False)]
    return {
        "live.steps": float(len(live)),
        "live.twin_steps": float(len(twin)),
        "live.same": float(same),
        "live.apart_s": max(apart, default=0.0),
    }
