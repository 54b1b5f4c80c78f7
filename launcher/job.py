"""What will run, as values: the plan of a run, worker by worker, job by job.

Owns the shapes only: `plan` makes them, `submit` and `reconcile` act on them, `rundir` stores them.
A Plan is complete and frozen; nothing below it reads the user's configuration again.
"""

from __future__ import annotations

from typing import Any

import msgspec

from launcher.planning.capacity import Memory
from proxy.spec import ProxySpec
from workers.spec import WorkerSpec


class JobRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One Slurm job (or local process group), before it has an id."""

    name: str  # run and worker; the generation is added when it is submitted
    executor: str  # slurm | steps | local
    num_nodes: int
    gpus_per_node: int  # 0: none, or they are asked for as slurm["gres"]
    cpus_per_task: int
    mem_gb: int | None
    time_min: int
    setup: tuple[str, ...]  # shell lines in front of the job's command: module load, source ...
    interpreter: str
    slurm: dict[str, Any]  # further sbatch parameters by submitit's `slurm_*` names, prefix left out
    additional: dict[str, Any]  # sbatch options without a submitit name: {"signal": "B:USR1@60"}


class GpuUse(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker takes of one node."""

    node: int
    gpus: tuple[int, ...]


class PlannedWorker(msgspec.Struct, frozen=True, kw_only=True):
    """One worker of the first generation; a successor differs in the spec's generation only."""

    spec: WorkerSpec
    job: JobRequest
    example: tuple[GpuUse, ...] = ()  # one way to place all workers at once; Slurm chooses the real nodes
    memory: Memory | None = None  # of each of its GPUs
    revision: int = 0  # lives of an earlier one are replaced


class Scaling(msgspec.Struct, frozen=True, kw_only=True):
    """How many workers the planner may have, by pool."""

    initial: dict[str, int]
    least: dict[str, int]
    most: dict[str, int]
    budget_gpu_hours: float | None = None
    idle_to_zero_s: float | None = None


class AllocatedNode(msgspec.Struct, frozen=True, kw_only=True):
    """What a job holds of one node."""

    name: str
    cpus: int
    gpus: int
    mem_mb: int | None  # None: this Slurm does not share memory out


class Allocation(msgspec.Struct, frozen=True, kw_only=True):
    """One Slurm job with a whole run in it."""

    job: str
    nodes: tuple[AllocatedNode, ...]
    end_time: float | None  # unix time


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All of a run. `controller` is None where the controller runs in the foreground."""

    run: str
    run_dir: str
    cluster: str
    executor: str  # slurm | steps | local
    workers: tuple[PlannedWorker, ...]  # as many as there may ever be
    proxy: ProxySpec
    controller: JobRequest | None
    notes: tuple[str, ...]  # what a person should know: memory per GPU, what runs whole, and why
    num_nodes: int = 0  # of the cluster
    gpus_per_node: int = 0
    poll_interval_s: float = 30.0  # Slurm is asked no more often than this
    revision: int = 0  # counts how often a live run was given another plan
    drain_first: bool = False  # there is no room for two lives of a worker
    crowded: bool = False  # nor is there, unless Slurm has more nodes than the cluster's file says
    chain_length: int = 0  # jobs per worker and of the controller that are submitted at launch; 0: as they are needed
    planner: str = "off"  # off | advise | on
    scaling: Scaling | None = None  # None: as many as there are
    allocation: Allocation | None = None  # with executor steps; None where it is planned outside of the job
