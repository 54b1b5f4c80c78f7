"""`action=capacity`: the search against all splits, what it says, the recipe it writes, and what it refuses."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from launcher.__main__ import main
from launcher.config import CONF_DIR, load
from launcher.refusal import Refused
from launcher.twin import profile as profiles
from launcher.twin.capacity import Answer, capacity
from launcher.twin.capacity_search import Search, Tried, smaller
from launcher.twin.capacity_text import answer_text, pareto
from launcher.twin.families import families
from launcher.twin.needs import Idle, Needs
from launcher.twin.recipe import RUN_KEYS, recipe_text
from launcher.twin.simulate import resolved
from launcher.twin.splits import Layout, Part, Split, faults_of, layouts, pools_of
from tests.unit.test_step_model import TRUE, measured

H100 = ("+cluster=h100x1", "model=llama-3.1-8b", "action=capacity")
LAYOUTS = (Layout(1), Layout(2), Layout(4))


def judge(prefill: float, decode: float, mixed: float, overhead: float) -> tuple[list[Needs], Search]:
    """Workers of a layout do their GPUs' work less an overhead; aggregated ones disturb themselves by `mixed`."""

    def power(part: Part) -> float:
        return part.gpus * (1 - overhead * math.log2(part.layout.gpus))

    def needed(layout: Layout, power: float) -> Needs:
        return Needs(layout, prefill / power, decode / power, min(1.0, mixed) * (prefill + decode) / power)

    def try_split(split: Split) -> Tried:
        if split.prefill is None:
            ttft = itl = mixed * (prefill + decode) / power(split.decode)
        else:
            ttft, itl = prefill / power(split.prefill), decode / power(split.decode)
        return Tried(split=split, ttft_s=ttft, itl_s=itl, ttft_of_target=ttft, itl_of_target=itl)

    return [needed(layout, power(Part(layout, 1))) for layout in LAYOUTS], Search(try_split, 64)


