"""Many token streams open at once against one endpoint, each on a connection of its own.

Owns the clients: most read at once, the slow ones nothing until their stream should be over. A stream
that is not the whole answer that was asked for is dropped, whatever the reason, and counted.
"""

from __future__ import annotations

import asyncio
import resource
import socket
import time
from array import array
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec

from benchmarks.arguments import BadArgument
from benchmarks.load import LAST_CHUNK, Ask, BadAnswer, Endpoint, check

SLOW_WINDOW_BYTES = 4096  # of a slow reader's receive buffer: what it leaves unread stays with the server
OTHER_FILES = 64


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """Streams open one after the other, `opened_per_s`; the first ones are all open before the rest begin."""

    streams: int
    first: int
    opened_per_s: float
    settle_s: float  # after the first ones
    slow_every: int  # every so many-th is slow; 0: none
    slow_s: float  # for how long a slow one reads nothing
    timeout_s: float  # for one stream

    def is_slow(self, number: int) -> bool:
        return bool(self.slow_every) and number % self.slow_every == 0


@dataclass(slots=True)
class Seen:
    """`arrivals` of each stream that was read at once, on the monotonic clock."""

    arrivals: list[array[float]] = field(default_factory=list)
    faults: Counter[str] = field(default_factory=Counter)

    @property
    def num_dropped(self) -> int:
        return self.faults.total()

    def gaps_s(self, begin: float) -> list[float]:
        """Between two tokens of a stream, from then on until the first stream ends."""
        end = min((arrivals[-1] for arrivals in self.arrivals), default=begin)
        gaps: list[float] = []
        for arrivals in self.arrivals:
            gaps += [after - before for before, after in pairwise(at for at in arrivals if begin <= at <= end)]
        return gaps


def allow_streams(number: int) -> None:
    """As many open files as that takes on this side. Raises BadArgument where the machine's limit is lower."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < number + OTHER_FILES:
        raise BadArgument(f"streams={number} need as many open files, and {hard} are allowed here (ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class _Reader(asyncio.Protocol):
    """One stream. Only times what comes; the answer is looked at when it is whole."""

    def __init__(self, question: Ask, began: Callable[[], None], slow_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._question = question
        self._began = began
        self._slow_s = slow_s
        self._data = bytearray()
        self.arrivals: array[float] = array("d")
        self.done: asyncio.Future[None] = self._loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        transport.write(self._question.data)  # type: ignore[attr-defined]  # uvloop's transport is one by duck type only

    def data_received(self, data: bytes) -> None:
        if not self._data:
            self._began()
            if self._slow_s:
                self._transport.pause_reading()  # type: ignore[attr-defined]
                self._loop.call_later(self._slow_s, self._transport.resume_reading)  # type: ignore[attr-defined]
        self._data += data
        self.arrivals.append(time.monotonic())
        if self._data.endswith(LAST_CHUNK):
            self._end()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(BadAnswer(f"closed after {len(self._data)} bytes: {exc or 'end of stream'}"))

    def _end(self) -> None:
        try:
            check(self._question, bytes(self._data))
        except BadAnswer as fault:
            self.done.set_exception(fault)
        else:
            self.done.set_result(None)
        self._transport.close()


async def _stream(number: int, plan: Plan, endpoint: Endpoint, question: Ask, began: Callable[[], None]) -> _Reader:
    loop = asyncio.get_running_loop()
    slow = plan.is_slow(number)
    reader = _Reader(question, began, plan.slow_s if slow else 0.0)
    sock = socket.socket(socket.AF_INET6 if ":" in endpoint.host else socket.AF_INET)
    sock.setblocking(False)
    if slow:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SLOW_WINDOW_BYTES)
    async with asyncio.timeout(plan.timeout_s):
        await loop.sock_connect(sock, (endpoint.host, endpoint.port))
        await loop.create_connection(lambda: reader, sock=sock)
        await reader.done
    return reader


async def open_all(
    endpoint: Endpoint, question: Callable[[int], Ask], plan: Plan, opened: Callable[[int], None]
) -> Seen:
    """`question`: by the stream's number. Calls `opened` when the first ones have begun, and when all have. Returns
    when every stream has ended."""
    seen = Seen()
    num_answered = 0
    answered = asyncio.Event()

    def began() -> None:
        nonlocal num_answered
        num_answered += 1
        answered.set()

    async def one(number: int, delay_s: float) -> None:
        await asyncio.sleep(delay_s)
        try:
            reader = await _stream(number, plan, endpoint, question(number), began)
        except (BadAnswer, OSError, TimeoutError) as fault:
            seen.faults[f"{type(fault).__name__}: {fault}"] += 1
            answered.set()
            return
        if not plan.is_slow(number):
            seen.arrivals.append(reader.arrivals)

    async with asyncio.TaskGroup() as tasks:
        for numbers in (range(plan.first), range(plan.first, plan.streams)):
            for number in numbers:
                tasks.create_task(one(number, (number - numbers.start) / plan.opened_per_s))
            while num_answered + seen.num_dropped < numbers.stop:
                answered.clear()
                await answered.wait()
            await asyncio.sleep(plan.settle_s)
            opened(numbers.stop)
    return seen
