"""Each pool worked out: its layout, engine arguments, memory, caps and share of a node.

Pure, and total on a configuration that `checks.form_faults` has passed.
"""

from __future__ import annotations

from typing import Any

import msgspec

from launcher.planning.arguments import engine_args, generates, given
from launcher.planning.capacity import GIB, Demand, Memory, memory_in_budget, memory_with_kv
from launcher.planning.layout import PoolLayout, pool_layout
from launcher.planning.matrix import Pair, PoolTraits, pairs
from launcher.planning.models import ResolvedModel
from launcher.planning.shapes import Shape
from launcher.schema import ClusterConfig, Config, ControllerPlace, Device, Executor, PoolConfig
from workers.engines.sim.args import SimArgs
from workers.engines.vllm.args import PUSH_CONNECTOR
from workers.spec import Role

# What the engine takes where the arguments do not say.
DEFAULT_MAX_NUM_SEQS = 256
DEFAULT_MAX_NUM_BATCHED_TOKENS = 8192
DEFAULT_GPU_MEMORY_UTILIZATION = 0.9


class PoolPlan(msgspec.Struct, frozen=True, kw_only=True):
    name: str
    role: Role
    replicas: int  # at most
    tensor_parallel: int
    pipeline_parallel: int
    layout: PoolLayout
    gpus_per_node: int
    cpus_per_node: int
    mem_gb_per_node: int | None
    engine_args: dict[str, Any]
    environment: dict[str, str]
    memory: Memory | None  # None: the engine holds no real KV
    budget_bytes: int | None  # of one GPU or CPU rank; None: unknown
    kv_tokens: int  # of one request alone
    max_prefill_tokens: int
    max_decodes: int
    hands_over: bool


def plan_pools(config: Config, model: ResolvedModel) -> tuple[tuple[PoolPlan, ...], tuple[Pair, ...]]:
    traits = [_traits(name, pool, config, model.shape) for name, pool in config.pools.items()]
    found = pairs(traits, push=config.handoff.connector == PUSH_CONNECTOR)
    linked = {name for pair in found if not pair.faults for name in (pair.prefill, pair.decode)}
    plans = tuple(_pool(name, pool, config, model.shape, name in linked) for name, pool in config.pools.items())
    return plans, found


def most_replicas(config: Config, pool: PoolConfig) -> int:
    """That there may be at once."""
    return max(pool.replicas, config.planner.max_replicas or 0)


def _budget(config: Config, args: dict[str, Any], layout: PoolLayout) -> int | None:
    """What one rank may take: the engine's part of a GPU, or on a CPU its part of the job's memory."""
    cluster = config.cluster
    assert cluster is not None
    if config.engine.device is Device.cuda and cluster.gpu_memory_gib is not None:
        return int(cluster.gpu_memory_gib * GIB * args.get("gpu_memory_utilization", DEFAULT_GPU_MEMORY_UTILIZATION))
    _, mem_gb = _share(config, layout)
    return None if mem_gb is None else mem_gb * GIB // layout.ranks_per_node


def _pool(name: str, pool: PoolConfig, config: Config, shape: Shape | None, linked: bool) -> PoolPlan:
    cluster = config.cluster
    assert cluster is not None
    args, layout = engine_args(config, pool), pool_layout(pool, cluster)
    budget = _budget(config, args, layout)
    memory = _memory(config, pool, args, shape, budget)
    if memory is None:
        kv_tokens = msgspec.convert(args, SimArgs).num_blocks * config.engine.block_size
    else:
        kv_tokens = memory.kv_tokens - memory.window_tokens
    cpus, mem_gb = _share(config, layout)
    role = Role(pool.role.value)
    batch = args.get("max_num_batched_tokens", DEFAULT_MAX_NUM_BATCHED_TOKENS)
    # Two batches keep the engine busy; more would only wait at the worker instead of where it can still be routed.
    prefill_tokens = min(kv_tokens, max(config.model.max_model_len, 2 * batch))
    decodes = 0 if role is Role.PREFILL else args.get("max_num_seqs", DEFAULT_MAX_NUM_SEQS)
    return PoolPlan(
        name=name,
        role=role,
        replicas=most_replicas(config, pool),
        tensor_parallel=pool.tensor_parallel,
        pipeline_parallel=pool.pipeline_parallel,
        layout=layout,
        gpus_per_node=layout.ranks_per_node if cluster.gpus_per_node else 0,
        cpus_per_node=cpus,
        mem_gb_per_node=mem_gb,
        engine_args=args,
        environment=cluster.environment | config.engine.environment | pool.environment,
        memory=memory,
        budget_bytes=budget,
        kv_tokens=kv_tokens,
        max_prefill_tokens=prefill_tokens if pool.max_prefill_tokens is None else pool.max_prefill_tokens,
        max_decodes=decodes if pool.max_decodes is None else pool.max_decodes,
        hands_over=linked,
    )


