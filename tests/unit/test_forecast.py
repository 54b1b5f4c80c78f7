"""The forecast of demand: it follows trends, not noise, and says how sure it is."""

from statistics import fmean

import pytest

from benchmarks.forecast import NOISE, TRENDING, WARM_UP, made_up, ratio
from launcher.planner.forecast import HORIZONS_MIN, WINDOW, Bucket, Forecast, Series


def told(values: list[float]) -> Series:
    series = Series()
    for value in values:
        series.add(value)
    return series


def test_nothing_is_said_before_there_was_a_window() -> None:
    assert told([1.0] * (WINDOW - 1)).forecast() == {}
    assert set(told([1.0] * WINDOW).forecast()) == set(HORIZONS_MIN)


def test_what_does_not_change_is_certain() -> None:
    for interval in told([7.0] * 90).forecast().values():
        assert interval == pytest.approx((7.0, 7.0, 7.0))


def test_a_line_is_followed() -> None:
    """The mean of the five minutes that end in five minutes: two minutes before their end."""
    assert told([100.0 + 10 * minute for minute in range(60)]).forecast()[5].mean == pytest.approx(720.0, rel=0.01)


def test_demand_is_never_below_nothing() -> None:
    interval = told([max(0.0, 1000.0 - 40 * minute) for minute in range(30)]).forecast()[60]
    assert interval.low == 0.0
    assert interval.mean >= 0.0


@pytest.mark.parametrize("shape", TRENDING)
def test_trends_are_forecast_better_than_by_the_last_value(shape: str) -> None:
    assert fmean(ratio(made_up(shape, 6, seed)) for seed in range(3)) < 0.9


@pytest.mark.parametrize("shape", [*NOISE, "walk"])
def test_noise_misleads_no_more_than_the_last_value(shape: str) -> None:
    assert fmean(ratio(made_up(shape, 6, seed)) for seed in range(3)) < 1.05


def test_nine_of_ten_lie_within_the_interval() -> None:
    values, series, within = made_up("day", 12, 1), Series(), []
    for number, value in enumerate(values[:-WINDOW], 1):
        series.add(value)
        if number > 4 * WARM_UP:
            low, _, high = series.forecast()[WINDOW]
            within.append(low <= fmean(values[number : number + WINDOW]) <= high)
    assert 0.8 < fmean(within) < 0.98


@pytest.mark.parametrize(
    ("computed", "output", "name"), [(50.0, 0.0, "prefill-heavy"), (0.0, 50.0, "decode-heavy"), (0.0, 0.0, "")]
)
def test_a_drift_is_named(computed: float, output: float, name: str) -> None:
    forecast = Forecast()
    for minute in range(40):
        forecast.add(Bucket(1000 + computed * minute, 10.0, 1000 + output * minute))
    assert forecast.drift() == name
