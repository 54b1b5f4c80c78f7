"""The whole way of a digest against a model of an engine's cache, with every loss on it that can be thought of.

What the index claims was in the cache since the last resync, at every step; after a resync it is the cache.
"""

from __future__ import annotations

from collections import Counter, deque
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from proxy.fleet.worker import Key
from proxy.prefixes.digests import Digests, Left, Met, Told, Want
from proxy.prefixes.prefix_index import PrefixIndex, Target
from workers.digest.chains import Hasher
from workers.digest.digest import HeldBlocks
from workers.digest.digest_telling import Telling
from workers.digest.kv_events import AllBlocksCleared, Batch, BlockRemoved, BlockStored, Event
from workers.digest.kv_feed import ANSWER_S, Answered, Ask, Feed, Heard, Take, Tick

HASHER = Hasher(b"secret")
BLOCK_SIZE = 2
KEPT = 5  # batches that the engine can replay
Prefix = tuple[int, ...]
prefixes = st.lists(st.integers(0, 1), min_size=1, max_size=4).map(tuple)  # one token per block stands for all of it


def engine_hash(prefix: Prefix) -> int:
    return 1000 + int("1" + "".join(map(str, prefix)), 2)


def our_hash(prefix: Prefix) -> int:
    return HASHER.chain([token for token in prefix for _ in range(BLOCK_SIZE)], BLOCK_SIZE)[-1]


class Engine:
    """Its cache keeps as many copies of a block as it has computed; its batches are numbered from 0."""

    def __init__(self) -> None:
        self.copies: Counter[Prefix] = Counter()
        self.kept: deque[Heard] = deque(maxlen=KEPT)
        self._step: list[Event] = []
        self._number = 0

    @property
    def blocks(self) -> set[int]:
        return {our_hash(prefix) for prefix in self.copies}

    def compute(self, prefix: Prefix, *, anew: bool) -> None:
        """What is cached is not computed, unless another request has begun to do so at the same time."""
        first = 0 if anew else next((n for n in range(len(prefix)) if prefix[: n + 1] not in self.copies), len(prefix))
        parts = [prefix[: n + 1] for n in range(first, len(prefix))]
        if parts:
            self.copies.update(parts)
            parent = engine_hash(prefix[:first]) if first else None
            tokens = [part[-1] for part in parts for _ in range(BLOCK_SIZE)]
            self._step.append(BlockStored([engine_hash(part) for part in parts], parent, tokens, BLOCK_SIZE))

    def evict(self, prefix: Prefix) -> None:
        self.copies[prefix] -= 1
        self.copies = +self.copies
        self._step.append(BlockRemoved([engine_hash(prefix)]))

    def clear(self) -> None:
        self.copies.clear()
        self._step.append(AllBlocksCleared())

    def publish(self) -> Heard:
        heard = Heard(self._number, Batch(0.0, self._step))
        self.kept.append(heard)
        self._number += 1
        self._step = []
        return heard


