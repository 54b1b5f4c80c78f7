"""How a worker, or the controller, finds the proxy's processes, and keeps one link to each.

Owns the links. One process tells of the others, so the run folder's `proxies/` is read only while there
is no link to any that stays: in a thread, from 2 s doubling to 15 s with jitter, for shared file systems
hang, and a thousand workers must not storm one.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from workers.links.link import Link
from workers.links.proxy_file import ProxyFile, read_proxies
from workers.protocol import Registered

log = logging.getLogger("sluice.rendezvous")

FIRST_DELAY_S = 2.0
LAST_DELAY_S = 15.0
AFTER_LOSS_S = 0.2
PROBE_TIMEOUT_S = 3.0

# Given a proxy, the endpoint that answered, and what to call when the link is lost.
OpenLink = Callable[[ProxyFile, str, Callable[[str, bool], None]], Link]


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
        self._told: dict[str, tuple[ProxyFile, ...] | None] = {}  # by each linked proxy, of its processes
        self._news = asyncio.Event()  # a link is lost, or a proxy tells of another
        self._final: str | None = None
        self.links: dict[str, Link] = {}

    async def run(self) -> None:
        delay_s = FIRST_DELAY_S
        while self._final is None:
            self._news.clear()
            if await self._connect():
                await self._news.wait()
                delay_s = FIRST_DELAY_S
                await asyncio.sleep(AFTER_LOSS_S * (1 + random.random()))
            else:
                await self._news_within(delay_s * random.uniform(0.75, 1.25))
                delay_s = min(LAST_DELAY_S, 2 * delay_s)
        raise RefusedForGood(self._final)

    def heard(self, proxy: str, message: Registered) -> None:
        """What a proxy says of its processes. Of one that has ended nobody waits for its silence."""
        if proxy in self.links and self._told[proxy] != message.processes:
            self._told[proxy] = message.processes
            self._news.set()
        for ended in message.ended:
            if ended in self.links:
                self.links[ended].lose(f"the process has ended, says {proxy}")

    def close(self, reason: str, *, as_asked: bool = False) -> None:
        for link in self.links.values():
            link.close(reason, as_asked=as_asked)
        self.links.clear()
        self._told.clear()

    def abandon(self) -> None:
        for link in self.links.values():
            link.abandon()
        self.links.clear()
        self._told.clear()

    async def _news_within(self, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._news.wait()
        except TimeoutError:
            pass

    async def _connect(self) -> bool:
        """True once there is a link to every process that is known of, and to any at all."""
        found = self._known()
        if found is None:
            found = await asyncio.to_thread(read_proxies, self._folder)
        complete = True
        for proxy in found:
            if proxy.id not in self.links:
                complete = await self._open(proxy) and complete
        return complete and self._known() is not None

    def _known(self) -> list[ProxyFile] | None:
        """By the word of those that stay; None where there is no link to such a one."""
        staying = [told for proxy, told in self._told.items() if told is None or proxy in [one.id for one in told]]
        return list({one.id: one for told in staying for one in told or ()}.values()) if staying else None

    async def _open(self, proxy: ProxyFile) -> bool:
        endpoint = await reachable(proxy.addresses)
        if endpoint is None:
            log.info("proxy %s does not answer at %s", proxy.id, " ".join(proxy.addresses))
            return False
        self._told[proxy.id] = None
        self.links[proxy.id] = self._open_link(proxy, endpoint, self._on_lost(proxy.id))
        return True

    def _on_lost(self, proxy: str) -> Callable[[str, bool], None]:
        def lost(reason: str, final: bool) -> None:
            log.warning("link to proxy %s lost: %s", proxy, reason)
            self.links.pop(proxy, None)
            self._told.pop(proxy, None)
            if final:
                self._final = f"proxy {proxy} refused this worker: {reason}"
            self._news.set()

        return lost


class RefusedForGood(Exception):
    """Registering again will not help: another protocol, or a worker that is there already."""
