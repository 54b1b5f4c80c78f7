"""What a model takes of a GPU: weights, work space and KV cache, from its shape alone.

Pure arithmetic on dense Llama- and Qwen-like decoders. Weights and KV are exact; the work space (activations,
logits, CUDA context, graphs) is an estimate and said to be one. Refuses nothing: `plan` reads the figures.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

GIB = 1 << 30
COMPUTE_DTYPES = ("float32", "bfloat16", "float16")
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}
RUNTIME_BYTES = 2 * GIB  # CUDA context, NCCL buffers, captured graphs; without a GPU: Python and torch
ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")


class Shape(msgspec.Struct, frozen=True, kw_only=True):
    """A dense decoder with grouped-query attention and a gated MLP."""

    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    hidden_size: int
    intermediate_size: int
    vocab_size: int
    tied_embeddings: bool
    dtype: str  # of the checkpoint's weights

    @property
    def compute_dtype(self) -> str:
        """What the engine computes in where nobody says: quantised weights stay as they are, their results do not."""
        return self.dtype if self.dtype in COMPUTE_DTYPES else "bfloat16"

    @property
    def num_parameters(self) -> int:
        """Without biases and per-head norms: less than a thousandth of the whole."""
        attention = 2 * self.hidden_size * self.head_dim * (self.num_heads + self.num_kv_heads)
        layer = attention + 3 * self.hidden_size * self.intermediate_size + 2 * self.hidden_size
        embeddings = self.vocab_size * self.hidden_size * (1 if self.tied_embeddings else 2)
        return self.num_layers * layer + embeddings + self.hidden_size


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """How one worker of a pool runs the model."""

    tensor_parallel: int
    pipeline_parallel: int
    block_size: int
    dtype: str  # what the engine computes in
    kv_dtype: str
    max_num_batched_tokens: int
    max_num_seqs: int


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU's (or CPU rank's) memory. Every rank of a worker holds its slice of the same KV tokens."""

    weights_bytes: int
    workspace_bytes: int
    kv_bytes: int  # negative: by so much the model does not fit
    kv_bytes_per_token: int
    kv_tokens: int

    def concurrency(self, max_model_len: int) -> float:
        """How many requests of the full length a worker holds at once."""
        return self.kv_tokens / max_model_len


def memory_in_budget(shape: Shape, demand: Demand, budget_bytes: int) -> Memory:
    """What is left of a GPU's budget after weights and work space goes to KV, as the engine does it."""
    kv_bytes = budget_bytes - weights_bytes(shape, demand) - workspace_bytes(shape, demand)
    return memory_with_kv(shape, demand, kv_bytes)


def memory_with_kv(shape: Shape, demand: Demand, kv_bytes: int) -> Memory:
    """The KV cache's size is given."""
    per_token = kv_bytes_per_token(shape, demand)
    num_blocks = max(0, kv_bytes) // (per_token * demand.block_size)
    return Memory(
        weights_bytes=weights_bytes(shape, demand),
        workspace_bytes=workspace_bytes(shape, demand),
        kv_bytes=kv_bytes,
        kv_bytes_per_token=per_token,
        kv_tokens=num_blocks * demand.block_size,
    )


def weights_bytes(shape: Shape, demand: Demand) -> int:
    ranks = demand.tensor_parallel * demand.pipeline_parallel
    held_as = demand.dtype if shape.dtype in COMPUTE_DTYPES else shape.dtype
    return -(-shape.num_parameters * DTYPE_BYTES[held_as] // ranks)


def kv_bytes_per_token(shape: Shape, demand: Demand) -> int:
    """With more ranks than KV heads each head is held several times."""
    layers = -(-shape.num_layers // demand.pipeline_parallel)
    kv_heads = max(1, shape.num_kv_heads // demand.tensor_parallel)
    return 2 * layers * kv_heads * shape.head_dim * DTYPE_BYTES[demand.kv_dtype]


def workspace_bytes(shape: Shape, demand: Demand) -> int:
    """An estimate: one layer's activations for a full batch, float32 logits for every sequence, the runtime."""
    per_token = 4 * shape.hidden_size + 3 * shape.intermediate_size // demand.tensor_parallel
    activations = demand.max_num_batched_tokens * per_token * DTYPE_BYTES[demand.dtype]
    logits = 2 * demand.max_num_seqs * shape.vocab_size * 4
    return activations + logits + RUNTIME_BYTES


def shape_from_config(config: Mapping[str, Any]) -> Shape:
    """From a model's config.json. Raises ValueError naming what is unknown or missing: nothing is guessed."""
    architecture = (config.get("architectures") or ["none"])[0]
    if architecture not in ARCHITECTURES:
        raise ValueError(f"architecture {architecture} is unknown; known: {', '.join(ARCHITECTURES)}")
    if "quantization_config" in config:
        raise ValueError("quantization_config is not understood")
    required = ("num_hidden_layers", "num_attention_heads", "hidden_size", "intermediate_size", "vocab_size")
    missing = [key for key in required if key not in config]
    dtype = config.get("torch_dtype") or config.get("dtype")
    if missing or dtype not in DTYPE_BYTES:
        raise ValueError(f"missing or unknown: {', '.join(missing or ['torch_dtype'])}")
    heads = config["num_attention_heads"]
    return Shape(
        num_layers=config["num_hidden_layers"],
        num_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        hidden_size=config["hidden_size"],
        intermediate_size=config["intermediate_size"],
        vocab_size=config["vocab_size"],
        tied_embeddings=bool(config.get("tie_word_embeddings", False)),
        dtype=dtype,
    )


def agrees(shape: Shape, config: Mapping[str, Any]) -> bool:
    """Whether a shape that someone wrote down can be that of a config.json which is not understood otherwise."""
    written = {
        "num_hidden_layers": shape.num_layers,
        "num_attention_heads": shape.num_heads,
        "hidden_size": shape.hidden_size,
        "vocab_size": shape.vocab_size,
    }
    return all(config.get(key) == value for key, value in written.items())
