"""The engine process of this node as its agent sees it: its words, its output, its end.

Owns the child, its process group and the agent's end of the channel. Decides nothing about the worker:
what the engine says is handed on, in order, and its last lines are kept for the story.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
from collections import deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from workers.agent.channel import ENGINE_WORDS, Alive, Broken, Channel, ChannelMessage, EngineChannel, Finish
from workers.agent.guard import guarded
from workers.logs import PASSED_ON
from workers.protocol import BEAT_INTERVAL_S, HOST_SILENCE_S

log = logging.getLogger("sluice.agent")

END_TIMEOUT_S = 12.0  # above the engine process's own limit for closing
TAIL_LINES = 20
LAST_WORDS_S = 1.0
LINE_BYTES = 1 << 16


class EngineChild:
    """See `started`, which makes it and ends it."""

    def __init__(
        self, process: asyncio.subprocess.Process, channel: EngineChannel, on_line: Callable[[str], None]
    ) -> None:
        self._process = process
        self._channel = channel
        self._on_line = on_line
        self._silent_s: float | None = None  # it has not begun to say that it is alive
        self._words: asyncio.Queue[ChannelMessage | None] = asyncio.Queue()
        self.tail: deque[str] = deque(maxlen=TAIL_LINES)

    async def word(self) -> ChannelMessage | None:
        """The next thing the engine process says; None: it has ended."""
        return await self._words.get()

    def finish(self, timeout_s: float) -> None:
        """Ask it to say Idle once nothing is left, or when the time is over."""
        self._channel.say(Finish(timeout_s))

    async def listen(self) -> None:
        async for message in self._channel.messages():
            if type(message) is Alive:
                self._silent_s = 0.0
            else:
                self._words.put_nowait(message)
        self._words.put_nowait(None)

    async def watch_silence(self, limit_s: float = HOST_SILENCE_S) -> None:
        """A process that stands still says nothing, and does not end. Counted in turns of our own: an agent that
        has not run itself has not listened either.
        """
        while self._silent_s is None or self._silent_s < limit_s:
            await asyncio.sleep(BEAT_INTERVAL_S)
            if self._silent_s is not None:
                self._silent_s += BEAT_INTERVAL_S
        self._words.put_nowait(Broken(f"the engine process has stood still for {limit_s:.0f} s"))
        kill_group(self._process.pid)  # it would not hear that it is to end

    async def watch(self, listening: asyncio.Task[None]) -> None:
        """A further node's process says nothing, and one that hangs in its end has closed its channel before.

        What it said last is read first: it may be the reason.
        """
        await self._process.wait()
        await asyncio.wait({listening}, timeout=LAST_WORDS_S)
        self._words.put_nowait(None)

    async def copy_output(self) -> None:
        """The engine's output through our own bounded logging, so that a hung file system never blocks it."""
        assert self._process.stdout is not None
        output = logging.getLogger(PASSED_ON)
        async for line in lines_of(self._process.stdout):
            self.tail.append(line)
            output.info("%s", line)
            self._on_line(line)

    async def end(self) -> None:
        """The end of the channel tells it to end; of the group that it leads, nothing stays."""
        self._channel.close()
        try:
            async with asyncio.timeout(END_TIMEOUT_S):
                await self._process.wait()
        except TimeoutError:
            log.warning("the engine process did not end within %.0f s: killing it", END_TIMEOUT_S)
        kill_group(self._process.pid)
        await self._process.wait()


@asynccontextmanager
async def started(
    command: Sequence[str], environment: Mapping[str, str], on_line: Callable[[str], None] = lambda line: None
) -> AsyncIterator[EngineChild]:
    """The engine process while it is needed; afterwards nothing of it is left. `on_line` hears its output."""
    ours, theirs = socket.socketpair()
    async with AsyncExitStack() as stack:
        command, guard = stack.enter_context(guarded(command))
        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=theirs.fileno(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=dict(environment),
            pass_fds=(guard,),
            start_new_session=True,
        )
        theirs.close()
        child = EngineChild(process, await Channel.over(ours, ENGINE_WORDS), on_line)
        tasks = await stack.enter_async_context(asyncio.TaskGroup())
        tasks.create_task(child.copy_output())  # ends with the group, the last holder of the pipe
        listening = tasks.create_task(child.listen())
        hearing = [listening, *map(tasks.create_task, (child.watch(listening), child.watch_silence()))]
        try:
            yield child
        finally:
            for task in hearing:
                task.cancel()
            await child.end()


def kill_group(pid: int) -> None:
    """All of the process group that this process leads, or has led."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


async def lines_of(stream: asyncio.StreamReader, limit: int = LINE_BYTES) -> AsyncIterator[str]:
    """Lines without their ends; an endless line is cut, not an error."""
    rest = b""
    while data := await stream.read(limit):
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            yield line.decode(errors="replace")
        if len(rest) > limit:
            yield rest.decode(errors="replace")
            rest = b""
    if rest:
        yield rest.decode(errors="replace")
