"""A batch under way: what is done, in flight, failed and left, and what to do next.

Pure: one mutator, `apply(event, now) -> effects`; no clock, file or socket. Every request ends once, as a result or as
an error. An error that is not the request's own is tried again, with a budget by kind. A request whose
worker was lost is a suspect: suspects go few at a time beside the others, those that lost a second worker are in
quarantine, one at a time and after all other suspects, and the third loss ends it. Where the service is not there,
everything waits and nothing is counted.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from dataclasses import dataclass, field

import msgspec

from launcher.batch.answers import Answer, Kind, bad_line_line, error_line, result_line, usage_of
from launcher.batch.pace import Pace
from launcher.batch.request import BadLine, Request
from launcher.batch.window import Window

BUDGET = {Kind.CRASHED: 3, Kind.SLOW: 2, Kind.FAULT: 3, Kind.BROKEN: 8}  # tries that may end so
SUSPECTS_PART = 8  # of what may be in flight, so many parts are not suspects
FIRST_DELAY_S, LAST_DELAY_S = 1.0, 30.0
FORGET = 0.99  # by each answer, of the longest time that one took


class Read(msgspec.Struct, frozen=True):
    """Lines of the input that have no result yet."""

    items: tuple[Request | BadLine, ...]


class Ended(msgspec.Struct, frozen=True):
    """The input has no more."""


class Answered(msgspec.Struct, frozen=True):
    ordinal: int
    answer: Answer


class Tick(msgspec.Struct, frozen=True):
    """Time has passed."""


class Stop(msgspec.Struct, frozen=True):
    """Send nothing more; what is in flight may end."""


Event = Read | Ended | Answered | Tick | Stop


class Send(msgspec.Struct, frozen=True):
    request: Request


class Keep(msgspec.Struct, frozen=True):
    """The one result of a request."""

    ordinal: int
    key: bytes
    line: bytes
    ok: bool


Effect = Send | Keep


@dataclass(slots=True)
class Try:
    request: Request
    sent_at: float
    losses: int  # of workers, before


@dataclass(slots=True)
class Figures:
    """Of this life of the batch, but for `total`, `done` and `failed`."""

    total: int
    done: int = 0
    failed: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    num_answers: int = 0
    retries: Counter[str] = field(default_factory=Counter)

    def count(self, answer: Answer) -> None:
        usage = usage_of(answer.body)
        self.num_answers += 1
        self.prompt_tokens += usage.prompt_tokens
        self.cached_tokens += min(answer.cached_tokens, usage.prompt_tokens)
        self.output_tokens += usage.completion_tokens or 0


class Progress:
    """`total`, `done` and `failed` as they are when it begins."""

    def __init__(self, total: int, done: int, failed: int, pace: Pace) -> None:
        self.figures = Figures(total, done, failed)
        self.pace = pace
        self.drain_s = 0.0  # how long an answer may take, by the latest
        self._window = Window()
        self._in_flight: dict[int, Try] = {}
        self._waiting: list[tuple[float, int]] = []
        self._suspects: tuple[deque[int], deque[int]] = (deque(), deque())  # the second are in quarantine
        self._num_suspects = [0, 0]  # of these in flight
        self._again: dict[int, Request] = {}  # of all three
        self._tries: dict[int, Counter[Kind]] = {}
        self._paused_until = float("-inf")
        self._input_ended = self._stopping = False
        self._out: list[Effect] = []

    def apply(self, event: Event, now: float) -> list[Effect]:
        match event:
            case Answered(ordinal, answer):
                self._answered(ordinal, answer, now)
            case Read(items):
                self._read(items)
            case Ended():
                self._input_ended = True
            case Stop():
                self._stopping = True
            case Tick():
                pass
        self._fill(now)
        effects, self._out = self._out, []
        return effects

    @property
    def num_in_flight(self) -> int:
        return len(self._in_flight)

    @property
    def left(self) -> int:
        """Neither ended nor in flight."""
        return self.figures.total - self.figures.done - self.figures.failed - len(self._in_flight)

    @property
    def wants_more(self) -> bool:
        return not (self._input_ended or self._stopping or self._window.full)

    @property
    def finished(self) -> bool:
        """Nothing more will happen without another event than a tick."""
        if self._in_flight:
            return False
        return self._stopping or (self._input_ended and not self._window and not self._again)

    # ------------------------------------------------------------ going out

    def _read(self, items: tuple[Request | BadLine, ...]) -> None:
        for item in items:
            if isinstance(item, BadLine):
                self._keep(item, bad_line_line(item), ok=False)
            else:
                self._window.add(item)

    def _fill(self, now: float) -> None:
        if self._stopping or now < self._paused_until:
            return
        while len(self._in_flight) < self.pace.limit:
            request = self._next(now)
            if request is None:
                return
            losses = self._tries.get(request.ordinal, Counter())[Kind.CRASHED]
            if losses:
                self._num_suspects[losses - 1] += 1
            self._in_flight[request.ordinal] = Try(request, now, losses)
            self._out.append(Send(request))

    def _next(self, now: float) -> Request | None:
        if self._waiting and self._waiting[0][0] <= now:
            return self._again.pop(heapq.heappop(self._waiting)[1])
        if (suspect := self._next_suspect()) is not None:
            return self._again.pop(suspect)
        return self._window.take(ending=self._input_ended, num_places=self.pace.limit)

    def _next_suspect(self) -> int | None:
        (once, twice), (num_once, num_twice) = self._suspects, self._num_suspects
        if once and not num_twice and num_once < max(1, self.pace.limit // SUSPECTS_PART):
            return once.popleft()
        if twice and not once and not num_once and not num_twice:
            return twice.popleft()
        return None

    # ------------------------------------------------------------ coming in

    def _answered(self, ordinal: int, answer: Answer, now: float) -> None:
        tried = self._in_flight.pop(ordinal)
        if tried.losses:
            self._num_suspects[tried.losses - 1] -= 1
        if answer.kind is Kind.DONE:
            took_s = now - tried.sent_at
            self.drain_s = max(took_s, FORGET * self.drain_s)
            self.pace.answered(took_s, answer.waited_s, len(self._in_flight) + 1)
            self.figures.count(answer)
            self._keep(tried.request, result_line(tried.request, answer), ok=True)
        elif answer.kind is Kind.REFUSED:
            self._keep(tried.request, error_line(tried.request, answer), ok=False)
        elif answer.kind is Kind.BUSY:
            self._busy(tried, answer, now)
        else:
            self._failed(tried.request, answer, now)

    def _busy(self, tried: Try, answer: Answer, now: float) -> None:
        self.pace.refused(now)
        self._paused_until = max(self._paused_until, now + (answer.retry_after_s or FIRST_DELAY_S))
        ordinal = tried.request.ordinal
        self._again[ordinal] = tried.request
        if tried.losses:
            self._suspects[tried.losses - 1].append(ordinal)
        else:
            heapq.heappush(self._waiting, (self._paused_until, ordinal))

    def _failed(self, request: Request, answer: Answer, now: float) -> None:
        tries = self._tries.setdefault(request.ordinal, Counter())
        tries[answer.kind] += 1
        num = tries[answer.kind]
        if num >= BUDGET[answer.kind]:
            why = f"{num} tries ended so"
            code = "quarantined" if answer.kind is Kind.CRASHED else ""
            self._keep(request, error_line(request, answer, why=why, code=code), ok=False)
            return
        self.figures.retries[answer.kind] += 1
        self._again[request.ordinal] = request
        if losses := tries[Kind.CRASHED]:
            self._suspects[losses - 1].append(request.ordinal)
        else:
            delay_s = min(LAST_DELAY_S, FIRST_DELAY_S * 2 ** (num - 1))
            heapq.heappush(self._waiting, (now + delay_s, request.ordinal))

    def _keep(self, item: Request | BadLine, line: bytes, *, ok: bool) -> None:
        self._tries.pop(item.ordinal, None)
        if ok:
            self.figures.done += 1
        else:
            self.figures.failed += 1
        self._out.append(Keep(item.ordinal, item.key, line, ok))
