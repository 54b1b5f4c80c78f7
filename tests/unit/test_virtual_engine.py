"""The benchmark's engine by blocks against the simulator's scheduler by tokens: the same requests, the same times."""

from __future__ import annotations

import heapq
import random
from array import array
from dataclasses import dataclass

import pytest

from launcher.twin.card import Card
from launcher.twin.engine import NEVER, Engine
from launcher.twin.work import Ended, Fetch, First, Work
from workers.engines.sim import events as ev
from workers.engines.sim.core import Scheduler
from workers.engines.sim.events import Timing

SIZE = 16
TRANSFER_S = 0.013


@dataclass(frozen=True)
class Ask:
    at_s: float
    prompt: tuple[int, ...]  # one number per block of tokens, then what is left
    num_prompt: int
    num_output: int
    hold: bool
    remote: bool


def asks(seed: int, num: int, gap_s: float, legs: bool) -> list[Ask]:
    """Prompts that share leading blocks."""
    rng = random.Random(seed)
    stems = [tuple(rng.randrange(1, 10**9) for _ in range(rng.randrange(1, 12))) for _ in range(4)]
    found, at_s = [], 0.0
    for _ in range(num):
        at_s += rng.choice((0.0, rng.expovariate(1 / gap_s)))
        stem = rng.choice(stems)[: rng.randrange(1, 13)]
        prompt = (*stem, *(rng.randrange(1, 10**9) for _ in range(rng.randrange(8))))
        if rng.random() < 0.3:
            stems[rng.randrange(4)] = prompt
        hold, remote = legs and rng.random() < 0.3, legs and rng.random() < 0.4
        num_output = 1 if hold else rng.randrange(1, 60)
        found.append(Ask(at_s, prompt, len(prompt) * SIZE + rng.randrange(SIZE), num_output, hold, remote and not hold))
    return found


Times = dict[int, tuple[int, float, float]]  # request -> cached tokens, first token, end


def by_tokens(card: Card, asked: list[Ask]) -> tuple[Times, int]:
    core = Scheduler(card.core())
    first: dict[int, float] = {}
    cached: dict[int, int] = {}
    ends: dict[int, float] = {}
    todo = [(ask.at_s, id, _submit(id, ask)) for id, ask in enumerate(asked)]
    heapq.heapify(todo)
    while todo or core.next_at is not None:
        if core.next_at is not None and (not todo or core.next_at <= todo[0][0]):
            now, event = core.next_at, ev.Tick()
        else:
            now, _, event = heapq.heappop(todo)
        for effect in core.apply(event, now):
            if isinstance(effect, ev.Scheduled):
                cached[effect.id] = effect.num_cached_tokens
            elif isinstance(effect, ev.Tokens):
                for id in effect.ids:
                    first.setdefault(id, now)
            elif isinstance(effect, ev.Ended):
                ends[effect.id] = now
                if asked[effect.id].hold:
                    heapq.heappush(todo, (now + TRANSFER_S, effect.id, ev.Release(effect.id)))
            elif isinstance(effect, ev.Fetch):
                heapq.heappush(todo, (now + TRANSFER_S, effect.id, ev.Arrived(effect.id, [])))
    return {id: (cached[id], first[id], ends[id]) for id in ends}, core.counters.preemptions


def _submit(id: int, ask: Ask) -> ev.Event:
    tokens = [token for block in ask.prompt for token in range(block, block + SIZE)]
    tokens += [10**10 + id] * (ask.num_prompt - len(tokens))
    return ev.Submit(id, tokens, ask.num_output, hold=ask.hold, remote=ask.remote)


def by_blocks(card: Card, asked: list[Ask]) -> tuple[Times, int]:
    engine = Engine(card)
    first: dict[int, tuple[int, float]] = {}
    ends: dict[int, float] = {}
    todo: list[tuple[float, int, str]] = [(ask.at_s, id, "submit") for id, ask in enumerate(asked)]
    heapq.heapify(todo)
    hashes: dict[tuple[int, ...], int] = {}
    while todo or engine.next_at != NEVER:
        if engine.next_at <= (todo[0][0] if todo else NEVER):
            now = engine.next_at
            effects = engine.tick(now)
        else:
            now, id, what = heapq.heappop(todo)
            if what == "submit":
                ask = asked[id]
                prefixes = [ask.prompt[: end + 1] for end in range(len(ask.prompt))]
                chain = array("Q", [hashes.setdefault(prefix, len(hashes) + 1) for prefix in prefixes])
                effects = engine.submit(Work(id, chain, ask.num_prompt, ask.num_output, ask.hold, ask.remote), now)
            else:
                effects = (engine.release if what == "release" else engine.arrive)(id, now)
        for effect in effects:
            if isinstance(effect, First):
                first[effect.id] = (effect.num_cached, now)
            elif isinstance(effect, Ended):
                ends[effect.id] = now
                if asked[effect.id].hold:
                    heapq.heappush(todo, (now + TRANSFER_S, effect.id, "release"))
            elif isinstance(effect, Fetch):
                heapq.heappush(todo, (now + TRANSFER_S, effect.id, "arrive"))
    assert engine.cache.num_used == 0 and engine.unread_tokens == 0
    return {id: (*first[id], ends[id]) for id in ends}, engine.num_preemptions


@pytest.mark.parametrize("legs", [False, True])
@pytest.mark.parametrize("model", ["additive", "mixed"])
@pytest.mark.parametrize(("num_blocks", "max_num_seqs", "gap_s"), [(400, 256, 0.1), (90, 256, 0.3), (400, 4, 0.1)])
@pytest.mark.parametrize("seed", range(4))
def test_both_engines_answer_at_the_same_times(
    num_blocks: int, max_num_seqs: int, gap_s: float, model: str, legs: bool, seed: int
) -> None:
    card = Card(
        block_size=SIZE,
        kv_tokens=num_blocks * SIZE,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=200,
        timing=Timing(model=model),  # type: ignore[arg-type]
        lease_s=1e6,
    )
    asked = asks(seed, 150, gap_s, legs)
    expected, preemptions = by_tokens(card, asked)
    found, ours = by_blocks(card, asked)
    assert len(expected) == len(found) == len(asked)
    assert ours == preemptions
    for id, times in expected.items():
        assert found[id] == pytest.approx(times), id
