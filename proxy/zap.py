"""Who may speak CURVE with this process: the allow-list behind every ZeroMQ server socket.

CURVE alone lets any stranger in; this is the ZAP handler that libzmq asks about each handshake. Owns
the list and the record of who was refused. Runs on the event loop by the socket's file descriptor:
no thread, no task. One handler per ZeroMQ context, started before a protected socket binds. Knows
nothing of what peers say after the handshake; their role is in each frame: `frame.get("User-Id")`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

import zmq
import zmq.utils.z85
from zmq.utils.monitor import parse_monitor_message

log = logging.getLogger(__name__)

_ENDPOINT = "inproc://zeromq.zap.01"
_VERSION = b"1.0"
_DOMAIN = b"sluice"
_MAX_REFUSALS = 64  # strangers come from anywhere: the oldest are forgotten
_MECHANISM_MISMATCH = zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH
_CRYPTOGRAPHIC = zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC


class Zap:
    """`allowed` is peers' public keys (Z85) and the role that each one proves."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], allowed: Mapping[bytes, str]) -> None:
        self._context = context
        self._allowed = {zmq.utils.z85.decode(key): role for key, role in allowed.items()}
        self.num_refused = 0
        self._refusals: dict[str, int] = {}
        self._sockets: list[zmq.Socket[bytes]] = []

    @property
    def refusals(self) -> tuple[str, ...]:
        """Who was refused, why and how often; the latest stranger last."""
        return tuple(f"{story} ({count} times)" for story, count in self._refusals.items())

    def start(self) -> None:
        handler = self._context.socket(zmq.REP)
        handler.linger = 0
        handler.bind(_ENDPOINT)
        self._watch(handler, self._answer)

    def protect(self, socket: zmq.Socket[bytes], public_key: bytes, secret_key: bytes) -> None:
        """Make `socket` a CURVE server behind this list; before it binds."""
        socket.curve_server = True
        socket.curve_publickey = public_key
        socket.curve_secretkey = secret_key
        socket.zap_domain = _DOMAIN
        socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # no handler, no entry
        # A peer that does not even speak CURVE never reaches the handler: only the monitor sees it, unless
        # the peer hangs up first, which looks like a worker that died and is no refusal.
        monitor = socket.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL)
        self._watch(monitor, self._note_failure)

    def stop(self) -> None:
        """Before the protected sockets close."""
        loop = asyncio.get_running_loop()
        for socket in self._sockets:
            loop.remove_reader(socket.FD)
            socket.close()
        self._sockets.clear()

    def _watch(self, socket: zmq.Socket[bytes], take: Callable[[zmq.Socket[bytes], list[bytes]], None]) -> None:
        self._sockets.append(socket)
        asyncio.get_running_loop().add_reader(socket.FD, _drain, socket, take)
        _drain(socket, take)  # arms the descriptor: it tells only of what comes after a read found nothing

    def _answer(self, handler: zmq.Socket[bytes], request: list[bytes]) -> None:
        """RFC 27: version, request id, domain, address, identity, mechanism, credentials ..."""
        _, request_id, _, address, _, mechanism, *credentials = request
        role = self._allowed.get(credentials[0]) if mechanism == b"CURVE" else None
        if role is not None:
            status = [b"200", b"OK", role.encode()]
        else:
            status = [b"400", b"not on the allow-list", b""]
            key = zmq.utils.z85.encode(credentials[0])[:8].decode() if mechanism == b"CURVE" else mechanism.decode()
            self._refuse(f"{address.decode()}: key {key}... is not on the allow-list: not a key of this run")
        handler.send_multipart([_VERSION, request_id, *status, b""])

    def _note_failure(self, _: zmq.Socket[bytes], message: list[bytes]) -> None:
        event = parse_monitor_message(message)
        endpoint = event["endpoint"].decode()
        if event["value"] == _MECHANISM_MISMATCH:
            self._refuse(f"a peer at {endpoint} came without CURVE: it has no key of this run")
        elif event["value"] == _CRYPTOGRAPHIC:
            self._refuse(f"a peer at {endpoint} used another server key: its proxy file is of another proxy")
        else:
            self._refuse(f"a peer at {endpoint} failed its handshake (libzmq error {event['value']:#x})")

    def _refuse(self, story: str) -> None:
        """A stranger knocks again and again: logged once, counted always."""
        self.num_refused += 1
        count = self._refusals.pop(story, 0)
        self._refusals[story] = count + 1
        if count == 0:
            log.warning("refused: %s", story)
        if len(self._refusals) > _MAX_REFUSALS:
            self._refusals.pop(next(iter(self._refusals)))


def _drain(socket: zmq.Socket[bytes], take: Callable[[zmq.Socket[bytes], list[bytes]], None]) -> None:
    """ZeroMQ's file descriptor is edge-triggered: what is not read now is not announced again."""
    while True:
        try:
            message = socket.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        take(socket, message)
