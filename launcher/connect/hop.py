"""One ssh hop: the endpoint's file read there, and a tunnel to wherever it says.

Owns the ssh processes. Questions and faults of ssh itself go to the terminal.
"""

from __future__ import annotations

import asyncio
import shlex
import socket
from asyncio import subprocess
from collections.abc import Callable, Sequence

import msgspec

from launcher.connect.relay import LOCALHOST, Address, reach
from launcher.rundir import Endpoint

LOOK_EVERY_S = 5
END_S = 5.0
FIRST_DELAY_S = 1.0
LAST_DELAY_S = 30.0
OPEN_S = 30.0
ALIVE = ("-o", "ServerAliveInterval=15", "-o", "ServerAliveCountMax=3")


def tunnel_command(host: str, port: int, target: Address) -> list[str]:
    """What a person would type."""
    address = f"[{target[0]}]" if ":" in target[0] else target[0]
    return ["ssh", "-N", "-L", f"{port}:{address}:{target[1]}", host]


def watch_command(host: str, path: str) -> list[str]:
    """A line with the file's content every few seconds, over one login; an empty one where there is no such file."""
    look = f"cat {shlex.quote(path)} 2> /dev/null | tr -d '\\n'; echo"
    return ["ssh", *ALIVE, host, f"while {look}; do sleep {LOOK_EVERY_S}; done"]


class Hop:
    """`on_endpoint(endpoint)` hears what the file says, `tell(words)` what goes wrong."""

    def __init__(self, host: str, on_endpoint: Callable[[Endpoint | None], None], tell: Callable[[str], None]) -> None:
        self._host = host
        self._on_endpoint = on_endpoint
        self._tell = tell

    async def watch(self, path: str) -> None:
        """Until cancelled. Raises FileNotFoundError without an ssh."""
        delay_s = FIRST_DELAY_S
        while True:
            ours, theirs = socket.socketpair()
            process = await asyncio.create_subprocess_exec(
                *watch_command(self._host, path), stdin=subprocess.DEVNULL, stdout=theirs.fileno()
            )
            theirs.close()
            lines, writer = await asyncio.open_connection(sock=ours)
            try:
                async for line in lines:
                    delay_s = FIRST_DELAY_S
                    self._on_endpoint(_decoded(line))
                self._tell(f"ssh {self._host} ended with status {await process.wait()}: trying again")
            finally:
                writer.close()
                await _end(process)
            await asyncio.sleep(delay_s)
            delay_s = min(LAST_DELAY_S, 2 * delay_s)

    async def tunnel(self, target: Address, on_open: Callable[[Address], None]) -> None:
        """Keeps one open until cancelled."""
        delay_s = FIRST_DELAY_S
        while True:
            local = (LOCALHOST, _free_port())
            command = tunnel_command(self._host, local[1], target)
            options: Sequence[str] = ("-o", "ExitOnForwardFailure=yes", *ALIVE)
            process = await asyncio.create_subprocess_exec(command[0], *options, *command[1:], stdin=subprocess.DEVNULL)
            try:
                if await _opened(process, local):
                    delay_s = FIRST_DELAY_S
                    on_open(local)
                status = await process.wait()
                self._tell(f"no tunnel, ssh ended with status {status}; by hand: {shlex.join(command)}")
            finally:
                await _end(process)
            await asyncio.sleep(delay_s)
            delay_s = min(LAST_DELAY_S, 2 * delay_s)


async def _opened(process: subprocess.Process, local: Address) -> bool:
    give_up_at = asyncio.get_running_loop().time() + OPEN_S
    while process.returncode is None and asyncio.get_running_loop().time() < give_up_at:
        if (stream := await reach(local)) is not None:
            stream[1].close()
            return True
        await asyncio.sleep(0.1)
    return False


async def _end(process: subprocess.Process) -> None:
    if process.returncode is None:
        process.terminate()
        try:
            await asyncio.wait_for(process.wait(), END_S)
        except TimeoutError:
            process.kill()
            await process.wait()


def _decoded(line: bytes) -> Endpoint | None:
    try:
        return msgspec.json.decode(line, type=Endpoint)
    except msgspec.DecodeError:
        return None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOCALHOST, 0))
        port: int = probe.getsockname()[1]
        return port
