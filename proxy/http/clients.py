"""Who waits for an answer: a client on an HTTP connection, or a proof of our own.

Owns how an answer reaches whoever asked, and how a broken one looks. `write` of a client is the
streaming path: it is the exchange's own method, with nothing in between.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from proxy import errors, routes
from proxy.errors import ApiError, Headers
from proxy.header_names import REQUEST_ID
from proxy.http.exchange import Exchange

MAX_ECHOED_ID = 128


class Client(Protocol):
    """Exactly one of `reject`, or `begin` and later `finish` or `break_off`."""

    @property
    def write(self) -> Callable[[bytes], None]: ...
    def begin(self, status: int, headers: Headers, served_by: Headers, data: bytes) -> None: ...
    def finish(self, data: bytes) -> None: ...
    def reject(self, error: ApiError) -> None: ...
    def break_off(self, error: ApiError) -> None: ...


class HttpClient:
    """A client's exchange. Its own request id is echoed and used for nothing else."""

    def __init__(self, exchange: Exchange, request_id: str, count: Callable[[str, int], None]) -> None:
        self._exchange = exchange
        self._count = count
        self._streams = False
        self.request_id = request_id
        self.write = exchange.write
        self._ids: Headers = (
            (b"x-request-id", echoed_id(exchange) or request_id.encode()),
            (REQUEST_ID, request_id.encode()),
        )

    def begin(self, status: int, headers: Headers, served_by: Headers, data: bytes) -> None:
        self._count(self._exchange.path, status)
        named = {name.lower(): value for name, value in headers}
        self._streams = named.get(b"content-type", b"").startswith(b"text/event-stream")
        length = named.get(b"content-length")
        self._exchange.start(
            status,
            (*routes.to_client(named), *self._ids, *served_by),
            length=int(length) if length is not None else None,
            data=data,
        )

    def finish(self, data: bytes) -> None:
        self._exchange.end(data)

    def reject(self, error: ApiError) -> None:
        status, headers, body = errors.response(error)
        self._count(self._exchange.path, status)
        self._exchange.respond(status, (*headers, *self._ids), body)

    def break_off(self, error: ApiError) -> None:
        """A stream says what happened and lacks its [DONE]; anything else is cut, and so cannot look whole."""
        if self._streams:
            self._exchange.keep_alive = False
            self._exchange.end(errors.sse_event(error))
        else:
            self._exchange.abort()


class ProofClient:
    """A proof of our own: only the outcome counts."""

    def __init__(self, done: Callable[[str | None], None]) -> None:
        self._done = done
        self._status = 0
        self._answer = b""

    def write(self, data: bytes) -> None:
        """Kept for the words of a refusal."""
        self._answer += data

    def begin(self, status: int, headers: Headers, served_by: Headers, data: bytes) -> None:
        self._status = status
        self._answer += data

    def finish(self, data: bytes) -> None:
        self._answer += data
        refused = f"status {self._status}: {self._answer[:300].decode(errors='replace')}"
        self._done(None if self._status == 200 else refused)

    def reject(self, error: ApiError) -> None:
        self._done(error.message)

    break_off = reject


def echoed_id(exchange: Exchange) -> bytes | None:
    """A client's X-Request-Id, if it is one that may stand in a header."""
    value = exchange.headers.get(b"x-request-id", b"")
    return value if 0 < len(value) <= MAX_ECHOED_ID and value.isascii() else None
