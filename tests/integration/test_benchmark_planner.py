"""`python -m benchmarks.planner` at its smallest: three short phases on three engines."""

import subprocess
import sys
from pathlib import Path

import msgspec

from tests.live import SOURCE

SMALL = ("sizes_rate=0.5", "calm_s=120", "ramp_s=120", "hour_s=300", "most=2", "queue_s=20", "start_s=20")


def test_the_planner_is_compared_with_router_split_and_oracle(tmp_path: Path) -> None:
    asked = ("phase_s=6", "workers=3", "splits=1,2", "timings=additive", "loads=15/8", *SMALL, f"output={tmp_path}")
    command = [sys.executable, "-m", "benchmarks.planner", *asked]
    done = subprocess.run(command, cwd=SOURCE, capture_output=True, text=True, timeout=60)
    figures = msgspec.json.decode(done.stdout.splitlines()[-1])["figures"]
    assert 0 < figures["additive.15/8.good"] <= 1
    assert {f"additive.15/8.to_{name}" for name in ("fixed", "alone", "oracle")} <= set(figures)
    assert 0 < figures["ramp.good"] <= 1 and figures["ramp.workers"] <= 2
    assert figures["noise.drained_young"] <= 1 and 0 < figures["noise.budget_used"] <= 1
    assert (tmp_path / "planner.json").exists()
