"""Loads the configuration: conf/ and the command line's overrides become one checked `Config`.

Owns Hydra, with `sweep` for the grammar: only its compose API is used, so there is no output folder and no chdir.
All faults are told at once. What a value means for the others is `plan`'s concern.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from launcher.refusal import Refused
from launcher.schema import Action, Config
from launcher.sweep import sweep_faults

CONF_DIR = Path(__file__).resolve().parent.parent / "conf"
# Mappings whose keys belong to the engine, the shell, Slurm or requests: any key may be set without Hydra's leading +.
FREE_MAPPINGS = ("engine_args", "environment", "sbatch", "config_json", "parameters", "profiles")
STARTS_A_RUN = (Action.up, Action.plan, Action.simulate, Action.capacity)
LOOKS_AT_A_SITE = (Action.doctor, Action.new_cluster)

ConfigStore.instance().store(name="schema", node=Config)


class ConfigRefused(Refused):
    """The configuration itself is wrong, before anything is planned."""


def load(overrides: Sequence[str], conf_dir: Path = CONF_DIR) -> Config:
    """Raises ConfigRefused."""
    overrides = [re.sub(r"^action=new-cluster$", "action=new_cluster", override) for override in overrides]
    swept = dict(sweep_faults(overrides))
    overrides = [_open_free_mapping(override) for override in overrides if override not in swept]
    pools = [override for override in overrides if re.match(r"\+*pools\.", override)]
    homeless = _without_cluster(overrides, conf_dir)
    tree, faults = _compose_all([override for override in overrides if override not in {*pools, *homeless}], conf_dir)
    faults += [*swept.values(), *homeless.values()]
    for override in pools:
        faults += _set_in_pool(tree, override)
    faults += _tree_faults(tree)
    if faults:
        raise ConfigRefused(list(dict.fromkeys(faults)))
    config = OmegaConf.to_object(tree)
    assert isinstance(config, Config)
    faults = list(_incomplete(config, conf_dir))
    if faults:
        raise ConfigRefused(faults)
    if config.run is None and config.cluster is not None:
        config.run = run_name(config.model.name, config.cluster.name)
    return config


def run_name(model: str, cluster: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", f"{model}-{cluster}".lower()).strip("-")


def choices(group: str, conf_dir: Path = CONF_DIR) -> list[str]:
    return sorted(path.stem for path in (conf_dir / group).glob("*.yaml"))


def known_keys(kind: type = Config, prefix: str = "") -> Iterator[str]:
    """Every key of the schema; the names of a mapping stand as <name>."""
    for name, hint in get_type_hints(kind).items():
        yield f"{prefix}{name}"
        nested = nested_class(hint)
        if nested is not None:
            yield from known_keys(nested, f"{prefix}{name}." + ("<name>." if get_origin(hint) is dict else ""))


# ---------------------------------------------------------------- Hydra


def _compose(overrides: Sequence[str], conf_dir: Path) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(conf_dir)):
        return compose("config", list(overrides))


def _without_cluster(overrides: Sequence[str], conf_dir: Path) -> dict[str, str]:
    """Hydra fails an assertion where a key is set in what is null."""
    if {"cluster", "recipe"}.intersection(map(_key, overrides)):
        return {}
    choose = f"needs a cluster: +cluster=... ({', '.join(choices('cluster', conf_dir))})"
    return {override: f"{_key(override)}: {choose}" for override in overrides if _key(override).startswith("cluster.")}


def _compose_all(overrides: Sequence[str], conf_dir: Path) -> tuple[DictConfig, list[str]]:
    """Hydra stops at the first fault: then each override is tried on top of those that were good."""
    try:
        return _compose(overrides, conf_dir), []
    except (HydraException, OmegaConfBaseException):
        groups = {path.name for path in conf_dir.iterdir() if path.is_dir()}
    good: list[str] = []
    faults = []
    # A recipe first: a cluster beside it is what can be written in another way.
    for override in sorted(overrides, key=lambda override: (_key(override) not in groups, _key(override) != "recipe")):
        try:
            _compose([*good, override], conf_dir)
            good.append(override)
        except (HydraException, OmegaConfBaseException) as error:
            faults.append(_explain(override, error, conf_dir))
    return _compose(good, conf_dir), faults


def _set_in_pool(tree: DictConfig, override: str) -> list[str]:
    """Hydra cannot add an entry to a mapping of classes, so pools are set here: `+pools.NAME.KEY=VALUE` adds one."""
    key, name = _key(override), _key(override).split(".")[1]
    if not override.startswith("+") and name not in tree.pools:
        return [f"{key}: no such pool; there are: {', '.join(tree.pools) or 'none'}; +{key}=... adds one"]
    try:
        value = OverridesParser.create().parse_overrides([override])[0].value()
        for part in reversed(key.split(".")[1:]):
            value = {part: value}
        with flag_override(tree.pools, "struct", False):
            tree.pools.merge_with(value)
    except (HydraException, OmegaConfBaseException) as error:
        return [_explain(override, error, CONF_DIR)]
    return []


def _explain(override: str, error: Exception, conf_dir: Path) -> str:
    key, value = _key(override), override.partition("=")[2]
    story = str(error.__cause__ or error)
    reason = next(line for line in story.splitlines() if not line.startswith(("In '", " ")))
    if isinstance(error, OverrideParseException):
        return _unreadable(override)
    if isinstance(error, MissingConfigException):
        return f"{key}: there is no {value!r}; choose one of {', '.join(choices(key, conf_dir))}"
    if key == "cluster" and not override.startswith("+"):
        return f"cluster: is chosen with a plus sign; write +cluster={value}"
    if key == "cluster" and "Multiple values" in reason:
        return f"cluster: the recipe brings one; write cluster={value}, without the plus sign, for another"
    full_key = re.search(r"full_key: (\S+\.\S+)", story)  # in a file it is not the override's key
    key = full_key.group(1) if full_key else key
    if "not in" in reason or "Could not override" in reason:
        return f"{key}: unknown key; {did_you_mean(key)}"
    return f"{key}: {reason}"


def _open_free_mapping(override: str) -> str:
    key = _key(override)
    inside = any(part in FREE_MAPPINGS for part in key.split(".")) and not key.startswith("pools.")
    return f"++{override}" if inside and not override.startswith(("+", "~")) else override


def _unreadable(override: str) -> str:
    """Hydra's grammar reads more than names and numbers only in quotes, which the shell must not take away."""
    key, value = _key(override), override.partition("=")[2]
    if not value:
        action = f"action={override}" if override in Action.__members__ else "key=value"
        return f"{override}: is not an override; write {action}"
    quoted = '["...", "..."]' if value.startswith("[") else '{name: "..."}' if value.startswith("{") else f'"{value}"'
    return (
        f"{key}: {value} cannot be read; a text with ~ ; = & or brackets takes quotes, and the shell must leave them:"
        f" {shlex.quote(f'{key}={quoted}')}"
    )


