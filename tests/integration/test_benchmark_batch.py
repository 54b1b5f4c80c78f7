"""The batch benchmarks that need no engine, at their smallest: the shape of their results, and what they leave behind.

Says nothing of how fast anything is.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from tests.benching import processes_of, start


def test_it_measures_a_batch_beside_users_and_leaves_nothing(tmp_path: Path) -> None:
    small = ("requests=60", "at_once=8", "prompt_chars=100", "repeats=2")
    with start("batch_cost", tmp_path, *small) as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    result = json.loads(output.splitlines()[-1])
    figures = result["figures"]
    assert result["benchmark"] == "batch_cost" and all(math.isfinite(value) and value > 0 for value in figures.values())
    for case in ("users", "batch"):
        assert {f"{case}.{part}_us_per_request" for part in ("client", "proxy", "hosts", "all")} <= figures.keys()
    assert json.loads((tmp_path / "out" / "batch_cost.json").read_text())["figures"] == figures
    assert processes_of(tmp_path) == []


def test_it_measures_memory_stage_by_stage_and_leaves_no_file(tmp_path: Path) -> None:
    with start("batch_memory", tmp_path, "lines=600") as process:
        output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    figures = json.loads(output.splitlines()[-1])["figures"]
    for stage in ("first_look", "results", "after_a_crash"):
        assert figures[f"{stage}.peak_mib"] > 1 and figures[f"{stage}.cpu_us_per_line"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and processes_of(tmp_path) == []


@pytest.mark.timeout(500)
def test_it_measures_users_beside_a_batch_and_leaves_nothing(tmp_path: Path) -> None:
    users = ("users=2", "requests=2", "pause_s=0.1", "tokens=2")
    small = (*users, "decode_ms=5", "prefill_ms=5", "warm_up_s=5", "alone_s=5")
    with start("batch_beside", tmp_path, *small) as process:
        output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, errors
    figures = json.loads(output.splitlines()[-1])["figures"]
    assert all(figures[f"{name}.ttft_p99_ms"] > 0 for name in ("before", "beside", "after"))
    assert figures["batch.alone_per_s"] > 0 and math.isfinite(figures["batch.spare_share"])
    assert processes_of(tmp_path) == []


@pytest.mark.timeout(1000)
def test_whatever_of_a_batch_is_killed_each_request_is_answered_once(tmp_path: Path) -> None:
    """Client, proxy, controller, an agent and an engine, once each. It compares the texts itself, and fails."""
    with start("batch_kills", tmp_path, "requests=300", "kills=5") as process:
        output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, errors
    figures = json.loads(output.splitlines()[-1])["figures"]
    kinds = ("client", "proxy", "controller", "agent", "engine")
    assert [figures[f"{kind}.kills"] for kind in kinds] == [1.0] * 5 and figures["starts"] > 1
    assert processes_of(tmp_path) == []
