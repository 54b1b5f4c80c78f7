"""The process of one engine: `python -m workers.engine_process SPEC PLACEMENT`, started by the agent.

Owns the engine's start and end and the host that serves it. Its standard input is the channel to the
agent: when that closes the agent is dead, and the whole process group ends at once, so that nothing
is left on the node's GPUs. It reacts to none of Slurm's signals; the agent does.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import time
from contextlib import AsyncExitStack
from pathlib import Path

import uvloop
import zmq

from workers.channel import Broken, Channel, Finish, Idle, Ready
from workers.engines import Placement, engine_start
from workers.faults import story
from workers.host import Host
from workers.logs import start_logging
from workers.rendezvous import RefusedForGood
from workers.spec import WorkerSpec, read_spec
from workers.zmq_loop import read_keys

log = logging.getLogger("sluice.engine")

IDLE_POLL_S = 0.1
ENGINE_POLL_S = 0.5
# Every process of a step gets Slurm's warnings; only those that ignore them live on.
SLURM_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT, signal.SIGHUP)


class EngineDied(Exception):
    """The engine's own processes are beyond recovery."""


async def serve(spec: WorkerSpec, placement: Placement, channel: Channel) -> None:
    """Until the agent is gone or the engine is."""
    keys = read_keys(spec.run_dir, "worker")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    async with AsyncExitStack() as stack:
        stack.callback(context.destroy, linger=0)
        started = time.monotonic()
        # A dead agent must end a load that may take minutes.
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(end_with_agent(channel))
            start = engine_start(spec.engine.kind)
            engine = await stack.enter_async_context(start(spec.engine, placement))
            watch.cancel()
        host = Host(spec, engine, placement, keys, context)
        channel.say(Ready(f"loaded in {time.monotonic() - started:.0f} s"))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(host.serve())
            tasks.create_task(obey(channel, host))
            while True:
                await asyncio.sleep(ENGINE_POLL_S)
                if not engine.alive():
                    raise EngineDied("the engine's core process has died; its log is above")


async def end_with_agent(channel: Channel) -> None:
    async for _ in channel.messages():
        pass
    end_group()


async def obey(channel: Channel, host: Host) -> None:
    """The agent's word. `Finish` is answered with Idle; the end of the channel ends everything."""
    async for message in channel.messages():
        if type(message) is Finish:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(say_when_idle(channel, host, message.timeout_s))
    host.rendezvous.close("the agent has died")
    await asyncio.sleep(IDLE_POLL_S)  # let the goodbye leave: it is how proxies learn at once
    end_group()


async def say_when_idle(channel: Channel, host: Host, timeout_s: float) -> None:
    for _ in range(int(timeout_s / IDLE_POLL_S)):
        if host.idle:
            break
        await asyncio.sleep(IDLE_POLL_S)
    host.rendezvous.close("drained")
    await asyncio.sleep(IDLE_POLL_S)
    channel.say(Idle())


def end_group() -> None:
    """The engine's own children share our process group; none may outlive us."""
    os.killpg(0, signal.SIGKILL)


async def main(spec: WorkerSpec, placement: Placement) -> None:
    channel = await Channel.over(socket.socket(fileno=os.dup(0)))
    try:
        await serve(spec, placement, channel)
    except* (EngineDied, RefusedForGood) as group:
        reason = story(group)
        log.error("%s", reason)
        channel.say(Broken(reason))
        await asyncio.sleep(IDLE_POLL_S)
        raise SystemExit(1) from None


def run() -> None:
    for number in SLURM_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    start_logging("engine")
    spec = read_spec(Path(sys.argv[1]), WorkerSpec)
    placement = read_spec(Path(sys.argv[2]), Placement)
    if placement.node_rank > 0:
        from workers.engines.vllm import run_headless

        run_headless(spec.engine, placement)
    else:
        uvloop.run(main(spec, placement))


if __name__ == "__main__":
    run()