def _key(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


# ---------------------------------------------------------------- checks


def _tree_faults(tree: DictConfig) -> list[str]:
    unresolved = list(_unresolved(tree))
    if unresolved:
        return unresolved
    OmegaConf.resolve(tree)
    values = OmegaConf.to_container(tree)
    assert isinstance(values, dict)
    unknown = [f"{key}: unknown key; {did_you_mean(key)}" for key in _unknown_keys(values, Config)]
    return unknown + [f"{key}: has no value; set {key}=..." for key in sorted(OmegaConf.missing_keys(tree))]


def _unresolved(tree: DictConfig, prefix: str = "") -> Iterator[str]:
    """Interpolations that lead nowhere: ${oc.env:SCRATCH} without that variable."""
    for key in map(str, tree):
        try:
            value = None if OmegaConf.is_missing(tree, key) else tree[key]
        except OmegaConfBaseException as error:
            yield f"{prefix}{key}: {str(error).splitlines()[0]}"
        else:
            yield from _unresolved(value, f"{prefix}{key}.") if isinstance(value, DictConfig) else ()


def _unknown_keys(values: Mapping[Any, Any], kind: type, prefix: str = "") -> Iterator[str]:
    """Hydra lets `+key=1` add any key to any class: here it is found again."""
    hints = get_type_hints(kind)
    for key, value in values.items():
        nested = nested_class(hints[key]) if key in hints else None
        if key not in hints:
            yield f"{prefix}{key}"
        elif nested is not None and get_origin(hints[key]) is dict:
            for name, entry in value.items():
                yield from _unknown_keys(entry, nested, f"{prefix}{key}.{name}.")
        elif nested is not None and isinstance(value, dict):
            yield from _unknown_keys(value, nested, f"{prefix}{key}.")


def nested_class(hint: Any) -> type | None:
    """The class behind `C`, `C | None` and `dict[str, C]`."""
    found = [part for part in (hint, *get_args(hint)) if isinstance(part, type) and is_dataclass(part)]
    return found[0] if found else None


def did_you_mean(key: str) -> str:
    """The closest key beside the wrong one, or all beside it; where nothing stands there, the closest anywhere."""
    known = list(known_keys())
    pool = re.match(r"pools\.([^.]+)", key)
    pattern = re.sub(r"^pools\.[^.]+", "pools.<name>", key)
    parent = pattern.rpartition(".")[0]
    beside = [other for other in known if other.rpartition(".")[0] == parent]
    by_name = {other.rpartition(".")[2]: other for other in beside}
    close = [by_name[name] for name in get_close_matches(pattern.rpartition(".")[2], by_name, n=1, cutoff=0.6)]
    if not beside:
        close = get_close_matches(pattern, known, n=1, cutoff=0.6)
    if close:
        return f"did you mean {close[0].replace('<name>', pool.group(1) if pool else '<name>')}?"
    return f"known here: {', '.join(by_name or (key for key in known if '.' not in key))}"


def _incomplete(config: Config, conf_dir: Path) -> Iterator[str]:
    if config.action in STARTS_A_RUN and config.cluster is None:
        yield f"cluster: choose a cluster: +cluster=... ({', '.join(choices('cluster', conf_dir))})"
    needs_a_run = config.action not in STARTS_A_RUN + LOOKS_AT_A_SITE
    if needs_a_run and config.cluster is None and config.run is None:
        yield f"run: {config.action.value} needs to know which; set run=NAME"
    if config.action is Action.doctor and config.submit and config.cluster is None:
        yield "submit: jobs need to know of which cluster; set +cluster=NAME"
    if config.action is Action.new_cluster and not config.name:
        yield "name: new-cluster needs to know what to call it; set name=NAME"
    if (config.model.path is None) == (config.model.generate is None):
        yield "model.path: give exactly one of model.path and model.generate"
