"""A file in `conf/recipe/` of a split that was found: cluster, model and pools at once, ready to launch.

Owns its text. The cluster is written out, as its own file would bring pools of its own. Never overwrites.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import asdict, fields
from enum import Enum
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from launcher.config import CONF_DIR, choices, load
from launcher.refusal import Refused
from launcher.schema import ClusterConfig, Config, PoolConfig
from launcher.twin.splits import Split, pools_of

FILE_NAME = re.compile(r"[a-z0-9][a-z0-9._-]*")
# Beside cluster and pools: what else makes a run.
RUN_KEYS = ("model", "engine", "handoff", "routing", "planner", "proxy", "controller")


def recipe_path(config: Config) -> Path:
    return CONF_DIR / "recipe" / f"{config.name}.yaml"


def recipe_faults(config: Config) -> Iterator[str]:
    if config.name is None:
        return
    if not FILE_NAME.fullmatch(config.name):
        yield f"name: {config.name!r} is no name of a recipe; use a-z, 0-9, ., - and _"
    elif recipe_path(config).exists():
        yield f"name: {recipe_path(config)} exists and is left alone; choose another name, or remove the file"
    if config.model.name not in choices("model"):
        yield f"name: a recipe names a model of conf/model, and {config.model.name} is none"


def recipe_text(config: Config, split: Split) -> str:
    cluster = config.cluster
    assert cluster is not None
    pools = {
        name: {"role": pool.role.value, **_different(asdict(pool), asdict(PoolConfig(role=pool.role)))}
        for name, pool in pools_of(config, split).items()
    }
    body = {
        "defaults": [{"override /model": config.model.name}],
        "cluster": _changed(cluster),
        **_overrides(config),
        "pools": pools,
    }
    head = f"# @package _global_\n# {config.model.name} on {split.gpus} GPUs of {cluster.name}: {split}.\n"
    return head + OmegaConf.to_yaml(OmegaConf.create(body))


def _overrides(config: Config) -> dict[str, Any]:
    """What the user set that model and defaults do not say by themselves."""
    default = load(["action=status", "run=none", f"model={config.model.name}"])
    found = {key: _different(asdict(getattr(config, key)), asdict(getattr(default, key))) for key in RUN_KEYS}
    return {key: values for key, values in found.items() if values}


def _different(values: dict[str, Any], default: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in values.items():
        known = default.get(key)
        if isinstance(value, dict) and isinstance(known, dict):
            if nested := _different(value, known):
                found[key] = nested
        elif key not in default or value != known:
            found[key] = _plain(value)
    return found


def _changed(cluster: ClusterConfig) -> dict[str, Any]:
    """What is not as it is by default."""
    default = ClusterConfig(name="", nodes=-1, gpus_per_node=-1, cpus_per_node=-1)
    names = [field.name for field in fields(ClusterConfig)]
    return {name: _plain(getattr(cluster, name)) for name in names if getattr(cluster, name) != getattr(default, name)}


def _plain(value: Any) -> Any:
    return value.value if isinstance(value, Enum) else value


def write_recipe(config: Config, split: Split) -> Path:
    path = recipe_path(config)
    try:
        with path.open("x") as file:
            file.write(recipe_text(config, split))
    except OSError as fault:
        raise Refused([f"name: {path} cannot be written: {fault.strerror}; use a checkout of your own"]) from None
    return path
