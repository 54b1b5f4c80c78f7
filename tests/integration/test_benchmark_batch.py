"""`python -m benchmarks.batch_cost` at its smallest: the shape of its results, and that it leaves no process behind.

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