class DigestMachine(RuleBasedStateMachine):
    @initialize()
    def start(self) -> None:
        self.now = 0.0
        self.generation = 0
        self.recent: set[int] = set()  # in the cache at any time since the last resync
        self.start_proxy()
        self.start_engine()

    def start_engine(self) -> None:
        self.engine, self.feed, self.held = Engine(), Feed(), HeldBlocks(HASHER, BLOCK_SIZE)
        self.delayed: list[Heard] = []
        self.asked: list[Ask] = []
        self.hear(Tick())
        self.open_link()

    def start_proxy(self) -> None:
        self.index = PrefixIndex()
        self.digests = Digests(self.index)

    def open_link(self) -> None:
        self.telling: Telling | None = None
        self.wanted: list[Want] = self.digests.apply(Met(self.key, 1))

    @property
    def key(self) -> Key:
        return ("decode-0", self.generation)

    @property
    def target(self) -> Target:
        return (self.key, 0)

    def claims(self) -> set[int]:
        universe = {our_hash(tuple(map(int, f"{bits:0{n}b}"))) for n in range(1, 5) for bits in range(2**n)}
        return {block for block in universe if self.target in self.index.leading((block,))}

    # ------------------------------------------------------------ the engine

    @rule(
        prompts=st.lists(st.tuples(prefixes, st.booleans()), max_size=3),
        evictions=st.lists(st.integers(0, 9), max_size=3),
        clear=st.sampled_from([False] * 9 + [True]),
        fate=st.sampled_from(["arrives", "arrives", "arrives", "is lost", "arrives twice", "is late"]),
    )
    def step(self, prompts: list[tuple[Prefix, bool]], evictions: list[int], clear: bool, fate: str) -> None:
        if clear:
            self.engine.clear()
        for prefix, anew in prompts:
            self.engine.compute(prefix, anew=anew)
        self.recent |= self.engine.blocks
        for place in evictions:
            if self.engine.copies:
                self.engine.evict(sorted(self.engine.copies)[place % len(self.engine.copies)])
        heard = self.engine.publish()
        for _ in range({"arrives": 1, "arrives twice": 2}.get(fate, 0)):
            self.hear(heard)
        if fate == "is late":
            self.delayed.append(heard)

    @precondition(lambda self: self.delayed)
    @rule(data=st.data())
    def arrive_late(self, data: Any) -> None:
        self.hear(self.delayed.pop(data.draw(st.integers(0, len(self.delayed) - 1))))

    @precondition(lambda self: self.asked)
    @rule(lost=st.sets(st.integers(0, KEPT)))
    def replay(self, lost: set[int]) -> None:
        """Parts of the answer may be lost, its end too."""
        first = self.asked.pop(0).first
        for place, heard in enumerate(list(self.engine.kept)):
            if heard.number >= first and place not in lost:
                self.hear(heard)
        if KEPT not in lost:
            self.hear(Answered())

    @rule(seconds=st.sampled_from([0.1, ANSWER_S]))
    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.hear(Tick())

    def hear(self, event: Heard | Answered | Tick) -> None:
        for effect in self.feed.apply(event, self.now):
            if isinstance(effect, Ask):
                self.asked.append(effect)
            else:
                self.held.apply(effect)
                assert isinstance(effect, Take) or not len(self.held)

    # ------------------------------------------------------------ host and proxy

    @rule(limit=st.integers(1, 3), lost=st.sets(st.integers(0, 4)))
    def tell(self, limit: int, lost: set[int]) -> None:
        """The link itself loses nothing in silence; this must hold even if it lost changes."""
        if self.wanted:
            self.wanted.clear()
            self.telling = Telling(self.held, 0)
        changes = self.held.changes()
        if self.telling is not None:
            self.telling.changed(changes)
            for place in range(limit):
                if self.telling.has_more:
                    digest = self.telling.next(0.0)
                    if digest.snapshot or place not in lost:
                        self.wanted += self.digests.apply(Told(self.key, digest))

    # ------------------------------------------------------------ ends

    @rule(what=st.sampled_from(["link", "proxy", "engine", "engine, noticed late"]))
    def end(self, what: str) -> None:
        old = self.key
        if what == "proxy":
            self.start_proxy()
        elif what != "engine, noticed late":
            self.digests.apply(Left(old))
        if what.startswith("engine"):
            self.generation += 1
            self.start_engine()
            self.digests.apply(Left(old))
            assert not any(key == old for key, _ in self.digests.followed)
        else:
            self.open_link()

    # ------------------------------------------------------------ what must hold

    @rule()
    def resync(self) -> None:
        """All that is on its way arrives, and each side asks once more. Something changes: else no gap would show."""
        first = (0,)
        for prompts in ([], [(first, False)]):
            while not prompts and first in self.engine.copies:
                self.engine.evict(first)
            self.step(prompts, [], False, "arrives")
            self.tick(ANSWER_S)
            while self.asked:
                self.replay(set())
            self.tell(100, set())
        self.tell(100, set())
        assert self.claims() == self.held_blocks()
        assert self.held_blocks() <= self.engine.blocks
        if not self.feed.num_losses:
            assert self.claims() == self.engine.blocks
        self.recent = self.engine.blocks

    def held_blocks(self) -> set[int]:
        return set(self.held.snapshot())

    @invariant()
    def nothing_is_claimed_that_left_before_the_last_resync(self) -> None:
        if hasattr(self, "engine"):
            claims = self.claims()
            assert claims <= self.recent
            assert self.index.blocks_of(self.target) == len(claims)

    def teardown(self) -> None:
        if hasattr(self, "engine"):
            self.resync()


TestDigests = DigestMachine.TestCase
TestDigests.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
