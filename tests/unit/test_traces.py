"""Reading traces, making one up, and what is made of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from launcher.twin.traces import (
    BadTrace,
    Request,
    Synthetic,
    coarse_step_s,
    jittered,
    part,
    read,
    shared_hits,
    synthetic,
)

SMALL = Synthetic(duration_s=30.0)
MOONCAKE = (
    b'{"timestamp": 3000, "input_length": 1100, "output_length": 52, "hash_ids": [7, 8, 9]}\n'
    b'{"timestamp": 0, "input_length": 1024, "output_length": 0, "hash_ids": [7, 11]}\n'
)
AZURE = (
    "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.2319600,10,8\n"
)


def test_a_mooncake_trace_is_read_in_order_of_time_with_the_prefixes_it_shares(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_bytes(MOONCAKE)
    first, second = read(path)
    assert (first.at_s, first.num_prompt, first.num_output) == (0.0, 1024, 1)
    assert (second.at_s, second.num_prompt, second.num_output) == (3.0, 1100, 52)
    assert [len(first.chain), len(second.chain)] == [16, 17]
    assert first.chain[:8] == second.chain[:8]  # the 512 tokens of id 7
    assert not set(first.chain[8:]) & set(second.chain)
    assert 0 not in {*first.chain, *second.chain} and len({*first.chain, *second.chain}) == 25


def test_an_azure_trace_shares_nothing(tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_text(AZURE)
    first, second = read(path)
    assert (first.num_prompt, first.num_output, len(first.chain)) == (4808, 10, 75)
    assert second.at_s == pytest.approx(0.252)
    assert len(second.chain) == 0


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("a.jsonl", '{"timestamp": 1}\n', "a.jsonl:1: "),
        ("a.csv", "TIMESTAMP,ContextTokens\n2023-11-16 18:17:03,7\n", "a.csv:2: "),
        ("a.csv", "TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
        ("a.txt", "", ".jsonl"),
    ],
)
def test_a_bad_trace_is_refused_with_its_place(name: str, text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(BadTrace, match=told):
        read(path)


def test_chats_that_are_made_up_repeat_what_came_before_and_share_system_prompts() -> None:
    requests = synthetic(SMALL, 1)
    assert requests == synthetic(SMALL, 1) != synthetic(SMALL, 2)
    assert [r.at_s for r in requests] == sorted(r.at_s for r in requests)
    assert all(len(r.chain) == r.num_prompt // 64 and r.num_output > 0 for r in requests)
    by_first: dict[int, list[Request]] = {}
    for request in requests:
        by_first.setdefault(request.chain[0], []).append(request)
    assert len(by_first) == len(SMALL.system_prompts)
    longer = [r for r in requests if any(o is not r and r.chain[: len(o.chain)] == o.chain for o in requests)]
    assert longer, "a second turn begins with all of the first"
    assert 0.2 < shared_hits(requests, None) < 0.9


def test_a_cache_without_an_end_finds_what_came_before_and_a_small_one_less() -> None:
    requests = synthetic(SMALL, 1)
    found = [shared_hits(requests, size) for size in (10, 1000, 10_000, None)]
    assert found == sorted(found) and found[0] < found[-1]
    assert shared_hits(requests[:1], None) == 0


def test_jitter_and_rate_move_arrivals_and_a_slice_begins_at_nought() -> None:
    requests = synthetic(SMALL, 1)
    moved = jittered(requests, 0.5, 2.0, 7)
    times = {id(r.chain): r.at_s for r in requests}
    assert sorted(times) == sorted(id(r.chain) for r in moved)
    assert all(0 <= 2 * r.at_s - times[id(r.chain)] <= 0.5 for r in moved)
    assert [r.at_s for r in moved] == sorted(r.at_s for r in moved)
    middle = part(requests, 10.0, 5.0)
    assert middle and middle[0].at_s >= 0 and middle[-1].at_s < 5


def test_a_coarse_clock_is_noticed() -> None:
    requests = synthetic(SMALL, 1)
    assert coarse_step_s(requests) == 0
    ticks = [Request(3.0 * (number // 8), 1, 1, requests[0].chain) for number in range(64)]
    assert coarse_step_s(ticks) == 3
