"""When a controller's job is followed by another one."""

from __future__ import annotations

from launcher.control.renewal import LEAD_S, follower, is_due
from launcher.jobs import Row

NAME = "sluice-run"


def row(job: str, state: str = "RUNNING", life_s: float = 36_000.0) -> Row:
    return Row(job=job, name=NAME, state=state, start_time=1000.0, end_time=1000.0 + life_s)


def test_a_follower_is_due_an_hour_before_the_end_or_in_the_second_half_of_a_short_life() -> None:
    assert not is_due([row("1")], "1", 1000.0 + 36_000.0 - LEAD_S - 1)
    assert is_due([row("1")], "1", 1000.0 + 36_000.0 - LEAD_S)
    assert not is_due([row("1", life_s=60.0)], "1", 1029.0) and is_due([row("1", life_s=60.0)], "1", 1030.0)
    assert not is_due([row("2")], "1", 1e9), "the queue does not know this job"


def test_one_that_waits_is_enough() -> None:
    assert follower([row("1"), row("2", "PENDING")], NAME, "1") == "2"
    assert follower([row("1"), row("2", "CANCELLED")], NAME, "1") is None
    assert follower([row("1")], NAME, "1") is None
