"""Where this node stands in its worker, found out before anything is loaded.

Owns the head file, by which rank 0 tells the other nodes of the job where to
meet. Starts nothing.
"""

from __future__ import annotations

import asyncio
import math
import time
from pathlib import Path

import msgspec

from workers.agent.network import address_of, bindable_port
from workers.agent.slurm_env import SlurmEnv
from workers.engines import Placement
from workers.faults import WorkerFault
from workers.spec import WorkerSpec, write_json

HEAD_POLL_S = 0.5
HEAD_TIMEOUT_S = 300.0


async def place(spec: WorkerSpec, env: SlurmEnv, incarnation: str, *, local_dir: str, cache_dir: str) -> Placement:
    """Rank 0 decides and tells the others through the run folder. Raises WorkerFault or NetworkFault."""
    own = {"local_dir": local_dir, "cache_dir": cache_dir}
    address = address_of(spec.interface)
    path = head_file(spec, env)
    if env.node_rank > 0:
        # For a turn it waits as long as it takes; if it ends, so does this node's task.
        head = await find_head(path, math.inf if spec.takes_turns else HEAD_TIMEOUT_S)
        return msgspec.structs.replace(head, address=address, node_rank=env.node_rank, **own)
    placement = Placement(
        worker=spec.worker,
        generation=spec.generation,
        session=incarnation,
        address=address,
        interface=spec.interface,
        handoff_port=bindable_port(address, env.job, spec.index, "handoff"),
        head_address=address,
        head_port=bindable_port(address, env.job, spec.index, "head"),
        node_rank=0,
        num_nodes=spec.num_nodes,
        model_path=spec.engine.model_path,
        **own,
    )
    if spec.num_nodes > 1:
        await asyncio.to_thread(write_json, path, placement)
    return placement


def head_file(spec: WorkerSpec, env: SlurmEnv) -> Path:
    """One per life of the worker and of its job: a requeued job keeps its id, and its nodes may be others."""
    life = f"{spec.generation}-{env.job}-{env.restarts}"
    return Path(spec.run_dir) / "specs" / f"{spec.worker}.head.{life}.json"


async def find_head(path: Path, timeout_s: float) -> Placement:
    """Bootstrap is the one thing told through a file: no address is known before it."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            data = await asyncio.to_thread(path.read_bytes)
        except FileNotFoundError:
            await asyncio.sleep(HEAD_POLL_S)
            continue
        return msgspec.json.decode(data, type=Placement)
    raise WorkerFault(f"rank 0 did not write {path.name} within {timeout_s:.0f} s")
