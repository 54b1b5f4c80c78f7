"""What a model's config.json says of its size: layers, heads, experts, and how its weights are stored.

Owns the names that Hugging Face and the makers of quantised checkpoints use; nobody else reads them. What is not
understood is an error that names it: nothing is guessed. What the figures mean for a GPU is `capacity`'s concern.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

COMPUTE_DTYPES = ("float32", "bfloat16", "float16")
# Sizes that a config.json and a written-down copy of it must share, to be of the same model.
SIZES = ("num_hidden_layers", "num_attention_heads", "hidden_size", "vocab_size")
DENSE = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ARCHITECTURES = (*DENSE, "Qwen3MoeForCausalLM", "GptOssForCausalLM", "DeepseekV3ForCausalLM")
# What a quantised checkpoint may leave as it is. Embeddings, routers and norms are not counted as quantised anyway.
LEFT_AS_IS = {
    r"self_attn": "attention",
    r"lm_head|embed|router|mlp\.gate$|mlp\.gate\.|norm": None,
}


class Experts(msgspec.Struct, frozen=True, kw_only=True):
    """A mixture of experts in all layers but the first `num_dense_layers`."""

    num_routed: int
    num_active: int  # of them, those that one token takes; 0: not told
    intermediate_size: int  # of one routed expert
    shared_size: int = 0  # intermediate size of the experts that every token takes
    num_dense_layers: int = 0


class Latent(msgspec.Struct, frozen=True, kw_only=True):
    """Multi-head latent attention: all heads' keys and values come from one small vector per token."""

    query_rank: int
    kv_rank: int
    nope_dim: int
    rope_dim: int
    value_dim: int


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A decoder with a gated MLP, dense or of experts."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    tied_embeddings: bool
    dtype: str  # of the weights that are not quantised
    experts: Experts | None = None
    latent: Latent | None = None
    num_sliding_layers: int = 0  # layers that only see `sliding_window` tokens; 0 where all do
    sliding_window: int = 0
    weight_format: str | None = None  # of the quantised parts
    quantised: tuple[str, ...] = ()  # keys of `parameters`

    @property
    def parameters(self) -> dict[str, int]:
        """Without biases and per-head norms: less than a thousandth of the whole."""
        dense_layers = self.num_layers if self.experts is None else self.experts.num_dense_layers
        mlp, experts, routers = 3 * dense_layers * self.hidden_size * self.intermediate_size, 0, 0
        if self.experts is not None:
            layers = self.num_layers - dense_layers
            mlp += 3 * layers * self.hidden_size * self.experts.shared_size
            experts = 3 * layers * self.hidden_size * self.experts.intermediate_size * self.experts.num_routed
            routers = layers * self.hidden_size * self.experts.num_routed
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        norms = (2 * self.num_layers + 1) * self.hidden_size
        return {
            "attention": self.num_layers * self._attention_parameters,
            "mlp": mlp,
            "experts": experts,
            "rest": embeddings + norms + routers,
        }

    @property
    def num_parameters(self) -> int:
        return sum(self.parameters.values())

    @property
    def _attention_parameters(self) -> int:
        if self.latent is None:
            return 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        latent, heads = self.latent, self.num_heads
        query = latent.query_rank * (self.hidden_size + heads * (latent.nope_dim + latent.rope_dim))
        kv_in = self.hidden_size * (latent.kv_rank + latent.rope_dim)
        kv_out = latent.kv_rank * heads * (latent.nope_dim + latent.value_dim)
        return query + kv_in + kv_out + heads * latent.value_dim * self.hidden_size


class ConfigJson(msgspec.Struct, kw_only=True):
    """The fields that are read, by their own names."""

    architectures: list[str]
    num_hidden_layers: int
    num_attention_heads: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    tie_word_embeddings: bool = False
    torch_dtype: str | None = None
    dtype: str | None = None
    quantization_config: dict[str, Any] | None = None
    layer_types: list[str] | None = None
    sliding_window: int | None = None
    num_local_experts: int = 0  # gpt-oss
    num_experts: int = 0  # Qwen3
    n_routed_experts: int = 0  # DeepSeek
    n_shared_experts: int | None = None
    num_experts_per_tok: int = 0
    moe_intermediate_size: int = 0
    first_k_dense_replace: int = 0
    mlp_only_layers: list[int] = []
    decoder_sparse_step: int = 1
    q_lora_rank: int | None = None
    kv_lora_rank: int | None = None
    qk_nope_head_dim: int = 0
    qk_rope_head_dim: int = 0
    v_head_dim: int = 0


def shape_from_config(config: Mapping[str, Any]) -> Shape:
    """Raises ValueError naming what is unknown or missing."""
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture {architecture} is unknown; known: {', '.join(ARCHITECTURES)}")
    required = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", "vocab_size")
    if missing := [key for key in required if key not in config]:
        raise ValueError(f"missing: {', '.join(missing)}")
    try:
        read = msgspec.convert(config, ConfigJson)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from None
    return _shape(read, architecture)


