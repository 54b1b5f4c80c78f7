"""-m: the combinations, their plans one by one, and that nothing else may be done with several values."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from launcher.__main__ import main
from launcher.config import ConfigRefused, load
from launcher.multirun import plan_all
from launcher.sweep import combinations


def test_the_combinations_are_hydra_s() -> None:
    assert combinations(["+cluster=a,b", "run=x", "pools.decode.replicas=range(1,3)", "cluster.setup=[a,b]"]) == [
        ["+cluster=a", "run=x", "pools.decode.replicas=1", "cluster.setup=[a,b]"],
        ["+cluster=a", "run=x", "pools.decode.replicas=2", "cluster.setup=[a,b]"],
        ["+cluster=b", "run=x", "pools.decode.replicas=1", "cluster.setup=[a,b]"],
        ["+cluster=b", "run=x", "pools.decode.replicas=2", "cluster.setup=[a,b]"],
    ]
    assert combinations(["hello", "~pools.prefill", "run='a,b'"]) == [["hello", "~pools.prefill", "run='a,b'"]]


RECIPES = "+recipe=gpt-oss-120b-h100,llama-3.3-70b-h100"


def test_every_plan_is_shown_under_its_own_overrides(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["-m", RECIPES, "action=plan"]) == 0
    text = capsys.readouterr().out
    first, second = text.split(
        "# ==== 2 of 2: +recipe=llama-3.3-70b-h100\n\nrun llama-3-3-70b-h100x2 on h100x2 (slurm)\n"
    )
    assert first.startswith("# ==== 1 of 2: +recipe=gpt-oss-120b-h100\n\nrun gpt-oss-120b-h100x1 on h100x1 (slurm)\n")
    assert "#SBATCH --gpus-per-node=4" in first
    assert "#SBATCH --gpus-per-node=8" in second


def test_what_is_impossible_is_told_among_the_others_and_in_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([RECIPES, "pools.decode.replicas=1,2", "action=plan", "--multirun"]) == 1
    text = capsys.readouterr().out
    assert text.count("# ==== ") == 4
    assert text.count("impossible:\npools: all workers together take ") == 2
    assert text.rindex("impossible:") > text.rindex("run llama-3-3-70b-h100x2")


def test_the_plans_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_all(["+cluster=local", "model=tiny,deepseek-v3", "action=plan", "output=json"]) == 1
    good, bad = json.loads(capsys.readouterr().out)
    assert good["overrides"] == ["+cluster=local", "model=tiny"]
    assert good["plan"]["run"] == "tiny-local"
    assert (bad["overrides"][1], bad["faults"][0].partition(":")[0]) == ("model=deepseek-v3", "pools.prefill")


@pytest.mark.parametrize("actions", [[], ["action=up"], ["action=plan,up"], ["action=stop", "run=demo"]])
def test_nothing_but_plans(actions: list[str]) -> None:
    with pytest.raises(ConfigRefused, match="action: -m compares plans; add action=plan"):
        plan_all([RECIPES, *actions])


def test_no_folder_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert plan_all(["+cluster=local,onebox", "action=plan"]) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "endless", ["cluster.nodes=interval(1,3)", "pools.decode.replicas=interval(1,3)", "model=glob(*)"]
)
def test_values_that_cannot_be_listed_are_a_fault(endless: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert plan_all(["+cluster=h100x2", endless, "action=plan"]) == 1
    assert f"impossible:\n{endless.partition('=')[0]}: " in capsys.readouterr().out


def test_several_values_without_m_are_told_with_all_other_faults() -> None:
    with pytest.raises(ConfigRefused) as refused:
        load(["+cluster=h100x1", "model=tiny,llama-3.1-8b", "pools.decode.replicas=1,2", "cluster.nodez=1"])
    hint = "are several values; put a list in brackets; for a plan of each add -m"
    assert set(refused.value.faults) == {
        f"model: tiny,llama-3.1-8b {hint}",
        f"pools.decode.replicas: 1,2 {hint}",
        "cluster.nodez: unknown key; did you mean cluster.nodes?",
    }
