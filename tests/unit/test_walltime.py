"""When a worker drains because its job will end."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.agent.walltime import MARGIN_S, WalltimeDrain, walltime_drain

NOW = 1_767_225_600.0
SLACK_S = 1e-3  # of floating point at unix times
LIVES = st.floats(0, 30 * 86_400)
DRAINS = st.floats(0, 86_400)


@given(LIVES, DRAINS)
def test_a_drain_is_over_before_its_job_is(life_s: float, drain_timeout_s: float) -> None:
    drain = walltime_drain(NOW, NOW + life_s, drain_timeout_s)
    assert drain.at >= NOW
    assert drain.timeout_s >= 0
    assert drain.at + drain.timeout_s <= NOW + life_s - min(MARGIN_S, life_s / 4) + SLACK_S


@given(LIVES, DRAINS)
def test_a_drain_is_never_longer_than_asked_for_and_leaves_half_of_the_life(life_s: float, timeout_s: float) -> None:
    drain = walltime_drain(NOW, NOW + life_s, timeout_s)
    assert drain.timeout_s <= timeout_s + SLACK_S
    assert drain.at >= NOW + life_s / 2 - SLACK_S


@given(DRAINS, st.floats(0, 86_400))
def test_a_long_job_drains_for_as_long_as_asked_and_not_sooner(timeout_s: float, more_s: float) -> None:
    life_s = 2 * (timeout_s + MARGIN_S) + more_s
    drain = walltime_drain(NOW, NOW + life_s, timeout_s)
    assert drain.timeout_s == pytest.approx(timeout_s, abs=SLACK_S)
    assert drain.at == pytest.approx(NOW + life_s - min(MARGIN_S, life_s / 4) - timeout_s, abs=SLACK_S)


@given(st.floats(0, 86_400), DRAINS)
def test_a_job_that_is_over_drains_at_once(late_s: float, timeout_s: float) -> None:
    assert walltime_drain(NOW, NOW - late_s, timeout_s) == WalltimeDrain(NOW, 0.0)
