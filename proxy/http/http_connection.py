"""One client connection: the reading side of the HTTP server, an `asyncio.Protocol`.

Owns the connection's phase, its clock and the order of its answers: pipelined requests are served one
after another. Everything is driven by callbacks: there is no task or timer per connection or request
(the server sweeps the clocks). Whatever a client can make grow has a bound in `Limits` or below. Does
not know routes, keys or workers, and leaves bytes to its `RequestReader`.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from math import inf
from typing import cast

from proxy.errors import BadRequest, Internal, Response, Timeout, TooManyConnections, response
from proxy.http.exchange import Exchange, reset
from proxy.http.request_reader import Refused, RequestReader
from proxy.http.service import Phase, Service

log = logging.getLogger(__name__)

MAX_PIPELINED = 16  # requests read ahead of the one in service
MAX_DISCARDED_BODIES = 8  # of the largest size that is taken, after a refusal
MAX_AHEAD_BYTES = 64 << 10  # read while a request is in service; then reading pauses
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


class Connection(asyncio.Protocol):
    """`current` is the request in service; those behind it wait in a queue."""

    transport: asyncio.Transport

    def __init__(self, service: Service) -> None:
        self._service = service
        self._loop = asyncio.get_running_loop()
        self._reader = RequestReader(self, service.admit, service.limits, service.bodies)
        self._phase = Phase.NEW
        self._moved = False  # and the clock goes on from the phase before
        self.deadline = inf
        self.current: Exchange | None = None
        self._queue: deque[tuple[Exchange, Response | None]] = deque()
        self._clogged = False
        self._reading_paused = False
        self._ahead_bytes = 0
        self._discarded_bytes = 0
        self._expects_continue = False

    @property
    def draining(self) -> bool:
        return self._service.draining

    # ------------------------------------------------------------ transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport = cast(asyncio.Transport, transport)  # uvloop's is one by duck type only
        if not self._service.make_room():
            busy = TooManyConnections("too many connections to this proxy: try again later", retry_after_s=1)
            refused = self._reader.refusal(busy)
            refused.exchange.respond(*refused.answer)  # and close: see `ended`
            return
        high = self._service.limits.stream_buffer_bytes
        transport.set_write_buffer_limits(high=high, low=high)
        self._service.connections.add(self)
        self._restart_clock()

    def connection_lost(self, exc: Exception | None) -> None:
        self._phase = Phase.CLOSING
        self._service.forget(self)
        self._reader.drop_body()
        self._drop_queue()
        if self.current is not None:
            self.answering(self.current)
            self.current.lost()

    def eof_received(self) -> None:
        """A client that half-closes while it waits for an answer has left: nobody pays for its tokens."""
        if self.current is not None:
            self.transport.abort()
        self._phase = Phase.CLOSING
        self._restart_clock()

    def pause_writing(self) -> None:
        """Called once per crossing of the limit, so a fast reader costs nothing per chunk."""
        self._clogged = True
        if self.current is not None:
            self.current.clog(True)

    def resume_writing(self) -> None:
        self._clogged = False
        if self.current is not None:
            self.current.clog(False)
        else:
            self._serve_next()

    def data_received(self, data: bytes) -> None:
        if self._phase is Phase.LINGER or self._phase is Phase.CLOSING:
            if self.current is None:
                self._discard(len(data))
        else:
            self._read(data)
        if self.current is not None:
            self._bound_ahead(len(data))
        if self._moved:
            self._restart_clock()

    def _read(self, data: bytes) -> None:
        try:
            self._reader.feed(data)
        except Refused as refused:
            self._refuse(refused)
        if self.current is None:
            self._serve_next()

    # ------------------------------------------------------------ reader

    def head_began(self) -> None:
        if len(self._queue) >= MAX_PIPELINED:
            raise BadRequest(f"more than {MAX_PIPELINED} pipelined requests: wait for the answers")
        self._move(Phase.HEAD)

    def body_began(self, expects_continue: bool) -> None:
        self._expects_continue = expects_continue
        self._move(Phase.BODY)
        self._continue()

    def received(self, exchange: Exchange, refusal: Response | None) -> None:
        self._expects_continue = False
        self._queue.append((exchange, refusal))
        self._move(Phase.IDLE)

    # ------------------------------------------------------------ service

    def _refuse(self, refused: Refused) -> None:
        """Answer in turn, then close; nothing more is read."""
        self._expects_continue = False
        self._queue.append((refused.exchange, refused.answer))
        self._move(Phase.LINGER)

    def _serve_next(self) -> None:
        """A clogged connection waits: its last answer must be read before the next one is made."""
        if self.current is not None or not self._queue or self._clogged or self.transport.is_closing():
            return
        exchange, refusal = self._queue.popleft()
        self.current = exchange
        self._restart_clock()
        if refusal is not None:
            exchange.respond(*refusal)
        else:
            self._handle(exchange)

    def _handle(self, exchange: Exchange) -> None:
        try:
            self._service.handler(exchange)
        except Exception:
            log.exception("fault while serving %s %s", exchange.method, exchange.path)
            if exchange.started:
                exchange.abort()
            else:
                exchange.respond(*response(Internal("a fault of this proxy, not of the request: see its log")))

    def answering(self, exchange: Exchange) -> None:
        self._service.bodies.give_back(len(exchange.body))
        exchange.body = b""

    def ended(self, exchange: Exchange) -> None:
        self.current = None
        self._ahead_bytes = 0
        if not exchange.keep_alive:
            self._close()
            return
        if self._queue:
            self._loop.call_soon(self._serve_next)
        else:
            self._read_on()
        self._continue()
        self._restart_clock()

    def _continue(self) -> None:
        """An interim answer must not land inside the one before."""
        if self._expects_continue and self.current is None and not self._queue:
            self._expects_continue = False
            self.transport.write(_CONTINUE)

    def _bound_ahead(self, num_bytes: int) -> None:
        self._ahead_bytes += num_bytes
        if self._ahead_bytes > MAX_AHEAD_BYTES and not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def _read_on(self) -> None:
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()

    def _discard(self, num_bytes: int) -> None:
        """A client that still sends would get a reset instead of its answer; but not for ever."""
        self._discarded_bytes += num_bytes
        if self._discarded_bytes > MAX_DISCARDED_BODIES * self._service.limits.max_body_bytes:
            self.transport.abort()

    # ------------------------------------------------------------ clock and end

    def _move(self, phase: Phase) -> None:
        """One read may bring a whole request: the clock is set once, where all of it has been looked at."""
        self._phase = phase
        self._moved = True

    def _restart_clock(self) -> None:
        self._moved = False
        service, phase = self._service, self._phase
        if self.current is not None:
            self.deadline = inf
            service.waiting.pop(self, None)
            return
        self.deadline = self._loop.time() + service.time_limits_s[phase]
        if phase is Phase.BODY or phase is Phase.CLOSING:
            service.waiting.pop(self, None)
        else:
            service.waiting[self] = None  # where it stands, if it waits already

    def expire(self) -> None:
        """The server's sweep found the deadline passed."""
        if self._phase in (Phase.HEAD, Phase.BODY):
            self._refuse(self._reader.refusal(Timeout("the request did not arrive in time: send it faster")))
            self._serve_next()
            if self._moved:
                self._restart_clock()
        elif self._phase in (Phase.NEW, Phase.IDLE):
            self._close()
        else:
            self.transport.abort()

    def cut_off(self) -> None:
        """It does not read what there is for it."""
        if self.current is not None:
            self.current.cut_off()
        else:
            reset(self.transport)

    def close_if_idle(self) -> None:
        if self._phase in (Phase.NEW, Phase.IDLE) and self.current is None and not self._queue:
            self._close()

    def _drop_queue(self) -> None:
        for exchange, _ in self._queue:
            self.answering(exchange)
        self._queue.clear()

    def _close(self) -> None:
        self._drop_queue()
        if self._phase is Phase.LINGER:
            self._read_on()
            if self.transport.can_write_eof():
                self.transport.write_eof()
        else:
            self._phase = Phase.CLOSING
            self.transport.close()
        self._restart_clock()
