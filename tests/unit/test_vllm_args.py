"""vLLM's command line and environment per role: golden files, and the flags that a pool may not set."""

from __future__ import annotations

import json
from collections.abc import Callable
from importlib import metadata

import msgspec
import pytest

from workers.engines import Placement
from workers.engines.vllm import args as under_test
from workers.spec import EngineSpec, HandoffSpec

NIXL_CPU = HandoffSpec(connector="NixlConnector", buffer_device="cpu", lease_s=120.0, redeem_s=30.0)
PUSH_CPU = msgspec.structs.replace(NIXL_CPU, connector=under_test.PUSH_CONNECTOR)
NIXL_CUDA = HandoffSpec(connector="NixlConnector", buffer_device="cuda", lease_s=120.0, redeem_s=30.0)
TINY = EngineSpec(
    kind="vllm",
    version="0.32.0",
    device="cpu",
    model_path="/models/tiny",
    served_names=("tiny",),
    max_model_len=4096,
    block_size=32,
    tensor_parallel=1,
    pipeline_parallel=1,
    args={"kv_cache_memory_bytes": 268435456, "dtype": "float32", "enable_prefix_caching": True},
    environment={"OMP_NUM_THREADS": "2"},
    prefix=(),
    handoff=NIXL_CPU,
)
BIG = msgspec.structs.replace(
    TINY,
    device="cuda",
    model_path="/models/llama-3.3-70b",
    served_names=("llama-3.3-70b", "default"),
    max_model_len=None,
    block_size=16,
    tensor_parallel=8,
    args={
        "max_num_batched_tokens": 16384,
        "enable_chunked_prefill": False,
        "enforce_eager": None,
        "speculative_config": {"method": "ngram", "num_speculative_tokens": 4},
        "lora_modules": [{"name": "a", "path": "/loras/a"}, {"name": "b", "path": "/loras/b"}],
    },
    environment={},
    handoff=NIXL_CUDA,
)
HERE = Placement(
    worker="prefill-0",
    generation=3,
    session="a1b2c3d4",
    address="10.0.0.7",
    interface="ib0",
    handoff_port=5601,
    head_address="10.0.0.7",
    head_port=29501,
    node_rank=0,
    num_nodes=1,
    local_dir="/run/sluice/a1b2",
    cache_dir="/scratch/cache/vllm-0.32.0/nvidia-h100-80gb-hbm3",
    model_path="/models/tiny",
)
TWO_NODES = msgspec.structs.replace(HERE, num_nodes=2)

CASES = {
    "prefill-cpu": (TINY, HERE, True),
    "decode-cpu": (TINY, msgspec.structs.replace(HERE, worker="decode-1", handoff_port=5602), True),
    "whole-cpu": (msgspec.structs.replace(TINY, handoff=None), msgspec.structs.replace(HERE, worker="any-0"), True),
    "pipeline-cpu": (msgspec.structs.replace(TINY, pipeline_parallel=2, handoff=None), HERE, True),
    "prefill-push-pipeline-cpu": (msgspec.structs.replace(TINY, pipeline_parallel=2, handoff=PUSH_CPU), HERE, True),
    "prefill-cuda": (BIG, HERE, False),
    "decode-cuda-head": (BIG, msgspec.structs.replace(TWO_NODES, worker="decode-1"), False),
    "decode-cuda-rank-1": (
        BIG,
        msgspec.structs.replace(TWO_NODES, worker="decode-1", node_rank=1, address="10.0.0.8"),
        False,
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_arguments_per_role(name: str, golden: Callable[[str, str], None]) -> None:
    spec, placement, cpu = CASES[name]
    placement = msgspec.structs.replace(placement, model_path=spec.model_path)
    environment = under_test.engine_environment(spec, placement, {"OMP_NUM_THREADS": "16"}, cpu=cpu)
    argv = under_test.engine_argv(spec, placement, cpu=cpu)
    golden(f"vllm/{name}.json", json.dumps({"argv": argv, "environment": environment}, indent=2) + "\n")


def test_an_engine_loads_the_copy_that_its_node_has() -> None:
    copied = msgspec.structs.replace(HERE, model_path="/local/disk/sluice-1000/tiny-0a1b")
    argv = under_test.engine_argv(TINY, copied, cpu=True)
    assert argv[argv.index("--model") + 1] == "/local/disk/sluice-1000/tiny-0a1b"
    assert "/models/tiny" not in argv


def test_an_engine_id_is_never_used_twice() -> None:
    ids = {
        under_test.engine_id(HERE),
        under_test.engine_id(msgspec.structs.replace(HERE, generation=4)),
        under_test.engine_id(msgspec.structs.replace(HERE, session="ffffffff")),
        under_test.engine_id(msgspec.structs.replace(HERE, worker="prefill-1")),
    }
    assert len(ids) == 4


@pytest.mark.parametrize(
    "key", ["model", "served-model-name", "kv_transfer_config", "kv-events-config", "node_rank", "data_parallel_rank"]
)
def test_a_flag_that_sluice_sets_is_refused_by_name(key: str) -> None:
    assert [fault.partition(":")[0] for fault in under_test.owned_flags({key: 1, "seed": 0})] == [f"engine_args.{key}"]
    with pytest.raises(ValueError, match=f"engine_args.{key}"):
        under_test.engine_argv(msgspec.structs.replace(TINY, args={key: 1}), HERE, cpu=True)


def test_all_faults_are_told_at_once() -> None:
    assert len(under_test.owned_flags({"host": "::", "port": 1, "max_num_seqs": 8, "api_key": "k"})) == 3


def test_every_flag_that_we_set_is_one_that_a_pool_may_not_set() -> None:
    """Else a pool's value would silently win. The CPU build's defaults are meant to give way."""
    argv = under_test.engine_argv(msgspec.structs.replace(BIG, args={}), TWO_NODES, cpu=False)
    ours = [word.removeprefix("--").replace("-", "_") for word in argv if word.startswith("--")]
    assert len(under_test.owned_flags(ours)) == len(ours)


def test_pipeline_stages_on_a_cpu_cannot_be_eager() -> None:
    spec = msgspec.structs.replace(TINY, pipeline_parallel=2, args={"enforce_eager": True})
    with pytest.raises(ValueError, match=r"engine_args\.enforce_eager"):
        under_test.engine_argv(spec, HERE, cpu=True)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("enable_lora", True, ["--enable-lora"]),
        ("enable_lora", False, ["--no-enable-lora"]),
        ("seed", 0, ["--seed", "0"]),
        ("seed", None, []),
        ("rope_scaling", {"type": "yarn"}, ["--rope-scaling", '{"type": "yarn"}']),
        ("allowed_origins", ["a", "b"], ["--allowed-origins", "a", "b"]),
        ("gpu_memory_utilization", 0.9, ["--gpu-memory-utilization", "0.9"]),
    ],
)
def test_flag_words(key: str, value: object, words: list[str]) -> None:
    assert under_test.flag_words(key, value) == words


def test_an_unproven_version_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", lambda name: "0.99.1+cu129")
    with pytest.raises(
        under_test.UnsupportedVersion, match=r"installed vllm 0\.99\.1, supported 0\.32\.0: pip install"
    ):
        under_test.installed()
    monkeypatch.setattr(metadata, "version", lambda name: "0.32.0+cu129")
    assert under_test.installed() == ("0.32.0", False)


def test_a_missing_vllm_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)
    with pytest.raises(under_test.UnsupportedVersion, match="not installed"):
        under_test.installed()
