"""What a plan needs of the one Slurm job that is to hold it, and what that job lacks.

Pure. Nodes are compared in order: workers are placed on the job's nodes as the plan shows them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import msgspec

from launcher.job import Allocation
from launcher.jobs import CONTROLLER
from launcher.planning.layout import place
from launcher.planning.pools import PoolPlan
from launcher.schema import ClusterConfig, Config, Executor

MB_PER_GB = 1024
SCRIPT = "slurm/one_allocation.sbatch"


class NodeNeed(msgspec.Struct, frozen=True, kw_only=True):
    """What a plan takes of one node."""

    who: tuple[str, ...]
    gpus: int = 0
    cpus: int = 0
    mem_gb: int = 0  # 0: not said


def node_needs(config: Config, pools: Sequence[PoolPlan]) -> list[NodeNeed]:
    """Node by node, as far as workers lie on them; the first one holds controller and proxy as well. Of pools that
    fit on the cluster."""
    assert config.cluster is not None
    workers = [(f"{pool.name}-{replica}", pool) for pool in pools for replica in range(pool.replicas)]
    places = place([pool.layout for _, pool in workers], config.cluster)
    assert places is not None, "checked before"
    on: dict[int, list[tuple[str, PoolPlan]]] = {0: []}
    for worker, uses in zip(workers, places, strict=True):
        for use in uses:
            on.setdefault(use.node, []).append(worker)
    needs = [_need(on.get(node, [])) for node in range(max(on) + 1)]
    return [_with_controller(needs[0], config), *needs[1:]]


def _need(workers: Sequence[tuple[str, PoolPlan]]) -> NodeNeed:
    return NodeNeed(
        who=tuple(name for name, _ in workers),
        gpus=sum(pool.gpus_per_node for _, pool in workers),
        cpus=sum(pool.cpus_per_node for _, pool in workers),
        mem_gb=sum(pool.mem_gb_per_node or 0 for _, pool in workers),
    )


def _with_controller(need: NodeNeed, config: Config) -> NodeNeed:
    assert config.cluster is not None
    mem_gb = config.controller.mem_gb if config.cluster.mem_gb else None
    return msgspec.structs.replace(
        need,
        who=(*need.who, CONTROLLER),
        cpus=need.cpus + config.controller.cpus,
        mem_gb=need.mem_gb + (mem_gb or 0),
    )


def allocation_faults(config: Config, pools: Sequence[PoolPlan], allocation: Allocation | None) -> Iterator[str]:
    if config.cluster is None or config.cluster.executor is not Executor.steps or allocation is None:
        return
    needs, job = node_needs(config, pools), allocation.job
    if len(allocation.nodes) < len(needs):
        yield (
            f"cluster.nodes: the workers take {len(needs)} nodes, job {job} has {len(allocation.nodes)};"
            f" use sbatch --nodes={len(needs)}, or fewer workers"
        )
    for need, node in zip(needs, allocation.nodes, strict=False):
        who, there = ", ".join(need.who), f"{node.name} of job {job} has"
        if need.gpus > node.gpus:
            workers = ", ".join(name for name in need.who if name != CONTROLLER)
            yield (
                f"cluster.gpus_per_node: {workers} take {need.gpus} GPUs, {there} {node.gpus};"
                f" use sbatch --gpus-per-node={need.gpus}, or fewer workers"
            )
        if need.cpus > node.cpus:
            less = _less(config, need, "cluster.cpus_per_node", node.cpus, config.controller.cpus)
            yield (
                f"cluster.cpus_per_node: {who} take {need.cpus} CPUs, {there} {node.cpus};"
                f" use sbatch --cpus-per-task={need.cpus}, or {less}"
            )
        if node.mem_mb is not None and need.mem_gb * MB_PER_GB > node.mem_mb:
            mem_gb = node.mem_mb // MB_PER_GB
            less = _less(config, need, "cluster.mem_gb", mem_gb, config.controller.mem_gb or 0)
            yield (
                f"cluster.mem_gb: {who} take {need.mem_gb} GB, {there} {mem_gb};"
                f" use sbatch --mem={need.mem_gb}G, or {less}"
            )


def _less(config: Config, need: NodeNeed, key: str, there: int, controllers: int) -> str:
    """A smaller share each, where that leaves one for every GPU."""
    assert config.cluster is not None
    least = max(config.cluster.gpus_per_node, len(need.who)) + controllers
    return f"set {key}={there}" if there >= least else "fewer workers"


def allocation_note(config: Config, pools: Sequence[PoolPlan]) -> str:
    """The command that gets a job of the right size."""
    assert config.cluster is not None
    needs = node_needs(config, pools)
    most = {name: max(getattr(need, name) for need in needs) for name in ("gpus", "cpus", "mem_gb")}
    options = {"nodes": len(needs), "ntasks-per-node": 1, "cpus-per-task": most["cpus"]}
    options |= _gpu_option(config.cluster, most["gpus"])
    options |= {"mem": f"{most['mem_gb']}G"} if most["mem_gb"] else {}
    site = {name: getattr(config.cluster, name) for name in ("partition", "account", "qos")}
    options |= {"time": config.cluster.walltime_min, **site, **config.cluster.sbatch}
    return f"one job that holds it: sbatch {' '.join(_shown(options))} {SCRIPT} and the arguments of this plan"


def _gpu_option(cluster: ClusterConfig, gpus: int) -> dict[str, object]:
    if not gpus:
        return {}
    return {"gres": f"{cluster.gres}:{gpus}"} if cluster.gres else {"gpus-per-node": gpus}


def _shown(options: Mapping[str, object]) -> Iterator[str]:
    for name, value in options.items():
        if value is not None and value is not False:
            yield f"--{name}" if value is True else f"--{name}={value}"
