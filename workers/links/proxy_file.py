"""`proxies/<id>.json` in the run folder: what one process of a live proxy says of itself.

Owns the file's shape and its reading. The same travels on links, where one process tells of the others.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

log = logging.getLogger("sluice.rendezvous")


class ProxyFile(msgspec.Struct, frozen=True):
    """Where links reach it, and clients."""

    id: str  # never used twice
    addresses: tuple[str, ...]  # tcp://host:port, most likely first
    public_key: str
    http: str
    pid: int


def proxy_of(process: str) -> str:
    """Processes are named PROXY.NUMBER."""
    return process.rpartition(".")[0]


def read_proxies(folder: Path) -> list[ProxyFile]:
    """A file that is gone or half of another version by now is a proxy that is not there."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=ProxyFile))
        except (FileNotFoundError, msgspec.DecodeError) as fault:
            log.warning("skipping %s: %s", path.name, fault)
    return found
