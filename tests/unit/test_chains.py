"""Hashes of blocks: equal where the prefix is, and only there; both ends must make the same ones."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from workers.digest.chains import NO_PARENT, Hasher, Media, extra, extras, pack, unpack

HASHER = Hasher(b"secret")
BLOCK_SIZE = 4
token_ids = st.lists(st.integers(0, 2**32 - 1), max_size=40)


def test_the_hashes_are_the_ones_reviewed() -> None:
    """A change here is a new protocol: hosts and proxies of one run must agree."""
    hashes = HASHER.chain(range(8), BLOCK_SIZE, {1: b"4"})
    assert [f"{key:016x}" for key in hashes] == ["71643ebe910bf911", "7ed7d4ff1e313fb8"]


def test_another_runs_hashes_are_others() -> None:
    other = Hasher(b"another secret").chain(range(40), BLOCK_SIZE)
    assert not set(other) & set(HASHER.chain(range(40), BLOCK_SIZE))


@given(token_ids)
def test_a_chain_is_its_blocks_hashed_one_by_one(tokens: list[int]) -> None:
    parent, expected = NO_PARENT, []
    for start in range(0, len(tokens) - BLOCK_SIZE + 1, BLOCK_SIZE):
        (parent,) = HASHER.chain(tokens[start : start + BLOCK_SIZE], BLOCK_SIZE, parent=parent)
        expected.append(parent)
    assert HASHER.chain(tokens, BLOCK_SIZE).tolist() == expected


@given(st.integers(0, 2**17), st.integers(0, 2**17), st.integers(0, 3), st.integers(0, 3))
def test_tokens_that_trade_places_or_amounts_are_told_apart(one: int, other: int, here: int, there: int) -> None:
    """What sums are blind to."""
    assume(one not in (other, other + 1) and here != there)
    tokens, swapped, moved = ([0] * BLOCK_SIZE for _ in range(3))
    tokens[here], tokens[there] = one, other + 1
    swapped[here], swapped[there] = other + 1, one
    moved[here], moved[there] = one + 1, other
    assert len({HASHER.chain(ids, BLOCK_SIZE)[0] for ids in (tokens, swapped, moved)}) == 3


@given(token_ids, token_ids)
def test_two_chains_share_as_many_blocks_as_their_prompts(one: list[int], other: list[int]) -> None:
    shared = 0
    while shared < min(len(one), len(other)) and one[shared] == other[shared]:
        shared += 1
    pairs = list(zip(HASHER.chain(one, BLOCK_SIZE), HASHER.chain(other, BLOCK_SIZE), strict=False))
    assert [a == b for a, b in pairs] == [number < shared // BLOCK_SIZE for number in range(len(pairs))]


@given(token_ids, st.integers(0, 9))
def test_a_chain_goes_on_where_another_ends(tokens: list[int], num_blocks: int) -> None:
    start, rest = tokens[: num_blocks * BLOCK_SIZE], tokens[num_blocks * BLOCK_SIZE :]
    head = HASHER.chain(start, BLOCK_SIZE)
    tail = HASHER.chain(rest, BLOCK_SIZE, parent=head[-1] if head else NO_PARENT)
    assert head + tail == HASHER.chain(tokens, BLOCK_SIZE)


@given(token_ids)
def test_a_packed_chain_is_unpacked(tokens: list[int]) -> None:
    hashes = HASHER.chain(tokens, BLOCK_SIZE)
    assert unpack(pack(hashes)) == hashes
    assert len(pack(hashes)) == 8 * len(hashes)


def test_what_is_no_whole_number_of_hashes_is_refused() -> None:
    with pytest.raises(ValueError):
        unpack(b"seven77")


def test_what_kv_depends_on_separates_chains_from_there_on() -> None:
    tokens = range(16)
    plain = HASHER.chain(tokens, BLOCK_SIZE)
    pictured = HASHER.chain(tokens, BLOCK_SIZE, extras(4, BLOCK_SIZE, None, None, [Media("cat", 5, 2)]))
    assert [a == b for a, b in zip(plain, pictured, strict=True)] == [True, False, False, False]


def test_no_two_of_the_things_that_kv_depends_on_are_taken_for_each_other() -> None:
    ways = [
        extras(1, BLOCK_SIZE, None, None, []).get(0, b""),
        extras(1, BLOCK_SIZE, "a", None, [])[0],
        extras(1, BLOCK_SIZE, None, "a", [])[0],
        extras(1, BLOCK_SIZE, "a", "a", [])[0],
        extras(1, BLOCK_SIZE, None, None, [Media("a", 0, 1)])[0],
        extras(1, BLOCK_SIZE, None, None, [Media("a", 1, 1)])[0],
        extras(1, BLOCK_SIZE, None, None, [Media("b", 0, 1)])[0],
        extras(1, BLOCK_SIZE, None, None, [Media("a", 0, 1), Media("b", 1, 1)])[0],
    ]
    assert len({HASHER.chain(range(4), BLOCK_SIZE, {0: way})[0] for way in ways}) == len(ways)


def test_extras_lie_in_the_blocks_that_they_concern() -> None:
    media = [Media("cat", 3, 6), Media("dog", 10, 2)]
    assert extras(4, BLOCK_SIZE, None, "salt", media) == {
        0: extra(None, [("cat", 3), "salt"]),
        1: extra(None, [("cat", -1)]),
        2: extra(None, [("cat", -5), ("dog", 2)]),
    }
    assert extras(2, BLOCK_SIZE, "tuned", None, media) == {
        0: extra("tuned", [("cat", 3)]),
        1: extra("tuned", [("cat", -1)]),
    }
    assert extras(3, BLOCK_SIZE, "tuned", None, []) == dict.fromkeys(range(3), extra("tuned", []))
    assert extras(0, BLOCK_SIZE, None, "salt", []) == {}


def test_ids_larger_than_any_models_have_hashes_too() -> None:
    assert HASHER.chain([1 << 32 | 5] * 16, 16) != HASHER.chain([1 << 32 | 6] * 16, 16)
    assert HASHER.chain([5, 1 << 40], 2) == HASHER.chain([5, 1 << 32], 2)
