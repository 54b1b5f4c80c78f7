"""`action=simulate`: what it prints of a plan, and that it refuses what cannot be predicted, all at once."""

from __future__ import annotations

import json
from pathlib import Path

import msgspec
import pytest

from launcher.__main__ import main
from launcher.config import load
from launcher.refusal import Refused
from launcher.schema import WorkloadConfig
from launcher.twin import profile as profiles
from launcher.twin.simulate import simulate
from launcher.twin.traces import BadTrace
from launcher.twin.workload import make_workload
from tests.unit.test_step_model import TRUE, measured

H100 = ("+cluster=h100x1", "model=llama-3.1-8b", "action=simulate")
FEW = ("workload.requests=150", "workload.rate=20")


def asked(capsys: pytest.CaptureFixture[str], *overrides: str) -> dict[str, dict[str, float]]:
    assert main([*H100, *FEW, "output=json", *overrides]) == 0
    found: dict[str, dict[str, float]] = json.loads(capsys.readouterr().out)
    return found


def faults_of(*overrides: str) -> str:
    with pytest.raises(Refused) as refused:
        simulate(load([*H100, *FEW, *overrides]))
    return str(refused.value)


def test_a_plan_is_predicted_for_people_and_programs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    figures = asked(capsys, f"predict.output={tmp_path}")["figures"]
    assert 0 < figures["ttft_p50_s"] < figures["ttft_p99_s"] < 2 and figures["good"] > 0.9
    assert figures["requests_per_s"] == pytest.approx(20, rel=0.35)  # the last answers end after the last arrival
    assert figures["split"] > 0
    assert json.loads((tmp_path / "simulate.json").read_text())["figures"] == figures
    assert main([*H100, *FEW, "model.path=/not/there"]) == 0
    text, said = capsys.readouterr()
    assert "time to first token" in text and "prefill: estimate" in text
    assert "there is no folder /not/there; its shape is what model.config_json says" in said


def test_more_load_takes_longer_and_more_reuse_less(capsys: pytest.CaptureFixture[str]) -> None:
    calm, crowded = asked(capsys)["figures"], asked(capsys, "workload.rate=400")["figures"]
    assert crowded["ttft_mean_s"] > 2 * calm["ttft_mean_s"]
    assert crowded["itl_mean_ms"] > calm["itl_mean_ms"]
    reused = asked(capsys, "workload.rate=400", "workload.reuse=0.9")["figures"]
    assert reused["hits"] > 0.5 and reused["ttft_mean_s"] < 0.8 * crowded["ttft_mean_s"]


def test_a_profile_replaces_the_estimate(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    slow = msgspec.structs.replace(TRUE, token_s=20 * TRUE.token_s, fixed_s=0.05)
    profiles.write(tmp_path / "one.npz", measured(slow))
    estimate = asked(capsys)
    found = asked(capsys, f"predict.profiles.tp4={tmp_path}/one.npz")
    assert set(found["sources"].values()) == {"profile"}
    assert found["figures"]["ttft_p50_s"] > 3 * estimate["figures"]["ttft_p50_s"]


def test_a_profile_of_too_small_a_cache_is_refused(tmp_path: Path) -> None:
    profiles.write(tmp_path / "one.npz", msgspec.structs.replace(measured(TRUE), max_kv_tokens=1000))
    assert "max_kv_tokens is less than model.max_model_len" in faults_of(f"predict.profiles.tp4={tmp_path}/one.npz")


def test_a_request_as_long_as_the_cache_runs_whatever_the_block_size(capsys: pytest.CaptureFixture[str]) -> None:
    long = ["engine.engine_args.num_blocks=130", "model.max_model_len=4150", "workload.prompt_tokens=4140"]
    sizes = ["workload.spread=0", "workload.output_tokens=8", "workload.requests=4"]
    assert main(["+cluster=local", "engine=sim", "action=simulate", *long, *sizes]) == 0
    assert "4 requests" in capsys.readouterr().out


def test_a_simulated_engine_has_its_own_step_time(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["+cluster=local", "engine=sim", "action=simulate", "workload.requests=50"]) == 0
    assert "the simulator's" in capsys.readouterr().out


def test_all_that_is_wrong_is_told_at_once_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_text("no")
    told = faults_of(
        "cluster.gpu=h900",
        "workload.rate=-1",
        "workload.reuse=2",
        "workload.trace=/nowhere.csv",
        "pools.prefill.replicas=0",
        f"predict.profiles.tp4={tmp_path}/bad.npz",
    )
    for key in ("cluster.gpu: no data sheet of 'h900'", "workload.rate", "workload.reuse", "workload.trace"):
        assert key in told
    assert "pools.prefill.replicas" in told and "predict.profiles.tp4" in told
    assert "cluster.gpu: has no value" in faults_of("cluster.gpu=null")


def test_an_empty_trace_and_one_that_never_fits_are_refused(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    trace.write_text("")
    assert "workload.trace" in faults_of(f"workload.trace={trace}") and "no requests" in faults_of(
        f"workload.trace={trace}"
    )
    with pytest.raises(BadTrace, match="max_model_len=8"):
        make_workload(WorkloadConfig(requests=5), 8)


def test_a_trace_is_scaled_to_a_rate_and_cut_to_a_number(tmp_path: Path) -> None:
    trace = tmp_path / "trace.jsonl"
    row = {"input_length": 3000, "output_length": 10, "hash_ids": [1, 2, 3, 4, 5, 6]}
    trace.write_text("\n".join(json.dumps(row | {"timestamp": 1000 * at}) for at in range(50)))
    found = make_workload(WorkloadConfig(trace=str(trace), rate=10.0, requests=40), 8192)
    assert len(found.requests) == 40 and found.rate == pytest.approx(10)
    assert found.block_size == 64 and len(found.requests[0].chain) == 3000 // 64


def test_described_requests_have_the_lengths_and_the_reuse_that_were_asked_for() -> None:
    found = make_workload(WorkloadConfig(requests=4000, prompt_tokens=1000, output_tokens=200, reuse=0.5), 100_000)
    assert found.mean("num_prompt") == pytest.approx(1000, rel=0.05)
    assert found.mean("num_output") == pytest.approx(200, rel=0.05)
    assert found.rate == pytest.approx(1.0, rel=0.05)
    shared = sum(len(r.chain) for r in found.requests) - len({block for r in found.requests for block in r.chain})
    assert shared * found.block_size / sum(r.num_prompt for r in found.requests) == pytest.approx(0.5, abs=0.05)
