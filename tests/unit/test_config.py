"""Loading: strict, complete about faults, and the same from anywhere."""

from __future__ import annotations

import dataclasses
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path
from typing import get_origin, get_type_hints

import msgspec
import pytest
from omegaconf import MISSING, OmegaConf

from launcher.config import CONF_DIR, ConfigRefused, choices, known_keys, load, nested_class
from launcher.schema import Action, Config, DeadlinesConfig, LimitsConfig, PoolRole, RoutingConfig
from proxy.spec import Deadlines, Limits, RoutingSpec


def faults_of(*overrides: str, conf_dir: Path = CONF_DIR) -> tuple[str, ...]:
    with pytest.raises(ConfigRefused) as refused:
        load(overrides, conf_dir)
    return refused.value.faults


@pytest.mark.parametrize(
    ("unread", "advised"),
    [
        ("cluster.cache_dir=~/scratch", 'cluster.cache_dir="~/scratch"'),
        ("cluster.setup=[module load a; b]", 'cluster.setup=["...", "..."]'),
        ("cluster.environment={A: b;c}", 'cluster.environment={name: "..."}'),
    ],
)
def test_a_value_that_hydra_cannot_read_is_shown_as_it_can(unread: str, advised: str) -> None:
    with pytest.raises(ConfigRefused) as refused:
        load(["+cluster=local", unread])
    (fault,) = refused.value.faults
    assert fault.endswith(f": '{advised}'")
    load(["+cluster=local", advised])


def test_a_cluster_is_all_it_takes() -> None:
    config = load(["+cluster=local"])
    assert (config.action, config.run, config.model.name, config.engine.kind) == (
        Action.up,
        "tiny-local",
        "tiny",
        "vllm",
    )
    assert [pool.role for pool in config.pools.values()] == [PoolRole.prefill, PoolRole.decode]


def test_without_a_cluster_they_are_listed() -> None:
    assert faults_of() == ("cluster: choose a cluster: +cluster=... (b200x1, h100x1, h100x2, h200x1, local, onebox)",)


def test_a_key_of_a_cluster_needs_one() -> None:
    for action in ("plan", "stop"):
        assert faults_of(f"action={action}", "run=mine", "cluster.partition=gpu")[0].startswith(
            "cluster.partition: needs a cluster: +cluster=... (b200x1, "
        )


def test_a_cluster_without_its_plus_is_understood() -> None:
    assert faults_of("cluster=onebox")[0] == "cluster: is chosen with a plus sign; write +cluster=onebox"


def test_actions_on_a_run_need_its_name_and_no_cluster() -> None:
    assert load(["action=stop", "run=mine"]).run == "mine"
    for action in ("status", "logs", "stop"):
        assert faults_of(f"action={action}") == (f"run: {action} needs to know which; set run=NAME",)


def test_a_look_at_a_site_needs_neither() -> None:
    assert load(["action=doctor"]).action is Action.doctor
    assert load(["action=new-cluster", "name=mine"]).action is Action.new_cluster
    assert faults_of("action=doctor", "submit=true") == (
        "submit: jobs need to know of which cluster; set +cluster=NAME",
    )


def test_all_faults_at_once() -> None:
    faults = faults_of(
        "+cluster=local",
        "modle=tiny",
        "cluster.nodez=3",
        "engine.block_size=big",
        "pools.decode.replcas=3",
        "pools.prefil.replicas=1",
        "+typo.deep=1",
        "+pools.more.replicas=2",
    )
    assert {fault.partition(":")[0] for fault in faults} == {
        "modle",
        "cluster.nodez",
        "engine.block_size",
        "pools.decode.replcas",
        "pools.prefil.replicas",
        "typo",
        "pools.more.role",
    }


@pytest.mark.parametrize(
    ("override", "fault"),
    [
        ("cluster.nodez=3", "cluster.nodez: unknown key; did you mean cluster.nodes?"),
        ("+cluster.nodez=3", "cluster.nodez: unknown key; did you mean cluster.nodes?"),
        ("+actoin=plan", "actoin: unknown key; did you mean action?"),
        ("pools.decode.replcas=3", "pools.decode.replcas: unknown key; did you mean pools.decode.replicas?"),
        ("+pools.decode.replcas=3", "pools.decode.replcas: unknown key; did you mean pools.decode.replicas?"),
        ("+proxy.limits.max_queue=3", "proxy.limits.max_queue: unknown key; did you mean proxy.limits.max_queued?"),
        ("pools.decode.foo=1", "pools.decode.foo: unknown key; known here: role, replicas, "),
        ("+modell.name=x", "modell: unknown key; did you mean model?"),
        ("modell.name=x", "modell.name: unknown key; did you mean model.name?"),
        ("proxy.port=1", "proxy.port: unknown key; did you mean proxy.http_port?"),
        ("routing.zzz=1", "routing.zzz: unknown key; known here: policy, targets, allow_override, "),
        ("pools.decode.role=both", "pools.decode.role: Invalid value 'both', expected one of [prefill, decode, any]"),
        ("pools.prefil.replicas=3", "pools.prefil.replicas: no such pool; there are: prefill, decode; +pools.prefil"),
        ("model=gpt", "model: there is no 'gpt'; choose one of deepseek-v3, gpt-oss-120b, "),
        ("pools.prefil.engine_args.seed=1", "pools.prefil.engine_args.seed: no such pool; there are: prefill, decode"),
        ("+recipe=gpt-oss-120b-h100", "cluster: the recipe brings one; write cluster=local, without the plus sign"),
        ("hello", "hello: is not an override; write key=value"),
        ("stop", "stop: is not an override; write action=stop"),
        ("pools.decode.tensor_parallel=[", "pools.decode.tensor_parallel: [ cannot be read; a text with ~"),
        ("model.name=${nowhere}", "model.name: Interpolation key 'nowhere' not found"),
        ("cluster.cache_dir=${oc.env:NOT_SET}", "cluster.cache_dir: KeyError raised while resolving interpolation"),
        ("model.path=/models/mine", "model.path: give exactly one of model.path and model.generate"),
    ],
)
def test_a_fault_names_its_key_and_what_to_do(override: str, fault: str) -> None:
    faults = faults_of("+cluster=local", override)
    assert len(faults) == 1
    assert faults[0].startswith(fault)


