"""What the doctor's jobs are: where they go, what they ask for, what they do there.

Pure. A job is a worker's job of this plan, made small: two nodes where the run has two, one GPU on each.
"""

from __future__ import annotations

from typing import Any

import msgspec

from launcher.job import JobRequest, Plan
from launcher.schema import ClusterConfig, Config, ControllerPlace, Executor
from launcher.site.check_files import Check, NodeReport
from launcher.site.facts import Site
from launcher.site.partitions import controllers_partition, workers_partition
from launcher.site.trials import trial_command
from workers.spec import WorkerSpec

TIME_MIN = 10  # they take about one; a cold file system takes its time over the first imports
CPUS = 4
MEM_GB = 8
MAX_NODES = 2
HERE = "here"  # a check without Slurm


class CheckJob(msgspec.Struct, frozen=True, kw_only=True):
    check: Check
    request: JobRequest


class Outcome(msgspec.Struct, kw_only=True):
    """What became of one check; `check_run` fills it in while it runs."""

    checked: CheckJob
    job: str = ""
    refused: str = ""  # Slurm's words
    state: str = ""
    reason: str = ""
    ended_at: float | None = None  # monotonic
    reports: list[NodeReport] = []
    reached: dict[str, str] | None = None  # interface of rank 0 -> why this machine does not reach it
    log_tail: list[str] = []
    gave_up: bool = False  # we did

    @property
    def name(self) -> str:
        return self.checked.check.partition or HERE

    @property
    def complete(self) -> bool:
        return len(self.reports) == self.checked.check.num_nodes


def check_partitions(config: Config, site: Site) -> list[str | None]:
    """Those that are asked for; else the workers', and the controller's where it is another. None: this machine."""
    assert config.cluster is not None
    if config.cluster.executor is Executor.local:
        return [None]
    if config.partitions:
        return list(config.partitions)
    chosen = [workers_partition(site, config.cluster), controllers_partition(site, config)]
    return list(dict.fromkeys(partition.name for partition in chosen if partition is not None))


def check_job(
    config: Config, plan: Plan, site: Site, partition: str | None, folder: str, token: str, model_is_here: bool
) -> CheckJob:
    cluster = config.cluster
    assert cluster is not None
    gpus = 1 if cluster.gpus_per_node and (partition is None or site.gpus_of(partition)) else 0
    hosts_workers = gpus > 0 or not cluster.gpus_per_node
    num_nodes = min(MAX_NODES, cluster.nodes) if partition is not None and hosts_workers else 1
    check = Check(
        partition=partition or "",
        num_nodes=num_nodes,
        token=token,
        worker=_small(plan.workers[0].spec, num_nodes, gpus, folder) if hosts_workers else None,
        trial=_trial(config, site, partition),
        gpus=gpus,
        model_is_here=model_is_here,
    )
    return CheckJob(check=check, request=_request(plan, cluster, check))


def _small(spec: WorkerSpec, num_nodes: int, gpus: int, folder: str) -> WorkerSpec:
    """One rank per node: what the preflight compares with what a small job gets."""
    engine = msgspec.structs.replace(spec.engine, tensor_parallel=1, pipeline_parallel=num_nodes)
    return msgspec.structs.replace(spec, engine=engine, num_nodes=num_nodes, gpus_per_node=gpus, run_dir=folder)


def _trial(config: Config, site: Site, partition: str | None) -> tuple[str, ...]:
    """The controller submits workers from where it runs."""
    cluster, theirs = config.cluster, controllers_partition(site, config)
    assert cluster is not None
    alone = config.controller.where is not ControllerPlace.job or cluster.chain_length > 0
    if theirs is None or theirs.name != partition or alone:
        return ()
    gpus = [] if not cluster.gpus_per_node else [f"--gres={cluster.gres}:1" if cluster.gres else "--gpus-per-node=1"]
    return tuple(trial_command(cluster.partition, cluster, gpus))


def _request(plan: Plan, cluster: ClusterConfig, check: Check) -> JobRequest:
    job = plan.workers[0].job
    slurm: dict[str, Any] = {key: value for key, value in job.slurm.items() if key not in ("gres", "partition")}
    slurm |= {"partition": check.partition} if check.partition else {}
    slurm |= {"gres": f"{cluster.gres}:{check.gpus}"} if cluster.gres and check.gpus else {}
    return msgspec.structs.replace(
        job,
        executor="slurm" if check.partition else "local",
        num_nodes=check.num_nodes,
        gpus_per_node=0 if cluster.gres else check.gpus,
        cpus_per_task=min(CPUS, cluster.cpus_per_node),
        mem_gb=None if cluster.mem_gb is None else min(MEM_GB, cluster.mem_gb),
        time_min=min(TIME_MIN, job.time_min),
        slurm=slurm,
    )
