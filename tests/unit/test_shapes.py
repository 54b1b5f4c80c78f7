"""config.json: the sizes of published checkpoints, and everything that is not understood is said."""

from __future__ import annotations

from typing import Any

import pytest

from launcher.config import load
from launcher.planning.shapes import agrees, shape_from_config


def shown(model: str) -> dict[str, Any]:
    """What conf/model says of it."""
    return load(["+cluster=h100x1", f"model={model}"]).model.config_json


LLAMA_8B, LLAMA_70B, LLAMA_70B_NVFP4 = shown("llama-3.1-8b"), shown("llama-3.3-70b"), shown("llama-3.3-70b-nvfp4")
GPT_OSS_120B, DEEPSEEK_V3, QWEN_06B = shown("gpt-oss-120b"), shown("deepseek-v3"), shown("qwen3-0.6b")
QWEN_30B_A3B: dict[str, Any] = {
    "architectures": ["Qwen3MoeForCausalLM"],
    "num_hidden_layers": 48,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "vocab_size": 151936,
    "num_experts": 128,
    "moe_intermediate_size": 768,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "torch_dtype": "bfloat16",
}


@pytest.mark.parametrize(
    ("config", "published"),
    [
        (LLAMA_8B, 8_030_261_248),
        (LLAMA_70B, 70_553_706_496),
        (LLAMA_70B_NVFP4, 70_553_706_496),
        (QWEN_06B, 596_049_920),
        (QWEN_30B_A3B, 30_532_122_624),
        (GPT_OSS_120B, 116_830_000_000),
        (DEEPSEEK_V3, 671_000_000_000),
    ],
    ids=["llama-8b", "llama-70b", "llama-70b-nvfp4", "qwen-0.6b", "qwen-30b-a3b", "gpt-oss-120b", "deepseek-v3"],
)
def test_parameters_are_those_of_the_checkpoints(config: dict[str, Any], published: int) -> None:
    """Biases aside: of gpt-oss's experts they are a two thousandth."""
    assert shape_from_config(config).num_parameters == pytest.approx(published, rel=5e-4)


@pytest.mark.parametrize(
    ("quantisation", "expected"),
    [
        ({"quant_method": "fp8", "weight_block_size": [128, 128]}, ("fp8", ("attention", "mlp", "experts"))),
        (
            {"quant_method": "modelopt", "quant_algo": "FP8", "ignore": ["lm_head"]},
            ("fp8", ("attention", "mlp", "experts")),
        ),
        (
            {"quant_method": "modelopt", "quant_algo": "NVFP4", "ignore": ["*self_attn*", "*mlp.gate", "lm_head"]},
            ("nvfp4", ("mlp", "experts")),
        ),
        (
            {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "ignore": ["lm_head"]},
            ("nvfp4", ("attention", "mlp", "experts")),
        ),
        ({"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn"]}, ("mxfp4", ("experts",))),
        ({}, (None, ())),
    ],
)
def test_quantised_parts(quantisation: dict[str, Any], expected: tuple[str | None, tuple[str, ...]]) -> None:
    shape = shape_from_config(LLAMA_8B | {"quantization_config": quantisation})
    assert (shape.weight_format, shape.quantised) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["MixtralForCausalLM"]}, "MixtralForCausalLM is unknown; known: LlamaForCausalLM"),
        ({"architectures": []}, "architecture none"),
        ({"quantization_config": {"quant_method": "awq"}}, "quantization_config awq is not understood"),
        (
            {"quantization_config": {"quant_method": "modelopt", "quant_algo": "W4A8_AWQ"}},
            "quantization_config modelopt W4A8_AWQ is not understood",
        ),
        (
            {"quantization_config": {"quant_method": "fp8", "ignore": ["model.layers.3.mlp.down_proj"]}},
            "leaves model.layers.3.mlp.down_proj as it is",
        ),
        ({"torch_dtype": None}, "torch_dtype"),
        ({"torch_dtype": "int3"}, "torch_dtype int3 is unknown; known: float32, bfloat16, float16"),
        ({"num_hidden_layers": "many"}, r"Expected `int`, got `str` - at `\$.num_hidden_layers`"),
    ],
)
def test_what_is_not_understood_is_said(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        shape_from_config(LLAMA_8B | change)


def test_layers_that_are_not_all_of_experts_are_said() -> None:
    with pytest.raises(ValueError, match="decoder_sparse_step 2 is not understood"):
        shape_from_config(QWEN_30B_A3B | {"decoder_sparse_step": 2})


def test_missing_keys_are_named() -> None:
    with pytest.raises(ValueError, match="hidden_size, vocab_size"):
        shape_from_config({key: LLAMA_8B[key] for key in LLAMA_8B if key not in ("vocab_size", "hidden_size")})
    with pytest.raises(ValueError, match="kv_lora_rank is missing"):
        shape_from_config({key: DEEPSEEK_V3[key] for key in DEEPSEEK_V3 if key != "kv_lora_rank"})


def test_defaults_of_config_json() -> None:
    shape = shape_from_config({key: value for key, value in LLAMA_8B.items() if key != "num_key_value_heads"})
    assert (shape.num_kv_heads, shape.head_dim, shape.tied_embeddings) == (32, 128, False)


def test_windows_count_only_where_other_layers_see_everything() -> None:
    assert shape_from_config(GPT_OSS_120B).num_sliding_layers == 18
    every = LLAMA_8B | {"sliding_window": 4096, "layer_types": ["sliding_attention"] * 32}
    assert shape_from_config(every).num_sliding_layers == 0


def test_a_description_agrees_only_with_its_own_model() -> None:
    assert agrees(LLAMA_8B, LLAMA_8B | {"quantization_config": {}})
    assert not agrees(LLAMA_8B, LLAMA_70B)
    assert not agrees({}, LLAMA_70B)
