"""What one worker runs: frozen, complete, written by the launcher as JSON, read by the agent and the host.

Owns the specs' shape and their files. Decides nothing and imports neither torch nor vllm. Holds no
secret: keys stay in the run folder's `keys/`.
"""

from __future__ import annotations

import os
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import msgspec


class Role(StrEnum):
    """What a worker is kept for. Every capable engine can do both; a role is caps in the proxy."""

    PREFILL = "prefill"
    DECODE = "decode"
    ANY = "any"


class HandoffSpec(msgspec.Struct, frozen=True, kw_only=True):
    """How KV travels from a prefill worker to a decode worker."""

    connector: str  # NixlConnector: decode reads; NixlPushConnector: prefill writes
    buffer_device: str  # cuda | cpu
    lease_s: float  # how long a prefill worker keeps unread blocks
    redeem_s: float  # a ticket older than this is refused by the decode host


class EngineSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One engine, as `workers.engines` is asked to start it."""

    kind: str  # a key of workers.engines.ENGINES
    version: str | None  # checked before anything is loaded
    device: str  # cuda | cpu
    model_path: str
    served_names: tuple[str, ...]
    max_model_len: int | None
    block_size: int
    tensor_parallel: int
    pipeline_parallel: int
    args: dict[str, Any]  # the engine's own flags, passed through
    environment: dict[str, str]
    prefix: tuple[str, ...]  # in front of the engine host's command: apptainer exec --nv image.sif
    python: str | None = None  # behind the prefix; None: the agent's
    handoff: HandoffSpec | None


class WorkerSpec(msgspec.Struct, frozen=True, kw_only=True):
    """One life of one worker."""

    run: str
    run_dir: str
    worker: str  # decode-0
    pool: str
    role: Role
    generation: int
    index: int  # unique in the run; ports are derived from it
    num_nodes: int
    gpus_per_node: int
    engine: EngineSpec
    interface: str | None  # the network interface that peers reach; None: the default route's
    cache_dir: str  # what engines compile and keep, by version and device
    stage_dir: str | None  # of the node's own disk: the model is copied there first
    code: str  # hash of the code snapshot
    interpreter: str
    load_timeout_s: float
    drain_timeout_s: float
    step_timeout_s: float = 30.0  # an engine whose step takes longer hangs
    hosts_per_worker: int = 1
    takes_turns: bool = False  # to read the model, by the proxy's word
    revision: int = 0  # of the plan it is from

    @property
    def engine_python(self) -> str:
        return self.engine.python or self.interpreter


S = TypeVar("S", bound=msgspec.Struct)


def read_spec(path: Path, kind: type[S]) -> S:
    """Raises FileNotFoundError, or msgspec.ValidationError naming the field."""
    return msgspec.json.decode(path.read_bytes(), type=kind)


def write_json(path: Path, value: Any, mode: int = 0o600) -> None:
    """Write a file whole or not at all: others on a shared file system may read it at any moment."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(value), indent=2))
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
