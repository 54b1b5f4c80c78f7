"""Measures points of one worker through the proxy, one request at a time: a body of many prompts is the whole batch.

Owns the connection and the clock readings. Prompts are token ids that nothing has cached; the run's operator key lets
a request name its worker, so that caps and other users' turns are not in the way.
"""

from __future__ import annotations

import http.client
import json
import random
import ssl
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import msgspec

from launcher.profiling.gaps import Gaps
from launcher.profiling.points import (
    DECODE_STEPS,
    SHORTEST_CONTEXT,
    Asked,
    Decode,
    Limits,
    Measured,
    Point,
    Prefill,
    asked,
)
from proxy.header_names import WORKER

REPEATS = 3  # of prefills and of points that others disturb
SETTLE_S = 1.0  # for a request that was cut off to be gone
POLL_S = 0.05
READ_BYTES = 1 << 16
# Ids of words are ids that every tokenizer has.
WORDS = "the of and to in is that for it as was with be by on not he his but at are this have from or had an they which"


class CannotMeasure(Exception):
    """The message says what the proxy answered."""


class OutOfTime(Exception):
    pass


class _Usage(msgspec.Struct):
    completion_tokens: int = 0


class _Choice(msgspec.Struct):
    index: int = 0
    finish_reason: str | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: Any = None


class Meter:
    def __init__(
        self,
        url: str,
        key: str,
        model: str,
        worker: str,
        limits: Limits,
        busy: Callable[[], int],
        until: float,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        """`busy`: how many requests the worker has now. `until`: by the monotonic clock."""
        self._address = urlsplit(url)
        self._headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        self._headers[WORKER.decode()] = worker
        self._model, self._limits, self._busy, self._until, self._tls = model, limits, busy, until, tls
        self._random = random.Random()
        self._ids: list[int] = []

    def measure(self, point: Point) -> Measured | None:
        """None: its sequences were never all decoding. Raises CannotMeasure, OutOfTime, OSError."""
        try:
            tries = [found for found in self._tries(point) if found is not None]
        except TimeoutError:
            raise OutOfTime from None
        if not tries:
            return None
        least = min(found.num_others for found in tries)
        quiet = [found for found in tries if found.num_others == least]
        middle = statistics.median_low(found.seconds for found in quiet)
        return next(found for found in quiet if found.seconds == middle)

    def _tries(self, point: Point) -> Iterator[Measured | None]:
        for _ in range(REPEATS):
            before = self._settled()
            found = self._decode(point) if isinstance(point, Decode) else self._prefill(point)
            if found is not None:
                found = msgspec.structs.replace(found, num_others=max(before, found.num_others))
            yield found
            if isinstance(point, Decode) and found is not None and not found.num_others:
                return  # it is a mean of many steps already

    def warm_up(self) -> None:
        """What the engine does for the first time only is nobody's time."""
        for text in (WORDS, WORDS.title()):
            answer = self._ask("/tokenize", {"prompt": text, "add_special_tokens": False})
            self._ids += json.loads(answer.read())["tokens"]
        self._ids = sorted(set(self._ids))
        self._prefill(Prefill(SHORTEST_CONTEXT))

    def _settled(self) -> int:
        """How many requests of others the worker has."""
        deadline = min(time.monotonic() + SETTLE_S, self._until)
        while (others := self._busy()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return others

    def _prefill(self, point: Prefill) -> Measured:
        body = self._body(asked(point, self._limits))
        started = time.perf_counter()
        self._ask("/v1/completions", body).read()
        return Measured(point=point, seconds=time.perf_counter() - started, num_others=self._busy())

    def _decode(self, point: Decode) -> Measured | None:
        wanted = asked(point, self._limits)
        usage = {"include_usage": True, "continuous_usage_stats": True}  # several tokens may come in one event
        answer = self._ask("/v1/completions", self._body(wanted) | {"stream": True, "stream_options": usage})
        gaps = Gaps(wanted.num_prompts, DECODE_STEPS)
        told: dict[int, int] = {}
        for chunk, now in self._chunks(answer):
            if chunk.error is not None:
                raise CannotMeasure(f"{point}: {chunk.error}")
            if not chunk.choices:
                continue
            index = chunk.choices[0].index
            before = told.get(index, 0)
            told[index] = chunk.usage.completion_tokens if chunk.usage is not None else before + 1
            if told[index] > before and gaps.came(index, told[index] - before, now):
                break
            if chunk.choices[0].finish_reason is not None:
                break
        others = max(0, self._busy() - 1)
        answer.close()
        gap_s = gaps.gap_s()
        if gap_s is None:
            return None
        context = point.context_tokens + gaps.output_tokens()
        return Measured(point=point, seconds=gap_s, context_tokens=context, num_others=others)

    def _chunks(self, answer: http.client.HTTPResponse) -> Iterator[tuple[_Chunk, float]]:
        decoder, rest = msgspec.json.Decoder(_Chunk), b""
        while data := answer.read1(READ_BYTES):
            now = time.perf_counter()
            *events, rest = (rest + data).split(b"\n\n")
            for event in events:
                if event.startswith(b"data: {"):
                    yield decoder.decode(event[6:]), now
            if time.monotonic() > self._until:
                raise OutOfTime

    def _body(self, wanted: Asked) -> dict[str, Any]:
        prompts = [self._random.choices(self._ids, k=wanted.prompt_tokens) for _ in range(wanted.num_prompts)]
        return {"prompt": prompts, "max_tokens": wanted.max_tokens, "temperature": 0, "ignore_eos": True}

    def _ask(self, path: str, body: dict[str, Any]) -> http.client.HTTPResponse:
        left_s = self._until - time.monotonic()
        if left_s <= 0:
            raise OutOfTime
        connection = self._connect(left_s)
        connection.request("POST", path, json.dumps({"model": self._model, **body}), self._headers)
        answer = connection.getresponse()
        if answer.status != http.client.OK:
            raise CannotMeasure(f"{path}: {answer.status}: {answer.read(2000).decode(errors='replace')}")
        return answer

    def _connect(self, timeout_s: float) -> http.client.HTTPConnection:
        assert self._address.hostname is not None
        if self._tls is not None:
            return http.client.HTTPSConnection(
                self._address.hostname, self._address.port, timeout=timeout_s, context=self._tls
            )
        return http.client.HTTPConnection(self._address.hostname, self._address.port, timeout=timeout_s)
