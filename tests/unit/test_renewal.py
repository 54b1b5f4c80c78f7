"""When a controller's job is followed by another one."""

from __future__ import annotations

from launcher.control.renewal import LEAD_S, end_of, followers, is_due
from launcher.jobs import Row

NAME = "sluice-run"


def row(job: str, state: str = "RUNNING", life_s: float = 36_000.0) -> Row:
    return Row(job=job, name=NAME, state=state, start_time=1000.0, end_time=1000.0 + life_s)


def test_a_follower_is_due_an_hour_before_the_end_or_in_the_second_half_of_a_short_life() -> None:
    assert not is_due([row("1")], "1", 1000.0 + 36_000.0 - LEAD_S - 1)
    assert is_due([row("1")], "1", 1000.0 + 36_000.0 - LEAD_S)
    assert not is_due([row("1", life_s=60.0)], "1", 1029.0) and is_due([row("1", life_s=60.0)], "1", 1030.0)
    assert not is_due([row("2")], "1", 1e9), "the queue does not know this job"


def test_those_that_wait_are_told_the_next_one_first() -> None:
    rows = [row("1"), row("11", "PENDING"), row("9", "PENDING"), row("8", "CANCELLED")]
    assert [other.job for other in followers(rows, NAME, "1")] == ["9", "11"]
    end = end_of(rows, followers(rows, NAME, "1"), "1")
    assert end is not None and (end.at, end.follower, end.state) == (37_000.0, "9", "PENDING")
    last = end_of(rows, followers(rows, NAME, "11"), "11")
    assert last is not None and last.follower == "", "those before it do not follow it"
