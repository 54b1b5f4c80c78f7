"""What is counted of users' requests: histograms, the last hour, and whose requests count."""

from __future__ import annotations

import statistics
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.fleet.fleet import Fleet
from proxy.flights.flight import Flight
from proxy.monitoring.histogram import BOUNDS_S, RATIO, Histogram
from proxy.monitoring.history import INTERVAL_S, MAX_INTERVALS, SPAN_S, History, history_json
from proxy.monitoring.traffic import Traffic
from proxy.routing.router import Demand, Reason, Route
from tests.unit.proxies import bring_up, flight, proxy_spec
from workers.protocol import End

T0 = 1_700_000_000

# ---------------------------------------------------------------- histograms


@given(st.lists(st.floats(BOUNDS_S[0], BOUNDS_S[-1]), min_size=1), st.sampled_from([0.5, 0.99, 1.0]))
def test_a_quantile_is_right_to_a_bucket(values: list[float], fraction: float) -> None:
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    told = histogram.quantile(fraction)
    below = sorted(values)[max(0, -int(-fraction * len(values) // 1) - 1)]
    assert told is not None and below / RATIO <= told * 1.0001 and told <= below * RATIO * 1.0001
    assert histogram.sum_s == pytest.approx(sum(values))


def test_nothing_counted_has_no_quantile_and_beyond_the_bounds_is_the_last_bound() -> None:
    histogram = Histogram()
    assert histogram.quantile(0.5) is None
    histogram.add(1e9)
    assert histogram.quantile(0.5) == pytest.approx(BOUNDS_S[-1], rel=RATIO - 1)
    assert list(histogram.octaves())[-2:] == [("131.072", 0), ("+Inf", 1)]


def test_prometheus_is_told_cumulative_octaves() -> None:
    histogram = Histogram()
    for value in (0.0005, 0.0015, 0.003, 0.0039, 60.0):
        histogram.add(value)
    octaves = dict(histogram.octaves())
    assert list(octaves)[:3] == ["0.001", "0.002", "0.004"]
    assert (octaves["0.001"], octaves["0.002"], octaves["0.004"], octaves["65.536"]) == (1, 2, 4, 5)


# ---------------------------------------------------------------- the last hour


def test_what_comes_in_one_interval_is_added_up_and_the_next_begins_anew() -> None:
    history = History()
    history.at(T0 + 1).answered += 1
    history.at(T0 + 9.9).answered += 1
    history.at(T0 + 10).answered += 1
    assert [(i.start, i.answered) for i in history.since(0, T0 + 10)] == [(T0, 2), (T0 + 10, 1)]
    assert [i.start for i in history.since(T0 + 10, T0 + 10)] == [T0 + 10]


def test_an_hour_is_kept_and_no_more() -> None:
    history = History()
    for second in range(0, 3 * SPAN_S, 5):
        history.at(T0 + second).answered += 1
    kept = list(history.since(0, T0 + 3 * SPAN_S))
    assert len(kept) <= MAX_INTERVALS and kept[0].start >= T0 + 2 * SPAN_S
    assert list(history.since(0, T0 + 5 * SPAN_S)) == [], "what is older is not told, however idle it has been"


def test_memory_is_flat() -> None:
    interval = History().at(T0)
    size = sum(sys.getsizeof(histogram.counts) for histogram in (interval.ttft, interval.itl))
    assert MAX_INTERVALS * size < 1 << 20


def test_a_clock_that_is_set_back_loses_nothing() -> None:
    history = History()
    history.at(T0 + 100).answered += 1
    history.at(T0).answered += 1
    assert [(i.start, i.answered) for i in history.since(0, T0 + 100)] == [(T0 + 100, 2)]


# ---------------------------------------------------------------- whose requests count


def routed(prefill: str | None = "prefill-0", *, streams: bool = True, demand: Demand | None = None) -> Flight:
    fleet = Fleet(proxy_spec())
    workers = {name: fleet.workers[bring_up(fleet, name)] for name in ("prefill-0", "decode-0")}
    made = flight(1)
    made.streams = streams
    made.arrived_at = 100.0
    made.demand = demand or made.demand
    made.route = Route(
        workers[prefill] if prefill else None, workers["decode-0"], Reason("kv", "whole takes less", ttft_s=0.25)
    )
    return made


def answered(traffic: Traffic, of: Flight) -> None:
    """First token 0.5 s after the arrival, 10 more in one second."""
    traffic.began(of, 100.5, T0)
    traffic.ended(of, 100.5, End(1, num_prompt_tokens=500, num_output_tokens=11), 101.5, T0)


def test_a_stream_has_a_ttft_and_a_mean_itl() -> None:
    traffic = Traffic()
    answered(traffic, routed())
    assert (traffic.ttft.sum_s, traffic.itl.sum_s, traffic.duration.sum_s) == pytest.approx((0.5, 0.1, 1.5))
    assert traffic.routes == {("prefill-0", "decode-0"): 1}
    assert traffic.handed_over == {("prefill-0", "decode-0"): 500}
    [told] = history_json(traffic.history.since(0, T0))
    assert (told["answered"], told["failed"], told["prompt_tokens"], told["output_tokens"]) == (1, 0, 500, 11)
    assert told["start"] == T0 // INTERVAL_S * INTERVAL_S
    assert told["ttft_p50_s"] == pytest.approx(0.5, rel=0.3) and told["itl_p99_s"] == pytest.approx(0.1, rel=0.3)


def test_an_answer_in_one_piece_has_neither_and_a_whole_one_moves_no_kv() -> None:
    traffic = Traffic()
    answered(traffic, routed(None, streams=False))
    assert sum(traffic.ttft.counts) == sum(traffic.itl.counts) == 0
    assert sum(traffic.duration.counts) == 1
    assert traffic.routes == {("", "decode-0"): 1} and not traffic.handed_over


def test_one_token_has_no_time_between_tokens() -> None:
    traffic = Traffic()
    traffic.ended(routed(), 100.5, End(1, 500, 0, 1), 100.5, T0)
    assert sum(traffic.itl.counts) == 0


@pytest.mark.parametrize(
    "demand",
    [Demand(32, None, forced=(("prefill-0", 0), ("decode-0", 0))), Demand(0, "m", forced=(None, ("decode-0", 0)))],
)
def test_proofs_and_scrapes_are_nobodys_requests(demand: Demand) -> None:
    traffic = Traffic()
    answered(traffic, routed(demand=demand))
    traffic.failed(routed(demand=demand), T0)
    assert not traffic.routes and not traffic.output_tokens and sum(traffic.ttft.counts) == 0
    assert list(traffic.history.since(0, T0)) == []


def test_a_failure_is_counted_where_it_happened() -> None:
    traffic = Traffic()
    traffic.failed(routed(), T0 + 15)
    assert [(i["start"], i["failed"]) for i in history_json(traffic.history.since(0, T0 + 15))] == [(T0 + 10, 1)]


def test_the_median_of_many_streams() -> None:
    traffic = Traffic()
    took = [0.1 * 1.05**i for i in range(40)]
    for seconds in took:
        traffic.began(routed(), 100.0 + seconds, T0)
    [told] = history_json(traffic.history.since(0, T0))
    assert told["ttft_p50_s"] == pytest.approx(statistics.median(took), rel=RATIO - 1)
