"""Filter, score, pick: as tables."""

from random import Random

import pytest

from proxy.fleet.fleet import Fleet
from proxy.prefixes.prefix_index import PrefixIndex
from proxy.routing.router import Demand, Router
from proxy.spec import RoutingSpec
from tests.unit.proxies import bring_up, proxy_spec
from workers.protocol import Load


def fleet(num_prefill: int = 1, num_decode: int = 1) -> Fleet:
    made = Fleet(proxy_spec())
    for i in range(num_prefill):
        bring_up(made, f"prefill-{i}")
    for i in range(num_decode):
        bring_up(made, f"decode-{i}")
    return made


def names(made: Fleet, demand: Demand) -> tuple[str | None, str] | None:
    route = Router(RoutingSpec(), Random(1)).route(made, PrefixIndex(), demand, 0.0)
    return route and (route.prefill and route.prefill.key[0], route.decode.key[0])


def test_a_long_prompt_is_split() -> None:
    assert names(fleet(), Demand(500, None)) == ("prefill-0", "decode-0")


@pytest.mark.parametrize("demand", [Demand(10, None), Demand(500, "beam search")])
def test_a_short_or_unsplittable_prompt_runs_whole(demand: Demand) -> None:
    assert names(fleet(), demand) == (None, "decode-0")


def test_without_a_prefill_worker_everything_runs_whole() -> None:
    assert names(fleet(num_prefill=0), Demand(500, None)) == (None, "decode-0")


def test_the_least_loaded_is_chosen_and_equals_take_turns() -> None:
    made = fleet(2, 2)
    made.workers["prefill-0", 0].prefill_tokens = 100
    made.workers["decode-0", 0].num_decodes = 1
    assert names(made, Demand(500, None)) == ("prefill-1", "decode-1")
    made = fleet(2, 1)
    made.workers["prefill-0", 0].last_chosen = 1
    assert names(made, Demand(500, None)) == ("prefill-1", "decode-0")


def test_caps_hold() -> None:
    made = fleet()
    made.workers["decode-0", 0].num_decodes = 4
    assert names(made, Demand(500, None)) is None
    made = fleet()
    made.workers["prefill-0", 0].prefill_tokens = 4000
    assert names(made, Demand(500, None)) is None


def test_caps_count_what_other_proxies_gave() -> None:
    made = fleet()
    made.workers["decode-0", 0].num_decodes = 1
    made.workers["decode-0", 0].load = Load(4, 0, 0, 0, other_decodes=3)
    assert names(made, Demand(500, None)) is None
    made = fleet()
    made.workers["prefill-0", 0].load = Load(0, 2, 0, 4000, other_prefill_tokens=4000)
    assert names(made, Demand(500, None)) is None
    made = fleet()
    made.workers["prefill-0", 0].pinned_blocks = 250
    made.workers["prefill-0", 0].load = Load(0, 0, 490, 0, other_pinned_blocks=240)
    assert names(made, Demand(500, None)) is None


def test_what_others_gave_is_weighed_like_our_own() -> None:
    made = fleet(2, 2)
    made.workers["prefill-0", 0].load = Load(0, 0, 0, 100, other_prefill_tokens=100)
    made.workers["decode-0", 0].load = Load(1, 0, 0, 0, other_decodes=1)
    assert names(made, Demand(500, None)) == ("prefill-1", "decode-1")


def test_a_prompt_over_the_cap_runs_where_nothing_else_does() -> None:
    assert names(fleet(), Demand(100_000, None)) == ("prefill-0", "decode-0")


def test_pinned_blocks_are_budgeted() -> None:
    made = fleet()
    made.workers["prefill-0", 0].pinned_blocks = 490
    assert names(made, Demand(500, None)) is None


def test_workers_that_failed_a_request_are_avoided() -> None:
    made = fleet(1, 2)
    demand = Demand(500, None, avoid=frozenset({("decode-0", 0)}))
    assert names(made, demand) == ("prefill-0", "decode-1")


def test_an_unproven_pair_carries_no_user() -> None:
    made = Fleet(proxy_spec())
    bring_up(made, "prefill-0", prove=False)
    bring_up(made, "decode-0", prove=False)
    assert names(made, Demand(500, None)) is None
    assert names(made, Demand(500, None, forced=(("prefill-0", 0), ("decode-0", 0)))) == ("prefill-0", "decode-0")


def test_an_unknown_policy_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match="least_loaded"):
        Router(RoutingSpec(policy="best"), Random(1))
