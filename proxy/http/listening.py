"""The sockets that clients connect to: one per process, all on one address.

The kernel deals connections out to them (SO_REUSEPORT). They are opened by the one that starts the
processes and kept open by it, so that connections in the queue of a process that has died are still there
for the next. Owns what accepted sockets inherit, and with which certificate. Accepts nothing.
"""

from __future__ import annotations

import socket
import ssl

BACKLOG = 1024
# A node that vanishes sends no FIN: the kernel asks it, so that a silent wait does not hold its work for ever.
_KEEPALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
_UNACKNOWLEDGED_MS = 30_000
# Without it the kernel takes megabytes for a client that does not read, before the proxy's own bound begins to count.
_UNSENT_IN_KERNEL_BYTES = 64 << 10


def open_listeners(host: str, port: int, number: int) -> list[socket.socket]:
    """Raises OSError where the address is taken. Port 0 takes any free one."""
    listeners = [_listener(host, port, alone=True)]
    try:
        port = listeners[0].getsockname()[1]
        listeners += [_listener(host, port, alone=False) for _ in range(1, number)]
    except OSError:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def _listener(host: str, port: int, *, alone: bool) -> socket.socket:
    """`alone`: the first must not share the address with another proxy; those after it share it with the first."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if not alone:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.bind((host, port))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _KEEPALIVE.items():
            listener.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT_IN_KERNEL_BYTES)
        listener.setblocking(False)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    return listener


def tls_context(cert: str | None, key: str | None) -> ssl.SSLContext | None:
    """Raises OSError where the files cannot be read or do not belong together."""
    if cert is None:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    return context
