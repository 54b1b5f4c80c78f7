"""What the comparison with other relays computes: who pays for what, ratios, tables, command lines."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import peer_programs
from benchmarks.load import BadAnswer, Outcome, Rhythm
from benchmarks.measure import Part, Sample
from benchmarks.peer_figures import ratios, show
from benchmarks.peer_programs import PEERS, Surroundings
from benchmarks.peers import cost
from benchmarks.targets import first_fault

AROUND = Surroundings(Path(), 8, 9, ("http://127.0.0.1:1", "http://127.0.0.1:2"), "http://127.0.0.1:3", 20.0)
FIGURES = {
    "floor.streams.us_per_token": 7.0,
    "cheap.whole.streams.us_per_token": 20.0,
    "dear.whole.streams.us_per_token": 40.0,
    "sluice.whole.streams.us_per_token": 10.0,
    "vllm-router.split.streams.us_per_token": 30.0,
    "sluice.split.streams.us_per_token": 18.0,
    "cheap.whole.steady.added_ttft_p99_ms": 0.0,
    "sluice.whole.steady.added_ttft_p99_ms": 2.0,
    "sluice.whole.memory.kib_per_stream": 6.0,
}


@pytest.mark.parametrize(("unit", "units"), [("token", 1000), ("request", 10)])
def test_a_unit_costs_relay_and_engines_without_the_engine_alone(unit: str, units: int) -> None:
    sample = Sample(Outcome(num_requests=10, num_tokens=1000), {"relay": 0.02, "engines": 0.01})
    part = Part("streams", unit, 1, 100, 200, Rhythm(start_s=0, pause_s=0))
    figures = cost(sample, part, alone_us=3.0)
    assert figures[f"us_per_{unit}"] == pytest.approx(0.03 / units * 1e6 - 3.0)
    assert figures[f"relay_us_per_{unit}"] == pytest.approx(0.02 / units * 1e6)


def test_of_an_engine_that_cannot_be_had_alone_nothing_is_counted() -> None:
    sample = Sample(Outcome(num_requests=10, num_tokens=1000), {"relay": 0.02, "engines": 0.01})
    figures = cost(sample, Part("prompts", "request", 1, 4, 200, Rhythm(start_s=0, pause_s=0)), None)
    assert figures["us_per_request"] == figures["relay_us_per_request"] == pytest.approx(2000)
    assert "engine_alone_us_per_request" not in figures


def test_ratios_are_ours_to_theirs_within_one_case() -> None:
    assert ratios(FIGURES) == {
        "ratio.whole.streams.us_per_token.cheap": 0.5,
        "ratio.whole.streams.us_per_token.dear": 0.25,
        "ratio.whole.streams.us_per_token.cheapest": 0.5,
        "ratio.split.streams.us_per_token.vllm-router": 0.6,
        "ratio.split.streams.us_per_token.cheapest": 0.6,
        "difference.whole.steady.added_ttft_p99_ms.cheap": 2.0,
    }


def test_sluice_with_its_own_policy_is_a_column_and_nobodys_peer() -> None:
    both = FIGURES | {"sluice-kv.whole.streams.us_per_token": 30.0}
    found = ratios(both)
    assert {name: value for name, value in found.items() if not name.startswith("sluice-kv.")} == ratios(FIGURES)
    assert {name: value for name, value in found.items() if name.startswith("sluice-kv.")} == {
        "sluice-kv.ratio.whole.streams.us_per_token.cheap": 1.5,
        "sluice-kv.ratio.whole.streams.us_per_token.dear": 0.75,
        "sluice-kv.ratio.whole.streams.us_per_token.cheapest": 1.5,
    }
    text = show(both | found)
    assert ["whole", "floor", "cheap", "dear", "sluice", "sluice-kv"] in [line.split() for line in text.splitlines()]
    assert "sluice-kv.ratio.whole.streams.us_per_token.cheapest: 1.50 (goal: at most 0.8, missed)" in text


def test_without_peers_there_are_no_ratios() -> None:
    assert ratios({"sluice.whole.streams.us_per_token": 10.0, "floor.streams.us_per_token": 7.0}) == {}


def test_the_table_has_a_column_each_and_says_whether_a_goal_is_reached() -> None:
    text = show(FIGURES | ratios(FIGURES))
    lines = [line.split() for line in text.splitlines()]
    assert ["whole", "floor", "cheap", "dear", "sluice"] in lines
    assert ["streams.us_per_token", "7.00", "20.00", "40.00", "10.00"] in lines
    assert ["split", "floor", "vllm-router", "sluice"] in lines
    assert "streams.us_per_token.cheapest: 0.50 (goal: at most 0.8, reached)" in text
    assert "streams.us_per_token.vllm-router: 0.60 (goal: at most 0.5, missed)" in text


@pytest.mark.parametrize("name", ["sglang-router", "vllm-router"])
def test_routers_listen_here_only_and_know_the_engines(name: str) -> None:
    peer = PEERS[name]
    [whole] = peer.commands("whole", AROUND)
    [split] = peer.commands("split", AROUND)
    for arguments in (whole, split):
        assert arguments[0] == name
        assert "--host 127.0.0.1 --port 8" in " ".join(arguments)
        assert "--prometheus-host 127.0.0.1 --prometheus-port 9" in " ".join(arguments)
    assert " ".join(whole).endswith("--worker-urls http://127.0.0.1:1 http://127.0.0.1:2")
    assert " ".join(split).endswith("--prefill http://127.0.0.1:3 --decode http://127.0.0.1:1")


def test_dynamo_prefills_and_decodes_with_engines_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peer_programs, "write_model", write_config)
    around = AROUND._replace(folder=tmp_path / "dynamo")
    around.folder.mkdir()
    frontend, *whole = PEERS["dynamo"].commands("whole", around)
    _, prefill, decode = PEERS["dynamo"].commands("split", around)
    assert "--http-host 127.0.0.1 --http-port 8" in " ".join(frontend)
    assert [command[-2:] for command in whole] == [["--num-workers", "2"]]
    assert ("prefill" in prefill, "decode" in decode) == (True, True)
    assert json.loads((tmp_path / "model" / "config.json").read_text())["max_position_embeddings"] > 100_000
    with np.load(around.folder / "timing.npz") as timing:
        assert (timing["decode_itl"] == 20.0).all()


def write_config(folder: Path) -> None:
    """What is changed of a model."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"max_position_embeddings": 8192}')


def test_every_peer_is_pinned() -> None:
    assert all(peer.version for peer in PEERS.values())


def test_a_wrong_answer_is_a_peers_fault_and_a_wrong_program_is_ours() -> None:
    theirs = ExceptionGroup("", [ExceptionGroup("", [BadAnswer("503\nbusy")])])
    assert first_fault(theirs) == "BadAnswer: 503 busy"
    with pytest.raises(ExceptionGroup):
        first_fault(ExceptionGroup("", [BadAnswer("503"), KeyError("ours")]))
