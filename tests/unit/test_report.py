"""What a run took and what happened to it, from what lies in its folder: sums, events, and the words for people."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.control.diary import Life, Note
from launcher.control.job_book import JobBook
from launcher.jobs import JobRecord, Row, job_name
from launcher.report.happenings import Happening
from launcher.report.report import Sources, make_report, report_json
from launcher.report.text import report_text
from launcher.rundir import Owner
from proxy.monitoring.accounts import Book, Incident, Sums, Work
from workers.agent.lifecycle import DRAINING, READY
from workers.controller_messages import FleetView, WorkerView

T0 = 1_700_000_000.0
TICK_S = 2.0


def record(worker: str = "decode-0", generation: int = 0, **changes: Any) -> JobRecord:
    name = job_name("r", worker, generation)
    fields: dict[str, Any] = {"job": f"{worker}{generation}", "submitted_at": T0}
    return JobRecord(name=name, worker=worker, generation=generation, **(fields | changes))


def known(*records: JobRecord, **changes: Any) -> Sources:
    gpus = {f"{one.worker}.g{one.generation}": 4 for one in records}
    fields: dict[str, Any] = {"run": "r", "records": records, "gpus": gpus, "books": (), "lives": (), "alive": ()}
    return Sources(**(fields | changes))


def book(process: str = "proxy-0.0", life: str = "a", **changes: Any) -> Book:
    return Book(process=process, life=life, pid=1, began_at=T0, day="2023-11-14", written_at=T0 + 50, **changes)


def diary(id: str, *notes: Note, **changes: Any) -> Life:
    return Life(owner=Owner(id=id, host="h", pid=1, job="", started_at=T0), notes=list(notes), **changes)


# ---------------------------------------------------------------- GPU time


def test_a_job_s_time_is_divided_into_what_it_did() -> None:
    one = record(started_at=T0 + 100, proven_at=T0 + 460, draining_at=T0 + 3700, ended_at=T0 + 3820)
    report = make_report(known(one), T0 + 9999)
    [use] = report.generations
    assert (use.queue_s, use.start_s, use.serve_s, use.drain_s) == (100, 360, 3240, 120)
    assert report.gpu_hours == pytest.approx(4 * 3720 / 3600)
    assert (report.start_gpu_hours, report.drain_gpu_hours) == (pytest.approx(0.4), pytest.approx(4 / 30))
    assert report.queue_hours == pytest.approx(100 / 3600), "waiting costs no GPU"


def test_what_lives_counts_until_now_and_what_waits_holds_nothing() -> None:
    lives, waits = record(started_at=T0, proven_at=T0 + 60), record(generation=1)
    report = make_report(known(lives, waits), T0 + 3600)
    assert [use.gpu_hours for use in report.generations] == [4.0, 0.0]
    assert report.generations[1].queue_s == 3600


times = st.none() | st.floats(-50.0, 500.0)


@given(st.lists(st.tuples(times, times, times, times, st.floats(0, 100)), max_size=6), st.floats(0.0, 600.0))
def test_whatever_the_clocks_say_spans_make_up_the_whole_and_none_is_negative(rows: list[Any], now: float) -> None:
    records = [
        record(
            generation=number,
            started_at=None if start is None else T0 + start,
            proven_at=None if proven is None else T0 + proven,
            draining_at=None if drains is None else T0 + drains,
            ended_at=None if end is None else T0 + end,
            earlier_s=earlier_s,
        )
        for number, (start, proven, drains, end, earlier_s) in enumerate(rows)
    ]
    report = make_report(known(*records), T0 + now)
    for use, one in zip(report.generations, records, strict=True):
        assert min(use.queue_s, use.start_s, use.serve_s, use.drain_s) >= 0
        end_s = T0 + now if one.ended_at is None else one.ended_at
        held_s = 0.0 if one.started_at is None else max(0.0, end_s - one.started_at)
        assert use.held_s == pytest.approx(held_s + one.earlier_s)
    assert report.gpu_hours == pytest.approx(sum(use.gpu_hours for use in report.generations))
    assert sum(pool.gpu_hours for pool in report.pools) == pytest.approx(report.gpu_hours)


@st.composite
def job_lives(draw: st.DrawFn) -> tuple[int, int, int, int]:
    """When it starts, serves, drains and ends, in ticks."""
    steps = [draw(st.integers(1, 9)) for _ in range(4)]
    return steps[0], sum(steps[:2]), sum(steps[:3]), sum(steps)


@given(job_lives(), st.sets(st.integers(0, 40)), st.booleans())
def test_gpu_time_is_the_same_however_often_the_controller_is_killed(
    life: tuple[int, int, int, int], kills: set[int], slurm_dates: bool
) -> None:
    """It looks every tick; what happens while it is away, Slurm still knows for a while."""
    start, proven, drains, end = life
    at = [T0 + tick * TICK_S for tick in range(42)]
    book_of_jobs = JobBook("r", [])
    book_of_jobs.add("7", "decode-0", 0, at[0])
    for tick in range(1, 41):
        if tick in kills:
            saved = msgspec.json.encode(list(book_of_jobs.records()))
            book_of_jobs = JobBook("r", msgspec.json.decode(saved, type=list[JobRecord]))
        state = "PENDING" if tick < start else "RUNNING" if tick < end else "COMPLETED"
        dates = {"start_time": at[start], "end_time": at[end] if tick >= end else None} if slurm_dates else {}
        row = Row(job="7", name=job_name("r", "decode-0", 0), state=state, **dates)
        book_of_jobs.read_queue((row,), at[tick], at[tick])
        if proven <= tick < end:
            phase = DRAINING if tick >= drains else READY
            seen = WorkerView("decode-0", "decode", "decode", 0, phase, "", "n", "7", None, 0, 0, proven=True)
            book_of_jobs.see_fleet(FleetView((seen,), True), at[tick])
    report = make_report(known(*book_of_jobs.records()), at[41])
    [use] = report.generations
    spans = (use.queue_s, use.start_s, use.serve_s, use.drain_s)
    assert spans == tuple(TICK_S * ticks for ticks in (start, proven - start, drains - proven, end - drains))


def test_a_job_that_ended_while_nobody_looked_ended_when_slurm_says() -> None:
    jobs = JobBook("r", [record(started_at=T0)])
    row = Row(job="decode-00", name=job_name("r", "decode-0", 0), state="COMPLETED", end_time=T0 + 60)
    jobs.read_queue((row,), T0 + 9000, T0 + 9000)
    [use] = make_report(known(*jobs.records()), T0 + 9000).generations
    assert use.held_s == 60


def test_what_ran_before_slurm_queued_it_again_counts_too() -> None:
    jobs = JobBook("r", [record(started_at=T0, proven_at=T0 + 10)])
    name = job_name("r", "decode-0", 0)
    jobs.read_queue((Row(job="decode-00", name=name, state="PENDING"),), T0 + 30, T0 + 30)
    jobs.read_queue((Row(job="decode-00", name=name, state="RUNNING", start_time=T0 + 90),), T0 + 90, T0 + 90)
    report = make_report(known(*jobs.records()), T0 + 100)
    assert (report.generations[0].held_s, report.generations[0].queue_s) == (40, 60)
    assert [event.what for event in report.events] == ["queued again"]


# ---------------------------------------------------------------- requests


def test_books_add_up_by_key_by_day_and_by_pool() -> None:
    first = book(keys={"ann": Sums(requests=2, prompt_tokens=10)}, workers={"decode-0.g0": Work(2, 10, 5)})
    second = book(life="b", keys={"ann": Sums(requests=1), "ben": Sums(requests=4)}, workers={"decode-0.g1": Work(5)})
    one, two = record(started_at=T0, ended_at=T0 + 900), record(generation=1, started_at=T0 + 900)
    report = make_report(known(one, two, books=(first, second), alive={"a", "b"}), T0 + 1800)
    assert {name: sums.requests for name, sums in report.keys.items()} == {"ann": 3, "ben": 4}
    assert {day: sums.requests for day, sums in report.days.items()} == {"2023-11-14": 7}
    assert (report.totals.requests, report.tokens_per_gpu_hour) == (7, 5.0)
    [pool] = report.pools
    assert (pool.generations, pool.answers, pool.gpu_hours, pool.tokens_per_gpu_hour) == (2, 7, 2.0, 7.5)


# ---------------------------------------------------------------- events


def told(events: list[Happening]) -> list[tuple[bool, str, str]]:
    return [(event.planned, event.what, event.who) for event in events]


@pytest.mark.parametrize(
    ("changes", "planned", "what"),
    [
        ({"state": "COMPLETED", "reason": "generation 1 has taken over", "proven_at": T0}, True, "hand-over"),
        ({"state": "COMPLETED", "reason": "its walltime ends", "proven_at": T0}, True, "drained before its walltime"),
        ({"state": "COMPLETED", "reason": "the run no longer wants this worker"}, True, "scale-down"),
        ({"state": "PREEMPTED", "proven_at": T0}, False, "preemption"),
        ({"state": "NODE_FAIL", "proven_at": T0}, False, "node lost"),
        ({"state": "TIMEOUT", "proven_at": T0}, False, "walltime ran out"),
        ({"state": "CANCELLED", "proven_at": T0}, False, "worker lost"),
        ({"state": "FAILED"}, False, "never served"),
    ],
)
def test_an_end_is_called_by_its_name(changes: dict[str, Any], planned: bool, what: str) -> None:
    report = make_report(known(record(started_at=T0, ended_at=T0 + 9, **changes)), T0 + 10)
    assert told(report.events) == [(planned, what, "decode-0.g0")]


def test_an_end_has_the_effect_that_all_processes_saw_together_and_earlier_losses_stand_alone() -> None:
    lost = Incident(T0 + 10, "decode-0", 0, "ended", "lost: the agent's beats stopped", open=3, resumed=3)
    ends = [
        Incident(T0 + 100 + late, "decode-0", 0, "ended", "lost: killed", open=4, moved=1, resumed=2, broken=1)
        for late in (0.0, 2.0)
    ]
    one = record(started_at=T0, proven_at=T0, ended_at=T0 + 120, state="FAILED")
    books = (book(incidents=[lost, ends[0]]), book(life="b", incidents=[ends[1]]))
    report = make_report(known(one, books=books, alive={"a", "b"}), T0 + 200)
    assert told(report.events) == [(False, "worker lost", "decode-0.g0")] * 2
    first, second = (event.effect for event in report.events)
    assert first is not None and (first.open, first.resumed) == (3, 3)
    assert second is not None and (second.open, second.moved, second.resumed, second.broken) == (8, 2, 4, 2)


def test_deaths_are_told_and_lives_are_not() -> None:
    books = (book(life="lives"), book(life="died", open_requests=5), book(life="ended", ended=True))
    lives = (diary("lives"), diary("died", Note(T0 + 5, "proxy died", "proxy-0", "status 1")), diary("left"))
    lives[2].ended_at, lives[2].ended = T0 + 7, "SIGTERM"
    report = make_report(known(books=books, lives=lives, alive={"lives"}), T0 + 99)
    assert set(told(report.events)) == {
        (False, "proxy process died", "proxy-0.0"),
        (True, "proxy process ended", "proxy-0.0"),
        (False, "proxy died", "proxy-0"),
        (False, "controller died", "controller died"),
        (True, "controller ended", "controller left"),
    }
    [death] = [event for event in report.events if event.what == "proxy process died"]
    assert death.effect is not None and death.effect.broken == 5


def test_people_see_it_all_and_programs_too() -> None:
    one = record(started_at=T0, proven_at=T0 + 60, ended_at=T0 + 3600, state="PREEMPTED")
    sources = known(one, books=(book(keys={"ann": Sums(requests=3)}),), alive={"a"}, unread=("x.json: truncated",))
    report = make_report(sources, T0 + 4000)
    shown = report_text(report)
    for words in ("4.00 GPU hours", "3 requests", "decode-0.g0", "unplanned  preemption", "not counted: x.json"):
        assert words in shown
    value = msgspec.json.decode(msgspec.json.encode(report_json(report)))
    assert value["generations"][0]["gpu_hours"] == 4.0 and value["pools"][0]["tokens_per_gpu_hour"] == 0.0
