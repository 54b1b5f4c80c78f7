"""`python -m benchmarks.peers` at its smallest, with Sluice and a peer that cannot be installed; and the engine that
stands behind the peers, asked by a real HTTP client.

Says nothing of how fast anything is.
"""

from __future__ import annotations

import json
import math
import socket
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.measure import CommonOptions, floor_server
from tests.benching import processes_of, start

SIZES = ("streams=2", "tokens=3", "step_ms=5", "prompt_chars=400", "repeats=1")
SMALL = (*SIZES, "parts=streams,prompts,saturation,memory")


def test_it_measures_goes_on_without_a_peer_and_leaves_nothing(tmp_path: Path) -> None:
    arguments = (*SMALL, "peers=vllm-router,sluice,sluice-kv", f"venvs={tmp_path / 'venvs'}")
    with start("peers", tmp_path, *arguments, PIP_NO_INDEX="1", PIP_CONFIG_FILE="/dev/null") as process:
        output, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors
    result = json.loads(output.splitlines()[-1])
    assert set(result) == {"benchmark", "figures", "machine", "versions"}
    figures = result["figures"]
    assert all(math.isfinite(value) for value in figures.values())
    for case in ("whole", "split"):
        for part, unit in (("streams", "token"), ("prompts", "request")):
            assert figures[f"floor.{part}.us_per_{unit}"] > 0
        for name in ("sluice", "sluice-kv"):
            assert figures[f"{name}.{case}.streams.relay_us_per_token"] > 0
            assert figures[f"{name}.{case}.prompts.relay_us_per_request"] > 0
            assert figures[f"{name}.{case}.saturation.requests_per_s"] > 0
            assert f"{name}.{case}.memory.kib_per_stream" in figures
    assert not [name for name in figures if name.startswith("vllm-router")]
    assert output.count("left out: vllm-router.") == 2
    assert "not installed: ERROR: No matching distribution found for vllm-router" in output
    written = json.loads((tmp_path / "out" / "peers.json").read_text())
    assert written["figures"] == figures
    assert set(written["left_out"]) == {"vllm-router.whole", "vllm-router.split"}
    assert (tmp_path / "out" / "peers.png").stat().st_size > 0
    assert processes_of(tmp_path) == []


@pytest.fixture
def engine(request: pytest.FixtureRequest) -> Iterator[httpx.Client]:
    with (
        floor_server(CommonOptions(step_ms=1.0), role=getattr(request, "param", "any")) as (endpoint, _),
        httpx.Client(base_url=f"http://{endpoint.host}:{endpoint.port}", timeout=10) as client,
    ):
        yield client


def test_the_engine_behind_them_hands_kv_over(engine: httpx.Client) -> None:
    assert engine.get("/health").json() == {"status": "ok"}
    [model] = engine.get("/v1/models").json()["data"]
    asked = {"model": model["id"], "prompt": "once", "max_tokens": 1}
    plain = engine.post("/v1/completions", json=asked).json()
    assert plain["choices"][0]["text"] == " token"
    assert plain["kv_transfer_params"] is None
    prefilled = engine.post("/v1/completions", json={**asked, "kv_transfer_params": {"do_remote_decode": True}}).json()
    assert prefilled["kv_transfer_params"]["do_remote_prefill"] is True


@pytest.mark.parametrize(("engine", "num_tokens"), [("any", 5), ("prefill", 1)], indirect=["engine"])
def test_a_prefill_engine_generates_one_token(engine: httpx.Client, num_tokens: int) -> None:
    for _ in range(2):  # on one connection
        asked = {"model": "sim", "prompt": "once", "max_tokens": 5, "stream": True}
        lines = engine.post("/v1/completions", json=asked).text.split("\n\n")
        assert [line.startswith("data: {") for line in lines] == [True] * num_tokens + [False, False]
        assert lines[-2] == "data: [DONE]"


def test_another_protocol_is_hung_up_on(engine: httpx.Client) -> None:
    with socket.create_connection((engine.base_url.host, engine.base_url.port or 0), timeout=10) as connection:
        connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
        assert connection.recv(1) == b""
