"""The batch benchmarks that need no engine, at their smallest: the shape of their results, and what they leave behind.

Says nothing of how fast anything is.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

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
