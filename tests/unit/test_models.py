"""Where models lie: folders, the Hugging Face cache, generated ones; and what is said when they do not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from launcher.planning.models import (
    ModelUnavailable,
    ResolvedModel,
    download_command,
    missing_files,
    prepare,
    resolve,
)
from launcher.schema import ModelConfig
from tests.unit.test_shapes import LLAMA_8B, LLAMA_70B

COMMIT = "0123abc"


def write_model(folder: Path, *, shards: int = 0, config: dict[str, object] = LLAMA_8B) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text("{}")
    names = [f"model-{shard}-of-{shards}.safetensors" for shard in range(shards)] or ["model.safetensors"]
    for name in names:
        (folder / name).touch()
    if shards:
        index = {"weight_map": {f"layer.{number}": name for number, name in enumerate(names)}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def cached(hub: Path, *, shards: int = 2) -> Path:
    repository = hub / "models--org--name"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs/main").write_text(COMMIT)
    return write_model(repository / "snapshots" / COMMIT, shards=shards)


def look_up(model: ModelConfig, root: Path) -> ResolvedModel:
    return resolve(model, root / "cache", root / "hub")


def test_a_complete_folder_is_taken_by_its_real_path_and_its_config_wins(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", config=LLAMA_70B)
    (tmp_path / "link").symlink_to(folder)
    resolved = look_up(ModelConfig(name="m", path=str(tmp_path / "link"), config_json=LLAMA_8B), tmp_path)
    assert (resolved.path, resolved.missing) == (str(folder), None)
    assert resolved.shape is not None
    assert resolved.shape.num_layers == 80


def test_what_a_folder_lacks_is_named(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", shards=3)
    (folder / "model-1-of-3.safetensors").unlink()
    (folder / "tokenizer.json").unlink()
    assert missing_files(folder) == ["a tokenizer", "model-1-of-3.safetensors"]
    resolved = look_up(ModelConfig(name="m", path=str(folder)), tmp_path)
    assert resolved.missing is not None
    assert "lacks a tokenizer, model-1-of-3.safetensors" in resolved.missing


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    resolved = look_up(ModelConfig(name="m", path="/not/there", config_json=LLAMA_8B), tmp_path)
    assert resolved.missing == "model.path: there is no folder /not/there" and resolved.described
    with pytest.raises(ModelUnavailable, match="no folder"):
        prepare(resolved, sys.executable)


def test_a_complete_snapshot_is_taken_from_the_cache(tmp_path: Path) -> None:
    snapshot = cached(tmp_path / "hub")
    for revision in (None, "main", COMMIT):
        resolved = look_up(ModelConfig(name="m", path="org/name", revision=revision), tmp_path)
        assert (resolved.path, resolved.missing, resolved.described) == (str(snapshot), None, False)


def test_a_model_not_in_the_cache_is_planned_from_its_shape_and_says_how_to_get_it(tmp_path: Path) -> None:
    resolved = look_up(ModelConfig(name="m", path="org/name", config_json=LLAMA_8B), tmp_path)
    assert resolved.shape is not None
    assert resolved.missing == f"model.path: org/name is not in {tmp_path / 'hub'}; run: hf download org/name"
    with pytest.raises(ModelUnavailable, match="hf download org/name"):
        prepare(resolved, sys.executable)


def test_a_model_of_which_nothing_is_known(tmp_path: Path) -> None:
    resolved = look_up(ModelConfig(name="m", path="org/name"), tmp_path)
    assert (resolved.shape, resolved.shape_fault) == (None, "has no value")


def test_a_download_that_broke_off_is_not_complete(tmp_path: Path) -> None:
    """The cache links to blobs: a link may be there before its blob."""
    snapshot = cached(tmp_path / "hub")
    shard = snapshot / "model-1-of-2.safetensors"
    shard.unlink()
    shard.symlink_to(tmp_path / "hub/models--org--name/blobs/feed")
    resolved = look_up(ModelConfig(name="m", path="org/name"), tmp_path)
    assert resolved.missing is not None
    assert resolved.missing.endswith("lacks model-1-of-2.safetensors; run: hf download org/name")


def test_the_download_command_names_the_revision() -> None:
    assert download_command("org/name", "v2") == "hf download org/name --revision v2"


def test_a_config_that_is_not_understood_needs_a_description_that_agrees(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", config=LLAMA_8B | {"quantization_config": {"quant_method": "awq"}})
    without = look_up(ModelConfig(name="m", path=str(folder)), tmp_path)
    assert without.shape is None
    assert without.shape_fault is not None
    assert "quantization_config awq is not understood" in without.shape_fault
    assert look_up(ModelConfig(name="m", path=str(folder), config_json=LLAMA_8B), tmp_path).shape is not None
    other = write_model(tmp_path / "other", config=LLAMA_70B | {"architectures": ["NewForCausalLM"]})
    assert look_up(ModelConfig(name="m", path=str(other), config_json=LLAMA_8B), tmp_path).shape is None


def test_how_a_checkpoint_is_quantised_may_be_in_a_file_of_its_own(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    apart = {"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4", "exclude_modules": ["lm_head"]}}
    (folder / "hf_quant_config.json").write_text(json.dumps(apart))
    shape = look_up(ModelConfig(name="m", path=str(folder)), tmp_path).shape
    assert shape is not None
    assert (shape.weight_format, shape.quantised) == ("nvfp4", ("attention", "mlp", "experts"))


def test_generated_models_lie_in_the_cache_folder(tmp_path: Path) -> None:
    resolved = look_up(ModelConfig(name="m", generate="tiny"), tmp_path)
    assert (resolved.path, resolved.generator) == (str(tmp_path / "cache/models/tiny"), "workers.engines.tiny_model")
    assert resolved.missing is not None
    write_model(tmp_path / "cache/models/tiny")
    assert look_up(ModelConfig(name="m", generate="tiny"), tmp_path).missing is None


def test_an_unknown_generator_lists_the_known(tmp_path: Path) -> None:
    resolved = look_up(ModelConfig(name="m", generate="huge"), tmp_path)
    assert resolved.missing == "model.generate: nothing is known of 'huge'; choose one of tiny"


def test_a_generator_that_fails_is_told_with_its_own_words(tmp_path: Path) -> None:
    broken = ResolvedModel(path=str(tmp_path / "m"), missing="not yet", generator="no_such_module")
    with pytest.raises(ModelUnavailable, match="No module named no_such_module"):
        prepare(broken, sys.executable)


def test_nothing_is_done_for_a_model_that_is_there(tmp_path: Path) -> None:
    prepare(ResolvedModel(path=str(tmp_path), generator="no_such_module"), "/no/such/python")
