"""`python -m benchmarks.chaos` at small scale: planned and lost workers on the one-box Slurm, and no stream lost.

How long streams pause is printed and not tested here: a machine that runs tests is never calm.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.benching import processes_of, start
from tests.onebox import OneBox

PLANNED = ("rolling_restart", "scale_down", "scancel_prefill", "scancel_decode")
LOST = ("engine_killed", "step_killed", "prefill_killed")
OUTAGES = ("slurmctld_silent",)


@pytest.mark.slurm
@pytest.mark.parametrize("rows", [PLANNED, LOST, OUTAGES], ids=["planned", "lost", "outages"])
def test_no_stream_is_lost_while_workers_come_and_go(tmp_path: Path, onebox: OneBox, rows: tuple[str, ...]) -> None:
    with start("chaos", tmp_path, f"rows={','.join(rows)}", "users=6", "calm_s=4", "outage_s=5") as process:
        output, errors = process.communicate(timeout=400)
    assert process.returncode == 0, output + errors
    result = json.loads(output.splitlines()[-1])
    assert result["benchmark"] == "chaos"
    for row in rows:
        found = {name: result["figures"][f"{row}.{name}"] for name in ("streams", "lost", "failed", "different")}
        assert found.pop("streams") > 6 and set(found.values()) == {0}
    assert processes_of(tmp_path) == []


def test_an_unknown_row_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    with start("chaos", tmp_path, "rows=earthquake") as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "no row earthquake" in errors and "scancel_decode" in errors and "Traceback" not in errors
