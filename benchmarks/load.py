"""A closed loop of users against one OpenAI endpoint: each asks, reads the whole answer, pauses, asks again.

Owns the client's side of HTTP, as thin as it can be because it shares the machine with what is measured,
and the clock readings. A wrong or incomplete answer ends the run: a figure of broken answers is none.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import msgspec

CUT = "the connection closed"
LAST_CHUNK = b"0\r\n\r\n"
PATH = "/v1/completions"
ANSWER_TIMEOUT_S = 60.0
WORDS = [f"w{number:04d} " for number in range(5000)]


class BadAnswer(Exception):
    """Not the answer that was asked for; the message says what came instead."""


class Endpoint(msgspec.Struct, frozen=True, kw_only=True):
    host: str
    port: int
    model: str
    key: str = ""
    closing_chunks: int = 0  # chunks without a token that end a stream


@dataclass(slots=True)
class Ask:
    """One request and what makes its answer right."""

    data: bytes
    num_tokens: int
    num_chunks: int
    streams: bool


@dataclass(slots=True)
class Outcome:
    """Times in seconds. A gap lies between two arrivals of one stream, however many tokens each brought."""

    num_requests: int = 0
    num_tokens: int = 0
    ttft_s: list[float] = field(default_factory=list)
    gaps_s: list[float] = field(default_factory=list)
    duration_s: float = 0.0


class Rhythm(msgspec.Struct, frozen=True, kw_only=True):
    """How users ask. In step with each other or with the engine they would hide what a hop adds to TTFT:
    they start spread over `start_s` and pause up to `pause_s` between two requests. `staggered`: the first and
    the last stream of each are parts of one, so that streams end and begin at all times while all users read.
    """

    start_s: float
    pause_s: float
    staggered: bool = False

    def pauses_s(self, num_requests: int, rng: random.Random) -> list[float]:
        """Before each of one user's requests."""
        return [rng.uniform(0, self.start_s), *(rng.uniform(0, self.pause_s) for _ in range(1, num_requests))]

    def lengths(self, rounds: int, num_tokens: int, rng: random.Random) -> list[int]:
        """Tokens of each of one user's requests."""
        if not self.staggered or num_tokens == 1:
            return [num_tokens] * rounds
        first = rng.randrange(1, num_tokens)
        return [first, *[num_tokens] * (rounds - 1), num_tokens - first]


def prompt(num_chars: int, rng: random.Random) -> str:
    return "".join(rng.choices(WORDS, k=-(-num_chars // len(WORDS[0]))))[:num_chars]


def ask(endpoint: Endpoint, text: str, num_tokens: int, *, streams: bool = True) -> Ask:
    fields = {"model": endpoint.model, "prompt": text, "max_tokens": num_tokens, "temperature": 0, "stream": streams}
    body = msgspec.json.encode(fields)
    head = (
        f"POST {PATH} HTTP/1.1\r\nhost: {endpoint.host}\r\nauthorization: Bearer {endpoint.key}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    return Ask(head.encode() + body, num_tokens, num_tokens + endpoint.closing_chunks, streams)


class Client(asyncio.Protocol):
    """One connection, one question at a time."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._data = bytearray()
        self._body_at = 0  # where the body begins in it; 0: the head is not complete
        self._whole_at: int | None = None  # where an answer of known length ends
        self.arrivals: list[float] = []
        self._answer: asyncio.Future[bytes] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(BadAnswer(f"{CUT} after {bytes(self._data[-300:])!r}"))

    def ask(self, data: bytes) -> asyncio.Future[bytes]:
        self._data.clear()
        self._body_at, self._whole_at = 0, None
        self.arrivals = []
        self._answer = self._loop.create_future()
        self._transport.write(data)  # type: ignore[attr-defined]  # uvloop's transport is one by duck type only
        return self._answer

    def close(self) -> None:
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        now = time.perf_counter()
        self._data += data
        if not self._body_at and not self._read_head():
            return
        if len(self._data) > self._body_at:
            self.arrivals.append(now)
        whole = self._data.endswith(LAST_CHUNK) if self._whole_at is None else len(self._data) >= self._whole_at
        if whole and self._answer is not None and not self._answer.done():
            self._answer.set_result(bytes(self._data))

    def _read_head(self) -> bool:
        end = self._data.find(b"\r\n\r\n")
        if end < 0:
            return False
        self._body_at = end + 4
        for line in bytes(self._data[:end]).lower().split(b"\r\n"):
            name, _, value = line.partition(b":")
            if name == b"content-length":
                self._whole_at = self._body_at + int(value)
        return True


def check(ask: Ask, answer: bytes) -> None:
    """Raises BadAnswer."""
    if not answer.startswith(b"HTTP/1.1 200 "):
        raise BadAnswer(answer[:500].decode(errors="replace"))
    if ask.streams:
        found, complete = answer.count(b'"choices":[{'), b"data: [DONE]" in answer
        if found != ask.num_chunks or not complete:
            raise BadAnswer(f"{found} of {ask.num_chunks} chunks, {'with' if complete else 'without'} [DONE]")


async def _answer(client: Client, ask: Ask) -> bytes:
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return await client.ask(ask.data)
    except TimeoutError:
        raise BadAnswer(f"no whole answer within {ANSWER_TIMEOUT_S:.0f} s") from None


async def _user(
    endpoint: Endpoint, asks: Sequence[Ask], pauses_s: Sequence[float], outcome: Outcome, answered: Callable[[], None]
) -> None:
    loop = asyncio.get_running_loop()
    _, client = await loop.create_connection(Client, endpoint.host, endpoint.port)
    try:
        for ask, pause_s in zip(asks, pauses_s, strict=True):
            await asyncio.sleep(pause_s)
            asked_at = time.perf_counter()
            check(ask, await _answer(client, ask))
            arrivals = client.arrivals
            outcome.num_requests += 1
            outcome.num_tokens += ask.num_tokens
            outcome.ttft_s.append(arrivals[0] - asked_at)
            outcome.gaps_s += [after - before for before, after in pairwise(arrivals)]
            answered()
    finally:
        client.close()


async def drive(
    endpoint: Endpoint,
    users: Sequence[Sequence[Ask]],
    rhythm: Rhythm,
    rng: random.Random,
    answered: Callable[[], None] = lambda: None,
) -> Outcome:
    """`users`: what each of them asks, one after the other."""
    outcome = Outcome()
    started_at = time.perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for own in users:
            tasks.create_task(_user(endpoint, own, rhythm.pauses_s(len(own), rng), outcome, answered))
    outcome.duration_s = time.perf_counter() - started_at
    return outcome
