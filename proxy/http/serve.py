"""The HTTP server: accepts, counts connections, sweeps their clocks, drains.

Owns the one timer of all connections; the sockets it accepts on are lent to it. A request is `admit`ted when
its head is complete, before its body is read, and handed to `handler` when it is whole; both are plain calls
on the event loop. Knows nothing of routes, keys or workers, and never waits for a client.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl as tls
from collections.abc import Mapping

from proxy.http.exchange import Exchange
from proxy.http.http_connection import Connection
from proxy.http.listening import BACKLOG
from proxy.http.request_reader import Admit
from proxy.http.service import Handler, Service
from proxy.spec import Limits
from workers.beat import next_mark

__all__ = ["Exchange", "Server"]

SWEEP_S = 1.0


class Server:
    """All connections of this process."""

    def __init__(self) -> None:
        self._accepting: dict[int, asyncio.Server] = {}
        self._service: Service | None = None
        self._ssl: tls.SSLContext | None = None
        self._timer: asyncio.TimerHandle | None = None

    def start(self, handler: Handler, admit: Admit, limits: Limits, ssl: tls.SSLContext | None = None) -> None:
        """Ready to `accept_on`."""
        self._service = Service(handler, admit, limits)
        self._ssl = ssl
        self._timer = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    async def accept_on(self, listeners: Mapping[int, socket.socket]) -> None:
        """On these and no others, from now on. What waits in a queue stays there for whoever else holds its socket."""
        service = self._running
        for number in self._accepting.keys() - listeners.keys():
            self._accepting.pop(number).close()
        for number in listeners.keys() - self._accepting.keys():
            self._accepting[number] = await asyncio.get_running_loop().create_server(
                lambda: Connection(service),
                sock=listeners[number].dup(),
                backlog=BACKLOG,
                ssl=self._ssl,
                ssl_handshake_timeout=service.limits.header_timeout_s if self._ssl else None,
            )

    @property
    def connections(self) -> int:
        return len(self._running.connections)

    @property
    def draining(self) -> bool:
        """While true every answer ends its connection."""
        return self._running.draining

    @draining.setter
    def draining(self, draining: bool) -> None:
        self._running.draining = draining

    @property
    def _running(self) -> Service:
        assert self._service is not None, "not started"
        return self._service

    async def close(self, grace_s: float) -> None:
        """Let what runs finish for so long, then cut it."""
        for connection in list(self._running.connections):
            connection.close_if_idle()
        await self.retire(grace_s)

    async def retire(self, grace_s: float) -> None:
        """Like `close`, but a client that waits to ask again may still do so once: closing a connection just when
        a request is on its way would lose it."""
        await self.accept_on({})
        service = self._running
        service.draining = True
        with contextlib.suppress(TimeoutError):
            await self._all_gone(grace_s)
        for connection in list(service.connections):
            connection.transport.abort()
        await self._all_gone(None)
        if self._timer is not None:
            self._timer.cancel()

    async def _all_gone(self, timeout_s: float | None) -> None:
        service = self._running
        service.emptied.clear()
        if service.connections:
            async with asyncio.timeout(timeout_s):
                await service.emptied.wait()

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        self._running.sweep(loop.time())
        self._timer = loop.call_at(next_mark(loop.time(), SWEEP_S), self._sweep)
