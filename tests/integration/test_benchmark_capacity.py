"""`python -m benchmarks.capacity` at its smallest: two workloads, four GPUs. Virtual times are the same everywhere."""

from __future__ import annotations

from pathlib import Path

from benchmarks.capacity import is_right
from tests.integration.test_benchmark_routing import figures


def test_what_capacity_picks_is_as_cheap_as_what_trying_all_finds(tmp_path: Path) -> None:
    found = figures("capacity", tmp_path, "gpus=4", "cases=chat,code", "layouts=1", "requests=200", "samples=2")
    assert found["worst_gpus_over_best"] <= 1
    for name in ("chat", "code"):
        assert found[f"{name}.4.replays"] > 0
        assert found[f"{name}.4.brute_force_replays"] > 0


def test_where_neither_wins_in_most_samples_both_answers_are_right() -> None:
    assert [is_right(True, wins) for wins in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)] == [False, False, True, True, True, True]
    assert [is_right(False, wins) for wins in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)] == [True, True, True, True, False, False]
