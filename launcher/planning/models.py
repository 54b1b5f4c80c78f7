"""Where a model lies: `model.path` becomes the one path string that every worker of a run sees.

Owns the look into folders and the Hugging Face cache. Downloads nothing and imports neither torch nor
huggingface_hub: workers run offline, so what is not complete here is told with the command that completes it.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import msgspec

from launcher.planning.shapes import Shape, agrees, shape_from_config
from launcher.schema import ModelConfig

GENERATORS = {"tiny": "workers.engines.tiny_model"}  # python -m MODULE FOLDER
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")


class ResolvedModel(msgspec.Struct, frozen=True, kw_only=True):
    """`missing` says what keeps workers from loading it and what to do; `shape_fault` why capacity is unknown.
    `described`: the shape is what the configuration says, as the model's own config.json is not at hand."""

    path: str
    shape: Shape | None = None
    shape_fault: str | None = None
    described: bool = False
    missing: str | None = None
    generator: str | None = None  # a module that makes it first


class ModelUnavailable(Exception):
    """Names the model, what is missing and the command that gets it."""


def resolve(model: ModelConfig, cache_dir: Path, hub_dir: Path) -> ResolvedModel:
    """Reads the file system, changes nothing."""
    if model.generate is not None:
        return _generated(model, cache_dir)
    assert model.path is not None
    folder = Path(model.path).expanduser()
    if folder.is_dir():
        return _local(model, folder.resolve(), f"{folder} is not a complete model: copy what is missing into it")
    if _looks_like_a_path(model.path):
        missing = f"model.path: there is no folder {model.path}"
        return _absent(model, model.path, missing)
    command = download_command(model.path, model.revision)
    snapshot = _snapshot(hub_dir, model.path, model.revision or "main")
    if snapshot is None:
        return _absent(model, model.path, f"model.path: {model.path} is not in {hub_dir}; run: {command}")
    return _local(model, snapshot, f"run: {command}")


def prepare(resolved: ResolvedModel, interpreter: str) -> None:
    """Makes sure that workers can load it, generating it where the project does. Raises ModelUnavailable."""
    if resolved.missing is None:
        return
    if resolved.generator is None:
        raise ModelUnavailable(resolved.missing)
    command = [interpreter, "-m", resolved.generator, resolved.path]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    if made.returncode != 0 or missing_files(Path(resolved.path)):
        raise ModelUnavailable(f"{' '.join(command)} failed:\n{made.stderr[-2000:]}")


def download_command(repository: str, revision: str | None) -> str:
    return f"hf download {repository}" + (f" --revision {revision}" if revision else "")


def missing_files(folder: Path) -> list[str]:
    """What a folder lacks to be loaded. A link whose target has not arrived counts as missing."""
    missing = [] if (folder / "config.json").exists() else ["config.json"]
    if not any((folder / name).exists() for name in TOKENIZER_FILES):
        missing.append("a tokenizer")
    index = folder / "model.safetensors.index.json"
    if index.exists():
        shards = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
    else:
        shards = ["model.safetensors"]
    return missing + [shard for shard in shards if not (folder / shard).exists()]


def _generated(model: ModelConfig, cache_dir: Path) -> ResolvedModel:
    assert model.generate is not None
    folder = cache_dir / "models" / model.generate
    generator = GENERATORS.get(model.generate)
    if generator is None:
        known = ", ".join(GENERATORS)
        missing = f"model.generate: nothing is known of {model.generate!r}; choose one of {known}"
        return _absent(model, str(folder), missing)
    lacks = missing_files(folder)
    not_yet = f"{folder} is not generated yet; action=up does it" if lacks else None
    return _absent(model, str(folder), not_yet, generator)


def _absent(model: ModelConfig, path: str, missing: str | None, generator: str | None = None) -> ResolvedModel:
    """Its own config.json is not at hand: what the configuration says of it has to do."""
    shape, fault = _understood(model.config_json)
    return ResolvedModel(
        path=path, shape=shape, shape_fault=fault, described=generator is None, missing=missing, generator=generator
    )


def _local(model: ModelConfig, folder: Path, remedy: str) -> ResolvedModel:
    lacks = missing_files(folder)
    missing = f"model.path: {folder} lacks {', '.join(lacks)}; {remedy}" if lacks else None
    if not (folder / "config.json").exists():
        return _absent(model, str(folder), missing)
    config = _read_config(folder)
    shape, fault = _understood(config, f"{folder}/config.json: ")
    if shape is None and agrees(model.config_json, config):
        shape, fault = _understood(model.config_json)
    return ResolvedModel(path=str(folder), shape=shape, shape_fault=fault, missing=missing)


def _read_config(folder: Path) -> dict[str, Any]:
    """NVIDIA's checkpoints may say how they are quantised in a file of its own."""
    config: dict[str, Any] = json.loads((folder / "config.json").read_bytes())
    apart = folder / "hf_quant_config.json"
    if "quantization_config" not in config and apart.exists():
        config["quantization_config"] = {"quant_method": "modelopt"} | json.loads(apart.read_bytes())["quantization"]
    return config


def _understood(config: dict[str, Any], where: str = "") -> tuple[Shape | None, str | None]:
    if not config:
        return None, f"{where}has no value"
    try:
        return shape_from_config(config), None
    except ValueError as error:
        return None, f"{where}{error}"


def _snapshot(hub_dir: Path, repository: str, revision: str) -> Path | None:
    """refs/REVISION holds the commit whose files lie under snapshots/COMMIT."""
    folder = hub_dir / f"models--{repository.replace('/', '--')}"
    reference = folder / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def _looks_like_a_path(path: str) -> bool:
    return path.startswith(("/", ".", "~")) or path.count("/") != 1
