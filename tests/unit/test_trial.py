"""A replay that begins with answers in flight sees in seconds what else takes several answers' time."""

from __future__ import annotations

import statistics
from array import array
from functools import cache
from unittest.mock import patch

import pytest

from launcher.config import load
from launcher.schema import WorkloadConfig
from launcher.twin.capacity import Capacity
from launcher.twin.needs import load_of
from launcher.twin.prediction import latencies
from launcher.twin.records import Replayed
from launcher.twin.replay import Replay
from launcher.twin.setup import Setup
from launcher.twin.simulate import resolved
from launcher.twin.splits import Layout, Part, Split, setup_of_split
from launcher.twin.steady import Underway, learnt_rates, num_underway, underway
from launcher.twin.traces import Request as Asked
from launcher.twin.traces import own_chain
from launcher.twin.trial import NUM_SEEN, Trial
from launcher.twin.workload import Workload, make_workload

RATE, WORKERS = 54.0, 6


def test_answers_underway_are_met_by_their_length_anywhere_in_them() -> None:
    requests = [
        Asked(float(number), 100, 1 + length, own_chain(number, 100, 16)) for number, length in enumerate((0, 30, 90))
    ]
    found = underway(requests, 40)
    assert [sum(each.request.num_output == request.num_output for each in found) for request in requests] == [0, 10, 30]
    assert all(1 <= each.num_made < each.request.num_output for each in found)
    assert statistics.fmean(each.num_made for each in found[10:]) == pytest.approx(45, abs=2)
    assert underway(requests[:1], 5) == [] and underway(requests, 0) == []


def test_nobody_who_comes_finds_a_copy_of_itself_cached() -> None:
    chains = [array("Q", blocks) for blocks in ((1, 2, 3), (1, 2, 4), (5, 6))]
    found = underway([Asked(0.0, 50, 11, chain) for chain in chains], 3)
    assert [list(each.request.chain) for each in found] == [[1, 2], [1, 2], []]
    setup, workload, going_on = fleet(8)
    assert not any(record.num_cached for record in Trial(setup, workload.requests, going_on).run().records)


@cache
def fleet(seconds: float) -> tuple[Setup, Workload, list[Underway]]:
    config = load(["+cluster=h100x1", "model=llama-3.1-8b", "action=capacity"])
    model = resolved(config)
    asked = WorkloadConfig(rate=RATE, requests=round(RATE * seconds), prompt_tokens=500, output_tokens=1000)
    workload = make_workload(asked, config.model.max_model_len)
    setup = setup_of_split(config, model, {}, workload.block_size, Split(Part(Layout(1), WORKERS)))
    card = Capacity(config, model, {}, workload).card(Layout(1))
    return setup, workload, underway(workload.requests, num_underway(card, load_of(workload), WORKERS, 1.0))


@cache
def long() -> Replayed:
    setup, workload, _ = fleet(80)
    return Replay(setup, workload.requests).run()


def test_a_few_seconds_are_as_a_part_of_a_long_replay() -> None:
    setup, workload, going_on = fleet(8)
    short = Trial(setup, workload.requests, going_on).run()
    cold = Replay(setup, workload.requests).run()
    itl_s, short_s, cold_s = (latencies(each, 0.5, 0.2)[1] for each in (long(), short, cold))
    assert short_s == pytest.approx(itl_s, rel=0.1)
    assert cold_s < 0.85 * itl_s


def test_it_ends_when_enough_of_all_answers_has_been_seen() -> None:
    setup, workload, going_on = fleet(8)
    trial = Trial(setup, workload.requests, going_on).run()
    assert trial.complete and len(trial.records) == len(workload.requests)
    in_flight = [record for record in trial.records if record.num_made]
    assert in_flight and all(record.num_made >= NUM_SEEN and record.end_s == trial.end_s for record in in_flight)
    assert workload.requests[-1].at_s < trial.end_s < workload.requests[-1].at_s + 5


def test_what_is_underway_is_nobodys_request_and_what_it_taught_is_forgotten() -> None:
    setup, workload, going_on = fleet(8)
    trial = Trial(setup, workload.requests[:1], going_on)
    with patch.object(Trial, "_learn_rates", side_effect=trial._learn_rates) as learnt:
        assert len(trial.run().records) == 1
    learnt.assert_called_once()
    card = setup.card(next(iter(trial._fleet.workers)))
    taught = [worker.rates.prefill for worker in trial._fleet.workers.values() if not worker.rates.prefill.known]
    assert learnt_rates(card, workload.requests[:1]).prefill in taught


def test_rates_that_are_taken_as_learnt_are_those_that_a_long_replay_teaches() -> None:
    setup, workload, going_on = fleet(40)
    trial = Trial(setup, workload.requests, going_on)
    with patch.object(Trial, "_learn_rates"):
        trial.run()
    taught = [worker.rates for worker in trial._fleet.workers.values()]
    rates = learnt_rates(setup.card(next(iter(trial._fleet.workers))), workload.requests)
    for told, learnt in (
        (rates.answer_tokens.value, [each.answer_tokens.value for each in taught]),
        (rates.answer_share.value, [each.answer_share.value for each in taught]),
        (rates.step.seconds(60_000), [each.step.seconds(60_000) for each in taught]),
    ):
        assert told == pytest.approx(statistics.median(learnt), rel=0.2)
