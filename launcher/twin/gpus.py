"""What a GPU can do by its maker's data sheet, and how much of it engines get.

Owns the figures. Dense FLOPs per second by the format of the weights, bytes per second of its memory, of its links to
the other GPUs of a node, and of its share of the network; all of one GPU, links and network per direction.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

NETWORK_BYTES_PER_S = 50e9  # a port of 400 Gb/s for each GPU


class Gpu(msgspec.Struct, frozen=True, kw_only=True):
    flops: Mapping[str, float]  # bfloat16 is always there; what is missing is computed in it
    memory_bytes_per_s: float
    link_bytes_per_s: float
    network_bytes_per_s: float = NETWORK_BYTES_PER_S


GPUS = {
    "a100": Gpu(
        flops={"bfloat16": 312e12}, memory_bytes_per_s=2.04e12, link_bytes_per_s=300e9, network_bytes_per_s=25e9
    ),
    "h100": Gpu(flops={"bfloat16": 989e12, "fp8": 1979e12}, memory_bytes_per_s=3.35e12, link_bytes_per_s=450e9),
    "h200": Gpu(flops={"bfloat16": 989e12, "fp8": 1979e12}, memory_bytes_per_s=4.8e12, link_bytes_per_s=450e9),
    "b200": Gpu(
        flops={"bfloat16": 2250e12, "fp8": 4500e12, "nvfp4": 9000e12},
        memory_bytes_per_s=8e12,
        link_bytes_per_s=900e9,
    ),
    "l40s": Gpu(
        flops={"bfloat16": 362e12, "fp8": 733e12},
        memory_bytes_per_s=0.864e12,
        link_bytes_per_s=32e9,
        network_bytes_per_s=25e9,
    ),
}
# What kernels reach of it where they have enough to do. Rules of thumb: profiles replace them.
COMPUTE_PART, MEMORY_PART, LINK_PART = 0.6, 0.8, 0.7
STEP_S = 1e-3  # what a step takes beside its kernels
ALL_REDUCE_S = 15e-6  # what one takes however little it sums
