"""`python -m benchmarks.cores` at its smallest: the shape of its results, and that it leaves no process behind.

Says nothing of how fast anything is.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from tests.benching import processes_of, start

SMALL = ("streams=8", "tokens=3", "step_ms=5", "prompt_chars=400", "repeats=1")


def test_it_measures_one_process_beside_two_and_leaves_nothing(tmp_path: Path) -> None:
    with start("cores", tmp_path, *SMALL) as process:
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    result = json.loads(output.splitlines()[-1])
    assert result["benchmark"] == "cores"
    figures = result["figures"]
    assert all(math.isfinite(value) for value in figures.values())
    for part, unit in (("streams", "token"), ("steady", "token"), ("prompts", "request")):
        one, several = (figures[f"{who}.{part}.proxy_us_per_{unit}"] for who in ("one", "several"))
        assert one > 0 and several > 0 and figures[f"ratio.{part}.proxy_us_per_{unit}"] > 0
        assert figures[f"one.{part}.busiest"] == 1
        assert 0.5 <= figures[f"several.{part}.busiest"] <= 1
    written = json.loads((tmp_path / "out" / "cores.json").read_text())
    assert written["figures"] == figures and len(written["repeats"]) == 1
    assert processes_of(tmp_path) == []
