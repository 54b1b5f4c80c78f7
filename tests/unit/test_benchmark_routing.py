"""The parts of `benchmarks.routing` that decide: links, saturation, figures."""

from __future__ import annotations

import pytest

from benchmarks.routing.figures import figures_of, growth
from benchmarks.routing.links import NEVER, Links
from benchmarks.routing.options import Options, requests_of
from benchmarks.routing.replay import Replay
from benchmarks.routing.saturation import PRECISION, saturation

SLICE = Options(length_s=12.0, workers=4)


def test_transfers_share_the_link_of_either_end() -> None:
    links = Links(100.0)
    links.start(1, "a", "c", 100, 0.0)
    assert links.next_at == 1.0
    links.start(2, "b", "c", 100, 0.5)  # both into c: half of it each
    assert links.next_at == pytest.approx(1.5)
    assert links.take_done(links.next_at) == [1]
    assert links.next_at == pytest.approx(2.0)  # the other has it alone again
    links.start(3, "a", "d", 100, 1.5)  # another pair: in nobody's way
    assert links.next_at == pytest.approx(2.0)
    assert links.take_done(links.next_at) == [2]
    assert links.take_done(links.next_at) == [3]
    assert links.next_at == NEVER


@pytest.mark.parametrize("limit", [0.3, 1.0, 1.19, 7.7])
def test_saturation_is_the_first_rate_from_below_at_which_waiting_grows(limit: float) -> None:
    found = saturation(lambda rate: 5.0 if limit < rate < 4 * limit else 1.9, 1.0)
    assert limit / PRECISION <= found <= limit


@pytest.mark.parametrize("roles", ["whole", "split", "adaptive"])
def test_a_replay_answers_every_request_once_and_its_figures_agree(roles: str) -> None:
    options = Options(length_s=12.0, workers=4, prefill_workers=2, roles=roles)  # type: ignore[arg-type]
    requests = requests_of(options, 1.0, 0)
    replayed = Replay(options.setup("least_loaded"), requests).run()
    records = replayed.records
    assert [record.request for record in records] == requests
    assert all(r.request.at_s < r.first_s <= r.end_s <= replayed.end_s for r in records)
    assert all(0 <= r.num_cached < r.request.num_prompt for r in records)
    if roles != "adaptive":
        assert all((r.prefill is not None) == (roles == "split") for r in records)
    figures = figures_of(replayed, 1e9, 1e9)
    assert figures["good"] == 1 and figures["imbalance"] >= 1 and growth(records) > 0
    assert figures["ttft_p50_s"] <= figures["ttft_p90_s"] <= figures["ttft_p99_s"]
    assert figures_of(replayed, 1e-9, 1e9)["good"] == 0


def test_the_same_replay_gives_the_same_times() -> None:
    runs = [Replay(SLICE.setup("least_loaded"), requests_of(SLICE, 1.0, 3)).run() for _ in range(2)]
    assert [(r.first_s, r.end_s) for r in runs[0].records] == [(r.first_s, r.end_s) for r in runs[1].records]
