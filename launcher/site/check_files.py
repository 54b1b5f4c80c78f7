"""What doctor and its jobs tell each other, file by file, in the doctor's folder.

Owns the shapes and the names. Files are whole or not there; nobody else writes to the folder.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from launcher.site.facts import Interface, Trial
from workers.agent.preflight import Facts
from workers.engines.nixl_transfer import Transfer
from workers.engines.vllm.imports import Imports
from workers.spec import WorkerSpec


class Check(msgspec.Struct, frozen=True, kw_only=True):
    """What a check job is to do: one task per node."""

    partition: str
    num_nodes: int
    token: str  # by which listeners of this check know each other
    worker: WorkerSpec | None  # as if one of one GPU were to start; None: no worker would
    trial: tuple[str, ...]  # `sbatch --test-only ...`, where the controller would submit from; empty: nowhere
    gpus: int
    model_is_here: bool  # where it is missing here already, nodes need not say so again


class Hca(msgspec.Struct, frozen=True, kw_only=True):
    """A port of an RDMA adapter, by the name that UCX knows: mlx5_0:1."""

    name: str
    state: str
    rate: str
    link: str  # InfiniBand | Ethernet


class Scratch(msgspec.Struct, frozen=True, kw_only=True):
    path: str
    kind: str  # of the file system
    free_bytes: int


class EngineReport(msgspec.Struct, frozen=True, kw_only=True):
    """What stands in the way of an engine on one node, and what was tried for it."""

    facts: Facts
    faults: tuple[str, ...]  # of the preflight
    imports: Imports | None = None  # on rank 0 only
    transfer: Transfer | None = None  # rank 0: within the node; others: from rank 0


class NodeReport(msgspec.Struct, frozen=True, kw_only=True):
    """What one node of a check job saw."""

    node: str
    rank: int
    mount_kind: str  # of the doctor's folder
    answer_s: float | None  # from our first file to the sight of the answer to it; None: it did not come
    interfaces: tuple[Interface, ...]
    default_interface: str
    peers: dict[str, str]  # interface -> why rank 0 was not reached over it; empty: it was
    hcas: tuple[Hca, ...]
    can_rdma: bool
    scratch: tuple[Scratch, ...]
    containers: tuple[str, ...]
    num_free_ports: int  # of those that engines take
    ephemeral_from: int  # the first port that the kernel hands out by itself
    num_gpu_files: int  # /dev/nvidia*: those that this job can open
    trial: Trial | None
    engine: EngineReport | None


class Listeners(msgspec.Struct, frozen=True):
    """Where rank 0 listens: interface -> (address, port)."""

    endpoints: dict[str, tuple[str, int]]


class Folder:
    """The files of one check."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.check = path / "check.json"
        self.spec = path / "spec.json"
        self.answer = path / "answer.json"
        self.listeners = path / "listeners.json"

    def started(self, rank: int) -> Path:
        return self.path / f"started.{rank}.json"

    def report(self, rank: int) -> Path:
        return self.path / f"report.{rank}.json"


class Word(msgspec.Struct, frozen=True):
    """A node that has started, or the answer to it."""

    host: str
