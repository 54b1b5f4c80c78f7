"""What will run, as values: the plan of a run, worker by worker, job by job.

Owns the shapes only: `plan` makes them, `submit` and `reconcile` act on them, `rundir` stores them.
A Plan is complete and frozen; nothing below it reads the user's configuration again.
"""

from __future__ import annotations

from typing import Any

import msgspec

from launcher.capacity import Memory
from proxy.spec import ProxySpec
from workers.spec import WorkerSpec


class JobRequest(msgspec.Struct, frozen=True, kw_only=True):
    """One Slurm job (or local process group), before it has an id."""

    name: str  # run and worker; the generation is added when it is submitted
    executor: str  # slurm | local
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


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """All of a run. `controller` is None where the controller runs in the foreground."""

    run: str
    run_dir: str
    cluster: str
    executor: str  # slurm | local
    workers: tuple[PlannedWorker, ...]
    proxy: ProxySpec
    controller: JobRequest | None
    notes: tuple[str, ...]  # what a person should know: memory per GPU, what runs whole, and why
    num_nodes: int = 0  # of the cluster
    gpus_per_node: int = 0
    poll_interval_s: float = 30.0  # Slurm is asked no more often than this
