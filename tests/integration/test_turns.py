"""Workers that read their model one at a time, by the word of one of two processes of the proxy."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.live import Live, sim_engine, wait_for
from workers.agent.lifecycle import LOADING, READY

LOAD_S = 0.5
WARM_UP_S = 4.0
FOR_EVER_S = 600.0
WORKERS = ("prefill-0", "decode-0", "decode-1", "decode-2")


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Live]:
    started = Live(tmp_path / "run", processes=2, max_loading=1)
    try:
        started.start_proxy({name: name.rsplit("-", 1)[0] for name in WORKERS})
        yield started
    finally:
        started.stop()


def turns(run: Live) -> dict[str, str]:
    """As /fleet shows them."""
    return {worker["worker"]: worker["turn"] for worker in run.fleet()["workers"]}


def loading(run: Live, worker: str) -> tuple[str, str]:
    """From when to when, by its agent's log."""
    said = [line for line in run.log(worker).splitlines() if "sluice.agent: " in line]
    first = next(line for line in said if f"sluice.agent: {LOADING}" in line)
    last = next(line for line in said if line.endswith(f"sluice.agent: {READY}"))
    return first[:23], last[:23]


def test_one_reads_and_the_others_wait_also_when_the_one_dies(run: Live) -> None:
    run.start_worker("decode-9", sim_engine(args={"load_time_s": FOR_EVER_S}), index=9, takes_turns=True)
    wait_for(lambda: turns(run) in ({"decode-9": "next"}, {"decode-9": "its turn"}), "the first to ask")
    for index, worker in enumerate(WORKERS):
        run.start_worker(worker, sim_engine(args={"load_time_s": LOAD_S}), index=index, takes_turns=True)
    words = sorted(["its turn", "next", "1 before it", "2 before it", "3 before it"])
    wait_for(lambda: sorted(turns(run).values()) == words, "all of them to be in line")
    assert turns(run)["decode-9"] == "its turn"
    assert {one["detail"] for one in run.fleet()["workers"] if one["turn"] != "its turn"} == {
        "waits for its turn to read the model"
    }
    run.kill("decode-9")
    run.wait_ready()
    assert set(turns(run).values()) == {""}
    times = sorted(loading(run, worker) for worker in WORKERS)
    assert all(before[1] <= after[0] for before, after in pairwise(times)), times
    assert all(worker["stages"]["turn"] >= 0 for worker in run.fleet()["workers"])


def test_a_turn_ends_when_the_weights_are_read_and_not_when_the_engine_is_ready(run: Live) -> None:
    engine = sim_engine(args={"load_time_s": LOAD_S, "warm_up_s": WARM_UP_S})
    for index, worker in enumerate(WORKERS[:2]):
        run.start_worker(worker, engine, index=index, takes_turns=True)
    wait_for(lambda: [worker["phase"] for worker in run.fleet()["workers"]] == [READY, READY], "both to be ready")
    one, other = sorted(loading(run, worker) for worker in WORKERS[:2])
    assert one[0] < other[0] < one[1], "the second begins while the first warms up"
    assert {worker["stages"]["weights"] for worker in run.fleet()["workers"]} == {LOAD_S}
