"""`python -m proxy SPEC`: the proxy of a run, started by the controller: a parent and its processes.

Owns the address that clients know. A proxy that starts again takes its old ports where it can. SIGTERM stops it,
SIGHUP exchanges its processes one after the other without losing a request. SIGUSR1 says that another proxy serves: it
ends when its last answer has.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import sys
from pathlib import Path
from typing import NamedTuple

from proxy.http.listening import open_listeners, tls_context
from proxy.processes.parent import Parent
from proxy.processes.processes import Processes
from proxy.spec import ProxySpec
from workers.agent.network import NetworkFault, address_of
from workers.links.proxy_file import proxy_of, read_proxies
from workers.logs import start_logging
from workers.spec import read_spec

log = logging.getLogger("sluice.proxy")

# Processes of a parent that has just died let go of their sockets in a moment.
PORT_PATIENCE_S = 2.0
PORT_RETRY_S = 0.1


class CannotServe(Exception):
    """As it is configured; the message names the key."""


class Before(NamedTuple):
    """What is left of the proxy's life before. Port 0: none known."""

    http_port: int
    link_ports: list[int]
    next_number: int


def leftovers(folder: Path, proxy: str) -> Before:
    """Takes the files away: their processes are gone, or are on their way out."""
    files = [file for file in read_proxies(folder) if proxy_of(file.id) == proxy]
    for file in files:
        (folder / f"{file.id}.json").unlink(missing_ok=True)
    numbers = [int(file.id.rpartition(".")[2]) for file in files]
    links = [int(file.addresses[0].rsplit(":", 1)[1]) for file in files]
    http = [int(file.http.rsplit(":", 1)[1]) for file in files]
    return Before(http[0] if http else 0, links, max(numbers, default=-1) + 1)


async def listeners_at(address: str, old_port: int, spec: ProxySpec) -> list[socket.socket]:
    """A configured port is taken or it is an error, CannotServe; an old one is taken if it is free."""
    loop = asyncio.get_running_loop()
    give_up_at = loop.time() + PORT_PATIENCE_S
    while True:
        try:
            return open_listeners(address, spec.http_port or old_port, spec.processes)
        except OSError as fault:
            if loop.time() < give_up_at:
                await asyncio.sleep(PORT_RETRY_S)
            elif spec.http_port:
                wanted = f"proxy.http_port: {spec.http_port} of {address} on {socket.gethostname()}"
                raise CannotServe(f"{wanted}: {fault.strerror}; set another, or 0 for any free one") from fault
            elif not old_port:
                raise
            else:
                return open_listeners(address, 0, spec.processes)


def own_address(spec: ProxySpec) -> str:
    """Raises CannotServe."""
    try:
        return address_of(spec.interface, "controller.interface (null: cluster.interface)")
    except NetworkFault as fault:
        raise CannotServe(str(fault)) from fault


def check_tls(spec: ProxySpec) -> None:
    """Its processes would only say that they cannot start."""
    try:
        tls_context(spec.tls_cert, spec.tls_key)
    except OSError as fault:
        files = f"proxy.tls_cert, tls_key: {spec.tls_cert}, {spec.tls_key} on {socket.gethostname()}"
        raise CannotServe(f"{files}: {fault.strerror}; give a certificate with its key, in PEM format") from fault


async def main(path: Path, spec: ProxySpec) -> int:
    check_tls(spec)
    before = await asyncio.to_thread(leftovers, Path(spec.run_dir) / "proxies", spec.proxy)
    listeners = await listeners_at(own_address(spec), before.http_port, spec)
    core = Processes(spec.processes, spec.deadlines.answer_s, before.next_number, before.link_ports)
    parent = Parent(spec, path, listeners, core)
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, parent.stop)
    loop.add_signal_handler(signal.SIGHUP, parent.hand_over)
    loop.add_signal_handler(signal.SIGUSR1, parent.retire)
    return await parent.run()


if __name__ == "__main__":
    path = Path(sys.argv[1])
    spec = read_spec(path, ProxySpec)
    output = start_logging(spec.proxy)
    try:
        status = asyncio.run(main(path, spec))
    except CannotServe as fault:
        log.error("%s", fault)
        status = 2
    finally:
        output.stop()
    raise SystemExit(status)
