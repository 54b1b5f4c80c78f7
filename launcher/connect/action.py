"""`action=connect`: one local port that stays pointed at a run's endpoint, for as long as it runs.

Owns what the endpoint is taken to be, and the words about it. The file is read where the run folder can be seen, or at
the other end of one ssh hop.
"""

from __future__ import annotations

import asyncio
import shlex
import signal
from collections.abc import Coroutine
from typing import Any
from urllib.parse import urlsplit

from launcher.actions import existing_run
from launcher.connect.hop import Hop, tunnel_command
from launcher.connect.relay import LOCALHOST, Address, Relay
from launcher.refusal import Refused
from launcher.rundir import Endpoint, RunDir, read_optional
from launcher.schema import Config
from launcher.start import run_dir

LOOK_EVERY_S = 1.0


class Connection:
    """What is known of the endpoint, and where connections go."""

    def __init__(self, name: str, port: int, host: str | None) -> None:
        self._name = name
        self._port = port
        self._host = host
        self._hop = None if host is None else Hop(host, self.seen, self.tell)
        self._relay = Relay(lambda: self._target, self._hear)
        self._endpoint: Endpoint | None = None
        self._target: Address | None = None
        self._tunnel: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()  # tunnels, and those that wait for their last connection
        self._reached: bool | None = None
        self._told = ""

    def tell(self, words: str) -> None:
        """The same is not said twice in a row."""
        if words != self._told:
            self._told = words
            print(words, flush=True)

    # ------------------------------------------------------------ the endpoint

    def seen(self, endpoint: Endpoint | None) -> None:
        if endpoint is None:
            where = "" if self._host is None else f" at {self._host}"
            self.tell(f"run {self._name} has no endpoint{where}: action=status run={self._name} says why; waiting")
        elif endpoint != self._endpoint:
            self._endpoint, self._reached = endpoint, None
            address = address_of(endpoint)
            if self._hop is None:
                self._point(address)
            else:
                self._open_tunnel(self._hop, address)

    def _open_tunnel(self, hop: Hop, address: Address) -> None:
        if self._tunnel is not None:
            self._keep(self._retire(self._tunnel, self._target))
        self._tunnel = self._keep(hop.tunnel(address, self._point))

    async def _retire(self, tunnel: asyncio.Task[None], target: Address | None) -> None:
        """It ends with the last connection through it."""
        while target is not None and self._relay.num_open(target):  # noqa: ASYNC110 (nothing is in a hurry)
            await asyncio.sleep(LOOK_EVERY_S)
        tunnel.cancel()

    def _keep(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _point(self, target: Address) -> None:
        assert self._endpoint is not None
        self._target = target
        endpoint, over, there = self._endpoint, "", ""
        if self._host is not None:
            over, there = f" over {self._host}", f"{self._host}:"
        url = f"{urlsplit(endpoint.url).scheme}://{LOCALHOST}:{self._port}/v1"
        models = ", ".join(endpoint.models)
        self.tell(f"{url} -> {endpoint.url}{over}; models {models}; key in {there}{endpoint.api_key_file}")

    def _hear(self, works: bool) -> None:
        """Only what is new."""
        if works == self._reached:
            return
        before, self._reached = self._reached, works
        assert self._endpoint is not None
        if works and before is not None:
            self.tell(f"{self._endpoint.url} answers again")
        elif not works:
            command = shlex.join(tunnel_command("LOGIN", self._port, address_of(self._endpoint)))
            self.tell(
                f"{self._endpoint.url} cannot be reached: action=status run={self._name} says whether it lives; "
                f"where only a login node sees it, set ssh=LOGIN, or run: {command}"
            )

    # ------------------------------------------------------------ running

    async def run(self, run: RunDir) -> None:
        """Until cancelled. Raises OSError where the port is taken, FileNotFoundError without an ssh."""
        server = await self._relay.serve(self._port)
        try:
            await (self._watch(run) if self._hop is None else self._hop.watch(str(run.endpoint)))
        finally:
            server.close()
            for task in tuple(self._tasks):
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _watch(self, run: RunDir) -> None:
        while True:
            self.seen(await asyncio.to_thread(read_optional, run.endpoint, Endpoint))
            await asyncio.sleep(LOOK_EVERY_S)


def address_of(endpoint: Endpoint) -> Address:
    parts = urlsplit(endpoint.url)
    assert parts.hostname is not None
    return parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def connect(config: Config) -> int:
    """Ctrl-C and SIGTERM end it."""
    run = existing_run(config)[0] if config.ssh is None else run_dir(config)
    asyncio.run(_until_ended(config, run))
    return 0


async def _until_ended(config: Config, run: RunDir) -> None:
    task = asyncio.current_task()
    assert task is not None
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, task.cancel)
    try:
        await Connection(str(config.run), config.port, config.ssh).run(run)
    except asyncio.CancelledError:
        print("disconnected", flush=True)
    except OSError as fault:
        raise Refused([_refusal(config, run, fault)]) from None


def _refusal(config: Config, run: RunDir, fault: OSError) -> str:
    if isinstance(fault, FileNotFoundError) and config.ssh is not None:
        command = shlex.join(["ssh", "-N", "-L", f"{config.port}:HOST:PORT", config.ssh])
        return f"ssh: there is none on this machine; with HOST and PORT of {run.endpoint}, elsewhere: {command}"
    return f"port: {config.port} cannot be opened on {LOCALHOST}: {fault.strerror}; set another with port="
