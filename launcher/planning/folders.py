"""The folders of a run outside its run folder: where engines keep what they compile, and where models lie.

Reads the environment of the launcher once. Owns their defaults; makes none of them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import msgspec

from launcher.schema import Config

DEFAULT_CACHE = ".cache"  # in runs_dir: no run has such a name


class Folders(msgspec.Struct, frozen=True, kw_only=True):
    """Absolute paths, the same on every node."""

    cache: Path  # engines' caches and generated models
    hub: Path  # where `hf download` puts models
    home: Path


def folders(config: Config, environ: Mapping[str, str] = os.environ) -> Folders:
    assert config.cluster is not None
    given = config.cluster.cache_dir
    cache = Path(given) if given else Path(config.runs_dir) / DEFAULT_CACHE
    return Folders(cache=cache.expanduser().absolute(), hub=_hub(environ).absolute(), home=Path.home())


def _hub(environ: Mapping[str, str]) -> Path:
    """By Hugging Face's own rules."""
    home = environ.get("HF_HOME") or str(Path(environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface")
    return Path(environ.get("HF_HUB_CACHE") or f"{home}/hub").expanduser()
