"""What makes a configuration impossible: every fault with its config key and what to do about it.

Pure. `form_faults` come first: with any of them the pools cannot be worked out. `rule_faults` need only what
the user wrote, `pool_plan_faults` the pools.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from launcher.job import Allocation
from launcher.planning.arguments import argument_faults, engine_args, generates
from launcher.planning.capacity import GIB, Memory
from launcher.planning.fit import SCRIPT, allocation_faults
from launcher.planning.layout import count_faults, place, size_faults
from launcher.planning.matrix import Pair
from launcher.planning.models import ResolvedModel
from launcher.planning.numbers import number_faults
from launcher.planning.pools import PoolPlan
from launcher.planning.scaling import scaling_faults, scaling_of
from launcher.planning.shapes import Shape
from launcher.schema import (
    Action,
    ClusterConfig,
    Config,
    ControllerPlace,
    Device,
    Executor,
    LimitsConfig,
    PlannerMode,
    PoolConfig,
    PoolRole,
)
from proxy.routing.router import POLICIES
from workers.engines import ENGINES
from workers.engines.vllm.args import PUSH_CONNECTOR, SUPPORTED_VERSIONS, owned_flags
from workers.engines.vllm.flags import unknown_flags
from workers.protocol import BEAT_INTERVAL_S, HOST_SILENCE_S
from workers.spec import Role

NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,46}[a-z0-9])?")
CONNECTORS = ("NixlConnector", PUSH_CONNECTOR)
MIN_NODE_SILENCE_S = 3 * BEAT_INTERVAL_S
# sbatch options that Sluice sets, and what to do instead. With pinned nodes a job waits for ever when one fails.
OWNED_SBATCH = {
    "signal": "workers drain by the clock",
    "time": "use cluster.walltime_min",
    "requeue": "use cluster.requeue",
    "no-requeue": "use cluster.requeue",
    "partition": "use cluster.partition",
    "account": "use cluster.account",
    "qos": "use cluster.qos",
    "gres": "use cluster.gres",
    "gpus-per-node": "use cluster.gres",
    "nodes": "use pools.NAME.nodes",
    "ntasks-per-node": "one task per node",
    "nodelist": "Slurm chooses the nodes",
    "job-name": "use run",
    "output": "use runs_dir",
    "error": "use runs_dir",
}


def form_faults(config: Config, model: ResolvedModel) -> list[str]:
    cluster = config.cluster
    if cluster is None:
        return ["cluster: choose a cluster: +cluster=..."]
    faults = list(number_faults(config))
    faults += [] if config.engine.simulated else _model_faults(model)
    for name, pool in config.pools.items():
        faults += [*count_faults(name, pool), *argument_faults(name, pool, config)]
    return faults


def rule_faults(config: Config, model: ResolvedModel, allocation: Allocation | None) -> list[str]:
    cluster = config.cluster
    if cluster is None:
        return []  # told by form_faults
    faults = [*_run_faults(config), *_limit_faults(config.proxy.limits)]
    faults += [*_cluster_faults(config, cluster), *_executor_faults(config, cluster, allocation)]
    for name, pool in config.pools.items():
        faults += _pool_faults(name, pool, config)
        if list(count_faults(name, pool)):
            continue
        faults += size_faults(name, pool, cluster)
        if model.shape is not None:
            faults += _split_faults(name, pool, model.shape)
    return faults


def pool_plan_faults(
    config: Config,
    model: ResolvedModel,
    pools: Sequence[PoolPlan],
    pairs: Sequence[Pair],
    allocation: Allocation | None,
) -> list[str]:
    cluster = config.cluster
    assert cluster is not None
    faults = [fault for pair in pairs if pair.required for fault in pair.faults]
    movable = any(pair.prefill == pair.decode and not pair.faults for pair in pairs)
    if config.planner.mode is not PlannerMode.off and not movable and scaling_of(config) is None:
        faults.append(
            f"planner.mode: {config.planner.mode.value}, but roles move only among two or more workers of a pool with"
            " the role any that exchange KV; use planner=off, or set planner.max_replicas"
        )
    faults += scaling_faults(config, pools)
    for pool in pools:
        faults += list(_latent_faults(pool, model.shape)) or _fit_faults(config, pool)
    workers = [pool.layout for pool in pools for _ in range(pool.replicas)]
    if place(workers, cluster) is None:
        asked = sum(layout.num_nodes * layout.ranks_per_node for layout in workers)
        faults.append(
            f"pools: all workers together take {asked} GPUs and do not fit on {cluster.nodes} nodes of"
            f" {cluster.gpus_per_node}; lower replicas or tensor_parallel, or raise cluster.nodes"
        )
        return faults
    return [*faults, *allocation_faults(config, pools, allocation)]


def _run_faults(config: Config) -> Iterator[str]:
    if config.run is not None and not NAME.fullmatch(config.run):
        yield f"run: {config.run!r} is not a name; use a-z, 0-9 and -, at most 48"
    if config.engine.kind not in ENGINES:
        yield f"engine.kind: unknown engine {config.engine.kind!r}; known: {', '.join(sorted(ENGINES))}"
    if config.engine.kind == "vllm" and config.engine.version not in SUPPORTED_VERSIONS:
        yield f"engine.version: {config.engine.version} is not supported; use {' or '.join(SUPPORTED_VERSIONS)}"
    if not any(pool.role in (PoolRole.decode, PoolRole.any) for pool in config.pools.values()):
        yield "pools: nothing can decode; give a pool the role decode or any"
    if config.routing.policy not in POLICIES:
        yield f"routing.policy: unknown {config.routing.policy!r}; known: {', '.join(sorted(POLICIES))}"
    if config.handoff.connector not in CONNECTORS:
        yield f"handoff.connector: {config.handoff.connector} is not available; use {', '.join(CONNECTORS)}"
    if config.engine.device is Device.cpu and config.handoff.buffer_device is Device.cuda:
        yield "handoff.buffer_device: cuda, but the engine runs on the CPU; use null"
    if config.handoff.redeem_s >= config.handoff.lease_s:
        yield (
            f"handoff.redeem_s: {config.handoff.redeem_s:g} is not inside the lease of {config.handoff.lease_s:g};"
            " a ticket read after its lease gives wrong tokens"
        )
    if not MIN_NODE_SILENCE_S <= config.proxy.deadlines.node_silence_s <= HOST_SILENCE_S:
        yield (
            f"proxy.deadlines.node_silence_s: {config.proxy.deadlines.node_silence_s:g} is not between"
            f" {MIN_NODE_SILENCE_S:g} s, a few beats, and {HOST_SILENCE_S:g} s, when one silent process is enough"
        )
    if (config.proxy.tls_cert is None) != (config.proxy.tls_key is None):
        yield "proxy.tls_cert: TLS needs both tls_cert and tls_key"
    yield from _process_faults(config)


def _process_faults(config: Config) -> Iterator[str]:
    number, cpus = config.proxy.processes, config.controller.cpus
    if config.controller.where is ControllerPlace.job and number > cpus:
        yield f"proxy.processes: {number} processes need as many cores, controller.cpus gives {cpus}; raise that"


def _limit_faults(limits: LimitsConfig) -> Iterator[str]:
    for one, total in (("max_body_bytes", "max_total_body_bytes"), ("stream_buffer_bytes", "max_total_unsent_bytes")):
        if getattr(limits, total) < getattr(limits, one):
            yield f"proxy.limits.{total}: less than {one}, which is for one client alone; use at least as much"


def _executor_faults(config: Config, cluster: ClusterConfig, allocation: Allocation | None) -> Iterator[str]:
    apart = config.controller.where is ControllerPlace.job
    if cluster.executor is Executor.local and apart:
        yield "controller.where: without Slurm there is no job for the controller; use foreground"
    if cluster.executor is Executor.local and cluster.nodes > 1:
        yield f"cluster.nodes: {cluster.nodes} with executor local; this machine is one node"
    if cluster.executor is Executor.steps and apart:
        yield "controller.where: with executor steps it runs in the same job as the workers; use foreground"
    if cluster.executor is Executor.steps and config.action is Action.up and allocation is None:
        yield f"cluster.executor: steps runs inside a batch job; use sbatch {SCRIPT}"


def _cluster_faults(config: Config, cluster: ClusterConfig) -> Iterator[str]:
    if config.engine.device is Device.cuda and not cluster.gpus_per_node:
        yield f"engine.device: cuda, but {cluster.name} has no GPUs; use engine=vllm_cpu"
    if cluster.stage_dir is not None and not re.fullmatch(r"/[^$~]+", cluster.stage_dir):
        yield (
            f"cluster.stage_dir: {cluster.stage_dir} is not the same absolute path on every node, as KV is exchanged"
            " only between engines whose model has one path; write it out, without variables"
        )
    yield from _chain_faults(config, cluster)
    for option in cluster.sbatch:
        if option in OWNED_SBATCH:
            yield f"cluster.sbatch.{option}: Sluice sets this itself; {OWNED_SBATCH[option]}"


def _chain_faults(config: Config, cluster: ClusterConfig) -> Iterator[str]:
    key = f"cluster.chain_length: {cluster.chain_length}"
    if cluster.chain_length and config.controller.where is not ControllerPlace.job:
        yield f"{key}, but only a controller in a job of its own has a chain; use 0, or controller.where=job"
    if cluster.chain_length and scaling_of(config) is not None:
        yield (
            f"{key}: jobs are submitted at launch only, and the planner is to change their number;"
            " use 0, or give no planner.min_replicas, max_replicas, budget_gpu_hours or idle_to_zero_s"
        )
    if cluster.chain_length and "dependency" in cluster.sbatch:
        yield "cluster.sbatch.dependency: the jobs of a chain wait for each other; leave it out"


def _model_faults(model: ResolvedModel) -> Iterator[str]:
    if model.shape is None:
        yield f"model.config_json: {model.shape_fault}; give what the model's config.json says"


def _pool_faults(name: str, pool: PoolConfig, config: Config) -> Iterator[str]:
    key = f"pools.{name}"
    if not NAME.fullmatch(name):
        yield f"{key}: {name!r} is not a name; use a-z, 0-9 and -"
    if pool.data_parallel != 1:
        yield f"{key}.data_parallel: {pool.data_parallel} is not available yet; use replicas"
    if pool.role is PoolRole.decode and pool.pipeline_parallel > 1:
        yield f"{key}.pipeline_parallel: KV cannot be handed to pipeline stages; use tensor_parallel"
    if pool.role is not PoolRole.any and not generates(engine_args(config, pool)):
        yield f"{key}.role: {pool.role.value}, but engines that embed have no KV to hand over; use any"
    if config.engine.kind == "vllm":
        args = engine_args(config, pool)
        yield from (f"{key}.{fault}" for fault in owned_flags(args))
        unknown = unknown_flags(args, config.engine.version or "")
        yield from (f"{key}.engine_args.{flag}: {fault}" for flag, fault in unknown)


def _split_faults(name: str, pool: PoolConfig, shape: Shape) -> Iterator[str]:
    key, size = f"pools.{name}.tensor_parallel", pool.tensor_parallel
    if shape.num_heads % size:
        yield f"{key}: {size} does not divide {shape.num_heads} attention heads; use {_divisors(shape.num_heads)}"
    elif size % shape.num_kv_heads and shape.num_kv_heads % size:
        yield f"{key}: {size} and {shape.num_kv_heads} KV heads do not divide; use {_divisors(shape.num_kv_heads)}"
    if pool.pipeline_parallel > shape.num_layers:
        yield f"pools.{name}.pipeline_parallel: more stages than {shape.num_layers} layers; use fewer"


def _divisors(number: int) -> str:
    return ", ".join(str(size) for size in range(1, number + 1) if number % size == 0)


def _latent_faults(pool: PoolPlan, shape: Shape | None) -> Iterator[str]:
    if pool.memory is None or shape is None or shape.latent is None or pool.tensor_parallel == 1:
        return
    size, memory = pool.tensor_parallel, pool.memory
    weights_bytes = memory.weights_bytes * size * pool.pipeline_parallel
    copies = (
        f"pools.{pool.name}.tensor_parallel: latent attention has no KV heads to share out: {size} ranks would hold"
        f" {size} copies of the same cache, each of {memory.kv_bytes_per_token / 1024:.1f} KiB per token"
    )
    if weights_bytes < (pool.budget_bytes or 0):
        yield f"{copies}; use 1, and more replicas"
        return
    yield (
        f"{copies}, and one GPU's {(pool.budget_bytes or 0) / GIB:.1f} GiB do not hold the"
        f" {weights_bytes / GIB:.0f} GiB of weights. This takes data-parallel attention with expert parallelism,"
        " which is not available yet; use a model with KV heads, such as model=gpt-oss-120b"
    )


def _fit_faults(config: Config, pool: PoolPlan) -> Iterator[str]:
    key = f"pools.{pool.name}"
    if pool.memory is not None and pool.budget_bytes is not None:
        explicit = pool.memory.kv_bytes if "kv_cache_memory_bytes" in pool.engine_args else 0
        if pool.memory.weights_bytes + pool.memory.workspace_bytes + explicit > pool.budget_bytes:
            have = f"{pool.budget_bytes / GIB:.1f} GiB"
            yield (
                f"{key}.tensor_parallel: {_sum(pool.memory, explicit)} per rank do not fit in {have}; raise it, or"
                " choose a smaller model"
            )
            return
    if pool.kv_tokens < config.model.max_model_len:
        yield (
            f"{key}: a worker holds {pool.kv_tokens} KV tokens, one request may take {config.model.max_model_len};"
            " lower model.max_model_len or give more GPUs"
        )
    caps = {"max_prefill_tokens": pool.max_prefill_tokens, "max_decodes": pool.max_decodes}
    yield from (f"{key}.{cap}: {value} is negative" for cap, value in caps.items() if value < 0)
    if pool.role is not Role.DECODE and pool.max_prefill_tokens == 0:
        yield f"{key}.max_prefill_tokens: 0 in a pool that prefills; use null"


def _sum(memory: Memory, kv_bytes: int) -> str:
    kv = f" + {kv_bytes / GIB:.1f} GiB of KV" if kv_bytes else ""
    return f"{memory.weights_bytes / GIB:.1f} GiB of weights + {memory.workspace_bytes / GIB:.1f} GiB to work{kv}"
