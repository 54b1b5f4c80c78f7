"""The core of a batch: every request ends once, whatever comes back; what goes next; how many at once."""

from __future__ import annotations

import json
import time
from collections import Counter, deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.batch.answers import Answer, Kind, kind_of
from launcher.batch.meter import Meter, gpu_seconds
from launcher.batch.pace import FIRST, Pace
from launcher.batch.progress import (
    BUDGET,
    Answered,
    Effect,
    Ended,
    Event,
    Keep,
    Progress,
    Read,
    Send,
    Stop,
    Tick,
)
from launcher.batch.request import BadLine, Request, bad_line
from launcher.batch.run_view import RunView
from launcher.batch.window import MAX_REQUESTS, Window
from launcher.jobs import JobRecord
from launcher.rundir import RunDir
from launcher.view.run_status import SERVING, RunStatus
from tests.unit.planning import planned
from workers.spec import write_json

GOOD = Answer(Kind.DONE, 200, b'{"usage": {"prompt_tokens": 4, "completion_tokens": 2}}', "id")


def request(ordinal: int, lead: bytes = b"", max_tokens: int = 10) -> Request:
    return Request(ordinal, bytes(16), f"r{ordinal}", "/v1/completions", b"{}", lead, max_tokens)


class Driven:
    """A batch whose answers a test gives."""

    def __init__(self, items: Iterable[Request | BadLine], most: int = 1000) -> None:
        items = tuple(items)
        self.core = Progress(len(items), 0, 0, Pace(most))
        self.sent: deque[int] = deque()
        self.kept: list[Keep] = []
        self.now = 0.0
        self.apply(Read(items), Ended())

    def apply(self, *events: Event) -> None:
        for event in events:
            for effect in self.core.apply(event, self.now):
                self._act(effect)

    def _act(self, effect: Effect) -> None:
        if isinstance(effect, Send):
            self.sent.append(effect.request.ordinal)
        else:
            self.kept.append(effect)

    def answer(self, ordinal: int, answer: Answer) -> None:
        self.sent.remove(ordinal)
        self.apply(Answered(ordinal, answer))

    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.apply(Tick())

    @property
    def errors(self) -> dict[int, str]:
        return {keep.ordinal: json.loads(keep.line)["error"]["code"] for keep in self.kept if not keep.ok}


KINDS = st.sampled_from(list(Kind))


@given(st.integers(0, 40), st.lists(st.tuples(KINDS, st.floats(0, 40)), max_size=200), st.sets(st.integers(0, 39)))
def test_every_request_ends_once_whatever_comes_back(
    num: int, story: Sequence[tuple[Kind, float]], bad: set[int]
) -> None:
    items = [bad_line(n, b"", "bad", "bad") if n in bad else request(n) for n in range(num)]
    driven = Driven(items)
    told = deque(story)
    failures: Counter[int] = Counter()
    for _ in range(10 * (num + len(story))):
        if driven.core.finished:
            break
        if driven.sent:
            ordinal = driven.sent[0]
            kind, seconds = told.popleft() if told else (Kind.DONE, 0.0)
            failures[ordinal] += kind not in (Kind.DONE, Kind.BUSY)
            driven.now += seconds
            driven.answer(ordinal, Answer(kind, 200 if kind is Kind.DONE else 0, GOOD.body))
        else:
            driven.wait(31.0)
        figures = driven.core.figures
        assert driven.core.num_in_flight == len(driven.sent) == len(set(driven.sent))
        assert figures.done + figures.failed == len(driven.kept)
        assert driven.core.left == num - len(driven.kept) - len(driven.sent)
    assert driven.core.finished
    assert sorted(keep.ordinal for keep in driven.kept) == list(range(num))
    assert all(count <= sum(BUDGET.values()) for count in failures.values())


@pytest.mark.parametrize(
    ("status", "kind"),
    [(200, "done"), (400, "refused"), (404, "refused"), (413, "refused"), (429, "busy"), (500, "server error"),
     (502, "worker failed"), (503, "busy"), (504, "deadline exceeded")],
)  # fmt: skip
def test_a_status_says_whose_fault_it_is(status: int, kind: str) -> None:
    assert kind_of(status) == kind