def _memory(
    config: Config, pool: PoolConfig, args: dict[str, Any], shape: Shape | None, budget: int | None
) -> Memory | None:
    if config.engine.simulated:
        return None
    assert shape is not None
    demand = engine_demand(config, pool.tensor_parallel, pool.pipeline_parallel, args, shape)
    if "kv_cache_memory_bytes" in args:
        return memory_with_kv(shape, demand, args["kv_cache_memory_bytes"])
    assert budget is not None
    return memory_in_budget(shape, demand, budget)


def engine_demand(config: Config, tensor: int, pipeline: int, args: dict[str, Any], shape: Shape) -> Demand:
    dtype = given(args, "dtype") or shape.dtype
    return Demand(
        tensor_parallel=tensor,
        pipeline_parallel=pipeline,
        block_size=config.engine.block_size,
        dtype=dtype,
        kv_dtype=given(args, "kv_cache_dtype") or dtype,
        max_num_batched_tokens=args.get("max_num_batched_tokens", DEFAULT_MAX_NUM_BATCHED_TOKENS),
        max_num_seqs=args.get("max_num_seqs", DEFAULT_MAX_NUM_SEQS),
        hybrid_kv=config.engine.device is Device.cuda and not args.get("disable_hybrid_kv_cache_manager"),
    )


def _share(config: Config, layout: PoolLayout) -> tuple[int, int | None]:
    """A worker's part of a node's CPUs and memory: by GPUs, or evenly where there are none.

    What a controller in the same partition or in the same job takes is left out: it starts first, and a worker that
    needs a whole node would wait for it for ever.
    """
    cluster, controller = config.cluster, config.controller
    assert cluster is not None
    beside = controller.where is ControllerPlace.job and controller.partition in (None, cluster.partition)
    shares_nodes = beside or cluster.executor is Executor.steps
    taken_cpus, taken_gb = (controller.cpus, controller.mem_gb or 0) if shares_nodes else (0, 0)
    if cluster.gpus_per_node:
        part, whole = layout.ranks_per_node, cluster.gpus_per_node
    else:
        part, whole = 1, _workers_per_node(config, cluster)
    mem_gb = None if cluster.mem_gb is None else max(1, (cluster.mem_gb - taken_gb) * part // whole)
    return max(1, (cluster.cpus_per_node - taken_cpus) * part // whole), mem_gb


def _workers_per_node(config: Config, cluster: ClusterConfig) -> int:
    tasks = sum(most_replicas(config, pool) * pool_layout(pool, cluster).num_nodes for pool in config.pools.values())
    return -(-tasks // cluster.nodes)


def _traits(name: str, pool: PoolConfig, config: Config, shape: Shape | None) -> PoolTraits:
    args = engine_args(config, pool)
    dtype = given(args, "dtype") or (shape.dtype if shape else "auto")
    return PoolTraits(
        name=name,
        role=Role(pool.role.value),
        replicas=most_replicas(config, pool),
        tensor_parallel=pool.tensor_parallel,
        pipeline_parallel=pool.pipeline_parallel,
        num_kv_heads=shape.num_kv_heads if shape else None,
        equal_args=(dtype, given(args, "attention_backend") or "auto", given(args, "kv_cache_dtype") or dtype),
        generates=generates(args),
    )
