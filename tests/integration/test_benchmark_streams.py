"""`python -m benchmarks.streams` with 1,500 streams: none dropped, little memory each, nothing left behind.

Says nothing of how fast anything is.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

from tests.benching import processes_of, start

SMALL = ("streams=1500", "tokens_per_s=5000", "hold_s=2.5", "repeats=1")


def test_many_streams_are_open_at_once_and_all_end(tmp_path: Path) -> None:
    with start("streams", tmp_path, *SMALL) as process:
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    result = json.loads(output.splitlines()[-1])
    assert result["benchmark"] == "streams"
    figures = result["figures"]
    assert all(math.isfinite(value) for value in figures.values())
    for crowd, num_streams in (("few", 150), ("all", 1500)):
        for readers in ("fast", "slow"):
            assert figures[f"{crowd}.{readers}.streams"] == num_streams
            assert figures[f"{crowd}.{readers}.dropped"] == 0, errors
            assert figures[f"{crowd}.{readers}.itl_p50_ms"] > 0
    assert 0 < figures["memory.bytes_per_stream"] < 20_000
    written = json.loads((tmp_path / "out" / "streams.json").read_text())
    assert written["figures"] == figures
    assert len(written["repeats"]) == 1
    assert processes_of(tmp_path) == []


def test_more_streams_than_files_may_be_open_are_refused(tmp_path: Path) -> None:
    with start("streams", tmp_path, "streams=100000000") as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "streams=100000000 need as many open files" in errors