@pytest.mark.parametrize("kind", BUDGET)
def test_each_kind_of_error_has_its_budget(kind: Kind) -> None:
    driven = Driven([request(0)])
    for tried in range(BUDGET[kind]):
        assert not driven.kept and driven.sent, tried
        driven.answer(0, Answer(kind))
        driven.wait(31.0)
    assert driven.core.finished and list(driven.errors) == [0]
    assert driven.core.figures.retries[kind] == BUDGET[kind] - 1


def test_what_a_request_is_refused_for_is_passed_on() -> None:
    driven = Driven([request(0)])
    body = b'{"error": {"message": "too long", "code": 400}}'
    driven.answer(0, Answer(Kind.REFUSED, 400, body, "id"))
    line = json.loads(driven.kept[0].line)
    assert line["response"] == {"status_code": 400, "request_id": "id", "body": json.loads(body)}
    assert line["error"] == {"code": "400", "message": "too long"} and line["custom_id"] == "r0"


def test_a_request_that_kills_workers_is_found_and_the_others_get_their_answers() -> None:
    driven = Driven([request(n) for n in range(30)])
    num_killed = 0
    while not driven.core.finished:
        assert num_killed < 4
        if 7 in driven.sent:  # its worker takes everybody along
            num_killed += 1
            for ordinal in list(driven.sent):
                driven.answer(ordinal, Answer(Kind.CRASHED, 502))
        for ordinal in list(driven.sent)[:1]:
            driven.answer(ordinal, GOOD)
        driven.wait(1.0)
    assert driven.errors == {7: "quarantined"} and num_killed == 3
    assert driven.core.figures.done == 29


def test_while_nobody_serves_everything_waits_and_nothing_is_counted() -> None:
    driven = Driven([request(n) for n in range(100)])
    first = list(driven.sent)
    for ordinal in first:
        driven.answer(ordinal, Answer(Kind.BUSY, 503, retry_after_s=5.0))
    for _ in range(200):  # for hours
        assert len(driven.sent) <= len(first)
        driven.wait(100.0)
        for ordinal in list(driven.sent):
            driven.answer(ordinal, Answer(Kind.BUSY, 503, retry_after_s=5.0))
        assert not driven.sent
    while not driven.core.finished:
        driven.wait(6.0)
        for ordinal in list(driven.sent):
            driven.answer(ordinal, GOOD)
    assert not driven.errors and driven.core.figures.done == 100


def test_a_stop_sends_nothing_more_and_keeps_what_still_comes() -> None:
    driven = Driven([request(n) for n in range(100)])
    driven.apply(Stop())
    in_flight = list(driven.sent)
    for ordinal in in_flight:
        assert not driven.core.finished
        driven.answer(ordinal, GOOD)
    assert driven.core.finished and not driven.sent and not driven.core.wants_more
    assert driven.core.left == 100 - len(in_flight)


def test_figures_are_of_what_answers_tell() -> None:
    driven = Driven([request(0), request(1)])
    meter = Meter(driven.core, 0.0)
    usage = {"prompt_tokens": 10, "completion_tokens": 4}
    driven.answer(0, Answer(Kind.DONE, 200, json.dumps({"usage": usage}).encode(), cached_tokens=5))
    reading = meter.look(10.0, gpu_s=80.0)
    assert (reading.requests_per_s, reading.output_tokens_per_s, reading.cached_share) == (0.1, 0.4, 0.5)
    assert reading.eta_s == 10.0 and reading.gpu_hours == 80 / 3600


def test_gpu_time_is_that_of_jobs_while_they_ran() -> None:
    def job(worker: str, **times: float) -> JobRecord:
        return JobRecord(
            job="1", name="n", worker=worker, generation=0, submitted_at=times.pop("submitted", 60.0), **times
        )

    gpus = {"w-0": 8, "w-1": 4}
    waits, runs = job("w-0"), job("w-0", started_at=150.0)
    ended, older = job("w-1", started_at=110.0, ended_at=120.0), job("w-1", submitted=1.0, started_at=10.0)
    requeued, before = job("w-1", submitted=100.0, earlier_s=7.0), job("w-0", started_at=10.0, ended_at=20.0)
    controller = job("controller", started_at=10.0)
    spent = [
        gpu_seconds([one], gpus, 100.0, 200.0) for one in (waits, runs, ended, older, requeued, before, controller)
    ]
    assert spent == [0, 8 * 50, 4 * 10, 4 * 100, 4 * 7, 0, 0]


