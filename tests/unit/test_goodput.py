"""What a time between tokens costs, the nearer and the farther over its target."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.routing.goodput import EVEN_AT, LEAST_WEIGHT, WORTH, Goodput
from proxy.spec import LatencyTargets

TARGETS = LatencyTargets(ttft_s=2.0, itl_s=0.05)
GOODPUT = Goodput(TARGETS)
times_s = st.floats(0, 1e6)


@given(times_s, times_s, st.integers(0, 500))
def test_slower_costs_more_but_never_more_than_the_answer_is_worth(itl_s: float, more_s: float, num: int) -> None:
    worth_s = WORTH * TARGETS.ttft_s
    assert 0 <= GOODPUT.itl_cost_s(itl_s) <= GOODPUT.itl_cost_s(itl_s + more_s) <= worth_s
    assert 0 <= GOODPUT.others_cost_s(num, itl_s, more_s) <= num * worth_s


@given(times_s, times_s)
def test_a_stall_counts_most_where_it_is_open_whether_an_answer_keeps_to_its_target(
    itl_s: float, more_s: float
) -> None:
    even_s, later_s = EVEN_AT * TARGETS.itl_s, itl_s + more_s
    weight = GOODPUT.stall_weight(itl_s, later_s)
    assert LEAST_WEIGHT <= weight <= 1
    if itl_s <= even_s <= later_s:  # however far beyond
        assert weight == 1
    assert GOODPUT.stall_weight(even_s / 2, even_s / 2) < 1.2 * LEAST_WEIGHT  # it keeps to it
    assert GOODPUT.stall_weight(even_s * 2, even_s * 3) < 1.2 * LEAST_WEIGHT  # it is lost


def test_it_is_decided_shortly_before_the_target() -> None:
    half_s = WORTH * TARGETS.ttft_s / 2
    assert abs(GOODPUT.itl_cost_s(EVEN_AT * TARGETS.itl_s) - half_s) < 1e-9
    assert GOODPUT.itl_cost_s(0.5 * TARGETS.itl_s) < 0.1 * half_s
    assert GOODPUT.itl_cost_s(1.1 * TARGETS.itl_s) > 1.9 * half_s
    assert GOODPUT.others_cost_s(40, 2 * TARGETS.itl_s, 0.01) < 1e-2 * half_s  # they are lost
