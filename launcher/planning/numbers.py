"""Which numbers a configuration may hold at all, whatever the rest of it says.

Pure. Most have to be more than 0; those that may be 0, and those with an upper end, are named here. Pools, the planner
and predictions have rules of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Any

from launcher.schema import Config

SECTIONS = ("cluster", "model", "engine", "handoff", "routing", "proxy", "controller")
ZERO_MEANS = {
    "cluster.gpus_per_node": "none",
    "cluster.max_loading": "no limit",
    "cluster.chain_length": "jobs are submitted as they are needed",
    "engine.drain_timeout_s": "nothing is waited for",
    "routing.whole_below_tokens": "none is too short to split",
    "proxy.http_port": "any free one",
}
MOST = {"proxy.http_port": 65535, "routing.pinned_fraction": 1}


def number_faults(config: Config) -> Iterator[str]:
    for section in SECTIONS:
        for key, value in _numbers(getattr(config, section), f"{section}."):
            if not _enough(key, value):
                yield f"{key}: {value:g} is too little; use {_least(key, value)}"
            elif value > MOST.get(key, value):
                yield f"{key}: {value:g} is too much; use at most {MOST[key]}"


def _numbers(part: Any, prefix: str) -> Iterator[tuple[str, int | float]]:
    if not is_dataclass(part):
        return
    for field in fields(part):
        value = getattr(part, field.name)
        if isinstance(value, int | float) and not isinstance(value, bool):
            yield f"{prefix}{field.name}", value
        yield from _numbers(value, f"{prefix}{field.name}.")


def _enough(key: str, value: float) -> bool:
    return value >= 0 if key in ZERO_MEANS else value > 0


def _least(key: str, value: float) -> str:
    least = "1 or more" if isinstance(value, int) else "more than 0"
    return f"{least}; 0: {ZERO_MEANS[key]}" if key in ZERO_MEANS else least
