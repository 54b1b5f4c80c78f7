"""What controller and proxy say to each other: the jobs as Slurm has them, the fleet as the proxy sees it.

Pure data; who may be sent what is in `protocol`.
"""

from __future__ import annotations

import msgspec

from workers.links.proxy_file import ProxyFile
from workers.message import Message
from workers.stages import StageTimes


class ControllerHello(Message, frozen=True, tag="controller_hello"):
    """First message of the controller on every proxy."""

    protocol: int
    run: str
    session: str


class JobView(msgspec.Struct, frozen=True, array_like=True):
    """What the controller knows of one worker's Slurm job."""

    worker: str
    pool: str
    role: str
    generation: int
    job: str
    state: str
    reason: str = ""
    estimated_start: str = ""
    end_time: float | None = None
    node: str = ""
    nodes: tuple[str, ...] = ()
    num_nodes: int = 1  # that it takes, also while it waits for them
    gpus: int = 0  # of each
    tensor_parallel: int = 1
    pipeline_parallel: int = 1


class Jobs(Message, frozen=True, tag="jobs"):
    """The controller's whole view; each replaces the one before."""

    jobs: tuple[JobView, ...]
    gpus_per_node: int = 0  # of the cluster
    wanted: tuple[str, ...] = ()  # workers that the run keeps; none: what the proxy's own spec says
    serves: bool = False  # whoever finds no worker may wait for one: the run has served and goes on
    successors: tuple[ProxyFile, ...] = ()  # processes of the proxy that is to follow: peers link to them too


class DrainWorker(Message, frozen=True, tag="drain_worker"):
    """The controller asks the proxy to drain one worker."""

    worker: str
    generation: int
    reason: str
    timeout_s: float


class WorkerCaps(msgspec.Struct, frozen=True, array_like=True):
    worker: str
    max_prefill_tokens: int
    max_decodes: int


class Expected(msgspec.Struct, frozen=True, array_like=True):
    """Demand of one kind so many minutes ahead: tokens per second."""

    kind: str
    minutes: int
    low: float
    mean: float
    high: float


class SetCaps(Message, frozen=True, tag="set_caps"):
    """The planner's word, by the controller: all that is to differ from the pools' caps, and what people see."""

    workers: tuple[WorkerCaps, ...]
    demand: tuple[Expected, ...] = ()
    drift: str = ""
    wanted: tuple[tuple[str, int], ...] = ()  # workers, by pool
    gpu_hours: float = 0.0


class WorkerView(msgspec.Struct, frozen=True, array_like=True):
    """One worker as the proxy sees it."""

    worker: str
    pool: str
    role: str
    generation: int
    phase: str
    detail: str
    node: str
    job: str
    end_time: float | None
    running: int
    waiting: int
    stages: StageTimes = ()  # of its start
    turn: str = ""  # in words: has it one, or how many are before it
    proven: bool = False  # it takes requests, and each KV transfer with it has been tried


class FleetView(Message, frozen=True, tag="fleet"):
    """The proxy's whole view, sent to the controller on change. Expected pairs are proven or missing."""

    workers: tuple[WorkerView, ...]
    ready: bool
    proven_pairs: tuple[tuple[str, str], ...] = ()
    missing_pairs: tuple[tuple[str, str], ...] = ()
    refusals: tuple[str, ...] = ()
    faults: tuple[str, ...] = ()  # "prefill-0 -> decode-0: why its last proof failed"