def test_a_fault_in_a_file_of_the_site_names_its_key(tmp_path: Path) -> None:
    conf = tmp_path / "conf"
    shutil.copytree(CONF_DIR, conf)
    local = (conf / "cluster/local.yaml").read_text()
    (conf / "cluster/site.yaml").write_text(local.replace("gpus_per_node: 0", "gpus: 0"))
    assert [fault.partition(":")[0] for fault in faults_of("+cluster=site", conf_dir=conf)] == ["cluster.gpus"]
    (conf / "cluster/site.yaml").write_text(local.replace("  gpus_per_node: 0\n", ""))
    assert faults_of("+cluster=site", conf_dir=conf) == (
        "cluster.gpus_per_node: has no value; set cluster.gpus_per_node=...",
    )


def test_mappings_of_others_take_any_key_without_a_plus() -> None:
    config = load(
        [
            "+cluster=onebox",
            "pools.decode.engine_args.max_num_seqs=3",
            "engine.environment.NCCL_DEBUG=INFO",
            "cluster.sbatch.switches=1",
            "cluster.environment={A: b}",
        ]
    )
    assert config.pools["decode"].engine_args == {"max_num_seqs": 3}
    assert config.engine.environment["NCCL_DEBUG"] == "INFO"
    assert config.cluster is not None
    assert config.cluster.sbatch == {"switches": 1}
    assert config.cluster.environment["A"] == "b"


def test_pools_can_be_added_and_taken_away() -> None:
    config = load(["+cluster=onebox", "+pools.both.role=any", "pools.both.replicas=2", "~pools.prefill"])
    assert list(config.pools) == ["decode", "both"]
    assert (config.pools["both"].role, config.pools["both"].replicas) == (PoolRole.any, 2)
    assert load(["+cluster=local", "+pools.x={role: any, replicas: 3}"]).pools["x"].replicas == 3


def test_loading_leaves_no_trace_and_works_from_anywhere(tmp_path: Path) -> None:
    code = "from launcher.config import load; print(load(['+cluster=local']).run)"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(CONF_DIR.parent), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "tiny-local\n"
    assert list(tmp_path.iterdir()) == []


def surface(kind: type, prefix: str = "") -> Iterator[str]:
    hints = get_type_hints(kind)
    for field in fields(kind):
        key, nested = f"{prefix}{field.name}", nested_class(hints[field.name])
        default = "" if field.default in (MISSING, dataclasses.MISSING) else f" = {field.default}"
        yield f"{key}{default}"
        if nested is not None:
            yield from surface(nested, f"{key}." + ("<name>." if get_origin(hints[field.name]) is dict else ""))


def test_the_config_surface(golden: Callable[[str, str], None]) -> None:
    """Every key a user may write, with its default: a new one is a decision."""
    lines = list(surface(Config))
    assert [line.partition(" = ")[0] for line in lines] == list(known_keys())
    golden("config_keys.txt", "\n".join(lines) + "\n")


@pytest.mark.parametrize(
    ("written", "spec"), [(LimitsConfig, Limits), (DeadlinesConfig, Deadlines), (RoutingConfig, RoutingSpec)]
)
def test_what_is_mirrored_from_the_proxy_has_its_keys_and_defaults(written: type, spec: type) -> None:
    mirrored = OmegaConf.to_container(OmegaConf.structured(written))
    original = spec()
    expected = {name: getattr(original, name) for name in spec.__struct_fields__}  # type: ignore[attr-defined]
    assert mirrored | {"policy": "least_loaded"} == msgspec.to_builtins(expected) | {"policy": "least_loaded"}


def test_every_choice_of_every_group_composes() -> None:
    for model in choices("model"):
        for engine in choices("engine"):
            load(["+cluster=onebox", f"model={model}", f"engine={engine}"])
    for recipe in choices("recipe"):
        load([f"+recipe={recipe}"])
    for group in ("handoff", "routing"):
        for choice in choices(group):
            load(["+cluster=onebox", f"{group}={choice}"])
