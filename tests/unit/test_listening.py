"""The sockets that clients connect to, real ones."""

import asyncio
import socket
from contextlib import ExitStack
from pathlib import Path

import pytest

from proxy.__main__ import CannotServe, check_tls, listeners_at, own_address
from proxy.http.listening import open_listeners
from tests.unit.proxies import proxy_spec

HOST = "127.0.0.1"


def accepted(listener: socket.socket) -> list[socket.socket]:
    found = []
    while True:
        try:
            found.append(listener.accept()[0])
        except BlockingIOError:
            return found


def test_connections_are_dealt_out_to_all_on_one_address() -> None:
    with ExitStack() as stack:
        listeners = [stack.enter_context(listener) for listener in open_listeners(HOST, 0, 3)]
        (address,) = {listener.getsockname() for listener in listeners}
        for _ in range(300):
            stack.enter_context(socket.create_connection(address))
        numbers = []
        for listener in listeners:
            connections = accepted(listener)
            numbers.append(len(connections))
            for connection in connections:
                assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
                connection.close()
    assert sum(numbers) == 300
    assert min(numbers) > 50


def test_an_address_is_not_shared_with_another_proxy_of_the_same_user() -> None:
    with ExitStack() as stack:
        listeners = [stack.enter_context(listener) for listener in open_listeners(HOST, 0, 2)]
        with pytest.raises(OSError, match="in use"):
            open_listeners(HOST, listeners[0].getsockname()[1], 2)


def test_what_is_configured_and_not_to_be_had_is_told_with_its_key(tmp_path: Path) -> None:
    with ExitStack() as stack:
        (listener,) = [stack.enter_context(listener) for listener in open_listeners(HOST, 0, 1)]
        port = listener.getsockname()[1]
        with pytest.raises(CannotServe, match=rf"^proxy.http_port: {port} of {HOST} on .*Address already in use; set"):
            asyncio.run(listeners_at(HOST, 0, proxy_spec(http_port=port)))
    with pytest.raises(CannotServe, match=r"^controller.interface \(null: cluster.interface\): .* no interface ib7"):
        own_address(proxy_spec(interface="ib7"))
    broken = tmp_path / "cert.pem"
    broken.write_text("not a certificate")
    for cert in (broken, tmp_path / "missing.pem"):
        with pytest.raises(CannotServe, match=r"^proxy.tls_cert, tls_key: .*; give a certificate with its key"):
            check_tls(proxy_spec(tls_cert=str(cert), tls_key=str(broken)))


def test_what_waits_in_a_queue_outlives_the_process_that_would_have_taken_it() -> None:
    """Its copy of the socket is closed; whoever holds another takes the connection."""
    with ExitStack() as stack:
        (listener,) = [stack.enter_context(listener) for listener in open_listeners(HOST, 0, 1)]
        copy = listener.dup()
        client = stack.enter_context(socket.create_connection(listener.getsockname()))
        client.sendall(b"hello")
        copy.close()
        (connection,) = accepted(listener)
        with connection:
            connection.setblocking(True)
            assert connection.recv(5) == b"hello"
