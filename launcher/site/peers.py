"""Which interface reaches the other nodes: rank 0 listens on each, the others knock.

A listener answers only to the token of its own check, and only while that runs; a knock believes only a listener
that knows the token as well.
"""

from __future__ import annotations

import socket
import socketserver
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager

from launcher.site.facts import Interface

KNOCK_TIMEOUT_S = 5.0

Endpoints = dict[str, tuple[str, int]]  # interface -> (address, port)


@contextmanager
def listening(interfaces: Iterable[Interface], token: str) -> Iterator[Endpoints]:
    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            self.request.settimeout(KNOCK_TIMEOUT_S)
            try:
                if _heard(self.request, len(token)) == token.encode():
                    self.request.sendall(_reply(token))
            except OSError:
                pass  # a stranger, or somebody who has left

    with ExitStack() as stack:
        endpoints = {}
        for interface in interfaces:
            server = stack.enter_context(socketserver.ThreadingTCPServer((interface.address, 0), Answer))
            server.daemon_threads = True
            thread = threading.Thread(target=server.serve_forever, args=(0.1,), daemon=True)
            thread.start()
            stack.callback(thread.join)
            stack.callback(server.shutdown)
            endpoints[interface.name] = (interface.address, int(server.server_address[1]))
        yield endpoints


def knock(address: str, port: int, token: str, source: str | None = None) -> str:
    """Why nobody of ours was reached there; empty: somebody was."""
    own = (source, 0) if source else None
    try:
        with socket.create_connection((address, port), KNOCK_TIMEOUT_S, own) as connection:
            connection.sendall(token.encode())
            reply = _heard(connection, len(token))
    except OSError as fault:
        return fault.strerror or str(fault)
    return "" if reply == _reply(token) else "somebody else answers there"


def knock_on_all(endpoints: Endpoints, token: str, interfaces: Iterable[Interface]) -> dict[str, str]:
    """From the interface of the same name, where there is one."""
    own = {each.name: each.address for each in interfaces}
    return {
        name: knock(address, port, token, own[name]) if name in own else "this node has no such interface"
        for name, (address, port) in endpoints.items()
    }


def _reply(token: str) -> bytes:
    return token[::-1].encode()


def _heard(connection: socket.socket, num_bytes: int) -> bytes:
    """What the other side says, up to its end."""
    heard = b""
    while len(heard) < num_bytes and (part := connection.recv(num_bytes - len(heard))):
        heard += part
    return heard
