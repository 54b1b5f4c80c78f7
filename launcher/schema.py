"""What a user may write: the configuration's shape, key by key, with its defaults.

Owns names, types and defaults. Does not read files (see `config`) and decides nothing: values are
checked against each other in `plan`, where all faults are told at once. The classes have slots so that an
unknown key cannot pass, and are not frozen because Hydra fills them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import MISSING


class Action(Enum):
    up = "up"
    plan = "plan"
    status = "status"
    report = "report"
    connect = "connect"
    logs = "logs"
    restart = "restart"
    stop = "stop"
    doctor = "doctor"
    new_cluster = "new_cluster"
    batch = "batch"
    simulate = "simulate"
    capacity = "capacity"
    profile = "profile"


class CodeOf(Enum):
    run = "run"  # the snapshot that the run has
    current = "current"  # a new one of this checkout


class Output(Enum):
    text = "text"
    json = "json"


class Executor(Enum):
    slurm = "slurm"  # a job per worker
    steps = "steps"  # all in one job: a step per worker
    local = "local"


class Device(Enum):
    cuda = "cuda"
    cpu = "cpu"


class PoolRole(Enum):
    prefill = "prefill"
    decode = "decode"
    any = "any"


class ControllerPlace(Enum):
    foreground = "foreground"
    job = "job"


@dataclass(slots=True, kw_only=True)
class ClusterConfig:
    """A site. A node count says how many nodes exist for this run, not which ones."""

    name: str = MISSING
    executor: Executor = Executor.slurm
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    nodes: int = MISSING
    gpus_per_node: int = MISSING
    gpu_memory_gib: float | None = None
    gpu: str | None = None  # whose data sheet predictions use: a100, b200, h100, h200, l40s
    cpus_per_node: int = MISSING
    mem_gb: int | None = None  # per node, shared out by GPUs; null: the site's default per job
    gres: str | None = None  # null: --gpus-per-node=N; gpu or gpu:TYPE: --gres=gpu:TYPE:N
    walltime_min: int = 60
    requeue: bool = False
    chain_length: int = 0  # jobs per worker submitted at launch, where jobs may submit none; 0: as they are needed
    drain_first: bool = False  # Slurm starts a worker's successor only after the worker has ended
    interface: str | None = None  # null: the default route's
    setup: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    engine_prefix: list[str] = field(default_factory=list)
    engine_python: str | None = None  # behind engine_prefix; null: the launcher's own
    stage_dir: str | None = None  # of a disk that each node has, the same path on all; null: no copies of models
    load_format: str | None = None  # vLLM's load_format; null: the model's or vLLM's own
    load_strategy: str | None = None  # vLLM's safetensors_load_strategy; null: as vLLM finds best
    max_loading: int = 0  # workers that read their model from the shared file system at once; 0: no limit
    cache_dir: str | None = None  # of what engines compile, by version and GPU; null: .cache in runs_dir
    sbatch: dict[str, Any] = field(default_factory=dict)  # further sbatch options of the site


@dataclass(slots=True, kw_only=True)
class ModelConfig:
    name: str = MISSING  # what clients call it
    aliases: list[str] = field(default_factory=list)
    path: str | None = None  # a local folder or a Hugging Face id
    revision: str | None = None
    generate: str | None = None  # instead of a path: a model that the project makes itself
    max_model_len: int = MISSING
    config_json: dict[str, Any] = field(default_factory=dict)  # what capacity reads of it while it is not here
    engine_args: dict[str, dict[str, Any]] = field(default_factory=dict)  # by engine kind


@dataclass(slots=True, kw_only=True)
class EngineConfig:
    kind: str = MISSING
    version: str | None = None
    simulated: bool = False  # needs no model on disk and holds no real KV
    device: Device = Device.cuda
    block_size: int = 16  # one for the whole run
    engine_args: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    load_timeout_s: float = 1800.0
    drain_timeout_s: float = 120.0
    step_timeout_s: float = 30.0  # a step that takes longer hangs, and its engine is ended


@dataclass(slots=True, kw_only=True)
class HandoffConfig:
    connector: str = MISSING
    buffer_device: Device | None = None  # null: the engine's
    lease_s: float = 120.0
    redeem_s: float = 30.0


@dataclass(slots=True, kw_only=True)
class PoolConfig:
    """Workers with the same spec. `null` is derived from the rest."""

    role: PoolRole = MISSING
    replicas: int = 1
    tensor_parallel: int = 1
    pipeline_parallel: int = 1
    data_parallel: int = 1
    nodes: int | None = None
    gpus_per_node: int | None = None
    engine_args: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)
    max_prefill_tokens: int | None = None
    max_decodes: int | None = None


@dataclass(slots=True, kw_only=True)
class TargetsConfig:
    """Mirrors proxy.spec.LatencyTargets."""

    ttft_s: float = 2.0
    itl_s: float = 0.05


@dataclass(slots=True, kw_only=True)
class RoutingConfig:
    policy: str = MISSING
    targets: TargetsConfig = field(default_factory=TargetsConfig)
    allow_override: bool = False
    whole_below_tokens: int = 64
    bytes_per_token: float = 4.0
    pinned_fraction: float = 0.5


@dataclass(slots=True, kw_only=True)
class LimitsConfig:
    """Mirrors proxy.spec.Limits: of each process of the proxy."""

    max_connections: int = 16384
    max_header_bytes: int = 32 << 10
    max_body_bytes: int = 32 << 20
    max_total_body_bytes: int = 512 << 20
    max_total_resumable_bytes: int = 512 << 20
    max_queued: int = 1024
    max_prompt_trace_bytes: int = 256 << 20
    stream_buffer_bytes: int = 1 << 20
    max_total_unsent_bytes: int = 512 << 20
    header_timeout_s: float = 10.0
    body_timeout_s: float = 60.0
    idle_timeout_s: float = 75.0


@dataclass(slots=True, kw_only=True)
class DeadlinesConfig:
    """Mirrors proxy.spec.Deadlines."""

    queue_s: float = 30.0
    prefill_s: float = 120.0
    first_token_s: float = 120.0
    answer_s: float = 1800.0
    between_tokens_s: float = 60.0
    node_silence_s: float = 2.5


@dataclass(slots=True, kw_only=True)
class ProxyConfig:
    processes: int = 1  # one core each; all on one port
    http_port: int = 0  # 0: any free one, kept over restarts
    tls_cert: str | None = None
    tls_key: str | None = None
    limits: LimitsConfig = field(default_factory=LimitsConfig)
    deadlines: DeadlinesConfig = field(default_factory=DeadlinesConfig)


class PlannerMode(Enum):
    off = "off"
    advise = "advise"  # says what it would do
    on = "on"


@dataclass(slots=True, kw_only=True)
class PlannerConfig:
    mode: PlannerMode = PlannerMode.off
    min_replicas: int | None = None  # of each pool; null: its own replicas
    max_replicas: int | None = None
    budget_gpu_hours: float | None = None  # of all workers since the run's start; null: no limit
    idle_to_zero_s: float | None = None  # without requests; null: never to zero


class BatchOrder(Enum):
    input = "input"  # as in the input, written at the end
    finish = "finish"  # as they finish, while it runs


@dataclass(slots=True, kw_only=True)
class BatchConfig:
    """Of action=batch."""

    input: Any = None  # a file, a glob, or a list of them
    output: str | None = None
    errors: str | None = None  # null: beside the output
    order: BatchOrder = BatchOrder.input
    parameters: dict[str, Any] = field(default_factory=dict)  # of plain lines that do not say otherwise
    deadline: str | None = None  # 2026-05-01T08:00 or 3h30m: it stops cleanly before


@dataclass(slots=True, kw_only=True)
class WorkloadConfig:
    """Of action=simulate and action=capacity: a trace, or a description."""

    trace: str | None = None  # a Mooncake .jsonl or an Azure .csv
    rate: float | None = None  # requests per second; null: the trace's own, or 1
    requests: int | None = None  # how many; null: all of the trace, or 2000
    prompt_tokens: float = 2000.0  # these describe it where there is no trace; lengths are means
    output_tokens: float = 250.0
    spread: float = 0.6  # of the logarithms of lengths
    reuse: float = 0.0  # the part of prompts that is one of a few beginnings
    seed: int = 1


@dataclass(slots=True, kw_only=True)
class PredictConfig:
    profiles: dict[str, str] = field(default_factory=dict)  # of measured engines, by layout: tp1, tp8, tp4pp2
    percentile: float = 90.0  # of TTFT and of ITL, that routing.targets are for
    max_gpus: int | None = None  # null: all of the cluster's
    queue_s: float | None = None  # median wait in Slurm's queue; null: workers neither come nor go
    start_s: float = 120.0  # median time from a job's start until its worker serves
    time_spread: float = 0.5  # of the logarithms of both
    failures_per_day: float = 0.0  # of each worker
    output: str | None = None  # a folder for JSON and picture


@dataclass(slots=True, kw_only=True)
class ProfileConfig:
    """Of action=profile."""

    time_limit_s: float = 600.0  # then it ends with what there is; the same command goes on


@dataclass(slots=True, kw_only=True)
class ControllerConfig:
    """Controller and proxy together: one small CPU job, or this terminal."""

    where: ControllerPlace = ControllerPlace.job
    cpus: int = 2
    mem_gb: int | None = 4
    partition: str | None = None  # null: the cluster's
    interface: str | None = None  # that the proxy listens on; null: the cluster's
    walltime_min: int | None = None  # null: the cluster's
    poll_interval_s: float = 30.0  # Slurm is asked no more often than this


@dataclass(slots=True, kw_only=True)
class Config:
    action: Action = Action.up
    run: str | None = None  # null: model and cluster
    runs_dir: str = "runs"
    output: Output = Output.text
    worker: str | None = None  # of logs and profile
    follow: bool = False
    code: CodeOf = CodeOf.run  # that restarted workers get
    submit: bool = False  # of doctor: check compute nodes too, by a small job per partition
    partitions: list[str] = field(default_factory=list)  # of doctor's jobs; none: those of the cluster
    name: str | None = None  # of a new cluster, or of the recipe that capacity writes
    port: int = 8000  # of connect, on this machine
    ssh: str | None = None  # of connect: the host behind which the run lies, as ssh knows it
    timeout_s: float | None = None  # of up and stop; null: as long as Slurm takes
    cluster: ClusterConfig | None = None
    model: ModelConfig = field(default_factory=ModelConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    handoff: HandoffConfig = field(default_factory=HandoffConfig)
    routing: RoutingConfig = field(default_factory=RoutingConfig)
    pools: dict[str, PoolConfig] = field(default_factory=dict)
    planner: PlannerConfig = field(default_factory=PlannerConfig)
    proxy: ProxyConfig = field(default_factory=ProxyConfig)
    controller: ControllerConfig = field(default_factory=ControllerConfig)
    batch: BatchConfig = field(default_factory=BatchConfig)
    workload: WorkloadConfig = field(default_factory=WorkloadConfig)
    predict: PredictConfig = field(default_factory=PredictConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
