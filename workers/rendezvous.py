"""How a worker finds the proxies of its run, and keeps one link to each.

Owns the links. Reads the run folder's `proxies/` only while there is no link, in a thread, from 2 s
doubling to 15 s with jitter: shared file systems hang, and a thousand workers must not storm one.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from workers.link import Link

log = logging.getLogger("sluice.rendezvous")

FIRST_DELAY_S = 2.0
LAST_DELAY_S = 15.0
AFTER_LOSS_S = 0.2
PROBE_TIMEOUT_S = 3.0


class ProxyFile(msgspec.Struct, frozen=True):
    """`proxies/<id>.json`, written by a live proxy."""

    id: str
    addresses: tuple[str, ...]  # tcp://host:port, most likely first
    public_key: str
    http: str
    pid: int


# Given a proxy, the endpoint that answered, and what to call when the link is lost.
OpenLink = Callable[[ProxyFile, str, Callable[[str, bool], None]], Link]


def read_proxies(folder: Path) -> list[ProxyFile]:
    """A file that is gone or half of another version by now is a proxy that is not there."""
    found = []
    for path in sorted(folder.glob("*.json")):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=ProxyFile))
        except (FileNotFoundError, msgspec.DecodeError) as fault:
            log.warning("skipping %s: %s", path.name, fault)
    return found


async def reachable(addresses: tuple[str, ...]) -> str | None:
    """The first of a proxy's candidate addresses that takes a connection from here."""
    for address in addresses:
        parts = urlsplit(address)
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                _, writer = await asyncio.open_connection(parts.hostname, parts.port)
        except (OSError, TimeoutError):
            continue
        writer.close()
        return address
    return None


class Rendezvous:
    """Keeps `links` (by proxy id). A final refusal ends `run` with RefusedForGood."""

    def __init__(self, folder: Path, open_link: OpenLink) -> None:
        self._folder = folder
        self._open_link = open_link
        self._lost = asyncio.Event()
        self._final: str | None = None
        self.links: dict[str, Link] = {}

    async def run(self) -> None:
        delay_s = FIRST_DELAY_S
        while self._final is None:
            self._lost.clear()
            await self._connect()
            if self.links:
                await self._lost.wait()
                delay_s = FIRST_DELAY_S
                await asyncio.sleep(AFTER_LOSS_S * (1 + random.random()))
            else:
                await asyncio.sleep(delay_s * random.uniform(0.75, 1.25))
                delay_s = min(LAST_DELAY_S, 2 * delay_s)
        raise RefusedForGood(self._final)

    def close(self, reason: str) -> None:
        for link in self.links.values():
            link.close(reason)
        self.links.clear()

    async def _connect(self) -> None:
        for proxy in await asyncio.to_thread(read_proxies, self._folder):
            if proxy.id in self.links:
                continue
            endpoint = await reachable(proxy.addresses)
            if endpoint is None:
                log.info("proxy %s does not answer at %s", proxy.id, " ".join(proxy.addresses))
                continue
            self.links[proxy.id] = self._open_link(proxy, endpoint, self._on_lost(proxy.id))

    def _on_lost(self, proxy: str) -> Callable[[str, bool], None]:
        def lost(reason: str, final: bool) -> None:
            log.warning("link to proxy %s lost: %s", proxy, reason)
            self.links.pop(proxy, None)
            if final:
                self._final = f"proxy {proxy} refused this worker: {reason}"
            self._lost.set()

        return lost


class RefusedForGood(Exception):
    """Registering again will not help: another protocol, or a worker that is there already."""
