"""`python -m benchmarks.twin` at its smallest. How near it comes is the machine's: here only that both are measured."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.integration.test_benchmark_routing import figures


def test_the_same_requests_are_predicted_and_asked(tmp_path: Path) -> None:
    arguments = ("cases=sim", "requests=6", "sim_workers=1", "sim_slower=1", "sim_tokens=300/10")
    found = figures("twin", tmp_path, *arguments)
    for way in ("live", "twin"):
        assert found[f"sim.{way}.ttft_mean_s"] > 0 and found[f"sim.{way}.itl_median_ms"] > 0
    ratio = found["sim.live.ttft_mean_s"] / found["sim.twin.ttft_mean_s"]
    assert found["sim.live_to_twin.ttft_mean_s"] == pytest.approx(ratio, rel=0.05)
    assert found["sim.rate"] > 0
