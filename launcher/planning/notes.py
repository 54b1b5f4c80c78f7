"""The plan's notes: what a person should know before starting it, in figures.

Pure text over a worked-out plan; decides nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from launcher.jobs import starts_after_min
from launcher.planning.capacity import GIB
from launcher.planning.fit import allocation_note
from launcher.planning.folders import Folders
from launcher.planning.matrix import Pair
from launcher.planning.models import ResolvedModel
from launcher.planning.pools import PoolPlan
from launcher.schema import Config, Executor


def plan_notes(
    config: Config, model: ResolvedModel, folders: Folders, pools: Sequence[PoolPlan], pairs: Sequence[Pair]
) -> tuple[str, ...]:
    return (
        *([f"not ready to start: {model.missing}"] if model.missing and not config.engine.simulated else []),
        *(note for pool in pools for note in _pool_notes(config, pool)),
        *_whole_notes(config, pairs),
        *_folder_notes(config, folders),
        *_hand_over_notes(config, pools),
        *_chain_notes(config),
        *([allocation_note(config, pools)] if config.cluster and config.cluster.executor is Executor.steps else []),
    )


def _pool_notes(config: Config, pool: PoolPlan) -> Iterator[str]:
    memory = pool.memory
    if memory is None:
        yield f"{pool.name}: simulated, {pool.kv_tokens} KV tokens per worker"
        return
    of = f" of {pool.budget_bytes / GIB:.1f} GiB" if pool.budget_bytes else ""
    yield (
        f"{pool.name}: {memory.kv_tokens} KV tokens per worker: {memory.concurrency(config.model.max_model_len):.1f}"
        f" requests of {config.model.max_model_len} tokens at once. Per rank {memory.weights_bytes / GIB:.1f} GiB"
        f" weights, about {memory.workspace_bytes / GIB:.1f} GiB to work, {memory.kv_bytes / GIB:.1f} GiB KV{of},"
        f" {memory.kv_bytes_per_token} bytes per token"
    )


def _hand_over_notes(config: Config, pools: Sequence[PoolPlan]) -> Iterator[str]:
    """Whether a worker and its successor have room side by side."""
    cluster = config.cluster
    assert cluster is not None
    if cluster.executor is Executor.slurm:
        if cluster.drain_first:
            yield (
                "hand-overs drain first (cluster.drain_first): one worker after the other ends before its successor"
                " starts; meanwhile the other role answers whole requests, or requests wait"
            )
        elif is_crowded(config, pools):
            taken, largest = _gpus(pools)
            yield (
                f"hand-overs: the workers take {taken} of the run's {cluster.nodes * cluster.gpus_per_node} GPUs, a"
                f" successor needs {largest} more beside them; where Slurm gives no more, a worker drains first once"
                " its successor has waited: set cluster.drain_first=true if you know it"
            )


def is_crowded(config: Config, pools: Sequence[PoolPlan]) -> bool:
    """By the cluster's file there is no room for another worker beside all of them."""
    cluster = config.cluster
    assert cluster is not None
    return cluster.executor is Executor.slurm and sum(_gpus(pools)) > cluster.nodes * cluster.gpus_per_node


def _gpus(pools: Sequence[PoolPlan]) -> tuple[int, int]:
    """Of all workers, and of the largest."""
    taken = sum(pool.replicas * pool.layout.num_nodes * pool.gpus_per_node for pool in pools)
    return taken, max(pool.layout.num_nodes * pool.gpus_per_node for pool in pools)


def _chain_notes(config: Config) -> Iterator[str]:
    """Of jobs that are all submitted at launch."""
    cluster, controller = config.cluster, config.controller
    assert cluster is not None
    if not cluster.chain_length:
        return
    worker_min, controller_min = cluster.walltime_min, controller.walltime_min or cluster.walltime_min
    hours = cluster.chain_length * min(starts_after_min(worker_min), starts_after_min(controller_min)) / 60
    turn = "afterany:JOB" if cluster.drain_first else f"after:JOB+{starts_after_min(worker_min)}?afterany:JOB"
    yield (
        f"chain: {cluster.chain_length} jobs of each worker and of the controller are submitted at launch"
        f" (cluster.chain_length), about {hours:.1f} hours; of workers all but the first with"
        f" --dependency={turn}, of the controller after:JOB+{starts_after_min(controller_min)}?afterany:JOB."
        " Nothing is submitted from a job; action=restart submits more, action=stop cancels all"
    )


def _folder_notes(config: Config, folders: Folders) -> Iterator[str]:
    """On a cluster a home is small and slow; on a laptop it is all there is."""
    assert config.cluster is not None
    if config.cluster.stage_dir is not None and not config.engine.simulated:
        yield f"each node copies the model to {config.cluster.stage_dir} once and loads it from there"
    if config.cluster.max_loading:
        yield f"at most {config.cluster.max_loading} workers read their model at once (cluster.max_loading)"
    if config.cluster.executor is not Executor.local and folders.cache.is_relative_to(folders.home):
        yield (
            f"cluster.cache_dir: engines will keep what they compile, gigabytes, in {folders.cache}: that is in your"
            " home; set it to a folder on a scratch file system"
        )


def _whole_notes(config: Config, pairs: Sequence[Pair]) -> Iterator[str]:
    for pair in pairs:
        for fault in pair.faults:
            yield f"no KV from {pair.prefill} to {pair.decode}: {fault}"
    open_pairs = [pair for pair in pairs if not pair.faults]
    if not open_pairs:
        yield "no pair of pools exchanges KV: every request runs whole on one worker"
        return
    yield "KV goes " + ", ".join(f"{pair.prefill} -> {pair.decode}" for pair in open_pairs)
    yield (
        f"whole on a decode worker: prompts under about {config.routing.whole_below_tokens} tokens (a hand-over costs"
        " more), several prompts or n > 1, beam search, prompt_logprobs and multimodal (one ticket is one sequence)"
    )
