"""`python -m benchmarks.routing` and `benchmarks.roles` at their smallest: a slice of made-up chats.

Virtual times are the same on every machine. Live ones only have a lower bound here: how much later they are is the
machine's, and a request that went to another worker may be sooner, so it is of most requests and not of their mean.
"""

from __future__ import annotations

import json
import random
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.benching import processes_of, start


def figures(name: str, folder: Path, *arguments: str) -> dict[str, Any]:
    with start(name, folder, *arguments) as process:
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    assert result["benchmark"] == name
    assert json.loads((folder / "out" / f"{name}.json").read_text())["figures"] == result["figures"]
    assert processes_of(folder) == []
    return dict(result["figures"])


def test_routing_by_cached_prefixes_answers_sooner_than_routing_by_load(tmp_path: Path) -> None:
    policies = ("kv", "least_loaded", "round_robin", "random", "dynamo")
    found = figures("routing", tmp_path, "length_s=60", "workers=4", "seeds=1", "loads=0.7")
    for policy in policies:
        figure = {name: found[f"{policy}.0.7.{name}"] for name in ("ttft_p50_s", "ttft_p90_s", "ttft_p99_s", "hits")}
        assert 0 < figure["ttft_p50_s"] <= figure["ttft_p90_s"] <= figure["ttft_p99_s"]
        assert 0 < figure["hits"] <= found["cache.infinite"]
        assert found[f"{policy}.0.7.imbalance"] >= 1
        assert 0 < found[f"{policy}.0.7.decision_p50_us"] <= found[f"{policy}.0.7.decision_p99_us"]
    assert found["saturation.least_loaded"] > 0
    assert found["kv.0.7.ttft_mean_s"] < found["least_loaded.0.7.ttft_mean_s"]
    assert found["kv.0.7.hits"] > 0.85 * found["cache.shared"] > found["least_loaded.0.7.hits"]
    assert (tmp_path / "out" / "routing.png").stat().st_size > 10_000


def write_trace(path: Path) -> None:
    """Twenty prompts within two seconds, each behind one of five beginnings; short answers, which end soon."""
    rng = random.Random(1)
    lines = []
    for number in range(20):
        shared, own = 100 * rng.randrange(5), 1000 + 10 * number
        blocks = [*range(shared, shared + 4), *range(own, own + 3)]
        size = {"input_length": 512 * len(blocks), "output_length": rng.randrange(10, 50)}
        lines.append(json.dumps({"timestamp": 100 * number, "hash_ids": blocks, **size}))
    path.write_text("\n".join(lines))


def test_most_live_answers_begin_no_sooner_than_virtual_ones(tmp_path: Path) -> None:
    """Engines half as fast as the card, so that what this machine adds is small."""
    trace = tmp_path / "trace.jsonl"
    write_trace(trace)
    found = figures("routing", tmp_path, f"trace={trace}", "rate=1", "workers=2", "policies=kv", "live_speed=0.5")
    assert found["kv.live_to_virtual.ttft_median_of_ratios"] > 0.95


def test_roles_are_compared_cell_by_cell(tmp_path: Path) -> None:
    found = figures("roles", tmp_path, "length_s=30", "workers=3", "splits=1", "rate=0.6", "targets=2/0.05,1/0.015")
    for timing in ("additive", "mixed"):
        for targets in ("2s.0.05s", "1s.0.015s"):
            cell = {name: found[f"{timing}.{targets}.1.{name}"] for name in ("whole", "split", "adaptive")}
            assert min(cell.values()) > 0
    assert 0 <= found["better"] <= found["no_worse"] <= 1


@pytest.mark.parametrize("processes", [1, 2])
def test_whoever_ends_it_need_not_wait_for_all_that_is_still_to_be_replayed(processes: int, tmp_path: Path) -> None:
    """A thousand seeds would take hours."""
    with start("routing", tmp_path, "length_s=10", "rate=1", "seeds=1000", f"processes={processes}") as process:
        assert process.stdout is not None and process.stdout.readline().startswith("card: ")
        process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "interrupted: no results" in errors
    assert processes_of(tmp_path) == []


def test_a_trace_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with start("routing", tmp_path, "trace=nowhere.jsonl") as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "nowhere.jsonl" in errors and "Traceback" not in errors