@pytest.mark.parametrize(("cluster", "ends"), [("local", True), ("h100x2", False)])
def test_a_run_whose_controller_nobody_starts_again_is_waited_for_no_longer(
    tmp_path: Path, cluster: str, ends: bool
) -> None:
    """A controller that is a job comes again."""
    run = RunDir(tmp_path / "demo")
    run.create()
    view = RunView(run, planned(f"+cluster={cluster}", "engine=sim"), time.time())
    assert view.look().ended == ""  # it comes up
    write_json(run.status, RunStatus(run="demo", phase=SERVING, written_at=time.time(), controller="gone"))
    assert bool(view.look().ended) == ends


# ---------------------------------------------------------------- how many at once


def settled(num_places: int, num_rounds: int = 400) -> list[int]:
    """A service that answers `num_places` at once in 1 s each; the rest wait. Returns the limits."""
    pace, limits = Pace(), []
    for _ in range(num_rounds):
        num = pace.limit
        waited_s = max(0.0, num / num_places - 1.0)
        for _ in range(min(num, num_places)):
            pace.answered(1.0 + waited_s, waited_s, pace.limit)  # as many are in flight as may be
        limits.append(pace.limit)
    return limits


@pytest.mark.parametrize("num_places", [4, 60, 1000])
def test_the_limit_finds_what_keeps_the_engines_full(num_places: int) -> None:
    limits = settled(num_places)
    assert all(num_places <= limit <= 1.35 * num_places + 1 for limit in limits[-50:]), limits[-50:]
    assert limits.index(next(limit for limit in limits if limit >= num_places)) < 8  # doubles with each round


def test_a_limit_that_was_not_reached_says_nothing() -> None:
    pace = Pace()
    pace.answered(1.0, 0.0, FIRST - 1)
    assert pace.limit == FIRST


# ---------------------------------------------------------------- what goes next


def order(window: Window, *, ending: bool = True, num_places: int = 1) -> list[int]:
    taken = []
    while (request := window.take(ending=ending, num_places=num_places)) is not None:
        taken.append(request.ordinal)
    return taken


def test_shared_beginnings_meet() -> None:
    window = Window()
    for n in range(30):
        window.add(request(n, lead=b"prefix %d" % (n % 3)))
    leads = [n % 3 for n in order(window, ending=False)]
    assert leads == sorted(leads)


def test_one_that_sorts_last_is_not_left_behind_for_ever() -> None:
    window = Window()
    window.add(request(0, lead=b"z"))
    for n in range(1, 6):
        window.add(request(n, lead=b"m"))
    taken = []
    for n in range(6, 60):  # more and more that sort before it
        taken.append(window.take(ending=False, num_places=1))
        window.add(request(n, lead=b"a"))
    assert 0 in [found.ordinal for found in taken[:10] if found]


def test_the_longest_goes_first_when_it_would_outlast_the_rest() -> None:
    def mixed() -> Window:
        window = Window()
        for n in range(20):
            window.add(request(n, lead=b"%02d" % n, max_tokens=10))
        window.add(request(99, lead=b"~", max_tokens=100))
        return window

    assert order(mixed(), ending=False)[-1] == 99
    # Two places: 300 tokens are 150 for each, so there is time for a while, but not until all others are done.
    position = order(mixed(), num_places=2).index(99)
    assert 0 < position < 20


@given(st.lists(st.tuples(st.booleans(), st.binary(max_size=2), st.integers(1, 99)), max_size=80))
def test_all_that_go_in_come_out_once(steps: list[tuple[bool, bytes, int]]) -> None:
    window, taken = Window(), []
    for n, (adds, lead, tokens) in enumerate(steps):
        if adds:
            window.add(request(n, lead, tokens))
        elif (found := window.take(ending=tokens > 50, num_places=3)) is not None:
            taken.append(found.ordinal)
    taken += order(window)
    assert sorted(taken) == [n for n, (adds, _, _) in enumerate(steps) if adds]
    assert len(window) == 0 and not window.full


def test_a_window_is_full_at_its_bounds() -> None:
    window = Window()
    for n in range(MAX_REQUESTS):
        assert not window.full
        window.add(request(n))
    assert window.full
