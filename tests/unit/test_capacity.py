"""Capacity against published figures, and its arithmetic under all shapes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.planning.capacity import (
    GIB,
    Demand,
    kv_bytes_per_token,
    memory_in_budget,
    memory_with_kv,
    weights_bytes,
    window_tokens,
)
from launcher.planning.shapes import shape_from_config
from tests.unit.test_shapes import DEEPSEEK_V3, GPT_OSS_120B, LLAMA_8B, LLAMA_70B, LLAMA_70B_NVFP4


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
    ("config", "gib"), [(LLAMA_70B_NVFP4, 39.8), (DEEPSEEK_V3, 626)], ids=["llama-3.3-70b-nvfp4", "deepseek-v3"]
)
def test_quantised_weights_are_as_large_as_the_checkpoints(config: dict[str, Any], gib: float) -> None:
    assert weights_bytes(shape_from_config(config), demand()) / GIB == pytest.approx(gib, rel=5e-3)


@pytest.mark.parametrize(("tensor_parallel", "held_size"), [(1, 2944), (4, 4 * 768)])
def test_tiles_that_a_rank_does_not_fill_cost_memory(tensor_parallel: int, held_size: int) -> None:
    """gpt-oss's checkpoint has 60.8 GiB: 56.7 of experts of 2880 x 2880, of which the kernels hold whole tiles."""
    held = (60.8 - 3.97) * held_size * 3072 / 2880**2 + 3.97
    weights = weights_bytes(shape_from_config(GPT_OSS_120B), demand(tensor_parallel)) * tensor_parallel
    assert weights / GIB == pytest.approx(held, rel=5e-3)


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


def test_a_latent_cache_is_whole_on_every_rank() -> None:
    shape = shape_from_config(DEEPSEEK_V3)
    assert kv_bytes_per_token(shape, demand()) == kv_bytes_per_token(shape, demand(8)) == 61 * 576 * 2


def test_layers_with_a_window_hold_the_window_only() -> None:
    shape = shape_from_config(GPT_OSS_120B)
    full, hybrid = demand(4), demand(4, hybrid_kv=True)
    assert kv_bytes_per_token(shape, full) == 2 * kv_bytes_per_token(shape, hybrid) == 36 * 2 * 2 * 64 * 2
    assert (window_tokens(shape, full), window_tokens(shape, hybrid)) == (0, 128 + 8192)
    memory = memory_with_kv(shape, hybrid, 16 * GIB)
    assert memory.concurrency(131072) == pytest.approx(16 * GIB / 9216 / (131072 + 8320), rel=1e-3)


def test_quantised_weights_keep_their_size_and_others_take_the_engine_s() -> None:
    shape, quantised = shape_from_config(LLAMA_70B), shape_from_config(LLAMA_70B_NVFP4)
    assert weights_bytes(shape, demand(dtype="float32")) == 2 * weights_bytes(shape, demand())
    wider = weights_bytes(quantised, demand(dtype="float32")) - weights_bytes(quantised, demand())
    assert wider == 2 * quantised.parameters["rest"]


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
