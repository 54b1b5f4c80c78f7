"""What `benchmarks.resync` makes of the seconds that its cases tell, which are tests of their own on real vLLM."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import resync
from benchmarks.processes import ProcessFault, spawn
from tests.live import SOURCE

TOLD = ({"events_lost": 0.5}, {"worker_lost": 0.1, "worker_back": 0.2}, {"events_lost": 1.5})


@pytest.fixture
def cases(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """In place of the cases: what they print, and how they end."""

    def stand_in(status: int) -> None:
        lines = "\n".join(map(json.dumps, TOLD))
        line = [sys.executable, "-c", f"print({lines!r}); raise SystemExit({status})"]
        monkeypatch.setattr(resync, "start", lambda *words, output: spawn(line, tmp_path, output))

    return stand_in


def test_the_slowest_of_each_counts(cases: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cases(0)
    resync.run(resync.Options(output=str(tmp_path)))
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])["figures"]
    assert (figures["events_lost.median_s"], figures["events_lost.max_s"]) == (1.0, 1.5)
    with pytest.raises(SystemExit, match=r"later than 1 s: events_lost\.max_s"):
        resync.run(resync.Options(output=str(tmp_path), within_s=1.0))


def test_a_case_that_fails_is_no_figure(cases: Any, tmp_path: Path) -> None:
    cases(1)
    with pytest.raises(ProcessFault):
        resync.run(resync.Options(output=str(tmp_path)))


def test_its_cases_are_where_it_looks_for_them() -> None:
    assert SOURCE.joinpath(*resync.CASES.split(".")).with_suffix(".py").is_file()
