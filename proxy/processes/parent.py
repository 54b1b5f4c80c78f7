"""The shell around the proxy's processes: starts them, hears them, and tells them what the core decides.

Owns the listening sockets, the child processes and the channels to them. Accepts no connection and sees no
request: whatever the processes do for clients, they do without it.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from proxy.processes import family
from proxy.processes import process_events as ev
from proxy.processes.family import PROCESS_WORDS, ChannelToProcess, process_id
from proxy.processes.gathering import Gathering, Notice
from proxy.processes.processes import Processes
from proxy.spec import ProxySpec
from workers.agent.channel import Channel

log = logging.getLogger("sluice.parent")

TICK_S = 0.25
LAST_WORDS_S = 1.0


class Parent:
    """`run` returns the exit status once no process is left."""

    def __init__(self, spec: ProxySpec, spec_path: Path, listeners: Sequence[socket.socket], core: Processes):
        self._spec = spec
        self._spec_path = spec_path
        self._listeners = listeners
        self._core = core
        self._gathering = Gathering()
        self._opened: set[int] = set()  # that can be asked
        self._children: dict[int, asyncio.subprocess.Process] = {}
        self._channels: dict[int, ChannelToProcess] = {}
        self._end: asyncio.Future[ev.End] = asyncio.get_running_loop().create_future()

    async def run(self) -> int:
        async with asyncio.TaskGroup() as self._tasks:
            ticking = self._tasks.create_task(self._tick())
            end = await self._end
            ticking.cancel()
        return 1 if end.failed else 0

    def stop(self) -> None:
        self._close_listeners()
        self._apply(ev.Stop())

    def retire(self) -> None:
        """The processes' own copies of the sockets live on for as long as they take connections."""
        log.info("another proxy serves: finishing what runs")
        self._close_listeners()
        self._apply(ev.Retire())

    def _close_listeners(self) -> None:
        for listener in self._listeners:
            listener.close()

    def hand_over(self) -> None:
        log.info("exchanging all processes, one after the other")
        self._apply(ev.HandOver())

    async def _tick(self) -> None:
        while True:
            self._apply(ev.Tick())
            self._pass_on(self._gathering.tick(self._now))
            await asyncio.sleep(TICK_S)

    @property
    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _apply(self, event: ev.Event) -> None:
        for effect in self._core.apply(event, self._now):
            match effect:
                case ev.Start():
                    self._tasks.create_task(self._live(effect))
                case ev.Say(number, message):
                    self._channels[number].say(message)
                case ev.Kill(number, why):
                    self._kill(number, why)
                case ev.End():
                    self._end.set_result(effect)

    # ------------------------------------------------------------ children

    async def _live(self, start: ev.Start) -> None:
        """One process, from its start to its end."""
        id = process_id(self._spec.proxy, start.number)
        if not self._core.live[start.number].killed:
            await self._one_life(id, start)
        self._apply(ev.Died(start.number))
        await asyncio.to_thread(self._file(id).unlink, missing_ok=True)

    async def _one_life(self, id: str, start: ev.Start) -> None:
        ours, theirs = socket.socketpair()
        descriptors = [listener.fileno() for listener in self._listeners]
        arguments = [self._spec_path, start.number, start.link_port, *descriptors]
        command = (sys.executable, "-m", "proxy.processes.process", *map(str, arguments))
        child = await asyncio.create_subprocess_exec(*command, stdin=theirs.fileno(), pass_fds=descriptors)
        theirs.close()
        log.info("%s started: process %d", id, child.pid)
        channel: ChannelToProcess = await Channel.over(ours, PROCESS_WORDS)
        self._children[start.number], self._channels[start.number] = child, channel
        if self._core.live[start.number].killed:
            child.kill()
        hearing = asyncio.create_task(self._hear(start.number, channel))
        status = await child.wait()
        await asyncio.wait({hearing}, timeout=LAST_WORDS_S)
        hearing.cancel()
        channel.close()
        log.log(logging.ERROR if status else logging.INFO, "%s ended with status %d", id, status)
        del self._children[start.number], self._channels[start.number]
        self._opened.discard(start.number)
        self._pass_on(self._gathering.ended(start.number, self._now))

    async def _hear(self, number: int, channel: ChannelToProcess) -> None:
        async for message in channel.messages():
            match message:
                case family.Opened(file):
                    self._opened.add(number)
                    self._apply(ev.Opened(number, file))
                case family.Seen(serving, proven):
                    self._apply(ev.Seen(number, serving, proven))
                case family.Alive():
                    self._apply(ev.Heard(number))
                case family.Ask():
                    self._pass_on(self._gathering.ask(number, message, self._opened - {number}, self._now))
                case family.Shown():
                    self._pass_on(self._gathering.shown(number, message, self._now))

    def _pass_on(self, notices: Iterable[Notice]) -> None:
        for number, message in notices:
            self._channels[number].say(message)

    def _kill(self, number: int, why: str) -> None:
        log.error("killing %s: %s", process_id(self._spec.proxy, number), why)
        child = self._children.get(number)
        if child is not None and child.returncode is None:
            child.kill()

    def _file(self, id: str) -> Path:
        return Path(self._spec.run_dir) / "proxies" / f"{id}.json"
