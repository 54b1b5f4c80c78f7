"""Keeps processes running beside the controller: the proxy, and the one for OpenAI's batches.

Owns the child, or the one that a controller which was killed here has left. Same spec and id at every start, so the
proxy takes its old port and file where it can. One that another one follows is seen off.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

log = logging.getLogger("sluice.kept_process")

FIRST_DELAY_S = 0.5
LAST_DELAY_S = 30.0
STEADY_S = 60.0
END_TIMEOUT_S = 15.0


class KeptProcess:
    """A Python module with one argument. `on_death(reason, count)`: it ended by itself, the `count`th time in a row."""

    def __init__(
        self, module: str, argument: Path, log_file: Path, may_stay: Callable[[], bool] = lambda: True
    ) -> None:
        """`may_stay`: whether one that lives already is of use."""
        self._module, self._argument = module, argument
        self._may_stay = may_stay
        self._log_file = log_file
        self._process: Process | None = None
        self._stays = False
        self.on_death: Callable[[str, int], None] = lambda reason, deaths: None

    def leave_alone(self) -> None:
        """When `run` is cancelled it lives on, for the next `run` or for `see_off`."""
        self._stays = True

    async def run(self) -> None:
        """Until cancelled; then the process is ended too."""
        self._stays = False
        loop = asyncio.get_running_loop()
        deaths, delay_s = 0, FIRST_DELAY_S
        while True:
            started_at = loop.time()
            code = await self._one_life()
            if loop.time() - started_at > STEADY_S:
                deaths, delay_s = 0, FIRST_DELAY_S
            deaths += 1
            log.error("%s ended by itself with status %s; see %s", self._module, code, self._log_file)
            self.on_death(f"{self._module} ended with status {code}", deaths)
            await asyncio.sleep(delay_s)
            delay_s = min(LAST_DELAY_S, 2 * delay_s)

    async def see_off(self, number: signal.Signals) -> None:
        """The signal tells it that it is followed. Returns when it has ended; cancelled, it is ended."""
        process = self._process or await self._left()
        if process is None:
            return
        try:
            with suppress(ProcessLookupError):
                process.send_signal(number)
            await process.wait()
        finally:
            await _end(process)

    async def _one_life(self) -> int | None:
        self._process = process = self._process or await self._found()
        try:
            status = await process.wait()
            self._process = None
            return status
        finally:
            if not self._stays:
                self._process = None
                await _end(process)

    async def _left(self) -> Adopted | None:
        """By a controller that was killed here."""
        pid = await asyncio.to_thread(living, self._module, self._argument)
        with suppress(ProcessLookupError):
            return None if pid is None else Adopted(pid)
        return None

    async def _found(self) -> Process:
        left = await self._left()
        if left is not None:
            if await asyncio.to_thread(self._may_stay):
                log.info("%s taken over: process %d", self._module, left.pid)
                return left
            await _end(left)
        self._log_file.parent.mkdir(mode=0o700, exist_ok=True)
        with self._log_file.open("ab") as output:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                self._module,
                str(self._argument),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
        log.info("%s started: process %d", self._module, process.pid)
        return process


class Process(Protocol):
    """What is the same of a child and of an adopted one. The adopted one's exit status is its parent's to know."""

    @property
    def returncode(self) -> int | None: ...

    async def wait(self) -> int | None: ...

    def send_signal(self, signal: signal.Signals, /) -> None: ...

    def terminate(self) -> None: ...

    def kill(self) -> None: ...


class Adopted:
    """A process that somebody else started. Its descriptor cannot come to mean another one."""

    returncode = None

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._descriptor = os.pidfd_open(pid)
        self._ended = asyncio.Event()
        asyncio.get_running_loop().add_reader(self._descriptor, self._ended.set)

    async def wait(self) -> None:
        await self._ended.wait()
        asyncio.get_running_loop().remove_reader(self._descriptor)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def send_signal(self, number: signal.Signals, /) -> None:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._descriptor, number)


def living(module: str, argument: Path) -> int | None:
    """The process on this machine that does this already, by its command line."""
    wanted = [b"-m", module.encode(), os.fsencode(argument)]
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(FileNotFoundError, ProcessLookupError):
                if (entry / "cmdline").read_bytes().split(b"\0")[1:4] == wanted:
                    return int(entry.name)
    return None


async def _end(process: Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(END_TIMEOUT_S):
            await process.wait()
    except TimeoutError:
        log.warning("it did not end within %.0f s: killed", END_TIMEOUT_S)
        process.kill()
        await process.wait()
