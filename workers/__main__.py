"""`python -m workers SPEC`: the worker agent, as Slurm or the local executor starts it."""

from __future__ import annotations

import sys
from pathlib import Path

import uvloop
import zmq

from workers.agent.agent import Agent
from workers.agent.slurm_env import read_slurm_env
from workers.agent.startup import raise_limits
from workers.logs import start_logging
from workers.spec import WorkerSpec, read_spec


async def main(path: Path) -> int:
    spec = read_spec(path, WorkerSpec)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    try:
        return await Agent(spec, path, read_slurm_env(), context).run()
    finally:
        context.destroy(linger=500)


if __name__ == "__main__":
    raise_limits()
    listener = start_logging("agent")
    status = uvloop.run(main(Path(sys.argv[1])))
    listener.stop()
    raise SystemExit(status)
