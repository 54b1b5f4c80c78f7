"""What the benchmarks' own parts promise: arguments, the load's rhythm, medians and the last line."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import report
from benchmarks.arguments import BadArgument, chosen, counts, numbers, read_arguments
from benchmarks.load import Endpoint, Rhythm, ask, prompt
from benchmarks.measure import parts
from benchmarks.planner_live import Live, in_twin, requests_of
from benchmarks.planner_recovery import recoveries
from benchmarks.proxy import Options
from benchmarks.routing.options import Options as RoutingOptions
from benchmarks.routing.options import check
from launcher.twin.percentiles import percentile
from launcher.twin.records import Record
from launcher.twin.traces import Request
from proxy.spec import LatencyTargets


def test_arguments_take_the_place_of_defaults() -> None:
    options = read_arguments(Options, ["streams=3", "step_ms=1.5", "output=elsewhere"])
    assert (options.streams, options.step_ms, options.output, options.repeats) == (3, 1.5, "elsewhere", 3)


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("stream=3", "did you mean streams?"),
        ("xyzzy=3", "known: streams, tokens"),
        ("streams", "write streams=VALUE"),
        ("streams=many", "Expected `int`"),
        ("streams=0", ">= 1"),
    ],
)
def test_a_wrong_argument_is_told(argument: str, words: str) -> None:
    with pytest.raises(BadArgument) as refused:
        read_arguments(Options, [argument])
    assert words in str(refused.value)


def test_a_wrong_part_of_a_list_is_told() -> None:
    assert chosen("parts", "b,a", ["a", "b", "c"]) == ["b", "a"]
    assert (numbers("loads", "0.5,2"), counts("workers", "8,64")) == ([0.5, 2.0], [8, 64])
    for wrong, words in {
        lambda: chosen("parts", "a,d", ["a", "b"]): "parts: 'd' is not one of a, b",
        lambda: numbers("loads", "0.5,x"): "loads: '0.5,x' is not a list of numbers above 0",
        lambda: counts("workers", "0"): "workers: '0' is not a list of whole numbers above 0",
        lambda: check(read_arguments(RoutingOptions, ["policies=kv,dynamo:8,foo"])): "policies: 'foo' is not one of kv",
        lambda: check(read_arguments(RoutingOptions, ["baseline=worst"])): "baseline: 'worst' is not one of kv",
    }.items():
        with pytest.raises(BadArgument) as refused:
            wrong()
        assert str(refused.value).startswith(words)


@given(st.integers(1, 5), st.integers(1, 200), st.integers())
def test_staggered_users_read_as_many_tokens(rounds: int, num_tokens: int, seed: int) -> None:
    lengths = Rhythm(start_s=1.0, pause_s=0.1, staggered=True).lengths(rounds, num_tokens, random.Random(seed))
    assert sum(lengths) == rounds * num_tokens
    assert all(1 <= length <= num_tokens for length in lengths)


def test_pauses_come_before_each_request() -> None:
    pauses_s = Rhythm(start_s=9.0, pause_s=0.1).pauses_s(4, random.Random(1))
    assert len(pauses_s) == 4
    assert max(pauses_s[1:]) <= 0.1


def test_every_part_measures_one_of_two_units() -> None:
    assert {part.unit for part in parts(Options())} == {"token", "request"}


def test_a_request_is_whole() -> None:
    text = prompt(1000, random.Random(0))
    head, _, body = ask(Endpoint(host="here", port=1, model="sim", key="sk"), text, 4).data.partition(b"\r\n\r\n")
    assert len(text) == 1000
    assert b"content-length: %d" % len(body) in head
    assert msgspec.json.decode(body)["max_tokens"] == 4


def test_figures_are_medians_over_the_repeats() -> None:
    assert report.medians([{"a": 1.0}, {"a": 9.0}, {"a": 2.0, "late": 5.0}]) == {"a": 2.0, "late": 5.0}


def test_percentiles() -> None:
    assert percentile([3.0, 1.0, 2.0], 0.5) == 2.0
    assert percentile([3.0, 1.0, 2.0], 0.99) == 3.0
    assert percentile([], 0.5) == 0.0


def test_the_last_line_is_one_line_of_json() -> None:
    line = report.last_line(report.report("name", {"a": 1.23456}))
    assert "\n" not in line
    answer = msgspec.json.decode(line)
    assert answer["benchmark"] == "name"
    assert answer["figures"] == {"a": 1.235}
    assert answer["machine"]["num_cpus"] >= 1
    assert {"python", "sluice"} <= set(answer["versions"])


def test_targets_are_kept_again_from_when_a_queue_is_worked_off() -> None:
    """One request per second that takes half a second; of those that come from 10 s on ten wait till 25 s."""
    firsts = {at_s: at_s + 0.5 for at_s in range(40)} | dict.fromkeys(range(10, 20), 25.0) | {26: 29.0}
    records = [Record(Request(at_s, 1, 1, ()), first_s, first_s) for at_s, first_s in firsts.items()]
    spike, calm = recoveries(records, 10.0, 3, LatencyTargets(ttft_s=2.0, itl_s=1.0))
    assert (spike.queue_s, spike.late_s, spike.missed) == (10.0, 0.0, 0.0), "not worked off in its phase"
    assert (calm.queue_s, calm.late_s, calm.slow_s) == (5.0, 1.0, 0.0)
    assert calm.missed == 1 / 5


def test_twins_that_look_half_a_second_apart_decide_the_same(tmp_path: Path) -> None:
    asked = Live()
    found = [
        in_twin(asked, [replace(request, at_s=request.at_s + later_s) for request in requests_of(asked)], tmp_path)[0]
        for later_s in (0.0, 0.5)
    ]
    (first, second) = found
    assert len(first) > 4
    assert [roles for _, roles in first] == [roles for _, roles in second]
