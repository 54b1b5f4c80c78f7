"""Which nodes and GPUs a run's workers take: sizes of pools, and whether all fit on the cluster together.

Pure. Slurm decides where a job really lands; placing the workers here proves that they can all run at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from launcher.job import GpuUse
from launcher.schema import ClusterConfig, PoolConfig


class PoolLayout(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker takes: whole nodes' worth of slots, one per rank."""

    num_nodes: int
    ranks_per_node: int


def pool_layout(pool: PoolConfig, cluster: ClusterConfig) -> PoolLayout:
    """Where not given: as few nodes as hold the ranks."""
    ranks = pool.tensor_parallel * pool.pipeline_parallel
    per_node = pool.gpus_per_node or (ranks if not cluster.gpus_per_node else min(ranks, cluster.gpus_per_node))
    num_nodes = pool.nodes or -(-ranks // per_node)
    return PoolLayout(num_nodes=num_nodes, ranks_per_node=pool.gpus_per_node or -(-ranks // num_nodes))


def count_faults(name: str, pool: PoolConfig) -> Iterator[str]:
    for field in ("replicas", "tensor_parallel", "pipeline_parallel", "nodes", "gpus_per_node"):
        value = getattr(pool, field)
        if value is not None and value < 1:
            yield f"pools.{name}.{field}: {value} is not a count; use 1 or more"


def size_faults(name: str, pool: PoolConfig, cluster: ClusterConfig) -> Iterator[str]:
    """On counts that are good."""
    key = f"pools.{name}"
    ranks, layout = pool.tensor_parallel * pool.pipeline_parallel, pool_layout(pool, cluster)
    if layout.num_nodes * layout.ranks_per_node != ranks:
        yield (
            f"{key}.nodes: {layout.num_nodes} nodes of {layout.ranks_per_node} GPUs do not make the {ranks} ranks of"
            " tensor_parallel x pipeline_parallel; change one of them"
        )
    if layout.num_nodes > cluster.nodes:
        yield f"{key}: a worker needs {layout.num_nodes} nodes, {cluster.name} has {cluster.nodes}; use fewer ranks"
    if cluster.gpus_per_node and layout.ranks_per_node > cluster.gpus_per_node:
        yield (
            f"{key}.gpus_per_node: {layout.ranks_per_node} on a node of {cluster.gpus_per_node}; use more nodes or"
            " fewer ranks"
        )


def place(workers: Sequence[PoolLayout], cluster: ClusterConfig) -> list[tuple[GpuUse, ...]] | None:
    """First fit, the largest first. None: they do not all fit at once. Without GPUs, workers go round the nodes."""
    if not cluster.gpus_per_node:
        return _round_robin(workers, cluster.nodes)
    used = [0] * cluster.nodes
    placed: dict[int, tuple[GpuUse, ...]] = {}
    for index in sorted(range(len(workers)), key=lambda i: (-workers[i].ranks_per_node, -workers[i].num_nodes, i)):
        need = workers[index].ranks_per_node
        nodes = [node for node in range(cluster.nodes) if used[node] + need <= cluster.gpus_per_node]
        nodes = nodes[: workers[index].num_nodes]
        if len(nodes) < workers[index].num_nodes:
            return None
        placed[index] = tuple(GpuUse(node=node, gpus=tuple(range(used[node], used[node] + need))) for node in nodes)
        for node in nodes:
            used[node] += need
    return [placed[index] for index in range(len(workers))]


def _round_robin(workers: Sequence[PoolLayout], num_nodes: int) -> list[tuple[GpuUse, ...]]:
    starts = [sum(worker.num_nodes for worker in workers[:index]) for index in range(len(workers))]
    return [
        tuple(GpuUse(node=(start + offset) % num_nodes, gpus=()) for offset in range(worker.num_nodes))
        for start, worker in zip(starts, workers, strict=True)
    ]
