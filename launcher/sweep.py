"""Overrides that name several values, `model=a,b` or `pools.decode.replicas=range(1,4)`: all their combinations.

Pure, in Hydra's own grammar. What a combination means is `config`'s concern.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException


def values(override: str) -> list[str]:
    """The override once per value that it names. What is no override, or names no list (`interval(0,1)`), is left as it
    is for `config` to tell."""
    try:
        parsed = OverridesParser.create().parse_overrides([override])[0]
        if parsed.is_sweep_override():
            return [f"{parsed.get_key_element()}={value}" for value in parsed.sweep_string_iterator()]
    except HydraException:
        pass
    return [override]


def combinations(overrides: Sequence[str]) -> list[list[str]]:
    """The last override changes fastest."""
    return [list(chosen) for chosen in product(*(values(override) for override in overrides))]


def sweep_faults(overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Overrides that name several values where one is wanted, and what to do."""
    for override in overrides:
        found = values(override)
        if found != [override]:
            key, _, text = override.lstrip("+").partition("=")
            yield override, f"{key}: {text} are several values; put a list in brackets; for a plan of each add -m"
