"""`python -m benchmarks.proxy` at its smallest: the shape of its results, and that it leaves no process behind.

Says nothing of how fast anything is.
"""

from __future__ import annotations

import json
import math
import signal
import time
from pathlib import Path

import pytest

from tests.benching import processes_of, start

SMALL = ("streams=2", "tokens=3", "step_ms=5", "prompt_chars=400", "repeats=1", "requests=40")


def test_it_measures_and_leaves_nothing(tmp_path: Path) -> None:
    with start("proxy", tmp_path, *SMALL) as process:
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    result = json.loads(output.splitlines()[-1])
    assert set(result) == {"benchmark", "figures", "machine", "versions"}
    assert result["benchmark"] == "proxy"
    figures = result["figures"]
    assert all(math.isfinite(value) for value in figures.values())
    for case in ("whole", "split"):
        for part, unit in (("streams", "token"), ("steady", "token"), ("prompts", "request")):
            assert figures[f"{case}.{part}.proxy_to_floor"] > 0
            assert figures[f"{case}.{part}.proxy_us_per_{unit}"] > 0
    assert figures["memory.requests"] == 40
    written = json.loads((tmp_path / "out" / "proxy.json").read_text())
    assert written["figures"] == figures
    assert len(written["repeats"]) == 1
    assert (tmp_path / "out" / "proxy.png").stat().st_size > 0
    assert processes_of(tmp_path) == []


@pytest.mark.parametrize("progress", ["starting two fleets", "repeat 1", "memory over"])
def test_a_signal_at_any_time_leaves_nothing(tmp_path: Path, progress: str) -> None:
    """Also a second one, while it ends what it has started."""
    with start("proxy", tmp_path, *SMALL, "requests=1000000") as process:
        assert process.stderr is not None
        assert any(progress in line for line in process.stderr)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "interrupted" in errors and "Traceback" not in errors
    assert processes_of(tmp_path) == []
    assert not list(tmp_path.glob("sluice-*"))
