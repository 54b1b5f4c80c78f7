"""`python -m benchmarks.planner` at its smallest: short phases on three engines, in virtual time and live."""

import subprocess
import sys
from pathlib import Path

import msgspec

from benchmarks.planner_live import compared, steps
from launcher.planner.roles import Role
from tests.live import SOURCE

SMALL = ("sizes_rate=0.5", "calm_s=120", "ramp_s=120", "hour_s=300", "most=2", "queue_s=20", "start_s=20")


def test_the_planner_is_compared_with_router_split_and_oracle(tmp_path: Path) -> None:
    live = ("rows=roles,sizes,live", "live_workers=2", "live_phase_s=1")
    asked = (
        *live,
        "phase_s=6",
        "workers=3",
        "splits=1,2",
        "timings=additive",
        "loads=15/8",
        *SMALL,
        f"output={tmp_path}",
    )
    command = [sys.executable, "-m", "benchmarks.planner", *asked]
    done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, timeout=600)
    figures = msgspec.json.decode(done.stdout.splitlines()[-1])["figures"]
    assert 0 < figures["additive.15/8.good"] <= 1
    assert {f"additive.15/8.to_{name}" for name in ("fixed", "alone", "oracle")} <= set(figures)
    assert 0 < figures["ramp.good"] <= 1 and figures["ramp.workers"] <= 2
    assert figures["noise.drained_young"] <= 1 and 0 < figures["noise.budget_used"] <= 1
    assert figures["live.steps"] >= 0 and figures["live.twin_steps"] >= 0
    assert (tmp_path / "planner.json").exists()


def test_moves_are_compared_step_by_step() -> None:
    moves = [(3.0, "a", Role.DECODE), (3.0, "b", Role.DECODE), (9.0, "b", Role.BOTH)]
    found = steps(moves, "abc")
    assert found == [(3.0, "1 both 2 decode"), (9.0, "2 both 1 decode")]
    later = [(at_s + 2, roles) for at_s, roles in found]
    assert compared(later, found) == {"live.steps": 2, "live.twin_steps": 2, "live.same": 1, "live.apart_s": 2}
    assert compared(found[:1], found)["live.same"] == 0
    one_by_one = [(at_s + 2 * (worker == "b"), worker, role) for at_s, worker, role in moves]
    assert steps(one_by_one, "abc") == [(3.0, "1 both 2 decode"), (11.0, "2 both 1 decode")]
