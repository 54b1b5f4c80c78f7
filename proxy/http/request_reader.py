"""Requests out of bytes: llhttp's callbacks, the limits on what requests may be, and admission.

Owns the parser and the one request that is being read; counts what bodies hold, all connections together.
Reports whole requests to its `Sink`, and raises `Refused` with the answer for what cannot become one; after
that it must not be fed again. Writes nothing and has no clock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import httptools

from proxy.errors import ApiError, BadRequest, HeadersTooLarge, Response, TooLarge, TooManyBytes, response
from proxy.http.exchange import Exchange, Line
from proxy.http.request_head import RequestHead, read_head
from proxy.spec import Limits

Admit = Callable[[Exchange], Response | None]

MAX_HEADERS = 100  # tiny ones take far more memory than their bytes


class Refused(Exception):
    """`exchange` is what was known of the request; the connection must close after the answer."""

    def __init__(self, answer: Response, exchange: Exchange) -> None:
        super().__init__(answer)
        self.answer = answer
        self.exchange = exchange


class Bodies:
    """The bytes of all requests' bodies, from when they are read until they are not needed any more."""

    def __init__(self, limits: Limits) -> None:
        self._limit = limits.max_total_body_bytes
        self.held_bytes = 0

    def expect(self, num_bytes: int) -> None:
        """Raises TooManyBytes: better now than when half of it has been sent."""
        if self.held_bytes + num_bytes > self._limit:
            raise TooManyBytes("this proxy holds as many bytes of requests as it may: try again", retry_after_s=1)

    def take(self, num_bytes: int) -> None:
        self.expect(num_bytes)
        self.held_bytes += num_bytes

    def give_back(self, num_bytes: int) -> None:
        self.held_bytes -= num_bytes


class Sink(Line, Protocol):
    """What a reader needs of its connection."""

    def head_began(self) -> None:
        """The first byte of a request; may raise ApiError."""

    def body_began(self, expects_continue: bool) -> None:
        """The head is complete and admitted."""

    def received(self, exchange: Exchange, refusal: Response | None) -> None:
        """A whole request, and its answer where it was not admitted."""


class RequestReader:
    """The `on_*` methods are llhttp's."""

    def __init__(self, sink: Sink, admit: Admit, limits: Limits, bodies: Bodies) -> None:
        self._sink = sink
        self._admit = admit
        self._limits = limits
        self._bodies = bodies
        self._parser = httptools.HttpRequestParser(self)
        self._barren_bytes = 0  # received since anything came of them
        self._reset()

    def _reset(self) -> None:
        self._exchange: Exchange | None = None  # from the end of the head on
        self._refusal: Response | None = None
        self._target = b""
        self._headers: dict[bytes, bytes] = {}
        self._num_headers = 0
        self._head_bytes = 0
        self._body: bytes | bytearray = b""

    def feed(self, data: bytes) -> None:
        """Raises Refused."""
        self._barren_bytes += len(data)
        try:
            self._parser.feed_data(data)
            # llhttp hands out names and values whole, and chunk extensions never: bound them from outside.
            if self._barren_bytes > self._limits.max_header_bytes:
                raise self._head_too_large()
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if isinstance(cause, Refused):
                raise cause from None
            if isinstance(cause, ApiError):
                raise self.refusal(cause) from None
            raise  # a fault of ours
        except httptools.HttpParserError as error:
            raise self.refusal(BadRequest(f"malformed HTTP request: {error}")) from None
        except ApiError as error:
            raise self.refusal(error) from None

    def refusal(self, error: ApiError) -> Refused:
        """Nothing more is expected of the request that is being read."""
        self.drop_body()
        return Refused(response(error), self._closing_exchange())

    def _closing_exchange(self) -> Exchange:
        method = self._exchange.method if self._exchange is not None else ""
        return Exchange(self._sink, method, "", b"", {}, http10=False, keep_alive=False)

    def drop_body(self) -> None:
        self._bodies.give_back(len(self._body))
        self._body = b""

    def on_message_begin(self) -> None:
        self._barren_bytes = 0
        self._sink.head_began()

    def on_url(self, part: bytes) -> None:
        self._target += part
        self._head_bytes += len(part)
        if self._head_bytes > self._limits.max_header_bytes:
            raise self._head_too_large()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value) + 4
        if self._head_bytes > self._limits.max_header_bytes:
            raise self._head_too_large()
        self._num_headers += 1
        if self._num_headers > MAX_HEADERS:
            raise HeadersTooLarge(f"the request has more than {MAX_HEADERS} headers")
        if self._exchange is not None:
            return  # a trailer, which could contradict what was admitted
        name = name.lower()
        if name in self._headers:
            value = self._headers[name] + b", " + value
        self._headers[name] = value

    def on_headers_complete(self) -> None:
        version = self._parser.get_http_version()
        head = read_head(version, self._target, self._headers, self._parser.should_upgrade())
        self._exchange = Exchange(
            self._sink,
            self._parser.get_method().decode(),
            head.path,
            head.query,
            self._headers,
            http10=version == "1.0",
            keep_alive=version == "1.1" and self._parser.should_keep_alive(),
        )
        self._refusal = self._admit_head(self._exchange, head)
        self._bodies.expect(head.content_length)
        self._barren_bytes = 0
        self._sink.body_began(head.expects_continue)

    def on_body(self, part: bytes) -> None:
        self._barren_bytes = 0
        if len(self._body) + len(part) > self._limits.max_body_bytes:
            raise self._body_too_large()
        self._bodies.take(len(part))
        if not self._body:
            self._body = part
            return
        if isinstance(self._body, bytes):  # the second part of many: a list of tiny ones would take far more memory
            self._body = bytearray(self._body)
        self._body += part

    def on_message_complete(self) -> None:
        exchange, refusal = self._exchange, self._refusal
        assert exchange is not None
        exchange.body = bytes(self._body)
        self._reset()
        self._sink.received(exchange, refusal)

    def _admit_head(self, exchange: Exchange, head: RequestHead) -> Response | None:
        """The answer of a refusal. It costs a client its connection only where a body would have to be read first."""
        if head.has_body and exchange.method in ("GET", "HEAD"):  # some need no key
            raise BadRequest(f"{exchange.method} takes no body here")
        refusal = self._admit(exchange)
        if refusal is None and head.content_length > self._limits.max_body_bytes:
            refusal = response(self._body_too_large())
        if refusal is not None and head.has_body:
            raise Refused(refusal, self._closing_exchange())
        return refusal

    def _body_too_large(self) -> ApiError:
        return TooLarge(f"the request's body is over the limit of {self._limits.max_body_bytes} bytes: send less")

    def _head_too_large(self) -> ApiError:
        return HeadersTooLarge(f"the request's head is over the limit of {self._limits.max_header_bytes} bytes")
