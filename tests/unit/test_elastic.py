"""Workers come and go in the twin as in a run: lost work is done again, walltimes are handed over."""

from __future__ import annotations

import random

import pytest

from launcher.config import load
from launcher.refusal import Refused
from launcher.start import plan_run
from launcher.twin.elastic import Elastic
from launcher.twin.simulate import simulate, twin_of
from launcher.twin.slurm import Site
from launcher.twin.traces import Request, own_chain

H100 = ("+cluster=h100x1", "model=llama-3.1-8b", "run=twin")
SITE = Site(queue_s=20.0, start_s=20.0, spread=0.2)
BLOCK_SIZE = 128


def arrivals(per_s: float, end_s: float, num_prompt: int = 4000) -> list[Request]:
    rng, at_s, requests = random.Random(1), 0.0, list[Request]()
    while (at_s := at_s + rng.expovariate(per_s)) < end_s:
        requests.append(Request(at_s, num_prompt, 400, own_chain(len(requests), num_prompt, BLOCK_SIZE)))
    return requests


def elastic(requests: list[Request], site: Site, *overrides: str) -> Elastic:
    config = load([*H100, *overrides])
    _, plan, model = plan_run(config)
    return Elastic(plan, twin_of(config, plan, model, BLOCK_SIZE), requests, site)


def test_what_a_failing_worker_was_doing_is_done_again() -> None:
    requests = arrivals(0.5, 900)
    site = Site(queue_s=20.0, start_s=20.0, failures_per_day=400.0, seed=4)
    patient = "proxy.deadlines.queue_s=600"  # there is one worker of each role
    twin = elastic(requests, site, "pools.prefill.tensor_parallel=1", "pools.decode.tensor_parallel=1", patient)
    done = twin.run()
    assert twin.operated.lost >= 3 and twin.operated.submitted >= twin.operated.lost
    assert twin.operated.failed_requests == 0
    assert all(record.end_s > record.first_s > record.request.at_s for record in done.records)
    assert all(record.itl_s > 0.001 for record in done.records if record.itl_s is not None), "no token was made twice"
    assert any(record.prefill is not None for record in done.records)


def test_walltimes_are_handed_over_before_they_end() -> None:
    requests = arrivals(0.5, 900)
    twin = elastic(requests, Site(queue_s=5.0, start_s=5.0, walltime_s=300.0), "engine.drain_timeout_s=30")
    done = twin.run()
    assert twin.operated.submitted >= 4 and twin.operated.lost == 0 and twin.operated.failed_requests == 0
    assert max(record.ttft_s for record in done.records) < 5.0, "there was somebody at every moment"


def test_a_pool_grows_with_its_load_until_its_budget_is_spent() -> None:
    scaled = ("~pools.prefill", "pools.decode.role=any", "pools.decode.tensor_parallel=1", "pools.decode.replicas=1")
    scaled += ("planner=on", "planner.max_replicas=3")
    requests = arrivals(2.5, 400, num_prompt=16_000)
    twin = elastic(requests, SITE, *scaled, "planner.budget_gpu_hours=100")
    twin.run()
    assert twin.operated.most_workers == 3 and max(twin.operated.drained_young.values(), default=0) == 0
    poor = elastic(requests, SITE, *scaled, "planner.budget_gpu_hours=0.12")
    poor.run()
    assert 0.0 < poor.operated.gpu_hours <= 0.12
    assert poor.operated.failed_requests > 0, "who came after that was turned away"


def test_a_planner_that_changes_sizes_needs_a_queue() -> None:
    with pytest.raises(Refused) as refused:
        simulate(load([*H100, "~pools.prefill", "pools.decode.role=any", "planner=on", "planner.max_replicas=3"]))
    assert "predict.queue_s: the planner changes" in str(refused.value)
    with pytest.raises(Refused) as refused:
        simulate(load([*H100, "predict.queue_s=-1", "predict.start_s=-2"]))
    assert "predict.queue_s: -1 is" in str(refused.value) and "predict.start_s: -2 is" in str(refused.value)
