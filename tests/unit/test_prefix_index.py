"""Who holds what: against a model that keeps a set per target, and what a block costs."""

from __future__ import annotations

import tracemalloc
from array import array
from collections import deque
from collections.abc import Collection
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from proxy.prefixes import prefix_index
from proxy.prefixes.prefix_index import PrefixIndex, Target, mark_depths, marks_of

TARGETS: list[Target] = [
    ((f"decode-{i}", generation), rank) for i in range(2) for generation in (0, 1) for rank in (0, 1)
]
HASHES = [(number + 1) * 0x9E3779B97F4A7C15 % 2**64 for number in range(40)]
TRUNK, *BRANCHES = [[Random(seed).getrandbits(64) for seed in range(part, part + 80)] for part in (100, 200, 300)]
targets = st.sampled_from(TARGETS)
branches = st.sampled_from(BRANCHES)
lengths = st.integers(0, 160)


def chain_of(branch: list[int], length: int) -> array[int]:
    return array("Q", [*TRUNK, *branch][:length])


class Model(RuleBasedStateMachine):
    """Prompts share a trunk and branch. Targets give up the ends of what they hold."""

    def __init__(self) -> None:
        super().__init__()
        self.index = PrefixIndex()
        self.held: dict[Target, set[int]] = {target: set() for target in TARGETS}
        self.promised: dict[Target, array[int]] = {}

    @rule(at=targets, branch=branches, length=lengths)
    def store(self, at: Target, branch: list[int], length: int) -> None:
        self.index.store(at, chain_of(branch, length))
        self.held[at] |= set(chain_of(branch, length))

    @rule(at=targets, branch=branches, length=lengths)
    def remove(self, at: Target, branch: list[int], length: int) -> None:
        gone = [*TRUNK, *branch][length:]
        if length < len(TRUNK):
            gone += [block for each in BRANCHES for block in each]
        self.index.remove(at, array("Q", gone))
        self.held[at] -= set(gone)

    @rule(at=targets, branch=branches, length=lengths)
    def promise(self, at: Target, branch: list[int], length: int) -> None:
        if at not in self.promised:
            self.promised[at] = chain_of(branch, length)
            self.index.promise(at, marks_of(self.promised[at]))

    @rule(at=targets)
    def keep(self, at: Target) -> None:
        self.index.keep(at, marks_of(self.promised.pop(at, ())))

    @rule(at=targets)
    def clear(self, at: Target) -> None:
        self.index.clear(at)
        self.held[at] = set()
        self.promised.pop(at, None)

    @rule(at=targets, rounds=st.integers(1, 70))
    def much_happens(self, at: Target, rounds: int) -> None:
        for _ in range(rounds):
            self.index.remove(at, ())

    @invariant()
    def counts_are_right(self) -> None:
        assert {t: self.index.blocks_of(t) for t in TARGETS} == {t: len(held) for t, held in self.held.items()}
        assert self.index.num_blocks >= len(set().union(*self.held.values()))

    @rule(branch=branches, length=lengths)
    def ask(self, branch: list[int], length: int) -> None:
        """What is held is told exactly; of what is promised, the blocks between two marks may be left out."""
        chain = chain_of(branch, length)
        told = self.index.leading(chain, marks_of(chain))
        assert all(told.values())
        for target in TARGETS:
            held, promised = (depth_in(of, chain) for of in (self.held[target], self.promised.get(target, ())))
            whole = promised == len(chain) == len(self.promised.get(target, ()))
            least = promised if whole else max((at for at in mark_depths(160) if at <= promised), default=0)
            assert max(held, least) <= told.get(target, 0) <= max(held, promised)


def depth_in(blocks: Collection[int], chain: array[int]) -> int:
    return next((i for i, block in enumerate(chain) if block not in blocks), len(chain))


TestModel = Model.TestCase


@given(st.integers(1, 60), st.integers(0, 60))
def test_a_chain_that_is_held_in_part(length: int, held: int) -> None:
    index = PrefixIndex()
    chain = [Random(7).getrandbits(64) + i for i in range(length)]
    index.store(TARGETS[0], chain[:held])
    assert index.leading(chain) == ({TARGETS[0]: min(held, length)} if held else {})


def test_what_a_cleared_target_had_is_forgotten_in_the_end_and_its_place_is_used_again() -> None:
    index = PrefixIndex()
    for life in range(200):
        index.store((("decode-0", life), 0), HASHES)
        index.clear((("decode-0", life), 0))
    for _ in range(1 << prefix_index.SHARD_BITS):
        index.remove(TARGETS[0], ())
    assert index.num_blocks == 0
    assert index._live == 0 and not index._dead


@pytest.mark.parametrize("num_blocks", [1_000, 2_750, 4_000])  # 8 x 2,750: just after dictionaries have grown
@pytest.mark.parametrize("num_holders", [1, 3])
def test_a_block_takes_at_most_100_bytes(num_blocks: int, num_holders: int) -> None:
    """Also after every block has been replaced several times, which leaves dictionaries sparse."""
    random, all_targets = Random(1), [((f"decode-{i}", 0), 0) for i in range(8)]
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    index = PrefixIndex()
    batches: deque[tuple[list[Target], array[int]]] = deque()
    for i in range(4 * 8 * num_blocks // 50):
        holders = [all_targets[(i + j) % 8] for j in range(num_holders)]
        batches.append((holders, array("Q", (random.getrandbits(64) for _ in range(50)))))
        for target in holders:
            index.store(target, batches[-1][1])
        if len(batches) > 8 * num_blocks // 50:
            holders, old = batches.popleft()
            for target in holders:
                index.remove(target, old)
    batches.clear()
    used = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert index.num_blocks == 8 * num_blocks // 50 * 50
    assert used / index.num_blocks <= 100