def agrees(written: Mapping[str, Any], config: Mapping[str, Any]) -> bool:
    """Whether what someone wrote down can be of a config.json that is not understood otherwise."""
    return all(written.get(key) == config.get(key) for key in SIZES)


def _shape(read: ConfigJson, architecture: str) -> Shape:
    weight_format, quantised = _quantisation(read.quantization_config)
    dtype = read.torch_dtype or read.dtype or ("bfloat16" if weight_format else None)
    if dtype not in COMPUTE_DTYPES:
        raise ValueError(f"torch_dtype {dtype} is unknown; known: {', '.join(COMPUTE_DTYPES)}")
    sliding = (read.layer_types or []).count("sliding_attention")
    return Shape(
        num_layers=read.num_hidden_layers,
        num_heads=read.num_attention_heads,
        num_kv_heads=read.num_key_value_heads or read.num_attention_heads,
        head_dim=read.head_dim or read.hidden_size // read.num_attention_heads,
        hidden_size=read.hidden_size,
        intermediate_size=read.intermediate_size,
        vocab_size=read.vocab_size,
        tied_embeddings=read.tie_word_embeddings,
        dtype=dtype,
        experts=_experts(read, architecture),
        latent=_latent(read, architecture),
        num_sliding_layers=sliding if sliding < read.num_hidden_layers else 0,
        sliding_window=read.sliding_window or 0,
        weight_format=weight_format,
        quantised=quantised,
    )


def _experts(read: ConfigJson, architecture: str) -> Experts | None:
    if architecture == "GptOssForCausalLM":
        return Experts(
            num_routed=read.num_local_experts,
            num_active=read.num_experts_per_tok,
            intermediate_size=read.intermediate_size,
        )
    if architecture == "DeepseekV3ForCausalLM":
        return Experts(
            num_routed=read.n_routed_experts,
            num_active=read.num_experts_per_tok,
            intermediate_size=read.moe_intermediate_size,
            shared_size=(read.n_shared_experts or 0) * read.moe_intermediate_size,
            num_dense_layers=read.first_k_dense_replace,
        )
    if architecture == "Qwen3MoeForCausalLM":
        if read.decoder_sparse_step != 1:
            raise ValueError(f"decoder_sparse_step {read.decoder_sparse_step} is not understood")
        return Experts(
            num_routed=read.num_experts,
            num_active=read.num_experts_per_tok,
            intermediate_size=read.moe_intermediate_size,
            num_dense_layers=len(read.mlp_only_layers),
        )
    return None


def _latent(read: ConfigJson, architecture: str) -> Latent | None:
    if architecture != "DeepseekV3ForCausalLM":
        return None
    if read.q_lora_rank is None or read.kv_lora_rank is None:
        raise ValueError("q_lora_rank or kv_lora_rank is missing")
    return Latent(
        query_rank=read.q_lora_rank,
        kv_rank=read.kv_lora_rank,
        nope_dim=read.qk_nope_head_dim,
        rope_dim=read.qk_rope_head_dim,
        value_dim=read.v_head_dim,
    )


# ---------------------------------------------------------------- quantised checkpoints


def _quantisation(config: dict[str, Any] | None) -> tuple[str | None, tuple[str, ...]]:
    """The format of the quantised weights, and the parts that have it."""
    if not config:
        return None, ()
    weight_format = _weight_format(config)
    if weight_format == "mxfp4":
        return weight_format, ("experts",)
    left = set(_left_as_is(config))
    return weight_format, tuple(part for part in ("attention", "mlp", "experts") if part not in left)


def _weight_format(config: dict[str, Any]) -> str:
    method = config.get("quant_method")
    if method in ("mxfp4", "fp8"):
        return str(method)
    if method == "modelopt" and config.get("quant_algo") in ("FP8", "NVFP4"):
        return str(config["quant_algo"]).lower()
    if method == "compressed-tensors":
        known = {"float-quantized": "fp8", "nvfp4-pack-quantized": "nvfp4"}
        if config.get("format") in known:
            return known[config["format"]]
    what = " ".join(str(config[key]) for key in ("quant_method", "quant_algo", "format") if key in config)
    raise ValueError(f"quantization_config {what or '{}'} is not understood; known: mxfp4, fp8, NVFP4")


def _left_as_is(config: dict[str, Any]) -> Iterator[str]:
    names = [name for key in ("ignore", "modules_to_not_convert", "exclude_modules") for name in config.get(key) or []]
    for name in names:
        for pattern, part in LEFT_AS_IS.items():
            if re.search(pattern, name):
                if part is not None:
                    yield part
                break
        else:
            raise ValueError(f"quantization_config leaves {name} as it is, which is not understood")
