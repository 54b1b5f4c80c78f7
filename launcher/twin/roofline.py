"""The time of a step from a model's shape and a GPU's data sheet: an estimate, and called one.

Pure. What it leaves out: imbalance of experts, the time a pipeline takes to fill, sliding windows' short attention.
"""

from __future__ import annotations

from launcher.planning.capacity import DTYPE_BYTES, WEIGHT_BITS, Demand, kv_bytes_per_token
from launcher.planning.shapes import Shape
from launcher.twin.gpus import ALL_REDUCE_S, COMPUTE_PART, LINK_PART, MEMORY_PART, STEP_S, Gpu
from launcher.twin.step_model import StepModel

ESTIMATE = "estimate"


def step_model(shape: Shape, demand: Demand, gpu: Gpu, gpus_per_node: int) -> StepModel:
    """With a pipeline, its stages work at once on parts of a batch: reading weights takes as long, all else less."""
    tensor, ranks = demand.tensor_parallel, demand.tensor_parallel * demand.pipeline_parallel
    memory_bytes_per_s = gpu.memory_bytes_per_s * MEMORY_PART
    plain = gpu.flops["bfloat16"] * COMPUTE_PART * ranks
    byte_sizes = {part: number * _bits(shape, part, demand) / 8 for part, number in shape.parameters.items()}
    share = expert_share(shape)
    token_s = sum(
        2 * number * (share if part == "experts" else 1) / _flops(shape, part, gpu) / COMPUTE_PART / ranks
        for part, number in shape.parameters.items()
        if part != "rest"
    )
    return StepModel(
        fixed_s=STEP_S + (2 * shape.num_layers * ALL_REDUCE_S if tensor > 1 else 0.0),
        weights_s=sum(size for part, size in byte_sizes.items() if part != "experts") / tensor / memory_bytes_per_s,
        experts_s=byte_sizes["experts"] / tensor / memory_bytes_per_s,
        expert_share=share,
        token_s=token_s + _all_reduce_s(shape, demand, gpu, gpus_per_node),
        pair_s=2 * _attention_width(shape) * (shape.num_layers - shape.num_sliding_layers) / plain,
        read_s=kv_bytes_per_token(shape, demand) / memory_bytes_per_s,
        sequence_s=2 * shape.vocab_size * shape.hidden_size / plain,
        source=ESTIMATE,
    )


def expert_share(shape: Shape) -> float:
    """Of the routed experts, the part that one token takes."""
    return shape.experts.num_active / shape.experts.num_routed if shape.experts else 0.0


def _bits(shape: Shape, part: str, demand: Demand) -> float:
    if shape.weight_format and part in shape.quantised:
        return WEIGHT_BITS[shape.weight_format]
    return 8 * DTYPE_BYTES[demand.dtype]


def _flops(shape: Shape, part: str, gpu: Gpu) -> float:
    held_as = shape.weight_format if shape.weight_format and part in shape.quantised else "bfloat16"
    return gpu.flops.get(held_as, gpu.flops["bfloat16"])


def _attention_width(shape: Shape) -> int:
    """Of scores and of the sum of values, all heads together."""
    if shape.latent is None:
        return 2 * shape.num_heads * shape.head_dim
    return shape.num_heads * (shape.latent.nope_dim + shape.latent.rope_dim + shape.latent.value_dim)


def _all_reduce_s(shape: Shape, demand: Demand, gpu: Gpu, gpus_per_node: int) -> float:
    """Of one token: two per layer, each sent about twice around."""
    tensor = demand.tensor_parallel
    speed = gpu.link_bytes_per_s if tensor <= gpus_per_node else gpu.network_bytes_per_s
    num_bytes = 2 * shape.num_layers * shape.hidden_size * DTYPE_BYTES[demand.dtype] * 2 * (tensor - 1) / tensor
    return num_bytes / demand.pipeline_parallel / (speed * LINK_PART)