@pytest.mark.parametrize("prefill", [0.3, 2.5, 11.0, 27.4])
@pytest.mark.parametrize("decode", [0.4, 3.1, 14.0])
@pytest.mark.parametrize("mixed", [0.9, 1.0, 1.3, 1.7])
@pytest.mark.parametrize("overhead", [0.0, 0.1])
def test_the_search_finds_what_trying_all_finds(prefill: float, decode: float, mixed: float, overhead: float) -> None:
    needs, search = judge(prefill, decode, mixed, overhead)
    chosen = search.run(families(needs, lambda split: True))
    parts = [Part(layout, count) for layout in LAYOUTS for count in range(1, 64 // layout.gpus + 1)]
    all_splits = [Split(part) for part in parts]
    all_splits += [Split(one, other) for one in parts for other in parts if one.gpus + other.gpus <= 64]
    _, judged = judge(prefill, decode, mixed, overhead)
    good = [split for split in all_splits if judged._ask(split).good]
    if not good:
        assert chosen is None
        return
    least = min(split.gpus for split in good)
    assert chosen is not None and chosen.split.gpus == least
    assert (chosen.split.prefill is None) == any(split.prefill is None for split in good if split.gpus == least)
    assert len(search.tried) < len(all_splits) / 20
    cheaper = search.next_cheaper(chosen)
    assert cheaper is None or (cheaper.split.gpus < least and cheaper.misses)


def test_splits_that_no_plan_allows_are_not_looked_at() -> None:
    needs, _ = judge(3.0, 3.0, 2.0, 0.0)
    allowed = families(needs, lambda split: split.prefill is None or split.prefill.layout == split.decode.layout)
    assert len(allowed) == 6
    assert all(family.prefill is None or family.prefill.layout == family.decode.layout for family in allowed)
    hopeless = [Needs(Layout(1), math.inf, 1.0, math.inf), Needs(Layout(2), 1.0, math.inf, math.inf)]
    found = families(hopeless, lambda split: True)
    assert [str(family.least) for family in found] == ["prefill 1 x tp2, decode 1 x tp1"]


def test_one_worker_less_of_each_kind() -> None:
    split = Split(Part(Layout(1), 2), Part(Layout(2), 1))
    assert list(smaller(split)) == [Split(Part(Layout(1), 1), Part(Layout(2), 1))]


def test_nothing_cheaper_beats_what_is_on_the_frontier() -> None:
    _, search = judge(5.0, 5.0, 1.2, 0.0)
    for count in range(1, 20):
        search._ask(Split(Part(Layout(1), count)))
        search._ask(Split(Part(Layout(1), count), Part(Layout(1), count)))
    frontier = pareto(list(search.tried.values()))
    assert [each.split.gpus for each in frontier] == sorted({each.split.gpus for each in frontier})
    assert all(before.worst > after.worst for before, after in pairwise(frontier))


def test_layouts_are_those_that_a_plan_would_take() -> None:
    config = load(["+cluster=h100x2", "model=llama-3.3-70b", "action=capacity"])
    model = resolved(config)
    assert [layout.name for layout in layouts(config, model)] == ["tp4", "tp8"]
    assert faults_of(config, model, Split(Part(Layout(4), 1), Part(Layout(4), 3))) == []
    assert "KV tokens" in faults_of(config, model, Split(Part(Layout(2), 1)))[0]


# ---------------------------------------------------------------- the action


def test_the_answer_is_told_to_people_and_programs(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    small = [*H100, "workload.rate=40", "workload.requests=300", f"predict.output={tmp_path}"]
    assert main(small) == 0
    text = capsys.readouterr().out
    assert "chosen" in text and "estimate" in text and "margin" in text and "disaggregation" in text
    assert main([*small, "output=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["chosen"]["ttft_of_target"] <= 1 and found["chosen"]["itl_of_target"] <= 1
    assert found["load_held"] >= 1 and len(found["tried"]) > 1
    assert json.loads((tmp_path / "capacity.json").read_text())["chosen"] == found["chosen"]
    assert (tmp_path / "capacity.png").stat().st_size > 1000


def test_without_a_data_sheet_measured_layouts_are_looked_at(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    profiles.write(tmp_path / "one.npz", measured(TRUE))
    profiled = [f"predict.profiles.tp2={tmp_path}/one.npz", "cluster.gpu=null", "model.max_model_len=8192"]
    assert main([*H100, *profiled, "workload.requests=200", "output=json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["source"] == "profile"
    assert {tried["split"]["decode"]["layout"]["tensor_parallel"] for tried in found["tried"]} == {2}


@pytest.mark.parametrize(
    ("target", "said"),
    [("routing.targets.itl_s=0.0001", "ITL is 2.7 ms even"), ("routing.targets.ttft_s=0.001", "p90 of TTFT is 0.0")],
)
def test_targets_that_no_idle_engine_keeps_are_named(
    target: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*H100, "workload.requests=50", target]) == 1
    text = capsys.readouterr().out
    assert "however many GPUs there are" in text and said in text
    assert "next:" not in text


def test_a_limit_that_is_too_small_is_said_with_one_that_does(capsys: pytest.CaptureFixture[str]) -> None:
    load = [*H100, "workload.rate=100", "workload.requests=300"]
    assert main([*load, "predict.max_gpus=2"]) == 1
    text = capsys.readouterr().out
    needed = re.search(r"nothing within 2 GPUs can keep to it: by arithmetic it takes at least about (\d+)", text)
    assert needed is not None and int(needed[1]) > 2
    assert "however many" not in text and "closest" not in text
    more = re.search(r"next: (cluster.nodes=\d+) (predict.max_gpus=\d+)", text)
    assert more is not None
    assert main([*load, *more.groups()]) == 0
    assert f"{needed[1]} " in capsys.readouterr().out


def answer(best: Tried | None, closest: Tried | None, **changes: Any) -> Answer:
    of_best = {"best_aggregated": best, "best_disaggregated": None, "load_held": 1.0, "breaks_first": ""}
    fields = {
        "at_least": {"aggregated": 7, "disaggregated": 8},
        "idle": Idle(0.1, 0.01),
        "gpus_per_node": 4,
        "requests": 600,
        "span_s": 30.0,
        "num_output": 251.0,
        "rate": 20.0,
        "max_gpus": 8,
        "percentile": 90,
        "ttft_s": 2.0,
        "itl_s": 0.05,
        "source": "estimate",
        "took_s": 1.0,
    }
    return Answer(chosen=best, next_cheaper=closest, tried=[], **of_best, **(fields | changes))


def tried(ttft_s: float, itl_s: float) -> Tried:
    split = Split(Part(Layout(1), 8))
    return Tried(split=split, ttft_s=ttft_s, itl_s=itl_s, ttft_of_target=ttft_s / 2, itl_of_target=itl_s / 0.05)


def test_what_comes_closest_within_the_limit_is_shown() -> None:
    text = answer_text(answer(None, tried(3.0, 0.04)))
    assert "nothing within 8 GPUs keeps to it; by arithmetic it takes at least about 7" in text
    assert "closest  8" in text and "3.000" in text
    assert "next: cluster.nodes=3 predict.max_gpus=12" in text


def test_a_replay_that_is_short_against_an_answer_is_called_doubtful() -> None:
    good = tried(1.0, 0.04)
    text = answer_text(answer(good, None, span_s=15.0))
    assert "doubtful" not in text and "with fewer GPUs they would be more than 97% full, by arithmetic" in text
    text = answer_text(answer(good, None, span_s=5.0))
    assert "came for 5 s, 0.5 times what an answer takes; workload.requests=300 replays longer" in text


OTHERS = (
    "routing.targets.itl_s=0.03",
    "routing=least_loaded",
    "handoff=nixl_push",
    "planner=on",
    "model.max_model_len=30000",
    "engine.engine_args.gpu_memory_utilization=0.8",
    "engine.environment.VLLM_LOGGING_LEVEL=DEBUG",
    "proxy.limits.max_queued=99",
    "controller.where=foreground",
)


@pytest.mark.parametrize(
    "split",
    [Split(Part(Layout(2), 3)), Split(Part(Layout(2), 1), Part(Layout(1), 4)), Split(Part(Layout(1), 1))],
    ids=str,
)
def test_a_recipe_is_loaded_as_what_was_found(split: Split, tmp_path: Path) -> None:
    config = load([*H100, "cluster.nodes=2", "cluster.account=me", *OTHERS])
    config.pools["decode"].engine_args["max_num_seqs"] = 77
    config.pools["any"] = replace(config.pools["decode"], max_decodes=55)
    conf = tmp_path / "conf"
    shutil.copytree(CONF_DIR, conf)
    (conf / "recipe" / "mine.yaml").write_text(recipe_text(config, split))
    found = load(["+recipe=mine", "action=plan"], conf)
    assert found.pools["decode" if split.prefill else "any"].engine_args == {"max_num_seqs": 77}
    assert found.pools == pools_of(config, split) and found.cluster == config.cluster
    for part in RUN_KEYS:
        assert getattr(found, part) == getattr(config, part)


def test_all_that_is_wrong_is_told_at_once() -> None:
    def told(*overrides: str) -> str:
        with pytest.raises(Refused) as refused:
            capacity(load([*H100, *overrides]))
        return str(refused.value)

    many = told("routing.targets.ttft_s=-1", "routing.targets.itl_s=1e9", "workload.rate=0", "name=../x")
    for key in ("routing.targets.ttft_s", "routing.targets.itl_s", "workload.rate", "name: '../x'"):
        assert key in many
    assert "predict.percentile" in told("predict.percentile=100")
    assert "predict.max_gpus: 9 of 1 x 8" in told("predict.max_gpus=9")
    assert "cluster.gpu: no data sheet of 'tpu'" in told("cluster.gpu=tpu")
    assert "latent attention" in told("model=deepseek-v3")
    assert "cluster.gpus_per_node" in told("engine=vllm_cpu", "cluster.gpus_per_node=0")
    assert "engine.simulated" in told("engine=sim")
    assert "exists" in told("name=gpt-oss-120b-h100")


def test_a_model_of_which_nothing_is_known_is_refused_by_its_key() -> None:
    config = load([*H100, "model.path=some/other"])
    config.model.config_json = {}
    with pytest.raises(Refused, match=r"model\.config_json: has no value"):
        capacity(config)
