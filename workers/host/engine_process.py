"""The process of one engine: `python -m workers.host.engine_process SPEC PLACEMENT`, started by the agent.

Owns the engine's start and end and the host that serves it. Its standard input is the channel to the
agent: when that closes the agent is dead, and the whole process group ends at once, so that nothing
is left on the node's GPUs. It reacts to none of Slurm's signals; the agent does.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
from contextlib import AsyncExitStack, ExitStack
from pathlib import Path

import uvloop
import zmq

from workers.agent.channel import ENGINE_WORDS, Alive, Broken, Channel, EngineChannel, Finish, Idle, Ready, Stage
from workers.beat import until_next_mark
from workers.engines import Engine, Placement, engine_start
from workers.faults import story
from workers.host.host import Host
from workers.links.rendezvous import RefusedForGood
from workers.links.zmq_loop import read_keys
from workers.logs import start_logging
from workers.protocol import BEAT_INTERVAL_S
from workers.spec import WorkerSpec, read_spec
from workers.stages import LOAD

log = logging.getLogger("sluice.engine")

GC_THRESHOLD = 50_000  # new objects between two collections
IDLE_POLL_S = 0.1
QUIET_POLLS = 3  # what was sent before the drain was known may still be on its way
ENGINE_POLL_S = 0.5
STEP_POLL_S = 1.0
CLOSE_S = 10.0
# Every process of a step gets Slurm's warnings; only those that ignore them live on.
SLURM_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGCONT, signal.SIGHUP)


class EngineDied(Exception):
    """The engine's own processes are beyond recovery."""


class Finished(Exception):
    """As asked: the agent wants it, or is dead."""


async def serve(spec: WorkerSpec, placement: Placement, channel: EngineChannel) -> None:
    """Raises Finished, EngineDied or RefusedForGood, in a group; the engine is closed by then."""
    keys = read_keys(spec.run_dir, "worker")
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    async with AsyncExitStack() as stack:
        stack.callback(context.destroy, linger=0)
        links = stack.enter_context(ExitStack())  # that are open when an engine dies end before their context
        # A load takes minutes and cannot be broken off: if the agent dies meanwhile, so does all of this at once.
        async with asyncio.TaskGroup() as tasks:
            watch = tasks.create_task(end_with_agent(channel))
            start = engine_start(spec.engine.kind)
            engine = await stack.enter_async_context(start(spec.engine, placement, lambda: channel.say(Stage(LOAD))))
            watch.cancel()
        host = Host(spec, engine, placement, keys, context)
        links.callback(host.rendezvous.abandon)
        # A loaded engine is a heap of objects that stay: nobody is to walk them in the middle of a request.
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        channel.say(Ready())
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(host.serve())
            tasks.create_task(obey(channel, host))
            tasks.create_task(say_alive(channel))
            tasks.create_task(watch_steps(engine, spec.step_timeout_s))
            while True:
                await until_next_mark(ENGINE_POLL_S)
                if not engine.alive():
                    raise EngineDied("the engine's core process has died; its log is above")


async def say_alive(channel: EngineChannel) -> None:
    """By this loop, which carries all streams: if it stands still, so do they."""
    while True:
        channel.say(Alive())
        await until_next_mark(BEAT_INTERVAL_S)


async def watch_steps(engine: Engine, timeout_s: float) -> None:
    """Raises EngineDied if the engine hangs, in its own code or because one of its workers does."""
    while True:
        await until_next_mark(STEP_POLL_S)
        try:
            async with asyncio.timeout(timeout_s):
                await engine.respond()
        except TimeoutError:
            raise EngineDied(f"a step of the engine takes longer than {timeout_s:.0f} s: it hangs") from None


async def end_with_agent(channel: EngineChannel) -> None:
    async for _ in channel.messages():
        pass
    end_group()


async def obey(channel: EngineChannel, host: Host) -> None:
    """The agent's word, and its end. `Finish` is answered with Idle; a further one moves the end of the drain."""
    async with asyncio.TaskGroup() as tasks:
        draining: asyncio.Task[None] | None = None
        async for message in channel.messages():
            if type(message) is Finish:
                if draining is not None:
                    draining.cancel()
                draining = tasks.create_task(drain(channel, host, message.timeout_s))
        host.rendezvous.close("the agent has died")
        end_group_later()
        await asyncio.sleep(IDLE_POLL_S)  # let the goodbye leave: it is how proxies learn at once
        raise Finished


async def drain(channel: EngineChannel, host: Host, timeout_s: float) -> None:
    """Until nothing is left, or the time is over."""
    quiet = 0
    for _ in range(int(timeout_s / IDLE_POLL_S)):
        quiet = quiet + 1 if host.idle else 0
        if quiet == QUIET_POLLS:
            break
        await asyncio.sleep(IDLE_POLL_S)
    host.hand_back("its time to drain is over")
    host.rendezvous.close("drained", as_asked=True)
    channel.say(Idle())
    end_group_later()
    raise Finished


def end_group() -> None:
    """The engine's own children share our process group; none may outlive us."""
    os.killpg(0, signal.SIGKILL)


def end_group_later() -> None:
    """Closing an engine tidies up its shared memory; one that hangs in it is killed all the same."""
    timer = threading.Timer(CLOSE_S, end_group)
    timer.daemon = True
    timer.start()


async def main(spec: WorkerSpec, placement: Placement) -> None:
    channel: EngineChannel = await Channel.over(socket.socket(fileno=take_standard_input()), ENGINE_WORDS)
    try:
        await serve(spec, placement, channel)
    except* Finished:
        log.info("ended")
    except* (EngineDied, RefusedForGood) as group:
        reason = story(group)
        log.error("%s", reason)
        channel.say(Broken(reason))
        await asyncio.sleep(IDLE_POLL_S)
        raise SystemExit(1) from None


def take_standard_input() -> int:
    """The channel's descriptor, out of reach of the engine's own children: held by one, it would never end."""
    channel = os.dup(0)
    with Path(os.devnull).open("rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    return channel


def end_with(channel: int) -> None:
    """A further node's rank blocks its thread and does not notice by itself that the others have gone."""
    while os.read(channel, 4096):
        pass
    end_group()


def run() -> None:
    for number in SLURM_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    start_logging("engine")
    spec = read_spec(Path(sys.argv[1]), WorkerSpec)
    placement = read_spec(Path(sys.argv[2]), Placement)
    if placement.node_rank > 0:
        from workers.engines.vllm.engine import run_headless

        threading.Thread(target=end_with, args=(take_standard_input(),), daemon=True).start()
        run_headless(spec.engine, placement)
    else:
        uvloop.run(main(spec, placement))


if __name__ == "__main__":
    run()
