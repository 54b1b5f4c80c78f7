"""Marks of the clock that a process's timers share."""

import pytest

from workers.beat import next_mark


@pytest.mark.parametrize("interval_s", [0.25, 0.5, 1.0])
def test_a_mark_is_ahead_and_at_most_one_interval_away(interval_s: float) -> None:
    for now in (0.0, 0.124, 7.5, 86_400.3):
        assert now < next_mark(now, interval_s) <= now + interval_s


def test_a_longer_interval_adds_no_wake_up() -> None:
    now, ticks = 1000.1, set()
    while now < 1010.0:
        ticks.add(round(now, 6))
        now = next_mark(now + 1e-6, 0.25)
    assert {round(next_mark(at, 1.0), 6) for at in (1001.0, 1002.3, 1004.7)} <= ticks
