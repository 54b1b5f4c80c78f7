"""Loads the configuration: conf/ and the command line's overrides become one checked `Config`.

Owns Hydra: its compose API is used and nothing else of it, so there is no output folder and no chdir.
All faults are told at once. What a value means for the others is `plan`'s concern.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from launcher.refusal import Refused
from launcher.schema import Action, Config

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"
# Mappings whose keys belong to the engine, the shell or Slurm: any key may be set without Hydra's leading +.
FREE_MAPPINGS = ("engine_args", "environment", "sbatch")
STARTS_A_RUN = (Action.up, Action.plan)

ConfigStore.instance().store(name="schema", node=Config)


class ConfigRefused(Refused):
    """The configuration itself is wrong, before anything is planned."""


def load(overrides: Sequence[str]) -> Config:
    """Raises ConfigRefused."""
    overrides = [_open_free_mapping(override) for override in overrides]
    pools = [override for override in overrides if re.match(r"\+*pools\.", override)]
    tree = _compose_all([override for override in overrides if override not in pools])
    faults = [fault for override in pools for fault in _set_in_pool(tree, override)]
    faults += [f"{key}: unknown key; {_did_you_mean(key)}" for key in _unknown_keys(tree)]
    faults += [f"{key}: has no value; set {key}=..." for key in sorted(OmegaConf.missing_keys(tree))]
    if faults:
        raise ConfigRefused(faults)
    config = OmegaConf.to_object(tree)
    assert isinstance(config, Config)
    faults = list(_incomplete(config))
    if faults:
        raise ConfigRefused(faults)
    if config.run is None and config.cluster is not None:
        config.run = run_name(config.model.name, config.cluster.name)
    return config


def run_name(model: str, cluster: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", f"{model}-{cluster}".lower()).strip("-")


def choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


def known_keys(node: Any = Config, prefix: str = "") -> Iterator[str]:
    """Every key of the schema; a mapping's own keys stand as <name>."""
    tree = node if isinstance(node, DictConfig) else OmegaConf.structured(node)
    for field in fields(OmegaConf.get_type(tree)):
        key = f"{prefix}{field.name}"
        yield key
        nested = _nested_class(str(field.type))
        if nested is not None:
            name = "<name>." if str(field.type).startswith("dict") else ""
            yield from known_keys(nested, f"{key}.{name}")


def _nested_class(annotation: str) -> type | None:
    from launcher import schema

    name = re.search(r"\w+Config", annotation)
    return getattr(schema, name.group()) if name else None


def _compose(overrides: Sequence[str]) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF_DIR)):
        return compose("config", list(overrides))


def _compose_all(overrides: Sequence[str]) -> DictConfig:
    """Hydra stops at the first fault: when there is one, each override is tried alone on the chosen groups."""
    try:
        return _compose(overrides)
    except (HydraException, OmegaConfBaseException) as error:
        first = error
    groups = [override for override in overrides if _key(override) in _groups()]
    faults = []
    base: list[str] = []
    for override in groups:
        faults += _faults_of(override, [*base, override])
        base += [] if faults else [override]
    faults += [
        fault for override in overrides if override not in groups for fault in _faults_of(override, [*base, override])
    ]
    raise ConfigRefused(faults or [str(first)]) from first


def _set_in_pool(tree: DictConfig, override: str) -> list[str]:
    """Hydra cannot add an entry to a mapping of classes, so pools are set here: `+pools.NAME.KEY=VALUE` adds one."""
    key, name = _key(override), _key(override).split(".")[1]
    if not override.startswith("+") and name not in tree.pools:
        return [f"{key}: no such pool; there are {', '.join(tree.pools)}; +{key}=... adds one"]
    try:
        value = OverridesParser.create().parse_override(override).value()
        for part in reversed(key.split(".")[1:]):
            value = {part: value}
        with flag_override(tree.pools, "struct", False):
            tree.pools.merge_with(value)
    except (HydraException, OmegaConfBaseException) as error:
        return [_explain(override, error)]
    return []


def _faults_of(override: str, tried: Sequence[str]) -> list[str]:
    try:
        _compose(tried)
    except (HydraException, OmegaConfBaseException) as error:
        return [_explain(override, error)]
    return []


def _explain(override: str, error: Exception) -> str:
    key = _key(override)
    cause = error.__cause__
    if isinstance(error, OverrideParseException):
        return f"{override}: not an override; write key=value"
    if isinstance(error, MissingConfigException):
        return f"{key}: no {override.partition('=')[2]!r}; choose one of {', '.join(choices(key))}"
    if key == "cluster":
        return f"cluster: write +cluster={override.partition('=')[2]}"
    reason = str(cause or error).splitlines()[0]
    if "not in" in reason or "Could not override" in reason:
        return f"{key}: unknown key; {_did_you_mean(key)}"
    return f"{key}: {reason}; see conf/ for examples"


def _did_you_mean(key: str) -> str:
    pattern = re.sub(r"^pools\.[^.]+", "pools.<name>", key)
    close = get_close_matches(pattern, list(known_keys()), n=1, cutoff=0.6)
    if not close:
        return "the keys are listed in launcher/schema.py"
    name = key.split(".")[1] if key.startswith("pools.") else ""
    return f"did you mean {close[0].replace('<name>', name)}?"


def _unknown_keys(tree: DictConfig, prefix: str = "") -> Iterator[str]:
    """Hydra lets `+key=1` add any key to any class: here it is found again."""
    kind = OmegaConf.get_type(tree)
    names = {field.name for field in fields(kind)} if kind is not dict else None
    for key in tree:
        if names is not None and key not in names:
            yield f"{prefix}{key}"
        elif not OmegaConf.is_missing(tree, key) and isinstance(tree._get_node(key), DictConfig):
            if not OmegaConf.is_interpolation(tree, key) and tree[key] is not None:
                yield from _unknown_keys(tree[key], f"{prefix}{key}.")


def _incomplete(config: Config) -> Iterator[str]:
    if config.action in STARTS_A_RUN and config.cluster is None:
        yield f"cluster: choose a cluster: +cluster=... ({', '.join(choices('cluster'))})"
    if config.action not in STARTS_A_RUN and config.cluster is None and config.run is None:
        yield f"run: {config.action.value} needs the run; set run=NAME"
    if (config.model.path is None) == (config.model.generate is None):
        yield "model.path: give exactly one of model.path and model.generate"


def _groups() -> set[str]:
    return {path.name for path in CONF_DIR.iterdir() if path.is_dir()}


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _open_free_mapping(override: str) -> str:
    parts = _key(override).split(".")
    if override[0] not in "+~" and any(part in FREE_MAPPINGS for part in parts[:-1]):
        return f"++{override}"
    return override
