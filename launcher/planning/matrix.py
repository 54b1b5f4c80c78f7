"""The capability matrix: which pools can prefill, which can decode, and which pairs can exchange KV.

Pure. Engine version, model path and block size are one per run; what pools may differ in is compared here.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from workers.spec import Role

# What both engines of a pair must have in common, by the engine's own name for it.
EQUAL_ARGS = ("dtype", "attention_backend", "kv_cache_dtype")


class PoolTraits(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    role: Role
    replicas: int
    tensor_parallel: int
    pipeline_parallel: int
    num_kv_heads: int | None
    equal_args: tuple[str, str, str]  # values of EQUAL_ARGS
    generates: bool


class Pair(msgspec.Struct, frozen=True, kw_only=True):
    """`faults` empty: may exchange KV. `required`: both pools exist for nothing else."""

    prefill: str
    decode: str
    required: bool
    faults: tuple[str, ...]


def pairs(pools: Sequence[PoolTraits], *, push: bool) -> tuple[Pair, ...]:
    """Every pair of engines that generate which roles suggest, of a pool with itself only where it has two workers.

    `push`: prefill writes.
    """
    return tuple(
        Pair(
            prefill=prefill.name,
            decode=decode.name,
            required=Role.ANY not in (prefill.role, decode.role),
            faults=tuple(_faults(prefill, decode, push)),
        )
        for prefill in pools
        for decode in pools
        if prefill.role is not Role.DECODE and decode.role is not Role.PREFILL
        if prefill is not decode or prefill.replicas > 1
        if prefill.generates and decode.generates
    )


def _faults(prefill: PoolTraits, decode: PoolTraits, push: bool) -> Iterator[str]:
    key = f"pools.{prefill.name}"
    if prefill.pipeline_parallel > 1 and not push:
        yield f"{key}.pipeline_parallel: prefill over pipeline stages hands over by push only; use handoff=nixl_push"
    if decode.pipeline_parallel > 1:
        yield f"pools.{decode.name}.pipeline_parallel: KV cannot be handed to pipeline stages; use tensor_parallel"
    kv_heads = prefill.num_kv_heads
    if kv_heads is not None and decode.tensor_parallel < prefill.tensor_parallel > kv_heads:
        yield (
            f"{key}.tensor_parallel: {prefill.tensor_parallel} ranks replicate {kv_heads} KV heads and cannot hand over"
            f" to {decode.name} with {decode.tensor_parallel}; use at most {max(kv_heads, decode.tensor_parallel)}"
        )
    for name, ours, theirs in zip(EQUAL_ARGS, prefill.equal_args, decode.equal_args, strict=True):
        if ours != theirs:
            yield f"{key}.engine_args.{name}: {ours} here but {theirs} in {decode.name}; KV needs them equal"
