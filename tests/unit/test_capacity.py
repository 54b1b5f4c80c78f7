"""Capacity against published figures, and its arithmetic under all shapes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.capacity import (
    GIB,
    Demand,
    Shape,
    agrees,
    kv_bytes_per_token,
    memory_in_budget,
    memory_with_kv,
    shape_from_config,
    weights_bytes,
)

LLAMA_8B: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "vocab_size": 128256,
    "torch_dtype": "bfloat16",
}
LLAMA_70B = LLAMA_8B | {
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "hidden_size": 8192,
    "intermediate_size": 28672,
}
QWEN_06B = LLAMA_8B | {
    "architectures": ["Qwen3ForCausalLM"],
    "num_hidden_layers": 28,
    "num_attention_heads": 16,
    "head_dim": 128,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "vocab_size": 151936,
    "tie_word_embeddings": True,
}


def demand(tensor_parallel: int = 1, pipeline_parallel: int = 1, **changes: Any) -> Demand:
    base = Demand(
        tensor_parallel=tensor_parallel,
        pipeline_parallel=pipeline_parallel,
        block_size=16,
        dtype="bfloat16",
        kv_dtype="bfloat16",
        max_num_batched_tokens=8192,
        max_num_seqs=256,
    )
    return msgspec.structs.replace(base, **changes)


@pytest.mark.parametrize(
    ("config", "published"),
    [(LLAMA_8B, 8_030_261_248), (LLAMA_70B, 70_553_706_496), (QWEN_06B, 596_049_920)],
    ids=["llama-3.1-8b", "llama-3.3-70b", "qwen3-0.6b"],
)
def test_parameters_are_those_of_the_checkpoints(config: dict[str, Any], published: int) -> None:
    assert shape_from_config(config).num_parameters == pytest.approx(published, rel=1e-4)


@pytest.mark.parametrize(
    ("tensor_parallel", "pipeline_parallel", "kv_bytes"),
    [(1, 1, 131072), (2, 1, 65536), (8, 1, 16384), (16, 1, 16384), (1, 2, 65536), (8, 3, 5632)],
)
def test_kv_bytes_per_token_and_gpu(tensor_parallel: int, pipeline_parallel: int, kv_bytes: int) -> None:
    """More ranks than KV heads hold copies; the fullest pipeline stage counts."""
    assert kv_bytes_per_token(shape_from_config(LLAMA_8B), demand(tensor_parallel, pipeline_parallel)) == kv_bytes


def test_a_smaller_cache_dtype_halves_the_kv() -> None:
    shape = shape_from_config(LLAMA_8B)
    assert kv_bytes_per_token(shape, demand(kv_dtype="fp8")) == kv_bytes_per_token(shape, demand()) // 2


def test_quantised_weights_keep_their_size_and_others_take_the_engine_s() -> None:
    shape = shape_from_config(LLAMA_8B)
    quantised = msgspec.structs.replace(shape, dtype="fp8")
    assert (shape.compute_dtype, quantised.compute_dtype) == ("bfloat16", "bfloat16")
    assert weights_bytes(quantised, demand()) == weights_bytes(shape, demand()) // 2
    assert weights_bytes(quantised, demand(dtype="float16")) == weights_bytes(quantised, demand())
    assert weights_bytes(shape, demand(dtype="float32")) == 2 * weights_bytes(shape, demand())


def test_a_budget_too_small_shows_as_negative_kv() -> None:
    memory = memory_in_budget(shape_from_config(LLAMA_70B), demand(), 72 * GIB)
    assert memory.kv_bytes < 0
    assert memory.kv_tokens == 0


@given(
    tensor_parallel=st.sampled_from([1, 2, 4, 8, 16]),
    pipeline_parallel=st.integers(1, 8),
    kv_gib=st.integers(0, 100),
    block_size=st.sampled_from([16, 32, 128]),
)
def test_kv_tokens_are_whole_blocks_that_fit(
    tensor_parallel: int, pipeline_parallel: int, kv_gib: int, block_size: int
) -> None:
    wanted = demand(tensor_parallel, pipeline_parallel, block_size=block_size)
    memory = memory_with_kv(shape_from_config(LLAMA_70B), wanted, kv_gib * GIB)
    assert memory.kv_tokens % block_size == 0
    assert memory.kv_tokens * memory.kv_bytes_per_token <= memory.kv_bytes
    assert (memory.kv_tokens + block_size) * memory.kv_bytes_per_token > memory.kv_bytes


@given(ranks=st.sampled_from([1, 2, 4, 8]))
def test_ranks_together_hold_the_weights_once(ranks: int) -> None:
    shape = shape_from_config(LLAMA_8B)
    assert 0 <= weights_bytes(shape, demand(ranks)) * ranks - shape.num_parameters * 2 < ranks


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM is unknown; known: LlamaForCausalLM"),
        ({"architectures": []}, "architecture none"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
        ({"torch_dtype": None}, "torch_dtype"),
        ({"torch_dtype": "int3"}, "torch_dtype"),
    ],
)
def test_what_is_not_understood_is_said(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shape_from_config(LLAMA_8B | change)


def test_missing_keys_are_named() -> None:
    with pytest.raises(ValueError, match="hidden_size, vocab_size"):
        shape_from_config({key: LLAMA_8B[key] for key in LLAMA_8B if key not in ("vocab_size", "hidden_size")})


def test_defaults_of_config_json() -> None:
    shape = shape_from_config({key: value for key, value in LLAMA_8B.items() if key != "num_key_value_heads"})
    assert (shape.num_kv_heads, shape.head_dim, shape.tied_embeddings) == (32, 128, False)


def test_a_written_shape_agrees_only_with_its_own_model() -> None:
    shape: Shape = shape_from_config(LLAMA_8B)
    assert agrees(shape, LLAMA_8B | {"quantization_config": {}})
    assert not agrees(shape, LLAMA_70B)
