"""The engine arguments of a pool: how they are put together, and what is wrong with those that a plan reads.

Pure. vLLM's own flags pass through; only what memory and hand-over follow from is looked at.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from launcher.planning.capacity import DTYPE_BYTES
from launcher.planning.shapes import COMPUTE_DTYPES
from launcher.schema import Config, Device, PoolConfig
from workers.engines.sim.args import SimArgs
from workers.engines.vllm.load import FORMAT, STRATEGY, load_faults

CLUSTER_KEYS = {FORMAT: "load_format", STRATEGY: "load_strategy"}
COUNTS = ("max_num_seqs", "max_num_batched_tokens", "kv_cache_memory_bytes")


def engine_args(config: Config, pool: PoolConfig) -> dict[str, Any]:
    """The cluster's, the engine's, the model's, then the pool's. null takes one out: the engine's own default."""
    merged = _of_cluster(config) | _of_pool(config, pool)
    return {key: value for key, value in merged.items() if value is not None}


def _of_pool(config: Config, pool: PoolConfig) -> dict[str, Any]:
    return config.engine.engine_args | config.model.engine_args.get(config.engine.kind, {}) | pool.engine_args


def _of_cluster(config: Config) -> dict[str, Any]:
    """How weights are read from its file system is a site's matter; a simulated engine reads none."""
    if config.engine.kind != "vllm" or config.cluster is None:
        return {}
    return {flag: getattr(config.cluster, key) for flag, key in CLUSTER_KEYS.items()}


def given(args: Mapping[str, Any], key: str) -> str | None:
    """The value of an argument for which `auto` is the same as nothing."""
    value = args.get(key)
    return None if value in (None, "auto") else str(value)


def generates(args: Mapping[str, Any]) -> bool:
    """Else it pools, by vLLM's flags; a model that can do nothing else does so without them."""
    return given(args, "runner") != "pooling" and given(args, "convert") in (None, "none")


def argument_faults(name: str, pool: PoolConfig, config: Config) -> Iterator[str]:
    key, args = f"pools.{name}.engine_args", engine_args(config, pool)
    yield from (f"{key}.{arg}: write {arg.replace('-', '_')}" for arg in args if "-" in arg)
    if config.engine.simulated:
        yield from _simulator_faults(key, args)
        return
    yield from _value_faults(key, args)
    yield from _load_faults(key, pool, config)
    if "kv_cache_memory_bytes" in args:
        return
    if config.engine.device is Device.cpu:
        yield f"{key}.kv_cache_memory_bytes: on a CPU the size of the KV cache must be given"
    elif config.cluster is not None and config.cluster.gpu_memory_gib is None:
        yield "cluster.gpu_memory_gib: has no value; needed to know what fits"


def _value_faults(key: str, args: Mapping[str, Any]) -> Iterator[str]:
    for arg in COUNTS:
        if arg in args and not (isinstance(args[arg], int) and args[arg] > 0):
            yield f"{key}.{arg}: {args[arg]!r} is not a count; use 1 or more"
    part = args.get("gpu_memory_utilization", 1)
    if not (isinstance(part, int | float) and 0 < part <= 1):
        yield f"{key}.gpu_memory_utilization: {part!r} is not a fraction; use more than 0, at most 1"
    for arg, known in (("dtype", COMPUTE_DTYPES), ("kv_cache_dtype", tuple(DTYPE_BYTES))):
        if args.get(arg, "auto") not in ("auto", *known):
            yield f"{key}.{arg}: unknown {args[arg]!r}; known: auto, {', '.join(known)}"


def _load_faults(key: str, pool: PoolConfig, config: Config) -> Iterator[str]:
    """Told with the key that set the value."""
    if config.engine.kind != "vllm":
        return
    for flag, fault in load_faults(engine_args(config, pool), config.engine.version or ""):
        own = flag in _of_pool(config, pool)
        yield f"{key}.{flag}: {fault}" if own else f"cluster.{CLUSTER_KEYS[flag]}: {fault}"


def _simulator_faults(key: str, args: Mapping[str, Any]) -> Iterator[str]:
    try:
        msgspec.convert(args, SimArgs)
    except msgspec.ValidationError as error:
        yield f"{key}: {error}; known: {', '.join(SimArgs.__struct_fields__)}"
