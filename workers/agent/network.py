"""Addresses and ports of this node: which address peers reach, which ports an engine may take.

Owns no state. Ports that can be bound as 0 and reported are not taken from here.
"""

from __future__ import annotations

import fcntl
import hashlib
import socket
import struct
from contextlib import suppress

# Below the kernel's ephemeral range, so that no outgoing connection sits on a derived port.
FIRST_PORT = 20_000
NUM_PORTS = 12_000
PORT_ATTEMPTS = 64
_SIOCGIFADDR = 0x8915


class NetworkFault(Exception):
    """The node's network is not what the configuration says; the message names the fix."""


def address_of(interface: str | None, key: str = "cluster.interface") -> str:
    """The IPv4 address of `interface`, or of the default route's. Raises NetworkFault listing what there is."""
    return _default_address(key) if interface is None else _interface_address(interface, key)


def _interface_address(interface: str, key: str) -> str:
    known = addresses()
    if interface not in known:
        raise NetworkFault(
            f"{key}: {socket.gethostname()} has no interface {interface} with an IPv4 address; set it to one of"
            f" {', '.join(known)}"
        )
    return known[interface]


def addresses() -> dict[str, str]:
    """Interface -> its IPv4 address, of those that have one."""
    found = {}
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # it has none
                answer = fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack("256s", name.encode()[:15]))
                found[name] = socket.inet_ntoa(answer[20:24])
    return found


def _default_address(key: str) -> str:
    """A connected UDP socket shows the source address the kernel would use; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            raise NetworkFault(f"{key}: {socket.gethostname()} has no default route; set it to an interface") from None
        return str(probe.getsockname()[0])


def derived_port(job: str, worker_index: int, attempt: int, use: str) -> int:
    """A port from (job id, worker index): two runs of two users on one node do not meet; retried by `attempt`."""
    seed = hashlib.sha256(f"{job}/{worker_index}/{use}/{attempt}".encode()).digest()
    return FIRST_PORT + int.from_bytes(seed[:4], "big") % NUM_PORTS


def bindable_port(address: str, job: str, worker_index: int, use: str, attempts: int = PORT_ATTEMPTS) -> int:
    """The first derived port that can be bound now. Raises NetworkFault where none can."""
    words = ""
    for attempt in range(attempts):
        port = derived_port(job, worker_index, attempt, use)
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            try:
                probe.bind((address, port))
            except OSError as fault:
                words = fault.strerror or str(fault)
                continue
            return port
    raise NetworkFault(
        f"none of {attempts} ports for {use} between {FIRST_PORT} and {FIRST_PORT + NUM_PORTS} could be bound on"
        f" {address} ({words}); see what holds them (ss -ltnp), or set cluster.sbatch.exclude to leave this node out:"
        " a new job tries others"
    )
