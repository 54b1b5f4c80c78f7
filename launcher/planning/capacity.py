"""What a model takes of a GPU: weights, work space and KV cache, from its shape alone.

Pure arithmetic. Weights and KV are exact; the work space (activations, logits, CUDA context, graphs) is an estimate
and said to be one. Refuses nothing: `plan` reads the figures.
"""

from __future__ import annotations

import msgspec

from launcher.planning.shapes import Shape

GIB = 1 << 30
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1, "fp8_e4m3": 1, "fp8_e5m2": 1}
# With their scales: 8 bits for 32 values in MXFP4, 8 bits for 16 in NVFP4, 32 bits for a tile of 128 x 128 in fp8.
WEIGHT_BITS = {"mxfp4": 4.25, "nvfp4": 4.5, "fp8": 8 + 32 / 128**2}
# The kernels for MXFP4 experts pad what a rank holds of an expert, and the hidden size, to whole tiles.
MXFP4_TILE, MXFP4_HIDDEN_TILE = 128, 256
RUNTIME_BYTES = 2 * GIB  # CUDA context, NCCL buffers, captured graphs; without a GPU: Python and torch


class Demand(msgspec.Struct, frozen=True, kw_only=True):
    """How one worker of a pool runs the model."""

    tensor_parallel: int
    pipeline_parallel: int
    block_size: int
    dtype: str  # what the engine computes in
    kv_dtype: str
    max_num_batched_tokens: int
    max_num_seqs: int
    hybrid_kv: bool = False  # layers with a sliding window give up what they no longer see


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """One GPU's (or CPU rank's) memory. Every rank of a worker holds its slice of the same KV tokens."""

    weights_bytes: int
    workspace_bytes: int
    kv_bytes: int  # negative: by so much the model does not fit
    kv_bytes_per_token: int
    kv_tokens: int
    window_tokens: int = 0  # what the sliding windows of one request take, in tokens of the other layers

    def concurrency(self, max_model_len: int) -> float:
        """How many requests of the full length a worker holds at once."""
        return self.kv_tokens / (max_model_len + self.window_tokens)


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
        window_tokens=window_tokens(shape, demand),
    )


def weights_bytes(shape: Shape, demand: Demand) -> int:
    """Of one rank. What every rank holds whole (norms, routers, the latent projections) counts as shared out."""
    ranks = demand.tensor_parallel * demand.pipeline_parallel
    plain = 8 * DTYPE_BYTES[demand.dtype]
    bits = 0.0
    for part, number in shape.parameters.items():
        held_as = WEIGHT_BITS[shape.weight_format] if shape.weight_format and part in shape.quantised else plain
        bits += number * held_as * (_padding(shape, demand) if part == "experts" else 1)
    return -(-round(bits) // (8 * ranks))


def _padding(shape: Shape, demand: Demand) -> float:
    if shape.weight_format != "mxfp4" or shape.experts is None:
        return 1
    size = shape.experts.intermediate_size / demand.tensor_parallel
    hidden = shape.hidden_size
    return _round_up(size, MXFP4_TILE) / size * _round_up(hidden, MXFP4_HIDDEN_TILE) / hidden


def kv_bytes_per_token(shape: Shape, demand: Demand) -> int:
    """Of one rank, in the layers that keep every token. With more ranks than KV heads each head is held several
    times; a latent cache has no heads, so every rank holds all of it.
    """
    layers = -(-(shape.num_layers - _num_window_layers(shape, demand)) // demand.pipeline_parallel)
    width = DTYPE_BYTES[demand.kv_dtype]
    if shape.latent is not None:
        return layers * (shape.latent.kv_rank + shape.latent.rope_dim) * width
    return 2 * layers * max(1, shape.num_kv_heads // demand.tensor_parallel) * shape.head_dim * width


def window_tokens(shape: Shape, demand: Demand) -> int:
    """A request holds its window and the batch that is being computed."""
    sliding = _num_window_layers(shape, demand)
    held = _round_up(shape.sliding_window + demand.max_num_batched_tokens, demand.block_size)
    return -(-held * sliding // (shape.num_layers - sliding))


def _num_window_layers(shape: Shape, demand: Demand) -> int:
    return shape.num_sliding_layers if demand.hybrid_kv else 0


def workspace_bytes(shape: Shape, demand: Demand) -> int:
    """An estimate: one layer's activations for a full batch, float32 logits for every sequence, the runtime."""
    per_token = 4 * shape.hidden_size + 3 * shape.intermediate_size // demand.tensor_parallel
    activations = demand.max_num_batched_tokens * per_token * DTYPE_BYTES[demand.dtype]
    logits = 2 * demand.max_num_seqs * shape.vocab_size * 4
    return activations + logits + RUNTIME_BYTES


def _round_up(number: float, multiple: int) -> int:
    return int(-(-number // multiple)) * multiple
