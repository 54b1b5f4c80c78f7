"""The parts of `benchmarks.routing` that decide: links, saturation, figures."""

from __future__ import annotations

from random import Random

import pytest

from benchmarks.routing.bound import ttft_mean_s
from benchmarks.routing.dynamo import GRID, Setting, scores, setting_of
from benchmarks.routing.options import Options, requests_of
from benchmarks.routing.saturation import PRECISION, saturation
from launcher.twin.figures import figures_of, growth
from launcher.twin.links import NEVER, Links
from proxy.prefixes.prefix_index import PrefixIndex
from proxy.routing.load_policies import SCORES
from proxy.routing.router import Demand, Router
from proxy.spec import RoutingSpec

SLICE = Options(length_s=12.0, workers=4)


def test_transfers_share_the_link_of_either_end() -> None:
    links = Links(dict.fromkeys("abcd", 100.0))
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
    replayed = options.replay("least_loaded", requests).run()
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
    runs = [SLICE.replay("least_loaded", requests_of(SLICE, 1.0, 3)).run() for _ in range(2)]
    assert [(r.first_s, r.end_s) for r in runs[0].records] == [(r.first_s, r.end_s) for r in runs[1].records]


def test_dynamo_at_its_defaults_is_the_policy_of_the_proxy_and_other_settings_are_not() -> None:
    requests = requests_of(SLICE, 2.0, 1)

    def chosen(policy: str) -> list[str]:
        return [record.decode for record in SLICE.replay(policy, requests).run().records]

    defaults = {**SCORES, "dynamo": scores(Setting())}
    made = [Router(RoutingSpec(policy="dynamo"), Random(0), each) for each in (SCORES, defaults)]
    fleet, index = SLICE.setup("dynamo").fleet(), PrefixIndex()
    for number, request in enumerate(requests):
        demand = Demand(request.num_prompt, None, chain=request.chain)
        routes = [router.route(fleet, index, demand, 0.0) for router in made]
        assert routes[0] is not None and routes[1] is not None and routes[0].decode is routes[1].decode
        worker = routes[0].decode
        worker.held_tokens += request.num_prompt
        worker.prefill_tokens = (worker.prefill_tokens + request.num_prompt) % 7000
        worker.last_chosen = number
        index.store((worker.key, 0), request.chain)
    assert chosen("dynamo") == chosen("dynamo:1:1:0:0") != chosen("dynamo:8")


def test_each_setting_of_the_grid_is_asked_for_by_its_name() -> None:
    assert [setting_of(setting.name) for setting in GRID] == list(GRID) and len(set(GRID)) == len(GRID)
    assert setting_of("dynamo") is None and setting_of("kv") is None


def test_no_replay_beats_the_bound() -> None:
    requests = requests_of(SLICE, 0.1, 0)
    found = figures_of(SLICE.replay("kv", requests).run(), 1.0, 1.0)["ttft_mean_s"]
    least_s = ttft_mean_s(requests, SLICE.card)
    assert least_s < found < 1.5 * least_s


def test_a_hot_prompt_spreads_by_itself() -> None:
    """All requests share 6,000 tokens; nobody is left to compute them alone."""
    hot = Options(shape="hot", length_s=60.0)
    found = figures_of(hot.replay("kv", requests_of(hot, 4.0, 0)).run(), 1.0, 1.0)
    assert found["imbalance"] <= 1.3 and found["hits"] > 0.8


def test_a_fast_link_late_in_a_replay_is_done_in_spite_of_rounding() -> None:
    links = Links({"a": 4e11, "b": 4e11})
    now = 1e5
    for id in range(200):
        now += 0.0137
        links.start(id, "a", "b", 1_234_567_891, now)
        for _ in range(3):
            now = links.next_at
            if links.take_done(now):
                break
        else:
            raise AssertionError("never done")
