"""The HTTP server: listens, counts connections, sweeps their clocks, drains.

Owns the listening socket and the one timer of all connections. A request is `admit`ted when its head
is complete, before its body is read, and handed to `handler` when it is whole; both are plain calls
on the event loop. Knows nothing of routes, keys or workers, and never waits for a client.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl as tls

from proxy.exchange import Exchange
from proxy.http_connection import Connection, Handler, Service
from proxy.request_reader import Admit
from proxy.spec import Limits

__all__ = ["Exchange", "Server"]

SWEEP_S = 1.0
BACKLOG = 1024
# A node that vanishes sends no FIN: the kernel asks it, so that a silent wait does not hold its work for ever.
_KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
_UNACKNOWLEDGED_MS = 30_000


class Server:
    """One listening socket and its connections."""

    port: int

    def __init__(self) -> None:
        self._server: asyncio.Server | None = None
        self._service: Service | None = None
        self._timer: asyncio.TimerHandle | None = None

    async def start(
        self,
        host: str,
        port: int,
        handler: Handler,
        admit: Admit,
        limits: Limits,
        ssl: tls.SSLContext | None = None,
    ) -> None:
        """Raises OSError where the address is taken. Port 0 takes any free one; see `port`."""
        service = self._service = Service(handler, admit, limits)
        loop = asyncio.get_running_loop()
        listener = _listener(host, port)
        self.port = listener.getsockname()[1]
        handshake_s = limits.header_timeout_s if ssl else None
        self._server = await loop.create_server(
            lambda: Connection(service), sock=listener, backlog=BACKLOG, ssl=ssl, ssl_handshake_timeout=handshake_s
        )
        self._timer = loop.call_later(SWEEP_S, self._sweep)

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

    def stop_accepting(self) -> None:
        """Close the listening socket; open connections go on."""
        if self._server is not None:
            self._server.close()

    async def close(self, grace_s: float) -> None:
        """Let what runs finish for so long, then cut it."""
        self.stop_accepting()
        service = self._running
        service.draining = True
        for connection in list(service.connections):
            connection.close_if_idle()
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
        now = loop.time()
        for connection in list(self._running.connections):
            if connection.deadline < now:
                connection.expire()
        self._timer = loop.call_later(SWEEP_S, self._sweep)


def _listener(host: str, port: int) -> socket.socket:
    """What is set here, accepted sockets inherit."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEPALIVE.items():
        listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
    listener.setblocking(False)
    return listener
