"""What arithmetic rules out cannot be done: bounds against replays long enough to tell, and against each other."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from launcher.config import load
from launcher.schema import WorkloadConfig
from launcher.twin.capacity import Capacity
from launcher.twin.families import EXACT, Family
from launcher.twin.needs import Needs, idle, load_of
from launcher.twin.simulate import resolved
from launcher.twin.splits import Layout, Part, Split
from launcher.twin.traces import Request
from launcher.twin.workload import Workload, make_workload

ONE = Layout(1)
CASES = {
    "prompts": WorkloadConfig(rate=8, requests=800, prompt_tokens=8000, output_tokens=20),
    "answers": WorkloadConfig(rate=60, requests=3000, prompt_tokens=100, output_tokens=400),
    "shared": WorkloadConfig(rate=20, requests=1200, prompt_tokens=6000, output_tokens=60, reuse=0.8),
}


def capacity_of(case: WorkloadConfig) -> Capacity:
    config = load(["+cluster=h100x1", "model=llama-3.1-8b", "action=capacity"])
    return Capacity(config, resolved(config), {}, make_workload(case, config.model.max_model_len))


@pytest.mark.parametrize("name", CASES)
def test_fewer_workers_than_arithmetic_says_do_not_keep_up(name: str) -> None:
    capacity = capacity_of(CASES[name])
    least = Family(capacity.needs(ONE)).least
    assert least is not None and least.gpus > 1
    fewer = Split(Part(ONE, least.gpus - 1))
    assert not capacity.try_split(fewer).good


def test_what_a_prompt_takes_at_the_least_is_what_is_not_cached_of_it() -> None:
    shared, own = (make_workload(replace(CASES["shared"], reuse=reuse), 65536) for reuse in (0.8, 0.0))
    assert load_of(own).prompts == [(request.num_prompt, 0) for request in own.requests]
    assert all(new >= 1 and new + cached == r.num_prompt for (new, cached), r in _prompts(shared))
    assert load_of(shared).new_per_s < load_of(own).new_per_s / 3
    card = capacity_of(CASES["shared"]).card(ONE)
    assert idle(card, load_of(shared), 0.9).ttft_s < idle(card, load_of(own), 0.9).ttft_s


def _prompts(workload: Workload) -> list[tuple[tuple[int, int], Request]]:
    return list(zip(load_of(workload).prompts, workload.requests, strict=True))


NUMBERS = st.floats(0.1, 40)


@given(NUMBERS, NUMBERS, st.floats(0.6, 1), st.integers(1, 4))
@example(4.0, 6.0, 0.6000000000000001, 1)  # a whole number of workers, but for rounding
def test_the_least_of_a_pair_is_possible_and_nothing_below_it_is(
    prefill: float, decode: float, mixed: float, faster: int
) -> None:
    both = max(prefill, decode, mixed * (prefill + decode))
    family = Family(Needs(ONE, prefill, decode, both), Needs(ONE, prefill / faster, decode / faster, both / faster))
    least = family.least
    assert least is not None and family.possible(least)
    sizes = range(1, least.gpus)
    below = [Split(Part(ONE, one), Part(ONE, other)) for one in sizes for other in sizes if one + other < least.gpus]
    assert not any(family.possible(split) for split in below)
    alone = Family(family.decode).least
    assert alone is not None and alone.prefill is None
    assert both - EXACT <= alone.decode.replicas < both + 1
